"""``bops``: bit operations of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import FLOAT_BITS, Format, Layer, Layers, Table


@dataclass(frozen=True)
class Bops:
    """``MACs · weight bits · activation bits`` a sample, float as 32 (van Baalen et al. 2020, arXiv 2005.07093).

    Products of two activations (inside attention) belong to no layer and are not counted.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        def operations(layer: Layer, format: Format) -> float:
            return layer.macs * (format.weight_bits or FLOAT_BITS) * (format.act_bits or FLOAT_BITS)

        return fill(layers, formats, operations, "bops")
