"""``leap_channels``: what :class:`Refine` does for layers, for all output channels at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.search.channels import CostOf, split_channels
from mpsearch.types import BitMap, Limit, Measured, Table

Array = NDArray[np.float64]
ROUNDS = 6
DAMPING = (2.0, 4.0, 8.0, 16.0)  # of the curvature; thousands of channels move at once, so that short leaps come first


def leap_channels(
    table: Table,
    start: BitMap,
    limits: Sequence[Limit],
    cost_of: CostOf,
    groups: int,
    evaluate: Callable[[BitMap], Measured],
    slopes: Callable[[BitMap], Array | None],
) -> BitMap:
    """Leap to the best widths of a local model of the true error, as long as that lowers it.

    The model has the slopes of the true error for every channel and width, one backward pass a round, and the table
    for curvature. Single moves are not tried: with thousands of units they would fit the calibration inputs.

    Args:
        table: a row a channel, as in :func:`split_channels`.
        start: widths of all channels.
        limits: the budgets.
        cost_of: the cost of a whole layer in any format.
        groups: different widths a layer.
        evaluate: true error of a map.
        slopes: ``(channels, formats)`` first-order changes of it; None where the generator has no gradients.
    """
    best, least = start, evaluate(start)
    columns = {format.bits: column for column, format in enumerate(table.formats)}
    rows = np.arange(len(table.units))
    damage = np.maximum(table.values, 0)
    for _ in range(ROUNDS):
        if (slope := slopes(best)) is None:
            break
        formats = [best[unit.layer] for unit in table.units]
        now = [
            columns[format.channel_bits[unit.channels[0]] if format.channel_bits and unit.channels else format.bits]
            for format, unit in zip(formats, table.units, strict=True)
        ]
        curvature = damage + damage[rows, now][:, None]
        curvature[rows, now] = 0
        leaps = {}
        for damping in DAMPING:
            model = slope + damping * curvature
            model = model - np.nanmin(model, axis=1, keepdims=True)
            found = split_channels(replace(table, values=model), best, limits, cost_of, groups)
            if found is not None and found not in leaps:
                leaps[found] = evaluate(found)
        if not leaps:
            break
        leap = min(leaps, key=lambda bitmap: leaps[bitmap].value)
        if not leaps[leap].beats(least):
            break
        best, least = leap, leaps[leap]
    return best
