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
from mpsearch.search.uniform import uniform_choices
from mpsearch.types import TOLERANCE, Answer, Choice, Problem

ROUNDS = 4  # of rescaling; each at least halves the largest damage that still matters


@dataclass(frozen=True)
class Ilp:
    """Least sum of damages under every budget, one boolean a choice, cvxpy in matrix form on HiGHS.

    HiGHS compares with absolute tolerances, while damages span many orders of magnitude. So the objective is measured
    from the best cell of every unit, in units of the best answer so far, without the cells that alone exceed it, and
    solved again as long as that answer shrinks.

    Attributes:
        gap: relative gap at which HiGHS may stop; its default of 1e-4 is not optimal.
        time_limit: seconds; the best feasible answer so far is returned with its bound.
    """

    gap: float = 1e-6
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if self.gap < 0 or self.time_limit <= 0:
            raise UsageError(f"ilp needs gap >= 0 and time_limit > 0, not {self.gap} and {self.time_limit}")

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        floor = np.fmin.reduce(problem.damage.values, axis=1)
        gains = problem.damage.values - floor[:, None]
        best, total = _incumbent(problem, gains)
        status, bound = "optimal", 0.0
        for _ in range(ROUNDS if total > 0 else 0):
            unit = total if np.isfinite(total) else float(np.nanmax(gains)) or 1.0
            cells = np.argwhere(problem.allowed & (gains <= unit * (1 + 1e-9)))
            solved = _minimise(problem, cells, gains[tuple(cells.T)] / unit, self.gap, self.time_limit)
            if solved is None:
                break
            found, status, bound = solved[0], solved[1], solved[2] * unit
            shrunk = _total(gains, found)
            if problem.feasible(found) and shrunk < total:
                best, total, before = found, shrunk, total
                if total == 0 or total > before / 2:
                    break
            else:
                break
        if best is None:
            raise InfeasibleBudget(_conflict(problem))
        return Answer("ilp", best, status, min(bound, total) + float(floor.sum()))


def _total(gains: NDArray[np.float64], choice: Choice) -> float:
    return float(gains[np.arange(len(choice)), choice].sum())


def _incumbent(problem: Problem, gains: NDArray[np.float64]) -> tuple[Choice | None, float]:
    """A feasible choice that needs no search, and what it costs in damage; infinite when none is at hand."""
    shares = [np.where(problem.allowed, limit.costs.values / limit.limit, np.inf) for limit in problem.limits]
    cheapest = [np.sum(shares, axis=0).argmin(1)] if shares else []
    least = np.nanargmin(gains, axis=1)
    feasible = [choice for choice in (least, *cheapest, *uniform_choices(problem)) if problem.feasible(choice)]
    if not feasible:
        return None, np.inf
    best = min(feasible, key=lambda choice: _total(gains, choice))
    return best, _total(gains, best)


def _minimise(
    problem: Problem, cells: NDArray[np.int64], objective: NDArray[np.float64], gap: float, seconds: float
) -> tuple[Choice, str, float] | None:
    """(choice, status, lower bound), or None when no choice of the cells meets the limits."""
    rows, count = cells[:, 0], len(cells)
    x = cp.Variable(count, boolean=True)
    once = sp.csr_array((np.ones(count), (rows, np.arange(count))), shape=(len(problem.units), count))
    constraints: list[Any] = [cp.Constant(once) @ x == 1]
    if problem.limits:
        costs = np.stack([limit.costs.values[tuple(cells.T)] for limit in problem.limits])
        room = np.array([limit.limit - limit.costs.constant for limit in problem.limits])
        constraints.append(cp.Constant(costs / room[:, None]) @ x <= 1)
    program = cp.Problem(cp.Minimize(objective @ x), constraints)
    # By default HiGHS accepts rows violated by 1e-6, which is a byte in a megabyte too many.
    options = {"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE}
    options |= {"mip_rel_gap": gap, "mip_abs_gap": 0.0, "time_limit": seconds}
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


def _conflict(problem: Problem) -> str:
    """Each budget can be met alone, but not together: how small each gets under the others."""
    names = " and ".join(str(limit.budget) for limit in problem.limits)
    cells = np.argwhere(problem.allowed)
    hints = []
    for limit in problem.limits:
        rest = Problem(problem.damage, tuple(other for other in problem.limits if other is not limit))
        objective = limit.costs.values[tuple(cells.T)]
        if solved := _minimise(rest, cells, objective / objective.max(), 0.0, 60.0):
            hints.append(spell(limit, limit.of(solved[0])))
    least = f": under the others the smallest feasible value is {' or '.join(hints)}" if hints else ""
    return f"{names} cannot be met together{least}"
