"""``bops``: bit operations of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import FLOAT_BITS, Format, Layer, Layers, Table
from mpsearch.types.format import LOOKED_UP_BITS


@dataclass(frozen=True)
class Bops:
    """``MACs · weight bits · activation bits`` a sample, float as 32 (van Baalen et al. 2020, arXiv 2005.07093).

    Indices into a codebook count as the half floats that they are looked up to; low-rank factors are products besides.
    Products of two activations (inside attention) belong to no layer and are not counted.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        def operations(layer: Layer, format: Format) -> float:
            each = layer.numel // max(layer.channels, 1)
            factors = LOOKED_UP_BITS * format.rank * (layer.channels + each) / max(layer.numel, 1)
            return layer.macs * (format.product_bits + factors) * (format.act_bits or FLOAT_BITS)

        return fill(layers, formats, operations, "bops")
