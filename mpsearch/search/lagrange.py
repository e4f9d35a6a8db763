"""``lagrange``: the multiple-choice knapsack by prices on the budgets, for problems of any size."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleBudget, UsageError
from mpsearch.search.core import search_core
from mpsearch.search.dual import Cut, best_prices
from mpsearch.search.feasible import check_feasible, spell
from mpsearch.search.relaxation import ROUNDING, Relaxed, better, from_best, proven, relaxed, shares, with_damage
from mpsearch.search.uniform import uniform_choices
from mpsearch.types import Answer, Choice, Problem

Array = NDArray[np.float64]
SPREAD = 1e6  # damages this many times larger than an answer would swallow the digits that decide
MOVES = 65536  # choices that a repair looks at: those of least reduced cost
ROUNDS = 100
SECONDS = 60.0  # to look for a choice that meets all budgets, where none was met on the way, whatever the time limit


@dataclass(frozen=True)
class Lagrange:
    """Least sum of damages under every budget: Lagrangian bound, repaired answer, exact search in the core.

    Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources", 1963;
    Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995. The status is ``optimal`` when the
    bound proves the gap, ``time limit`` when time ended before, ``feasible`` when the search gave up before.

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


def bracket(
    problem: Problem, gap: float, deadline: float, patience: float | None = None
) -> tuple[Relaxed, Choice, float, float]:
    """(relaxation, best choice found, its damage, lower bound) for damages whose least in every unit is 0.

    Args:
        problem: the question.
        gap: relative gap at which to stop.
        deadline: on the clock of :func:`time.perf_counter`.
        patience: when even :func:`closest` gives up; by default some time after it was asked.

    Raises:
        InfeasibleBudget: when the budgets conflict.
    """
    start, best = approach(problem, deadline)
    while best is not None and np.nanmax(problem.damage.values) > SPREAD * (value := problem.predicted(best)):
        problem = with_damage(problem, np.where(problem.damage.values <= value, problem.damage.values, np.nan))
        start, again = approach(problem, deadline)
        best, _ = better(problem, [best, again])
    best, value, bound = search_core(problem, start, best, gap, deadline)
    if best is None:
        met = closest(problem, time.perf_counter() + SECONDS if patience is None else patience)
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


def closest(problem: Problem, patience: float) -> Choice:
    """A choice that meets all budgets, from making each as small as the others let it; else the conflict is raised."""
    names, hints = " and ".join(str(limit.budget) for limit in problem.limits), []
    for limit in problem.limits:
        others = tuple(other for other in problem.limits if other is not limit)
        costs = np.where(problem.allowed, limit.costs.values, np.nan)
        rest, _ = from_best(with_damage(Problem(problem.damage, others), costs))
        choice: Choice | None = None
        with suppress(InfeasibleBudget):
            choice = bracket(rest, 0.0, patience, patience)[1]
        if choice is not None and problem.feasible(choice):
            return choice
        if time.perf_counter() > patience:
            raise InfeasibleBudget(f"no map that meets {names} was found in {SECONDS:.0f} s: loosen one of them")
        if choice is not None:
            hints.append(spell(limit, limit.of(choice)))
    for pair in combinations(problem.limits, 2) if len(problem.limits) > 2 else ():
        closest(replace(problem, limits=pair), patience)  # the two that contradict each other, where it is two
    least = f": under the others the smallest feasible value is {' or '.join(hints)}" if hints else ""
    raise InfeasibleBudget(f"{names} cannot be met together{least}")


def _usable(problem: Problem, costs: Array) -> Problem:
    """Without the choices that leave too little to the other units, wherever a unit has another."""
    least = np.where(problem.allowed[:, :, None], costs, np.inf).min(axis=1)
    fits = (costs <= 1 + ROUNDING + least[:, None] - least.sum(axis=0)).all(axis=2)
    fits |= ~(fits & problem.allowed).any(axis=1, keepdims=True)
    return with_damage(problem, np.where(fits, problem.damage.values, np.nan))


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
