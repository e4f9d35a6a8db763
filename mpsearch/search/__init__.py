"""Solvers: one format a unit under every budget. One method a file; no torch."""

from mpsearch.protocols import Solver
from mpsearch.search.bayes import Bayes
from mpsearch.search.bisect import Bisect
from mpsearch.search.channels import predicted_by_channel, split_channels, splittable
from mpsearch.search.dominated import counted, dominated, undominated
from mpsearch.search.feasible import check_feasible
from mpsearch.search.ilp import Ilp
from mpsearch.search.judge import solve
from mpsearch.search.refine import Refine
from mpsearch.search.size_only import SizeOnly
from mpsearch.search.uniform import Uniform
from mpsearch.search.units import merged, naming_rules, problem_of

SOLVERS: dict[str, type[Solver]] = {
    "ilp": Ilp,
    "bayes": Bayes,
    "refine": Refine,
    "uniform": Uniform,
    "size-only": SizeOnly,
}

__all__ = [
    "SOLVERS",
    "Bayes",
    "Bisect",
    "Ilp",
    "Refine",
    "SizeOnly",
    "Uniform",
    "check_feasible",
    "counted",
    "dominated",
    "merged",
    "naming_rules",
    "predicted_by_channel",
    "problem_of",
    "solve",
    "split_channels",
    "splittable",
    "undominated",
]
