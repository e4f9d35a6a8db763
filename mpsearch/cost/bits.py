"""``bits``: mean width of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.cost.size import grouping_bytes
from mpsearch.types import FLOAT_BITS, Format, Layer, Layers, Table


@dataclass(frozen=True)
class Bits:
    """Parameter-weighted mean of the weight bits over the searched layers; a float weight counts 32.

    What it takes to say which channel has which width counts as well.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        def share(layer: Layer, format: Format) -> float:
            codes = layer.numel * (format.weight_bits or FLOAT_BITS)
            return (codes + 8 * grouping_bytes(format)) / max(layers.numel, 1)

        return fill(layers, formats, share, "bits")
