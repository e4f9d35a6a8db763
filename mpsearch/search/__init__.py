"""Solvers: one format a unit under every budget. One method a file; no torch."""

from mpsearch.protocols import Solver
from mpsearch.search.bayes import Bayes
from mpsearch.search.channels import predicted_by_channel, split_channels
from mpsearch.search.feasible import check_feasible
from mpsearch.search.greedy import Greedy
from mpsearch.search.ilp import Ilp
from mpsearch.search.judge import solve
from mpsearch.search.quadratic import Quadratic
from mpsearch.search.refine import Refine
from mpsearch.search.size_only import SizeOnly
from mpsearch.search.uniform import Uniform

SOLVERS: dict[str, type[Solver]] = {
    "ilp": Ilp,
    "bayes": Bayes,
    "greedy": Greedy,
    "quadratic": Quadratic,
    "refine": Refine,
    "uniform": Uniform,
    "size-only": SizeOnly,
}

__all__ = [
    "SOLVERS",
    "Bayes",
    "Greedy",
    "Ilp",
    "Quadratic",
    "Refine",
    "SizeOnly",
    "Uniform",
    "check_feasible",
    "predicted_by_channel",
    "solve",
    "split_channels",
]
