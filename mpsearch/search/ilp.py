"""``ilp``: the multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.search.feasible import check_feasible
from mpsearch.search.lagrange import Lagrange, bracket
from mpsearch.search.program import Program
from mpsearch.search.relaxation import Relaxed, from_best
from mpsearch.types import Answer, Choice, Problem

LARGE = 5000  # units: from here on HiGHS finds nothing
RESCALE = 20  # solve again when the answer came this much closer to the bound: HiGHS's tolerances are absolute
ROUNDING = 1e-8  # of those tolerances, taken off what HiGHS calls proven


@dataclass(frozen=True)
class Ilp:
    """Least sum of damages under every budget: Lagrangian relaxation, exact search in its core, then HiGHS.

    HiGHS compares with absolute tolerances, while damages span many orders of magnitude. So the relaxation comes first;
    its prices give a lower bound and a reduced cost for every choice, its repair an upper bound. Choices whose reduced
    cost exceeds the distance of the two cannot be in a better answer and are dropped (Pisinger, "A minimal
    algorithm for the multiple-choice knapsack problem", 1995). What the search in the core does not prove is solved in
    units of that distance; in problems of many thousand units :class:`~mpsearch.search.lagrange.Lagrange` has the last
    word, and the answer names it.

    Attributes:
        gap: relative gap at which to stop; HiGHS's own default of 1e-4 is not optimal.
        time_limit: seconds; the best feasible answer so far is returned with its bound.
    """

    gap: float = 1e-6
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if self.gap < 0 or self.time_limit <= 0:
            raise UsageError(f"ilp needs gap >= 0 and time_limit > 0, not {self.gap} and {self.time_limit}")

    def __call__(self, problem: Problem) -> Answer:
        if len(problem.units) > LARGE:
            return Lagrange(self.gap, self.time_limit)(problem)
        check_feasible(problem)
        gains, offset = from_best(problem)
        best, bound, status = self._search(gains)
        return Answer("ilp", best, status, bound + offset)

    def _search(self, problem: Problem) -> tuple[Choice, float, str]:
        """(choice, lower bound, status) for damages whose least in every unit is 0."""
        deadline = time.perf_counter() + self.time_limit
        start, best, value, bound = bracket(problem, self.gap, deadline)
        status, solved = "optimal", np.inf  # the distance that the last solve was scaled by
        while value - bound > self.gap * value and value - start.bound < solved / RESCALE:
            solved, seconds = value - start.bound, deadline - time.perf_counter()
            found = self._solve(problem, start, solved, value, seconds) if seconds > 0 else None
            if found is None:
                return best, bound, "time limit"
            choice, lower, status = found
            if problem.feasible(choice) and problem.predicted(choice) < value:
                best, value = choice, problem.predicted(choice)
            bound = max(bound, lower)
        return best, min(bound, value), status

    def _solve(
        self, problem: Problem, start: Relaxed, unit: float, value: float, seconds: float
    ) -> tuple[Choice, float, str] | None:
        """(choice, lower bound, status), in units of the distance of answer and bound.

        Counted from what each unit's relaxed choice is priced at, so that only differences are left.
        """
        program = Program(problem, np.argwhere(start.reduced <= unit * (1 + 1e-9)))
        cells = tuple(program.cells.T)
        costs = (start.reduced[cells] - start.shares[cells] @ start.prices) / unit
        status = program.minimise(costs, seconds, self.gap * value / unit)
        if status is None:
            return None
        proven = start.bound + (program.dual_bound - ROUNDING) * unit + float(start.prices.sum())
        return program.choice(), max(start.bound, proven), status
