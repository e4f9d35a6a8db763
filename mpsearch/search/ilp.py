"""``ilp``: the multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleBudget, UsageError
from mpsearch.search.feasible import check_feasible, spell
from mpsearch.types import Answer, Problem

# HiGHS accepts rows violated by 1e-6; limits are shrunk by this much only when an answer used that slack.
SLACK = 2e-6


@dataclass(frozen=True)
class Ilp:
    """Least sum of damages under every budget, one boolean a choice, cvxpy in matrix form on HiGHS.

    Attributes:
        gap: relative gap at which HiGHS may stop; its default of 1e-4 is not optimal.
        time_limit: seconds; the best feasible answer so far is returned with its bound.
    """

    gap: float = 1e-6
    time_limit: float = 60.0

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        cells = np.argwhere(problem.allowed)
        damage = problem.damage.values[tuple(cells.T)]
        answer = self._solve(problem, cells, damage, 1.0) or self._solve(problem, cells, damage, 1.0 - SLACK)
        if answer is None:
            raise InfeasibleBudget(_conflict(problem, cells))
        return answer

    def _solve(
        self, problem: Problem, cells: NDArray[np.int64], damage: NDArray[np.float64], share: float
    ) -> Answer | None:
        floor = np.fmin.reduce(problem.damage.values, axis=1)
        # Distances above the best cell of each unit keep every digit of a gap, whatever the size of the damage.
        gains = damage - floor[cells[:, 0]]
        unit = gains.max() or 1.0
        solved = _minimise(problem, cells, gains / unit, share, self.gap, self.time_limit)
        if solved is None:
            return None
        choice, status, bound = solved
        if not problem.feasible(choice):
            return None
        return Answer("ilp", choice, status, min(bound * unit + float(floor.sum()), problem.predicted(choice)))


def _minimise(
    problem: Problem, cells: NDArray[np.int64], objective: NDArray[np.float64], share: float, gap: float, seconds: float
) -> tuple[NDArray[np.int64], str, float] | None:
    """(choice, status, lower bound), or None when no choice meets the limits."""
    rows, count = cells[:, 0], len(cells)
    x = cp.Variable(count, boolean=True)
    once = sp.csr_array((np.ones(count), (rows, np.arange(count))), shape=(len(problem.units), count))
    constraints: list[Any] = [cp.Constant(once) @ x == 1]
    if problem.limits:
        costs = np.stack([limit.costs.values[tuple(cells.T)] for limit in problem.limits])
        room = np.array([limit.limit - limit.costs.constant for limit in problem.limits])
        constraints.append(cp.Constant(costs / room[:, None]) @ x <= share)
    program = cp.Problem(cp.Minimize(objective @ x), constraints)
    options = {"mip_rel_gap": gap, "mip_abs_gap": 0.0, "time_limit": seconds}
    try:
        program.solve(solver=cp.HIGHS, highs_options=options)  # type: ignore[no-untyped-call]
    except cp.SolverError as error:
        raise UsageError(f"HiGHS gave up: {error}") from None
    if x.value is None:
        return None
    chosen = cells[x.value > 0.5]
    info: Any = program.solver_stats.extra_stats
    status = {"optimal": "optimal", "user_limit": "time limit"}.get(program.status, program.status)
    return chosen[np.argsort(chosen[:, 0]), 1], status, float(info.mip_dual_bound)


def _conflict(problem: Problem, cells: NDArray[np.int64]) -> str:
    """Each budget can be met alone, but not together: how small the first gets under the others."""
    names = " and ".join(str(limit.budget) for limit in problem.limits)
    first, *others = problem.limits
    objective = first.costs.values[tuple(cells.T)]
    rest = Problem(problem.damage, tuple(others))
    solved = _minimise(rest, cells, objective / objective.max(), 1.0, 1e-9, 60.0)
    if solved is None:
        return f"{names} cannot be met together"
    least = spell(first, first.of(solved[0]))
    return f"{names} cannot be met together: under the others the smallest feasible value is {least}"
