"""``split_channels``: a width for every output channel, in at most so many groups a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.search.core import search_core
from mpsearch.search.lagrange import approach
from mpsearch.search.relaxation import better, from_best, room
from mpsearch.types import BitMap, Choice, Format, Limit, Problem, Table, within

Array = NDArray[np.float64]
CostOf = Callable[[str, Format], Array]  # (layer, format) -> what it costs under every budget
RAISE, RAISES = 1.25, 60
TINY = 1e-300
ROUNDS = 3  # prices, sets of widths, channels; again with the prices that those leave
GAP = 1e-4  # of the additive model, which is far less exact than that
WIDTHS = (64, 512)  # of the passes over the core: no proof is needed


def predicted_by_channel(table: Table, bitmap: BitMap) -> float:
    """Sum of the table over the channels of a map, those of layers that cannot be divided left out."""
    columns = {format.bits: at for at, format in enumerate(table.formats)}
    total = 0.0
    for unit, row in zip(table.units, table.values, strict=True):
        format = bitmap.get(unit.layer)
        if format is not None and format.divisible and unit.channels:
            bits = format.channel_bits[unit.channels[0]] if format.channel_bits else format.bits
            total += float(row[columns[bits]])
    return total


def splittable(table: Table, problem: Problem, bitmap: BitMap) -> Table:
    """The rows of layers that may have several widths, and in them those that the layer may have with its activations.

    Pinned layers have but one; layers that are together stay as they are: what they share is one format. So do those
    of which the map has no plain integers.
    """
    widths = {}
    for unit, allowed in zip(problem.units, problem.allowed, strict=True):
        if not unit.others and bitmap[unit.layer].divisible:
            own = [format for format, may in zip(problem.formats, allowed, strict=True) if may and format.plain]
            widths[unit.layer] = {f.bits for f in own if f.act_only == bitmap[unit.layer].act_only}
    rows = [row for row, unit in enumerate(table.units) if unit.layer in widths]
    may = [[format.bits in widths[table.units[row].layer] for format in table.formats] for row in rows]
    values = np.where(np.reshape(may, (len(rows), len(table.formats))), table.values[rows], np.nan)
    units = tuple(table.units[row] for row in rows)
    return replace(table, units=units, values=values, stderr=table.stderr[rows])


def bound_by_channel(table: Table, bitmap: BitMap, limits: Sequence[Limit], cost_of: CostOf) -> float | None:
    """What no widths of the channels can have less than, by the additive table; None where none can be divided.

    Every channel may have any width, and saying which costs nothing (arguments as in :func:`split_channels`).
    """
    splits = _splits(table, bitmap, cost_of, 1)
    if not splits:
        return None
    problem = _problem(table, splits, limits, ~np.isnan(table.values), _kept(splits, bitmap, limits, cost_of))
    if problem is None:
        return None
    gains, offset = from_best(problem)
    return approach(gains)[0].bound + offset


def _kept(splits: Sequence[_Split], bitmap: BitMap, limits: Sequence[Limit], cost_of: CostOf) -> Array:
    """``(budgets,)``: what is spent beside the layers that are split."""
    kept = [cost_of(name, format) for name, format in bitmap.items() if name not in {s.name for s in splits}]
    spent: Array = np.array([limit.costs.constant for limit in limits]) + np.sum(kept, axis=0, initial=0.0)
    return spent


@dataclass(frozen=True)
class _Split:
    """One layer that is split: its rows in the table, and what its formats cost under every budget."""

    name: str
    rows: slice
    each: Array  # (formats, budgets): one channel at each width
    saying: Array  # (widths used, budgets): what it takes to say which channel has which width


def split_channels(
    table: Table, bitmap: BitMap, limits: Sequence[Limit], cost_of: CostOf, groups: int
) -> BitMap | None:
    """Widths of all channels under the budgets, by the additive table; None when nothing finer fits them.

    The channels of a layer are units of one large knapsack. Its prices decide for every layer which set of at most
    ``groups`` widths to use, the cost of saying which channel has which width counted, and the knapsack is solved
    again over those sets.

    Args:
        table: a row a channel, integer formats, NaN = not allowed; layers without rows stay as they are.
        bitmap: a map of whole layers; its activations, and what it leaves float, stay.
        limits: the budgets.
        cost_of: the cost of a whole layer in any format.
        groups: different widths a layer, at least 2.
    """
    if groups < 2:
        raise UsageError(f"groups is {groups}: use 1 for one width a layer, or 2 and more")
    splits = _splits(table, bitmap, cost_of, groups)
    if not splits:
        return None
    base = _kept(splits, bitmap, limits, cost_of)
    used = [1] * len(splits)
    allowed = ~np.isnan(table.values)
    slack = np.zeros(len(limits))  # costs are whole bytes, those of single channels are not
    best: BitMap | None = None
    least = np.inf
    for _ in range(ROUNDS):
        problem = _problem(table, splits, limits, allowed, base + _said(splits, used) + slack)
        if problem is None:
            break
        prices = np.maximum(approach(from_best(problem)[0])[0].prices, TINY) / room(problem)
        for _ in range(RAISES):  # sets that fit the prices may still be too dear together
            for at, split in enumerate(splits):
                widths = _widths(table.values[split.rows], split, prices, groups)
                allowed[split.rows] = widths
                used[at] = int(widths.sum())
            problem = _problem(table, splits, limits, allowed, base + _said(splits, used) + slack)
            if problem is not None:
                break
            prices = prices * RAISE
        if problem is None:
            break
        if (choice := _solve(problem)) is None:
            break
        found = _merged(table, splits, choice, bitmap)
        total = np.array([limit.costs.constant for limit in limits])
        total = total + sum(cost_of(name, format) for name, format in found.items())
        if all(within(float(t), limit.limit) for t, limit in zip(total, limits, strict=True)):
            damage = problem.predicted(choice)
            if damage < least:
                best, least = found, damage
        else:
            slack = slack + np.maximum(total - [limit.limit for limit in limits], 0) * 1.01
    return best


def _said(splits: Sequence[_Split], used: Sequence[int]) -> Array:
    """``(budgets,)``: what it takes to say which channel has which width, in all layers."""
    said: Array = np.sum([split.saying[n - 1] for split, n in zip(splits, used, strict=True)], axis=0)
    return said


def _splits(table: Table, bitmap: BitMap, cost_of: CostOf, groups: int) -> list[_Split]:
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(table.units):
        rows.setdefault(unit.layer, []).append(row)
    found = []
    for name, own in rows.items():
        format = bitmap.get(name)
        if format is None or not format.divisible or len(own) < 2:
            continue
        whole = np.stack(
            [cost_of(name, Format("int", column.bits).with_activations(format)) for column in table.formats]
        )
        saying = [np.zeros(whole.shape[1])]
        for n in range(2, min(groups, len(table.formats), len(own)) + 1):
            widths = [table.formats[c % n].bits or 0 for c in range(len(own))]
            codes = np.mean([whole[c % n] for c in range(len(own))], axis=0)
            saying.append(cost_of(name, Format.of_channels(widths).with_activations(format)) - codes)
        if np.isnan(whole).any() or np.isnan(saying).any():  # a latency that nobody measured
            continue
        found.append(_Split(name, slice(own[0], own[-1] + 1), whole / len(own), np.stack(saying)))
    return found


def _problem(
    table: Table, splits: Sequence[_Split], limits: Sequence[Limit], allowed: NDArray[np.bool_], constant: Array
) -> Problem | None:
    """The knapsack over all channels of the split layers; None when the constant alone breaks a budget."""
    rows = np.concatenate([np.arange(split.rows.start, split.rows.stop) for split in splits])
    units = tuple(table.units[row] for row in rows)
    values = np.where(allowed[rows], table.values[rows], np.nan)
    costs = np.concatenate([np.broadcast_to(s.each, (s.rows.stop - s.rows.start, *s.each.shape)) for s in splits])
    made = []
    for at, limit in enumerate(limits):
        own = Table(
            units,
            table.formats,
            costs[:, :, at],
            np.zeros(values.shape),
            limit.costs.measure,
            "channels",
            float(constant[at]),
        )
        least = np.where(allowed[rows], own.values, np.inf).min(axis=1).sum() + own.constant
        if not within(float(least), limit.limit):
            return None
        made.append(Limit(limit.budget, own, limit.limit, limit.full))
    damage = Table(units, table.formats, values, np.zeros(values.shape), table.measure, table.source)
    return Problem(damage, tuple(made))


def _solve(problem: Problem) -> Choice | None:
    """The best choice that prices and first passes over the core find; None where they find none."""
    task, _ = from_best(problem)
    start, met = approach(task)
    return search_core(task, start, better(task, [met])[0], GAP, np.inf, WIDTHS)[0]


def _widths(damage: Array, split: _Split, prices: Array, groups: int) -> NDArray[np.bool_]:
    """``(formats,)``: the set of at most ``groups`` widths that is cheapest at these prices."""
    priced = damage + split.each @ prices
    best, chosen = np.inf, np.zeros(damage.shape[1], bool)
    for n in range(1, len(split.saying) + 1):
        overhead = float(split.saying[n - 1] @ prices)
        for columns in combinations(range(damage.shape[1]), n):
            total = priced[:, columns].min(axis=1).sum() + overhead
            if total < best:
                best, chosen = total, np.isin(np.arange(damage.shape[1]), columns)
    return chosen


def _merged(table: Table, splits: Sequence[_Split], choice: NDArray[np.int64], bitmap: BitMap) -> BitMap:
    formats: dict[str, Format] = dict(bitmap)
    start = 0
    for split in splits:
        stop = start + split.rows.stop - split.rows.start
        widths = [table.formats[column].bits or 0 for column in choice[start:stop]]
        formats[split.name] = Format.of_channels(widths).with_activations(bitmap[split.name])
        start = stop
    return BitMap(formats, bitmap.ranges)
