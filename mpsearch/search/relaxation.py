"""The Lagrangian relaxation of a multiple-choice knapsack: prices in place of budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.types import TOLERANCE, Choice, Problem

Array = NDArray[np.float64]
ROUNDING = 1e-12  # of a budget: sums in another order
NOISE = 2.0**-46  # of the terms of a sum: what float64 may add to it
WHOLE = 2.0**53  # up to here float64 holds every whole number


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A relaxation, budgets as shares of what is left to the units.

    For any prices λ >= 0, ``Σ_i min_j (d_ij + λ·a_ij) − Σ λ`` bounds every feasible damage from below, and a choice
    whose reduced cost exceeds the distance to a known answer cannot be in a better one (Pisinger, "A minimal algorithm
    for the multiple-choice knapsack problem", 1995).

    Attributes:
        prices: ``(budgets,)`` λ, damage a share.
        bound: lower bound of the damage, rounding taken off.
        reduced: ``(units, formats)`` reduced costs, at least 0; infinite where a choice does not exist.
        shares: ``(units, formats, budgets)`` a.
    """

    prices: Array
    bound: float
    reduced: Array
    shares: Array

    @property
    def choice(self) -> Choice:
        """What the prices choose; it need not meet the budgets."""
        picked: Choice = np.argmin(self.reduced, axis=1)
        return picked


def relaxed(problem: Problem, prices: Array, costs: Array | None = None) -> Relaxed:
    """The relaxation at these prices; ``costs`` are the :func:`shares`, where they are at hand."""
    costs = shares(problem) if costs is None else costs
    priced = np.where(problem.allowed, problem.damage.values + costs @ prices, np.inf)
    least = priced.min(axis=1, keepdims=True)
    priced -= least
    return Relaxed(prices, lower(float(least.sum()), prices), priced, costs)


def lower(total: float, prices: Array) -> float:
    """The bound that ``total``, the sum of least priced damages, gives; rounding must not raise it."""
    given = float(prices.sum())
    return total - given - NOISE * (abs(total) + given)


def room(problem: Problem) -> Array:
    """``(budgets,)``: what each limit leaves to the units.

    With the hair that :meth:`Problem.feasible` lets pass, so that bounds hold for what it calls feasible; costs that
    are whole numbers cannot use more than a whole multiple of their greatest common divisor.
    """
    found = []
    for limit in problem.limits:
        left, costs = limit.limit * (1 + TOLERANCE) - limit.costs.constant, limit.costs.values[problem.allowed]
        if (costs == np.rint(costs)).all() and 0 < costs.max() < WHOLE:
            unit = float(np.gcd.reduce(costs.astype(np.int64)))
            left = np.floor((left + ROUNDING * limit.limit) / unit) * unit
        found.append(max(left, ROUNDING * (limit.limit or costs.min(where=costs > 0, initial=1.0))))
    return np.array(found)


def shares(problem: Problem) -> Array:
    """``(units, formats, budgets)``: costs as a share of the :func:`room`, 0 where a choice does not exist."""
    found = np.zeros((*problem.damage.values.shape, len(problem.limits)))
    for index, (limit, left) in enumerate(zip(problem.limits, room(problem), strict=True)):
        np.divide(limit.costs.values, left, out=found[:, :, index], where=problem.allowed)
    return found


def proven(value: float, bound: float, gap: float) -> bool:
    """Whether an answer of this damage is known, and known to be within ``gap`` of the best."""
    return bool(np.isfinite(value)) and value - bound <= gap * value


def with_damage(problem: Problem, values: Array) -> Problem:
    """The same question about other damages."""
    return replace(problem, damage=replace(problem.damage, values=values))


def from_best(problem: Problem) -> tuple[Problem, float]:
    """The problem counted from the best cell of every unit, and their sum.

    A large common offset would swallow the differences that decide.
    """
    lowest = np.nanmin(problem.damage.values, axis=1, keepdims=True)
    return with_damage(problem, problem.damage.values - lowest), float(lowest.sum())


def better(problem: Problem, choices: Iterable[Choice | None]) -> tuple[Choice | None, float]:
    """The feasible one of least damage, and that; (None, infinity) when there is none."""
    feasible = [choice for choice in choices if choice is not None and problem.feasible(choice)]
    best = min(feasible, key=problem.predicted, default=None)
    return best, np.inf if best is None else problem.predicted(best)
