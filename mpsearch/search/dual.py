"""Prices of the budgets: the Lagrangian dual of the multiple-choice knapsack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mpsearch.search.core import shares
from mpsearch.types import Problem

Array = NDArray[np.float64]
ROUNDS = 200
TOLERANCE = 1e-9  # of the dual value
HALVINGS = 60


def dual_prices(problem: Problem) -> Array:
    """``(budgets,)`` damage a share of the room, where ``Σ_i min_j (d_ij + λ·a_ij) − Σ λ`` is greatest.

    The function is concave and piecewise linear. Every evaluation, one vectorised pass over all cells, gives a tangent;
    a tiny linear program over the tangents (Kelley 1960), held to a box around the best prices so far, says where to
    look next and how much is left to gain.
    """
    damage, costs = np.where(problem.allowed, problem.damage.values, np.inf), np.nan_to_num(shares(problem))
    rows, budgets = np.arange(len(damage)), costs.shape[2]
    if not budgets:
        return np.zeros(0)

    def tangent(prices: Array) -> tuple[float, Array]:
        priced = damage + costs @ prices
        column = priced.argmin(axis=1)
        return float(priced[rows, column].sum() - prices.sum()), costs[rows, column].sum(axis=0) - 1

    # Along the diagonal first: where the sum of all shares crosses what is there.
    scale = float(np.ptp(problem.damage.values[problem.allowed])) or 1.0
    low, high = np.log(scale) - 60, np.log(scale * len(damage)) + 5
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = tangent(np.full(budgets, np.exp(middle)))[1]
        low, high = (middle, high) if slope.sum() > 0 else (low, middle)
    centre = np.full(budgets, np.exp(high))
    value, slope = tangent(centre)
    if budgets == 1:
        return centre
    points, values, slopes, radius = [centre], [value], [slope], centre.copy()
    for _ in range(ROUNDS):
        unit = max(float(np.abs(slope) @ radius), 1e-300)
        table = np.column_stack([-np.array(slopes) * radius / unit, np.ones(len(slopes))])
        offset = [v - value + g @ (centre - p) for v, g, p in zip(values, slopes, points, strict=True)]
        box = [(max(-1.0, -c / r), 1.0) for c, r in zip(centre, radius, strict=True)]
        found = linprog(np.r_[np.zeros(budgets), -1], table, np.array(offset) / unit, bounds=[*box, (None, None)])
        if found.x is None:
            break
        step, gain = found.x[:-1], found.x[-1] * unit
        trial = np.maximum(centre + step * radius, 0)
        edge = bool(((step >= 1 - 1e-9) | ((step <= -1 + 1e-9) & (trial > 0))).any())
        if gain <= TOLERANCE * abs(value) and not edge:
            break
        reached, own = tangent(trial)
        points, values, slopes = [*points, trial], [*values, reached], [*slopes, own]
        if reached > value:
            radius = radius * 2 if edge and reached - value >= gain / 2 else radius
            centre, value, slope = trial, reached, own
        else:
            radius = radius / 2
        if edge and gain <= TOLERANCE * abs(value):
            radius = radius * 4
    return centre
