"""Exact search in the core of a multiple-choice knapsack: branch and bound, a level a unit, many nodes at once.

Lagrangian bounds as in Dyer, Kayal and Walker, "A branch and bound algorithm for solving the multiple-choice knapsack
problem", 1984, but of many prices a node; ever wider beams as in Zhang, "Complete anytime beam search", 1998.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpsearch.search.relaxation import ROUNDING, Relaxed, proven
from mpsearch.types import Choice, Problem

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Pool = tuple[Choice, Array, Choice]  # number, bound and multiplier of each node
WIDTHS = (64, 512, 4096, 32768, 262144, 2097152)  # nodes kept, pass after pass
CELLS = 4  # choices of a pass for each node that it keeps: those of least reduced cost
MULTIPLIERS = 192  # bounds taken for every node
TABLE = 2_000_000  # entries of (units × formats × multipliers): larger cores take fewer multipliers
STAGE = 96  # levels after which the multipliers are chosen anew, or
STAGES = 16  # how often at most
BLOCK = 4096  # nodes branched at a time: their bounds stay in the processor's cache
NODES = 8_000_000  # of a pass: some hundred megabytes
LINKS = ("parent", "level", "cell", "stage", "multiplier")  # of a node
PRUNE = 0.999  # of the gap: rounding must not leave a proof a hair short


def search_core(
    problem: Problem,
    start: Relaxed,
    best: Choice | None,
    gap: float,
    deadline: float,
    widths: Sequence[int] | None = None,
) -> tuple[Choice | None, float, float]:
    """(best choice known, its damage, lower bound), proven when they are within ``gap``.

    What can still be in a better answer is the core. Its units are decided one by one, those that move most cost first.
    A node is a prefix of decisions with the multiplier that bounds it best, and stands for the choice that this
    multiplier makes of the rest: as long as a unit agrees with it, neither changes, so only nodes that depart from it
    are made and bounded, by many multipliers at once, which is one matrix product. The fewer units are left, the
    farther their multipliers lie apart, so every few levels they are drawn anew around those that bounded best.

    A pass keeps the most promising nodes and the choices of least reduced cost only; the least bound of what it leaves
    out limits what it proves. Wider passes follow.

    Args:
        problem: damages whose least in every unit is 0.
        start: its relaxation.
        best: a feasible choice, if one is known.
        gap: relative to the damage.
        deadline: on the clock of :func:`time.perf_counter`.
        widths: of the passes; ``WIDTHS`` where none are given.

    Returns:
        The bound is infinite when no choice meets the budgets.
    """
    known, bound = _Known(best, np.inf if best is None else problem.predicted(best), gap), start.bound
    for width in WIDTHS if widths is None else widths:
        if proven(known.value, bound, gap) or bound == np.inf or time.perf_counter() > deadline:
            break
        descent = _Descent(_Core(problem, start, known.value, width), known)
        bound = max(bound, descent.run(width, deadline))
    return known.best, known.value, bound


class _Known:
    """What passes hand on: the best choice, its damage, and the multipliers that bounded best before each stage."""

    def __init__(self, best: Choice | None, value: float, gap: float) -> None:
        self.best, self.value, self.gap = best, value, gap
        self.multipliers: dict[int, Array] = {}
        self.rng = np.random.default_rng(0)

    @property
    def target(self) -> float:
        """Only what is below is of interest."""
        return self.value * (1 - PRUNE * self.gap)


def _multipliers(prices: Array, good: list[Array], count: int, rng: np.random.Generator) -> Array:
    """``(count, budgets)``: the prices, the first of every list of good ones, and draws around both."""
    kept = np.concatenate([np.empty((0, len(prices))), *(some[: count // (2 * len(good))] for some in good)])
    fresh = (count - len(kept)) // 4 if len(kept) else count - 1
    between = _between(kept, count - 1 - len(kept) - fresh, rng)
    return np.concatenate([prices[None], kept, _around(prices, fresh, rng), between])


def _around(prices: Array, count: int, rng: np.random.Generator) -> Array:
    """``(count, budgets)`` multipliers near and far; budgets without a price get a small one half of the time."""
    scale = np.geomspace(1e-4, 1, count)[:, None]
    draws = rng.standard_normal((count, len(prices)))
    return np.where(prices > 0, prices * np.exp(scale * draws), prices.max(initial=0.0) * scale * np.maximum(draws, 0))


def _between(good: Array, count: int, rng: np.random.Generator) -> Array:
    """``(count, budgets)`` multipliers scattered around good ones, as far as they are from each other."""
    if not len(good):
        return good
    logs = np.log(np.maximum(good, 1e-300))
    spread = np.where((good > 0).all(0), logs.std(axis=0), 0.3)
    picked = good[rng.integers(len(good), size=count)]
    return picked * np.exp(spread / 2 * rng.standard_normal(picked.shape))


class _Core:
    """What a pass looks at: L units, of which those that move most cost come first, with at most K cells each.

    Attributes:
        limit: least damage of any better answer that takes something else.
        base: ``(units,)`` the choice of the other units.
        root: damage and ``(budgets,)`` shares of the other units.
        order: ``(L,)`` the units.
        cells: ``(L, K)`` their columns, by reduced cost.
        damage, costs: ``(L, K)`` and ``(L, K, budgets)`` of the cells; infinite damage where there are fewer.
        least: ``(L + 1, budgets)`` the smallest shares of all units from here on.
        multipliers: how many it takes.
    """

    def __init__(self, problem: Problem, start: Relaxed, value: float, width: int) -> None:
        self.problem, self.prices = problem, start.prices
        keep, self.limit = _within(start, value, CELLS * width)
        several = np.flatnonzero(keep.sum(axis=1) > 1)
        keep[several] &= ~_dominated(problem.damage.values[several], start.shares[several], keep[several])
        inside = keep.sum(axis=1) > 1
        self.base = np.where(inside, start.choice, keep.argmax(axis=1))
        at = np.flatnonzero(~inside), self.base[~inside]
        self.root = float(problem.damage.values[at].sum()), start.shares[at].sum(axis=0)
        kept, priced = keep[inside][:, :, None], start.shares[inside] * start.prices
        moved = np.where(kept, priced, -np.inf).max(axis=1) - np.where(kept, priced, np.inf).min(axis=1)
        self.order = np.flatnonzero(inside)[np.argsort(-moved.max(axis=1, initial=0.0), kind="stable")]
        ranked = np.where(keep, start.reduced, np.inf)[self.order]
        self.cells = np.argsort(ranked, axis=1, kind="stable")[:, : int(keep.sum(axis=1).max())]
        row = self.order[:, None]
        real = keep[row, self.cells]
        self.damage = np.where(real, problem.damage.values[row, self.cells], np.inf)
        self.costs = np.where(real[:, :, None], start.shares[row, self.cells], 0.0)
        self.least = _suffix(np.where(real[:, :, None], self.costs, np.inf).min(axis=1))
        self.multipliers = min(MULTIPLIERS, max(TABLE // max(real.size, 1), 8))


def _within(start: Relaxed, value: float, cells: int) -> tuple[Mask, float]:
    """What a better answer may take, or the ``cells`` cheapest of it, and the least damage with any of the others."""
    keep: Mask = np.isfinite(start.reduced) & (start.reduced <= (value - start.bound) * (1 + 1e-9))
    above = start.reduced[keep & (start.reduced > 0)]
    if len(above) <= cells:
        return keep, np.inf
    most = float(np.partition(above, cells)[cells])
    return start.reduced < most, start.bound + most


def _dominated(damage: Array, costs: Array, keep: Mask) -> Mask:
    """``(units, formats)``: cells beside which another kept one is nowhere worse; of equal ones the first is not."""
    found = np.zeros_like(keep)
    for one in range(keep.shape[1]):
        for other in range(keep.shape[1]):
            worse = (damage[:, one] >= damage[:, other]) & (costs[:, one] >= costs[:, other]).all(axis=1)
            equal = (damage[:, one] == damage[:, other]) & (costs[:, one] == costs[:, other]).all(axis=1)
            found[:, one] |= keep[:, other] & worse & (~equal | (other < one))
    return found


class _Stage:
    """What the units of a core from level ``first`` on add under each of M multipliers.

    Attributes:
        taken: ``(levels, M)`` which cell a multiplier takes.
        moves: ``(levels, K, M)`` reduced cost of departing to another cell; infinite for the taken one.
        later: ``(levels + 1, M)`` the least of it in all units from here on.
        rest_damage, rest_costs, rest: ``(levels + 1, M, …)`` damage, shares and bound of all units from here on.
        used: ``(M,)`` how often each bounded a node best.
    """

    def __init__(self, core: _Core, first: int, multipliers: Array) -> None:
        damage, costs, rows = core.damage[first:], core.costs[first:], np.arange(len(core.order) - first)[:, None]
        self.first, self.multipliers, self.used = first, multipliers, np.zeros(len(multipliers))
        self.moves = damage[:, :, None] + costs @ multipliers.T
        self.taken = self.moves.argmin(axis=1)
        self.moves -= self.moves.min(axis=1, keepdims=True)
        np.put_along_axis(self.moves, self.taken[:, None], np.inf, axis=1)
        self.later = _suffix(self.moves.min(axis=1), np.minimum, np.inf)
        self.rest_damage = _suffix(damage[rows, self.taken])
        self.rest_costs = _suffix(costs[rows, self.taken])
        self.rest = self.rest_damage + ((self.rest_costs - 1) * multipliers).sum(axis=-1)

    @property
    def best(self) -> Array:
        """The multipliers that bounded some node best, most used first."""
        order = np.argsort(-self.used, kind="stable")
        return self.multipliers[order[self.used[order] > 0]]


class _Descent:
    """One pass down the core.

    A node is a departure of its ``parent`` at a ``level`` to a ``cell``, or none (-1) at the start of a stage. It
    carries the damage and the shares of the whole choice that its ``multiplier`` completes it to.
    """

    def __init__(self, core: _Core, known: _Known) -> None:
        self.core, self.known, self.count = core, known, 0
        links = [(name, "i4") for name in LINKS]
        self.nodes = np.empty(1024, np.dtype([*links, ("damage", "f8"), ("costs", "f8", (len(core.prices),))]))
        self.taken: list[tuple[int, NDArray[np.int16]]] = []  # first level and choices of every stage
        self.length = max(STAGE, len(core.order) // STAGES)

    def run(self, width: int, deadline: float) -> float:
        """The lower bound that the pass proves."""
        core, dropped = self.core, self.core.limit
        numbers, bounds, multiplier = self._begin()
        for level in range(len(core.order)):
            if level and level % self.length == 0:
                numbers, bounds, multiplier = self._restage(level, numbers, multiplier)
            stage, here = self.stage, level - self.stage.first
            movers = np.flatnonzero(bounds + stage.moves[here].min(axis=0)[multiplier] < self.known.target)
            found = [(numbers, bounds, multiplier)]
            for first in range(0, len(movers), BLOCK):
                part = movers[first : first + BLOCK]
                found.append(self._branch(level, numbers[part], bounds[part], multiplier[part]))
            numbers, bounds, multiplier = _joined(found)
            alive = np.flatnonzero(bounds + stage.later[here + 1][multiplier] < self.known.target)
            if len(alive) > width:
                ranked = alive[np.argpartition(bounds[alive], width)]
                dropped, alive = min(dropped, float(bounds[ranked[width:]].min())), ranked[:width]
            numbers, bounds, multiplier = numbers[alive], bounds[alive], multiplier[alive]
            if not len(alive):
                break
            if time.perf_counter() > deadline or self.count > NODES:
                dropped = min(dropped, float(bounds.min()))
                break
        return min(dropped, self.known.target)

    def _begin(self) -> Pool:
        """The root."""
        damage, costs = self.core.root
        self._stage(0, [])
        return self._add(-1, np.array([-1]), np.array([-1]), np.array([damage]), costs[None])

    def _restage(self, level: int, numbers: Choice, multiplier: Choice) -> Pool:
        """The same nodes under new multipliers."""
        old, nodes = self.stage, self.nodes[numbers]
        damage = nodes["damage"] - old.rest_damage[level - old.first, multiplier]
        costs = nodes["costs"] - old.rest_costs[level - old.first, multiplier]
        self.known.multipliers[len(self.taken) - 1] = old.best
        self._stage(level, [old.best])
        parts = [slice(first, first + BLOCK) for first in range(0, len(numbers), BLOCK)]
        stay = np.full(len(numbers), -1)
        return _joined([self._add(level - 1, numbers[part], stay[part], damage[part], costs[part]) for part in parts])

    def _stage(self, level: int, good: list[Array]) -> None:
        """Multipliers around good ones and those that an earlier pass found best here."""
        earlier = self.known.multipliers.get(len(self.taken))
        good = good if earlier is None else [*good, earlier]
        multipliers = _multipliers(self.core.prices, good, self.core.multipliers, self.known.rng)
        self.stage = _Stage(self.core, level, multipliers)
        self.taken.append((level, self.stage.taken.astype(np.int16)))

    def _branch(self, level: int, numbers: Choice, bounds: Array, multiplier: Choice) -> Pool:
        """Every departure of these nodes at this level that may lead to a better answer."""
        core, stage, here = self.core, self.stage, level - self.stage.first
        cell, mover = np.nonzero(bounds + stage.moves[here][:, multiplier] < self.known.target)
        multiplier, parent = multiplier[mover], self.nodes[numbers[mover]]
        taken = stage.taken[here, multiplier]
        damage = parent["damage"] - stage.rest_damage[here + 1, multiplier]
        damage += core.damage[level, cell] - core.damage[level, taken]
        costs = parent["costs"] - stage.rest_costs[here + 1, multiplier]
        costs += core.costs[level, cell] - core.costs[level, taken]
        fits = np.flatnonzero((costs + core.least[level + 1] <= 1 + ROUNDING).all(axis=1))
        return self._add(level, numbers[mover[fits]], cell[fits], damage[fits], costs[fits])

    def _add(self, level: int, parent: Choice, cell: Choice, damage: Array, costs: Array) -> Pool:
        """New nodes by the damage and shares of their prefixes, as far as they are below the target; completed."""
        stage, rest = self.stage, level + 1 - self.stage.first
        table = costs @ stage.multipliers.T
        table += stage.rest[rest]
        multiplier = table.argmax(axis=1)
        bounds = damage + table[np.arange(len(multiplier)), multiplier]
        stage.used += np.bincount(multiplier, minlength=len(stage.used)) / max(len(multiplier), 1)
        below = np.flatnonzero(bounds < self.known.target)
        bounds, multiplier, damage, costs = bounds[below], multiplier[below], damage[below], costs[below]
        numbers = np.arange(self.count, self.count + len(below))
        self.count += len(below)
        if self.count > len(self.nodes):
            self.nodes = np.concatenate([self.nodes, np.empty(self.count, self.nodes.dtype)])
        new = self.nodes[self.count - len(below) : self.count]
        new["parent"], new["level"], new["cell"] = parent[below], level, cell[below]
        new["stage"], new["multiplier"] = len(self.taken) - 1, multiplier
        new["damage"] = damage + stage.rest_damage[rest, multiplier]
        new["costs"] = costs + stage.rest_costs[rest, multiplier]
        if len(below):
            self._complete(numbers)
        return numbers, bounds, multiplier

    def _complete(self, numbers: Choice) -> None:
        """The best of these nodes, each a whole choice as its own multiplier completes it."""
        new, known = self.nodes[numbers], self.known
        total = np.where((new["costs"] <= 1 + ROUNDING).all(axis=1), new["damage"], np.inf)
        if total.min() >= known.value:
            return
        choice = self._choice(int(numbers[total.argmin()]))
        predicted = self.core.problem.predicted(choice)
        if predicted < known.value and self.core.problem.feasible(choice):
            known.best, known.value = choice, predicted

    def _choice(self, number: int) -> Choice:
        """The choice that a node stands for."""
        core, end = self.core, len(self.core.order)
        picked = np.empty(end, np.int64)
        while number >= 0:
            parent, level, cell, stage, multiplier = (int(self.nodes[name][number]) for name in LINKS)
            first, taken = self.taken[stage]
            picked[level + 1 : end] = taken[level + 1 - first : end - first, multiplier]
            if cell >= 0:
                picked[level] = cell
            end = level if cell >= 0 else level + 1
            number = parent
        choice = core.base.copy()
        choice[core.order] = core.cells[np.arange(len(picked)), picked]
        return choice


def _joined(pools: list[Pool]) -> Pool:
    numbers, bounds, multipliers = zip(*pools, strict=True)
    return np.concatenate(numbers), np.concatenate(bounds), np.concatenate(multipliers)


def _suffix(values: Array, combine: np.ufunc = np.add, empty: float = 0.0) -> Array:
    """``(n + 1, …)``: sum (or least) of ``values[i:]`` for every i."""
    found = np.full((len(values) + 1, *values.shape[1:]), empty)
    if len(values):
        combine.accumulate(values[::-1], axis=0, out=found[-2::-1])
    return found
