"""``lagrange``: the multiple-choice knapsack by prices on the budgets, for problems of any size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mpsearch.errors import UsageError
from mpsearch.search.core import ROUNDING, Relaxed, proven, relaxed, search_core, shares
from mpsearch.search.feasible import check_feasible
from mpsearch.search.program import closest
from mpsearch.search.uniform import uniform_choices
from mpsearch.types import Answer, Choice, Problem

Array = NDArray[np.float64]
CUTS = 200  # most cutting planes; some thirty reach the last digits
EXACT = 1e-10  # of the dual: what its last step may still promise
SPREAD = 1e6  # damages this many times larger than an answer would swallow the digits that decide
MOVES = 65536  # choices that a repair looks at: those of least reduced cost
ROUNDS = 100


@dataclass(frozen=True)
class Lagrange:
    """Least sum of damages under every budget: Lagrangian bound, repaired answer, exact search in the core.

    Attributes:
        gap: relative gap at which to stop.
        time_limit: seconds; the best feasible answer so far is returned with its bound.
    """

    gap: float = 1e-6
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if self.gap < 0 or self.time_limit <= 0:
            raise UsageError(f"lagrange needs gap >= 0 and time_limit > 0, not {self.gap} and {self.time_limit}")

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        deadline = time.perf_counter() + self.time_limit
        gains, offset = from_best(problem)
        _, best, value, bound = bracket(gains, self.gap, deadline)
        late = "time limit" if time.perf_counter() > deadline else "feasible"
        return Answer("lagrange", best, "optimal" if proven(value, bound, self.gap) else late, bound + offset)


class Cut(NamedTuple):
    """A plane above the lower bound, as a function of the prices: ``total + spent · (λ − prices) − Σ λ``.

    Attributes:
        prices: ``(budgets,)`` where it touches.
        total: ``Σ_i min_j (d_ij + prices·a_ij)``.
        spent: ``(budgets,)`` shares of the choice that attains it.
    """

    prices: Array
    total: float
    spent: Array

    @property
    def bound(self) -> float:
        return self.total - float(self.prices.sum())


def from_best(problem: Problem) -> tuple[Problem, float]:
    """The problem counted from the best cell of every unit, and their sum.

    A large common offset would swallow the differences that decide.
    """
    lowest = np.nanmin(problem.damage.values, axis=1, keepdims=True)
    return _with(problem, problem.damage.values - lowest), float(lowest.sum())


def bracket(problem: Problem, gap: float, deadline: float) -> tuple[Relaxed, Choice, float, float]:
    """(relaxation, best choice found, its damage, lower bound) for damages whose least in every unit is 0.

    Raises:
        InfeasibleBudget: when the budgets conflict.
    """
    start, best = approach(problem, deadline)
    while best is not None and np.nanmax(problem.damage.values) > SPREAD * (value := problem.predicted(best)):
        problem = _with(problem, np.where(problem.damage.values <= value, problem.damage.values, np.nan))
        start, again = approach(problem, deadline)
        best, _ = better(problem, [best, again])
    best, value, bound = search_core(problem, start, best, gap, deadline)
    if best is None:
        met = closest(problem)
        searched, value, bound = search_core(problem, start, met, gap, deadline)
        best = met if searched is None else searched
    return start, best, value, min(bound, value)


def approach(
    problem: Problem, deadline: float = np.inf, cuts: list[Cut] | None = None
) -> tuple[Relaxed, Choice | None]:
    """The relaxation at the best prices, and the feasible choice that repairing it gives; see :func:`best_prices`."""
    costs = shares(problem)
    free = relaxed(problem, np.zeros(len(problem.limits)), costs)
    if problem.feasible(free.choice):
        return free, free.choice
    problem = _usable(problem, costs)
    start = relaxed(problem, best_prices(problem, costs, deadline, cuts), costs)
    best, _ = better(problem, [repaired(problem, start)])
    return start, best if best is not None else better(problem, uniform_choices(problem))[0]


def _usable(problem: Problem, costs: Array) -> Problem:
    """Without the choices that leave too little to the other units, wherever a unit has another."""
    least = np.where(problem.allowed[:, :, None], costs, np.inf).min(axis=1)
    fits = (costs <= 1 + ROUNDING + least[:, None] - least.sum(axis=0)).all(axis=2)
    fits |= ~(fits & problem.allowed).any(axis=1, keepdims=True)
    return _with(problem, np.where(fits, problem.damage.values, np.nan))


def _with(problem: Problem, values: Array) -> Problem:
    return replace(problem, damage=replace(problem.damage, values=values))


def better(problem: Problem, choices: Sequence[Choice | None]) -> tuple[Choice | None, float]:
    """The feasible one of least damage, and that; (None, infinity) when there is none."""
    feasible = [choice for choice in choices if choice is not None and problem.feasible(choice)]
    best = min(feasible, key=problem.predicted, default=None)
    return best, np.inf if best is None else problem.predicted(best)


def best_prices(problem: Problem, costs: Array, deadline: float = np.inf, cuts: list[Cut] | None = None) -> Array:
    """``(budgets,)`` prices of the largest lower bound: cutting planes in a box that follows the best prices.

    The bound is concave in the prices, its slope is what the relaxed choice spends beyond the budgets, and every slope
    found bounds it from above (Kelley, "The cutting-plane method for solving convex programs", 1960).

    Args:
        problem: damages whose least in every unit is 0.
        costs: its :func:`~mpsearch.search.core.shares`.
        deadline: on the clock of :func:`time.perf_counter`.
        cuts: planes known already, the last one from near the best prices; new ones are added.
    """
    damage, rows = np.where(problem.allowed, problem.damage.values, np.inf), np.arange(len(costs))
    most = damage[np.isfinite(damage)].max() * len(rows)
    cuts = [] if cuts is None else cuts

    def cut(prices: Array) -> Cut:
        priced = damage + costs @ prices
        choice = priced.argmin(axis=1)
        return Cut(prices, float(priced[rows, choice].sum()), costs[rows, choice].sum(axis=0))

    if most <= 0:
        return np.zeros(costs.shape[2])
    if cuts and cuts[-1].prices.any():
        best = cut(cuts[-1].prices)
    else:
        best = _diagonal(cut, np.log(damage[damage > 0].min()), np.log(most) + 10, costs.shape[2])
    cuts.append(best)
    radius = best.prices + best.prices.mean()
    for _ in range(CUTS):
        if time.perf_counter() > deadline or best.bound > most:
            break
        prices, promised, inside = _step(cuts, best, radius)
        found = cut(prices)
        cuts.append(found)
        if promised <= EXACT * abs(best.bound):
            if inside:
                break
            radius = radius * 4
        elif found.bound <= best.bound:
            radius = radius / 2
        elif found.bound - best.bound > promised / 2 and not inside:
            radius = radius * 2
        best = max(best, found, key=lambda one: one.bound)
    cuts.append(best)
    return best.prices


def _diagonal(cut: Callable[[Array], Cut], low: float, high: float, budgets: int) -> Cut:
    """The plane where one price for all budgets, its logarithm between these, bounds best."""
    for _ in range(12):
        middle = (low + high) / 2
        spent = cut(np.full(budgets, np.exp(middle))).spent
        low, high = (middle, high) if spent.sum() > budgets else (low, middle)
    return cut(np.full(budgets, np.exp(high)))


def _step(cuts: list[Cut], best: Cut, radius: Array) -> tuple[Array, float, bool]:
    """Where the planes are highest in the box, by how much, and whether a larger box would not change that.

    In units of the box and of what it may bring: the solver's tolerances are absolute.
    """
    prices, totals, spent = (np.array(column) for column in zip(*cuts, strict=True))
    unit = max(float(np.abs(cuts[-1].spent - 1) @ radius), 1e-300)
    height = totals - best.bound - (prices * spent).sum(axis=1) + (spent - 1) @ best.prices
    rows = np.column_stack([(1 - spent) * radius / unit, np.ones(len(cuts))])
    sides = [(max(-1.0, -low), 1.0) for low in best.prices / radius]
    found = linprog([*np.zeros(len(radius)), -1.0], A_ub=rows, b_ub=height / unit, bounds=[*sides, (None, None)])
    if found.x is None:
        return best.prices, 0.0, True
    step = found.x[:-1]
    chosen = np.maximum(best.prices + step * radius, 0.0)
    inside = bool((np.abs(step) < 1 - 1e-9).all(where=(step > 0) | (chosen > 0)))
    return chosen, float(found.x[-1] * unit), inside


def repaired(problem: Problem, start: Relaxed) -> Choice:
    """The choice of the relaxation, made to meet the budgets, if single steps can, then to use what they leave.

    Many units step at a time, in the order of the reduced cost for what a step saves, as long as that helps.
    """
    choice = start.choice
    used = start.shares[np.arange(len(choice)), choice].sum(axis=0)
    others = start.reduced.copy()
    others[np.arange(len(choice)), choice] = np.inf
    count = min(MOVES, int(np.isfinite(others).sum()))
    units, cells = np.unravel_index(np.argpartition(others.ravel(), count - 1)[:count], others.shape)
    price, damage, costs = others[units, cells], problem.damage.values[units, cells], start.shares[units, cells]
    for _ in range(ROUNDS):
        here = units, choice[units]
        step, worse = costs - start.shares[here], price - start.reduced[here]
        excess = np.maximum(used - 1, 0.0)
        if excess.any():
            relief = 1 - np.maximum(used + step - 1, 0.0).sum(axis=1) / excess.sum()
            rate = np.where(relief > 1e-9, np.maximum(worse, 0.0) / np.maximum(relief, 1e-9), np.inf)
        else:
            helps = (damage < problem.damage.values[here]) & (used + step <= 1).all(axis=1)
            rate = np.where(helps, worse, np.inf)
        order = np.argsort(rate, kind="stable")[: np.isfinite(rate).sum()]
        order = order[np.sort(np.unique(units[order], return_index=True)[1])]
        over = np.maximum(used + step[order].cumsum(axis=0) - 1, 0.0).sum(axis=1)
        if not len(order) or over.min() >= excess.sum() > 0:
            break
        last = int(over.argmin()) if excess.any() else int(np.append(over > 0, True).argmax()) - 1
        taken = order[: last + 1]
        choice[units[taken]] = cells[taken]
        used = used + step[taken].sum(axis=0)
    return choice
