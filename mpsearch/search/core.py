"""Exact search in the core of a multiple-choice knapsack: branch and bound, a level a unit, many nodes at once."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.types import TOLERANCE, Choice, Problem

Array = NDArray[np.float64]
WIDTHS = (64, 512, 4096, 32768)  # nodes kept a level, pass after pass
MULTIPLIERS = 64  # bounds taken for every node
COMPLETIONS = 256  # nodes a level whose remaining units are filled in
BLOCK = 32768  # nodes bounded at a time: what they need stays within tens of megabytes
PRUNE = 0.999  # of the gap: rounding must not leave a proof a hair short


@dataclass(frozen=True)
class Relaxed:
    """A Lagrangian relaxation, budgets as shares of what is left to the units.

    For any prices λ >= 0, ``Σ_i min_j (d_ij + λ·a_ij) − Σ λ`` bounds every feasible damage from below, and a choice
    whose reduced cost exceeds the distance to a known answer cannot be in a better one (Pisinger, "A minimal algorithm
    for the multiple-choice knapsack problem", 1995).

    Attributes:
        prices: ``(budgets,)`` damage a share.
        bound: lower bound of the damage.
        reduced: ``(units, formats)`` reduced costs, at least 0; infinite where a choice does not exist.
    """

    prices: Array
    bound: float
    reduced: Array


def shares(problem: Problem) -> Array:
    """``(units, formats, budgets)``: costs as a share of what each limit leaves to the units."""
    if not problem.limits:
        return np.zeros((*problem.damage.values.shape, 0))
    return np.stack([limit.costs.values for limit in problem.limits], axis=-1) / room(problem)


def room(problem: Problem) -> Array:
    """What is left of each limit for the units; a hair above zero where nothing is."""
    return np.array([max(limit.limit - limit.costs.constant, 1e-12 * limit.limit) for limit in problem.limits])


def _most(problem: Problem) -> Array:
    """The shares that :meth:`Problem.feasible` still lets pass."""
    limits = np.array([limit.limit for limit in problem.limits])
    return 1 + TOLERANCE * limits / room(problem)


def relaxed(problem: Problem, prices: Array) -> Relaxed:
    """The relaxation at these prices."""
    priced = problem.damage.values + shares(problem) @ prices
    least = np.nanmin(priced, axis=1, keepdims=True)
    reduced = np.where(problem.allowed, priced - least, np.inf)
    return Relaxed(prices, float(least.sum() - prices.sum()), reduced)


def search_core(
    problem: Problem, start: Relaxed, best: Choice | None, gap: float, deadline: float
) -> tuple[Choice | None, float, float]:
    """(best choice known, its damage, lower bound), proven when they are within ``gap``.

    What can still be in a better answer is the core. Its units are decided one by one, those that move most cost first;
    a node is a prefix of decisions and keeps its damage and its shares. Each is bounded by many multipliers at once,
    which is one matrix product, and completed by the relaxed choices of the rest, which finds the answers. A level
    keeps the most promising nodes only, and the least bound of those dropped limits what is proven; wider passes
    follow, with the multipliers that bounded best before.

    Args:
        problem: damages whose least in every unit is 0.
        start: its relaxation.
        best: a feasible choice, if one is known.
        gap: relative to the damage.
        deadline: on the clock of :func:`time.perf_counter`.
    """
    rng = np.random.default_rng(0)
    value = np.inf if best is None else problem.predicted(best)
    bound, costs = start.bound, shares(problem)
    multipliers = np.concatenate([start.prices[None], _around(start.prices, MULTIPLIERS - 1, rng)])
    for width in WIDTHS:
        if value - bound <= gap * value or time.perf_counter() > deadline:
            break
        levels = _Levels(problem, costs, start, value, multipliers)
        best, value, proven = levels.descend(best, value, width, gap, deadline)
        bound = max(bound, proven)
        order = np.argsort(-levels.used)[: MULTIPLIERS // 3]
        good = multipliers[order[levels.used[order] > 0]]
        rest = MULTIPLIERS - 1 - len(good)
        fresh = _around(start.prices, rest // 2 if len(good) else rest, rng)
        multipliers = np.concatenate([start.prices[None], good, fresh, _between(good, rest - len(fresh), rng)])
    return best, value, bound


def _around(prices: Array, count: int, rng: np.random.Generator) -> Array:
    """``(count, budgets)`` multipliers near and far; budgets without a price get a small one half of the time."""
    scale = np.geomspace(1e-4, 1, count)[:, None]
    draws = rng.standard_normal((count, len(prices)))
    return np.where(prices > 0, prices * np.exp(scale * draws), prices.max(initial=0.0) * scale * np.maximum(draws, 0))


def _between(good: Array, count: int, rng: np.random.Generator) -> Array:
    """``(count, budgets)`` multipliers scattered around good ones, as far as they are from each other."""
    if not len(good) or not count:
        return np.empty((0, good.shape[1]))
    logs = np.log(np.maximum(good, 1e-300))
    spread = np.where((good > 0).all(0), logs.std(axis=0), 0.3)
    picked = good[rng.integers(len(good), size=count)]
    return picked * np.exp(spread / 2 * rng.standard_normal(picked.shape))


class _Levels:
    """The core for one known answer, its units in order, and what the rest of them adds under every multiplier."""

    def __init__(self, problem: Problem, costs: Array, start: Relaxed, value: float, multipliers: Array) -> None:
        keep = problem.allowed & (start.reduced <= (value - start.bound) * (1 + 1e-9))
        self.problem, self.damage, self.costs, self.keep = problem, problem.damage.values, costs, keep
        self.base = np.argmin(start.reduced, axis=1)
        several = keep.sum(axis=1) > 1
        settled = np.flatnonzero(~several)
        self.root = self.damage[settled, self.base[settled]].sum(), costs[settled, self.base[settled]].sum(axis=0)
        open_units = np.flatnonzero(several)
        inside = keep[open_units][:, :, None]
        priced = costs[open_units] * np.where(start.prices > 0, start.prices, 0)
        moved = np.where(inside, priced, -np.inf).max(axis=1) - np.where(inside, priced, np.inf).min(axis=1)
        self.order = open_units[np.argsort(-moved.max(axis=1, initial=0.0), kind="stable")]

        self.multipliers, self.used = multipliers, np.zeros(len(multipliers))
        here = self.costs[self.order]
        self.most = _most(problem)
        self.least = _suffix(np.where(keep[self.order][:, :, None], here, np.inf).min(axis=1))
        total = self.damage[self.order][:, :, None] + here @ multipliers.T
        self.relaxed: Choice = np.where(keep[self.order][:, :, None], total, np.inf).argmin(
            axis=1
        )  # (order, multipliers)
        rows = np.arange(len(self.order))[:, None]
        self.rest_damage = _suffix(self.damage[self.order][rows, self.relaxed])
        self.rest_costs = _suffix(here[rows, self.relaxed])
        self.rest = self.rest_damage + (self.rest_costs * multipliers).sum(-1) - multipliers.sum(-1)

    def descend(
        self, best: Choice | None, value: float, width: int, gap: float, deadline: float
    ) -> tuple[Choice | None, float, float]:
        damage, costs = np.array([self.root[0]]), self.root[1][None]
        dropped, trace = np.inf, list[tuple[Choice, Choice]]()
        best, value = self._complete(damage, costs, damage, trace, best, value)
        for level, unit in enumerate(self.order):
            cells = np.flatnonzero(self.keep[unit])
            parent, cell = np.repeat(np.arange(len(damage)), len(cells)), np.tile(cells, len(damage))
            damage = damage[parent] + self.damage[unit, cell]
            costs = costs[parent] + self.costs[unit, cell]
            bounds = self._bounds(damage, costs, level + 1, value * (1 - PRUNE * gap))
            within_reach = (costs + self.least[level + 1] <= self.most).all(axis=1)
            alive = np.flatnonzero(within_reach & (bounds < value * (1 - PRUNE * gap)))
            if len(alive) > width:
                ranked = alive[np.argpartition(bounds[alive], width)]
                dropped, alive = min(dropped, bounds[ranked[width:]].min()), ranked[:width]
            damage, costs, bounds = damage[alive], costs[alive], bounds[alive]
            trace.append((parent[alive], cell[alive]))
            if not len(alive):
                break
            best, value = self._complete(damage, costs, bounds, trace, best, value)
            if time.perf_counter() > deadline:
                dropped = min(dropped, bounds.min())
                break
        return best, value, min(dropped, value * (1 - PRUNE * gap))

    def _bounds(self, damage: Array, costs: Array, level: int, target: float) -> Array:
        """Lower bound of each node, by its best multiplier; the first one alone settles most of them."""
        found: Array = damage + costs @ self.multipliers[0] + self.rest[level, 0]
        open_nodes = np.flatnonzero(found < target)
        for part in np.split(open_nodes, range(BLOCK, len(open_nodes), BLOCK)):
            table = costs[part] @ self.multipliers.T + self.rest[level]
            best = table.argmax(axis=1)
            found[part] = damage[part] + table[np.arange(len(part)), best]
            self.used += np.bincount(best, minlength=len(self.used)) / max(len(open_nodes), 1)
        return found

    def _complete(
        self,
        damage: Array,
        costs: Array,
        bounds: Array,
        trace: list[tuple[Choice, Choice]],  # (parent, cell) of every node, a level each
        best: Choice | None,
        value: float,
    ) -> tuple[Choice | None, float]:
        """The best of what is known and of the promising nodes, completed by the relaxed choices of the rest."""
        level, nodes, rests = len(trace), np.argsort(bounds, kind="stable")[:COMPLETIONS], slice(None)
        if level == len(self.order):  # every node is a whole choice
            nodes, rests = np.arange(len(damage)), slice(1)
        fits = (costs[nodes][:, None] + self.rest_costs[level, rests] <= self.most).all(axis=-1)
        total = np.where(fits, damage[nodes][:, None] + self.rest_damage[level, rests], np.inf)
        node, multiplier = np.unravel_index(total.argmin(), total.shape)
        if total[node, multiplier] >= value:
            return best, value
        choice = self.base.copy()
        choice[self.order[level:]] = self.relaxed[level:, multiplier]
        at = nodes[node]
        for unit, (parent, cell) in zip(self.order[:level][::-1], reversed(trace), strict=True):
            choice[unit], at = cell[at], parent[at]
        predicted = self.problem.predicted(choice)
        return (choice, predicted) if predicted < value and self.problem.feasible(choice) else (best, value)


def _suffix(values: Array) -> Array:
    """``(n + 1, …)``: sum of ``values[i:]`` for every i."""
    sums: Array = np.concatenate([values[::-1].cumsum(axis=0)[::-1], np.zeros((1, *values.shape[1:]))])
    return sums
