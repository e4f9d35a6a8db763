"""What a solver is given: layers that are together as one unit, and only the cells that may be chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleBudget, UsageError
from mpsearch.search.feasible import check_feasible
from mpsearch.types import TOLERANCE, BitMap, Format, Layer, Layers, Limit, Measured, Problem, Table, Unit

Mask = NDArray[np.bool_]
NAMED = 3  # pins that a message spells out


def problem_of(
    damage: Table,
    layers: Layers,
    limits: Sequence[Limit],
    evaluate: Callable[[BitMap], Measured] | None = None,
) -> Problem:
    """The question to the solvers.

    Cells that a pin or a floor forbids, that a cost table does not have, or that alone exceed a budget on a maximum
    (``memory``) are no choices; those budgets are then met by any map, and only sums are left as limits. Layers that
    are together are one unit (:func:`merged`).

    Args:
        damage: a row a layer, ours or another tool's.
        layers: with their pins, floors and groups.
        limits: the budgets, with tables of the same layers and formats.
        evaluate: the true damage of a whole map.

    Raises:
        UsageError: the table cannot be used; the unit, the format and the number are named.
        InfeasibleBudget: a budget cannot be met, with what stands in its way and the smallest feasible value.
    """
    damage = merged(restricted(damage, layers), layers)
    tables = [replace(limit, costs=merged(limit.costs, layers)) for limit in limits]
    peaks = [limit for limit in tables if limit.costs.combine == "max"]
    sums = [limit for limit in tables if limit.costs.combine == "sum"]
    allowed = ~np.isnan(damage.values)
    for limit in tables:
        allowed &= ~np.isnan(limit.costs.values)
        for row in np.flatnonzero(~allowed.any(axis=1)):
            rule = layers[damage.units[row].layer].rule
            known = f"no format that {damage.units[row]} may take has a known cost"
            raise UsageError(f"{limit.budget}: {known}" + (f": it is {rule}" if rule else ""))
    bans: dict[str, Mask] = {}
    check_feasible(_masked(damage, allowed, peaks), partial(_given, layers, allowed, bans))
    for limit in peaks:
        bans[str(limit.budget)] = allowed & (limit.costs.values > limit.limit * (1 + TOLERANCE))
    for ban in bans.values():
        allowed = allowed & ~ban
    problem = _masked(damage, allowed, sums, evaluate)
    check_feasible(problem, partial(_given, layers, allowed, bans))
    return problem


def restricted(damage: Table, layers: Layers) -> Table:
    """The table in the order of the layers, NaN where a pin or a floor forbids a cell.

    Raises:
        UsageError: it lacks a layer, a column that a layer is pinned to, or holds what is no damage.
    """
    rows = {unit: row for row, unit in enumerate(damage.units)}
    if twice := [unit for row, unit in enumerate(damage.units) if rows[unit] != row]:
        raise UsageError(f"the damage table has two rows for {twice[0]}")
    wanted = dict.fromkeys(layers.units)
    if missing := [unit for unit in wanted if unit not in rows]:
        raise UsageError(f"the damage table has no row for {missing[0]}")
    if strange := [unit for unit in damage.units if unit not in wanted]:
        raise UsageError(f"the damage table has a row for {strange[0]}, which is no searched layer")
    _check(damage)
    order = [rows[unit] for unit in wanted]
    values, stderr = damage.values[order], damage.stderr[order]
    for row, layer in enumerate(layers):
        choices = layers.choices(layer, damage.formats)
        may = [format in choices for format in damage.formats]
        if not may.count(True) or np.isnan(values[row, may]).all():
            rule = f": it is {layer.rule}" if layer.rule else ""
            raise UsageError(f"the damage table allows {layer.name} no format that it may take{rule}")
        values[row, np.logical_not(may)] = np.nan
    return replace(damage, units=layers.units, values=values, stderr=stderr)


def _check(damage: Table) -> None:
    for row, unit in enumerate(damage.units):
        if np.isnan(damage.values[row]).all():
            raise UsageError(f"{unit} can take none of the formats: its whole row in the damage table is empty or NaN")
    # Other measures may be negative: the first-order change of a loss has a sign.
    bad = np.isinf(damage.values) | ((damage.values < 0) if damage.measure == "mse" else False)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value, what = damage.values[row, column], f"the damage of {damage.units[row]} in {damage.formats[column]}"
        fix = "mark what is not allowed as NaN" if np.isinf(value) else "a mean squared error is 0 or more"
        raise UsageError(f"{what} is {value:g}: {fix}")


def merged(table: Table, layers: Layers) -> Table:
    """Layers that are together as one row: their sum, or for a peak their maximum; standard errors in quadrature.

    What one of them may not take, none may.
    """
    if all(layer.group is None for layer in layers):
        return table
    groups: dict[str, list[int]] = {}
    for row, layer in enumerate(layers):
        groups.setdefault(layer.group or layer.name, []).append(row)
    names = [[layers[row].name for row in rows] for rows in groups.values()]
    join = np.max if table.combine == "max" else np.sum
    return replace(
        table,
        units=tuple(Unit(first, None, tuple(others)) for first, *others in names),
        values=np.stack([join(table.values[rows], axis=0) for rows in groups.values()]),
        stderr=np.stack([np.sqrt(np.square(table.stderr[rows]).sum(axis=0)) for rows in groups.values()]),
    )


def _masked(
    damage: Table,
    allowed: Mask,
    limits: Sequence[Limit],
    evaluate: Callable[[BitMap], Measured] | None = None,
) -> Problem:
    return Problem(replace(damage, values=np.where(allowed, damage.values, np.nan)), tuple(limits), evaluate)


def _given(layers: Layers, allowed: Mask, bans: Mapping[str, Mask], limit: Limit) -> str:
    """What makes a budget dearer: pins and floors, and budgets that forbid cheaper cells."""
    costs = limit.costs.values
    least = np.where(allowed, costs, np.inf).min(axis=1)
    cheapest = np.nanmin(costs, axis=1)
    hit = [layers[u.layer] for u, own, any_ in zip(limit.costs.units, least, cheapest, strict=True) if any_ < own]
    reasons = _rules(hit)
    reasons += [text for text, ban in bans.items() if (np.where(ban, costs, np.inf).min(axis=1) < least).any()]
    return f" with {' and '.join(reasons)}" if reasons else ""


def _rules(layers: Sequence[Layer]) -> list[str]:
    """``out.weight pinned to w8``, the first few spelled out."""
    rules = [f"{layer.name} {layer.rule}" for layer in layers if layer.pin or layer.floor]
    more = len(rules) - NAMED
    return rules if more <= 0 else [*rules[:NAMED], f"{more} more"]


@contextmanager
def naming_rules(layers: Layers, formats: Sequence[Format]) -> Iterator[None]:
    """Budgets that contradict each other may do so because of pins and floors: then those that forbid one of the
    formats are named too."""
    try:
        yield
    except InfeasibleBudget as error:
        rules = _rules([layer for layer in layers if layer.pin or not all(map(layer.reaches_floor, formats))])
        raise InfeasibleBudget(f"{error}, with {' and '.join(rules)}" if rules else str(error)) from None
