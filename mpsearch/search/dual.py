"""The best prices of the budgets: the Lagrangian dual of the multiple-choice knapsack, by cutting planes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mpsearch.search.relaxation import NOISE, lower
from mpsearch.types import Problem

Array = NDArray[np.float64]
CUTS = 200  # most cutting planes; some thirty reach the last digits
EXACT = 1e-10  # of the dual: what its last step may still promise
HALVINGS = 12  # of the logarithm of one price for all budgets


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
        return lower(self.total, self.prices)


def best_prices(problem: Problem, costs: Array, deadline: float = np.inf, cuts: list[Cut] | None = None) -> Array:
    """``(budgets,)`` prices of the largest lower bound.

    The bound is concave in the prices, its slope is what the relaxed choice spends beyond the budgets, and every slope
    found bounds it from above (Kelley, "The cutting-plane method for solving convex programs", 1960). Each step stays
    in a box around the best prices so far (Marsten, Hogan and Blankenship, "The boxstep method for large-scale
    optimization", 1975).

    Args:
        problem: damages whose least in every unit is 0.
        costs: its :func:`~mpsearch.search.relaxation.shares`.
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
        if time.perf_counter() > deadline or best.bound > most:  # no choice meets the budgets
            break
        prices, promised, inside = _step(cuts, best, radius)
        found = cut(prices)
        cuts.append(found)
        enough = EXACT * abs(best.bound)
        if promised <= enough:
            if inside or NOISE * radius.sum() > enough:
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
    for _ in range(HALVINGS):
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
    height = totals - best.total + best.prices.sum() - (prices * spent).sum(axis=1) + (spent - 1) @ best.prices
    rows = np.column_stack([(1 - spent) * radius / unit, np.ones(len(cuts))])
    sides = [(max(-1.0, -low), 1.0) for low in best.prices / radius]
    found = linprog([*np.zeros(len(radius)), -1.0], A_ub=rows, b_ub=height / unit, bounds=[*sides, (None, None)])
    if found.x is None:
        return best.prices, 0.0, True
    step = found.x[:-1]
    chosen = np.maximum(best.prices + step * radius, 0.0)
    inside = bool((np.abs(step) < 1 - 1e-9).all(where=(step > 0) | (chosen > 0)))
    return chosen, float(found.x[-1] * unit), inside
