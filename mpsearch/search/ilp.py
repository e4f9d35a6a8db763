"""``ilp``: the multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleBudget, UsageError
from mpsearch.search.core import Relaxed, relaxed, room, search_core
from mpsearch.search.feasible import check_feasible, spell
from mpsearch.search.uniform import uniform_choices
from mpsearch.types import TOLERANCE, Answer, Choice, Problem

Array = NDArray[np.float64]
RESCALE = 20  # solve again when the answer came this much closer to the bound: HiGHS's tolerances are absolute
ROUNDING = 1e-8  # of those tolerances, taken off what HiGHS calls proven


@dataclass(frozen=True)
class Ilp:
    """Least sum of damages under every budget, one boolean a choice, cvxpy in matrix form on HiGHS.

    HiGHS compares with absolute tolerances, while damages span many orders of magnitude. So the linear relaxation comes
    first; its multipliers give a lower bound and a reduced cost for every choice, its rounding an upper bound.
    Choices whose reduced cost exceeds the distance of the two cannot be in a better answer and are dropped, and what
    is left is solved in units of that distance.

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
        check_feasible(problem)
        lowest = np.nanmin(problem.damage.values, axis=1, keepdims=True)
        # Counted from the best cell of every unit: a large common offset would swallow the differences that decide.
        gains = replace(problem, damage=replace(problem.damage, values=problem.damage.values - lowest))
        best, value, bound, status = self._search(gains)
        return Answer("ilp", best, status, min(bound, value) + float(lowest.sum()))

    def _search(self, problem: Problem) -> tuple[Choice, float, float, str]:
        """(choice, its damage, lower bound, status) for damages whose least in every unit is 0."""
        deadline = time.perf_counter() + self.time_limit
        best, value = _incumbent(problem, [np.nanargmin(problem.damage.values, axis=1), *uniform_choices(problem)])
        if best is not None and value <= 0:
            return best, value, value, "optimal"
        relaxation = _relax(problem, value, self.time_limit)
        if relaxation is None:
            if best is None:
                best, value = _incumbent(problem, [_closest(problem)])
            return best, value, 0.0, "feasible"
        start, rounded = relaxation
        best, value = _incumbent(problem, [rounded, *([] if best is None else [best])])
        best, value, bound = search_core(problem, start, best, self.gap, deadline)
        status, solved = "optimal", np.inf  # the distance that the last solve was scaled by
        while best is None or (value - bound > self.gap * value and value - start.bound < solved / RESCALE):
            seconds = deadline - time.perf_counter()
            if best is not None and seconds <= 0:
                status = "time limit"
                break
            solved = value - start.bound if best is not None else solved
            found = self._solve(problem, start, solved if best is not None else None, value, max(seconds, 1.0))
            if found is None:
                if best is None:
                    best, value = _incumbent(problem, [_closest(problem)])
                status = "time limit"
                break
            choice, proven, status = found
            bound = max(bound, proven)
            best, value = _incumbent(problem, [choice, *([] if best is None else [best])])
            if best is None:
                best, value = _incumbent(problem, [_closest(problem)])
        return best, value, bound, status

    def _solve(
        self, problem: Problem, start: Relaxed, slack: float | None, value: float, seconds: float
    ) -> tuple[Choice, float, str] | None:
        """(choice, lower bound, status): ``damage − bound = Σ reduced cost + Σ price · unused budget``, all terms >=
        0."""
        keep = start.reduced <= slack * (1 + 1e-9) if slack is not None else problem.allowed
        unit = slack or float(start.reduced[problem.allowed].max()) or 1.0
        program = _Program(problem, np.argwhere(keep), boolean=True)
        cost = start.reduced[tuple(program.cells.T)] / unit
        spent = start.prices / unit @ program.use if problem.limits else 0.0  # the constant Σ price is added below
        status = program.minimise(cost @ program.x - spent, seconds, self.gap * value / unit if slack else 0.0)
        if status is None:
            return None
        proven = start.bound + (program.dual_bound - ROUNDING) * unit + float(start.prices.sum())
        return program.choice(), max(start.bound, proven), status


class _Program:
    """One variable a cell, one cell a unit, every budget met; in cvxpy's matrix form."""

    def __init__(self, problem: Problem, cells: NDArray[np.int64], boolean: bool) -> None:
        self.cells = cells
        self.x = cp.Variable(len(cells), boolean=True) if boolean else cp.Variable(len(cells), nonneg=True)
        spots = (cells[:, 0], np.arange(len(cells)))
        once = sp.csr_array((np.ones(len(cells)), spots), shape=(len(problem.units), len(cells)))
        self.constraints: list[Any] = [cp.Constant(once) @ self.x == 1]
        self.use: Any = None  # share of each budget's room
        if problem.limits:
            costs = np.stack([limit.costs.values[tuple(cells.T)] for limit in problem.limits])
            self.use = cp.Constant(costs / room(problem)[:, None]) @ self.x
            self.constraints.append(self.use <= 1)

    def minimise(self, objective: Any, seconds: float, stop: float = 0.0) -> str | None:
        """Status, or None when nothing meets the constraints in time."""
        self.program = cp.Problem(cp.Minimize(objective), self.constraints)
        # By default HiGHS accepts rows violated by 1e-6, which is a byte in a megabyte too many.
        options = {"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE}
        options |= {"mip_rel_gap": 0.0, "mip_abs_gap": stop, "time_limit": seconds}
        try:
            with warnings.catch_warnings():  # cvxpy warns of a time limit, which the status says
                warnings.simplefilter("ignore", UserWarning)
                self.program.solve(solver=cp.HIGHS, highs_options=options)  # type: ignore[no-untyped-call]
        except cp.SolverError as error:
            raise UsageError(f"HiGHS gave up: {error}") from None
        if self.x.value is None:
            return None
        return {"optimal": "optimal", "user_limit": "time limit"}.get(self.program.status, self.program.status)

    @property
    def dual_bound(self) -> float:
        info: Any = self.program.solver_stats.extra_stats
        return float(info.mip_dual_bound)

    def choice(self) -> Choice:
        """The largest variable of every unit."""
        values: Array = np.asarray(self.x.value)
        order = np.lexsort((-values, self.cells[:, 0]))
        first = np.unique(self.cells[order, 0], return_index=True)[1]
        chosen: Choice = self.cells[order[first], 1]
        return chosen


def _incumbent(problem: Problem, choices: list[Choice]) -> tuple[Any, float]:
    """The feasible one of least damage, and that; (None, infinity) when there is none."""
    feasible = [choice for choice in choices if problem.feasible(choice)]
    best = min(feasible, key=problem.predicted, default=None)
    return best, np.inf if best is None else problem.predicted(best)


def _relax(problem: Problem, slack: float, seconds: float) -> tuple[Relaxed, Choice] | None:
    """The relaxation at the prices of the linear one, and that one rounded."""
    gains = problem.damage.values
    program = _Program(problem, np.argwhere(problem.allowed & (gains <= slack * (1 + 1e-9))), boolean=False)
    picked = gains[tuple(program.cells.T)]
    unit = min(slack, float(picked.max())) or 1.0
    if program.minimise(picked / unit @ program.x, seconds) is None:
        return None
    prices = np.zeros(0)
    if problem.limits:
        prices = np.maximum(np.atleast_1d(program.constraints[1].dual_value), 0.0) * unit
    return relaxed(problem, prices), repair(problem, program.choice())


def repair(problem: Problem, choice: Choice) -> Choice:
    """A rounded relaxation made feasible, if single steps can: least damage for the violation that a step removes."""
    choice, rows, gains = choice.copy(), np.arange(len(choice)), problem.damage.values
    for _ in range(2 * len(choice)):
        over = [max(limit.of(choice) / limit.limit - 1, 0.0) for limit in problem.limits]
        if problem.feasible(choice):
            break
        relief = np.zeros(gains.shape)
        for excess, limit in zip(over, problem.limits, strict=True):
            saved = (limit.costs.values[rows, choice][:, None] - limit.costs.values) / limit.limit
            relief += np.minimum(saved, excess) if excess else np.minimum(saved, 0.0)
        worse = np.maximum(gains - gains[rows, choice][:, None], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(problem.allowed & (relief > 0), worse / relief, np.inf)
        unit, column = np.unravel_index(np.argmin(rate), rate.shape)
        if not np.isfinite(rate[unit, column]):
            break
        choice[unit] = column
    return choice


def _closest(problem: Problem) -> Choice:
    """A choice that meets all budgets, from making each as small as the others let it; else the conflict is raised."""
    hints = []
    for limit in problem.limits:
        rest = Problem(problem.damage, tuple(other for other in problem.limits if other is not limit))
        program = _Program(rest, np.argwhere(problem.allowed), boolean=True)
        costs = limit.costs.values[tuple(program.cells.T)]
        if program.minimise(costs / costs.max() @ program.x, 60.0):
            choice = program.choice()
            if problem.feasible(choice):
                return choice
            hints.append(spell(limit, limit.of(choice)))
    names = " and ".join(str(limit.budget) for limit in problem.limits)
    least = f": under the others the smallest feasible value is {' or '.join(hints)}" if hints else ""
    raise InfeasibleBudget(f"{names} cannot be met together{least}")
