"""Solvers: one format a unit under every budget. One method a file; no torch."""

from mpsearch.protocols import Solver
from mpsearch.search.bayes import Bayes
from mpsearch.search.channels import predicted_by_channel, split_channels
from mpsearch.search.diverse import diverse
from mpsearch.search.feasible import check_feasible
from mpsearch.search.ilp import Ilp
from mpsearch.search.judge import solve
from mpsearch.search.lagrange import Lagrange
from mpsearch.search.pareto import knee, pareto
from mpsearch.search.refine import Refine
from mpsearch.search.size_only import SizeOnly
from mpsearch.search.uniform import Uniform

SOLVERS: dict[str, type[Solver]] = {
    "ilp": Ilp,
    "lagrange": Lagrange,
    "bayes": Bayes,
    "refine": Refine,
    "uniform": Uniform,
    "size-only": SizeOnly,
}

__all__ = [
    "SOLVERS",
    "Bayes",
    "Ilp",
    "Lagrange",
    "Refine",
    "SizeOnly",
    "Uniform",
    "check_feasible",
    "diverse",
    "knee",
    "pareto",
    "predicted_by_channel",
    "solve",
    "split_channels",
]
