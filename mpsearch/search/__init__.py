"""Solvers: one format a unit under every budget. One method a file; no torch."""

from mpsearch.protocols import Solver
from mpsearch.search.bayes import Bayes
from mpsearch.search.bisect import Bisect
from mpsearch.search.channels import bound_by_channel, predicted_by_channel, split_channels, splittable
from mpsearch.search.diverse import diverse
from mpsearch.search.dominated import counted, dominated, undominated
from mpsearch.search.feasible import check_feasible
from mpsearch.search.greedy import Greedy
from mpsearch.search.ilp import Ilp
from mpsearch.search.judge import solve
from mpsearch.search.lagrange import Lagrange
from mpsearch.search.leaps import leap_channels
from mpsearch.search.pareto import knee, pareto
from mpsearch.search.quadratic import Quadratic
from mpsearch.search.refine import Refine
from mpsearch.search.singles import Singles
from mpsearch.search.size_only import SizeOnly
from mpsearch.search.uniform import Uniform
from mpsearch.search.units import merged, naming_rules, problem_of

SOLVERS: dict[str, type[Solver]] = {
    "ilp": Ilp,
    "lagrange": Lagrange,
    "bayes": Bayes,
    "greedy": Greedy,
    "quadratic": Quadratic,
    "refine": Refine,
    "singles": Singles,
    "uniform": Uniform,
    "size-only": SizeOnly,
}

__all__ = [
    "SOLVERS",
    "Bayes",
    "Bisect",
    "Greedy",
    "Ilp",
    "Lagrange",
    "Quadratic",
    "Refine",
    "Singles",
    "SizeOnly",
    "Uniform",
    "bound_by_channel",
    "check_feasible",
    "counted",
    "diverse",
    "dominated",
    "knee",
    "leap_channels",
    "merged",
    "naming_rules",
    "pareto",
    "predicted_by_channel",
    "problem_of",
    "solve",
    "split_channels",
    "splittable",
    "undominated",
]
