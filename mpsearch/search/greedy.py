"""``greedy``: step by step down from the best format everywhere, least extra damage per saved cost first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.search.feasible import check_feasible
from mpsearch.search.ilp import Ilp
from mpsearch.types import TOLERANCE, Answer, Choice, Problem

Array = NDArray[np.float64]
ROUNDS = 20  # a unit changes at most once in each


@dataclass(frozen=True)
class Greedy:
    """The rule of AIMET, SDNQ and others: lower what costs least damage for what it saves, until the budgets hold.

    Every unit starts in its dearest format. Its steps down follow the lower convex hull of damage over cost, where
    rates only rise; sorted by rate, the steps of all units are taken until no budget is exceeded. Cost is the sum of
    the shares of those budgets that are; when one comes to hold, the steps are made anew for the others. Then what is
    left is spent: the step up of most gain per cost that still fits, again and again. ``O(n log n)`` in the cells.

    For one budget this is the linear relaxation, rounded down and filled up. Where steps that help one budget break
    another, it may end outside of all of them; the exact answer is then the starting point.
    """

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        costs = _shares(problem)
        choice = _lowered(problem, costs)
        if not problem.feasible(choice):
            choice = Ilp()(problem).choice
        return Answer("greedy", _filled(problem, costs, choice), "feasible")


def _shares(problem: Problem) -> Array:
    """``(budgets, units, formats)``: costs as shares of their limits; infinite where a choice does not exist."""
    shares = [np.where(problem.allowed, limit.costs.values / limit.limit, np.inf) for limit in problem.limits]
    return np.stack(shares) if shares else np.zeros((0, *problem.allowed.shape))


def _over(problem: Problem, choice: Choice) -> NDArray[np.bool_]:
    """``(budgets,)``: which are exceeded."""
    return np.array([not limit.of(choice) <= limit.limit * (1 + TOLERANCE) for limit in problem.limits], bool)


def _lowered(problem: Problem, costs: Array) -> Choice:
    """From the dearest formats along the hulls until all budgets hold, if they come to."""
    damage = np.where(problem.allowed, problem.damage.values, np.inf)
    total = np.where(problem.allowed, costs.sum(axis=0), -np.inf)
    # Of formats that cost the same, the one that hurts least; without budgets that is simply the best one.
    choice: Choice = np.where(total == total.max(axis=1, keepdims=True), damage, np.inf).argmin(axis=1)
    for _ in range(2 * len(costs)):
        over = _over(problem, choice)
        if not over.any():
            break
        units, columns, rates = _hull_steps(damage, costs[over].sum(axis=0), choice)
        if not len(units):
            break
        order = np.argsort(rates, kind="stable")
        units, columns = units[order], columns[order]
        before = np.empty(len(units), np.int64)  # the format that each step leaves
        here = choice.copy()
        for step, (unit, column) in enumerate(zip(units, columns, strict=True)):
            before[step], here[unit] = here[unit], column
        saved = np.cumsum(costs[:, units, before] - costs[:, units, columns], axis=1)
        excess = np.array([limit.of(choice) / limit.limit - 1 - TOLERANCE for limit in problem.limits])
        met = (saved[over] >= excess[over][:, None]).any(axis=0)
        taken = int(met.argmax()) + 1 if met.any() else len(units)
        choice[units[:taken]] = columns[:taken]  # steps of one unit come in order: the last one counts
        if not met.any():
            break
    return choice


def _hull_steps(damage: Array, cost: Array, choice: Choice) -> tuple[Choice, Choice, Array]:
    """(unit, format stepped to, extra damage per saved cost) of every step down, rising within a unit."""
    rows = np.arange(len(choice))
    here, found = choice.copy(), []
    active = rows
    while len(active):
        saved = cost[active, here[active]][:, None] - cost[active]
        worse = damage[active] - damage[active, here[active]][:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = np.where((saved > 0) & np.isfinite(worse), worse / saved, np.inf)
        # At equal rates the longer step: the shorter one lies on the same edge of the hull.
        least = rate.min(axis=1, keepdims=True)
        column = np.where(rate == least, saved, -np.inf).argmax(axis=1)
        go = np.isfinite(least[:, 0])
        active, column = active[go], column[go]
        found.append((active, column, least[go, 0]))
        here[active] = column
    units, columns, rates = (np.concatenate([part[at] for part in found]) for at in range(3)) if found else _none()
    return units, columns, rates


def _none() -> tuple[Choice, Choice, Array]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


def _filled(problem: Problem, costs: Array, choice: Choice) -> Choice:
    """What the budgets leave, spent on the steps of most gain per cost that still fit."""
    choice, rows = choice.copy(), np.arange(len(choice))
    damage = np.where(problem.allowed, problem.damage.values, np.inf)
    for _ in range(ROUNDS):
        slack = np.array([1 + TOLERANCE - limit.of(choice) / limit.limit for limit in problem.limits])
        gain = damage[rows, choice][:, None] - damage
        more = costs - costs[:, rows, choice][:, :, None]
        units, columns = np.nonzero((gain > 0) & (more <= slack[:, None, None]).all(axis=0))
        if not len(units):
            break
        step = more[:, units, columns]
        price = np.maximum(step, 0).sum(axis=0)
        with np.errstate(divide="ignore"):
            order = np.lexsort((-gain[units, columns], -gain[units, columns] / price))
        done = np.zeros(len(choice), bool)
        for move in order:
            unit = units[move]
            if not done[unit] and (step[:, move] <= slack).all():
                choice[unit], done[unit] = columns[move], True
                slack = slack - step[:, move]
    return choice
