"""``memory``: the largest input activation of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import FLOAT_BITS, Format, Layer, Layers, Table


@dataclass(frozen=True)
class Memory:
    """Bytes of what a layer reads in its largest call, for one sample, float as four bytes an element.

    The whole is not the sum but the largest layer: inputs are in memory one after the other. Layers that are never
    called as modules, and those that are not searched, are not seen.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        def read(layer: Layer, format: Format) -> float:
            elements = layer.act_elements if layer.largest_input is None else layer.largest_input
            return -(-elements * (format.act_bits or FLOAT_BITS) // 8)

        return fill(layers, formats, read, "memory", combine="max")
