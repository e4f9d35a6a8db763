"""``bits``: mean width of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import FLOAT_BITS, Format, Layer, Layers, Table


@dataclass(frozen=True)
class Bits:
    """Parameter-weighted mean of the weight bits over the searched layers; a float weight counts 32."""

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        def share(layer: Layer, format: Format) -> float:
            return layer.numel * (format.weight_bits or FLOAT_BITS) / layers.numel

        return fill(layers, formats, share, "bits")
