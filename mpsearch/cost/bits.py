"""``bits``: mean width of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import FLOAT_BITS, Format, Layer, Layers, Table
from mpsearch.types.storage import metadata_bytes


@dataclass(frozen=True)
class Bits:
    """Parameter-weighted mean of the weight bits over the searched layers; a float weight counts 32.

    Everything beside the codes and one scale an output channel counts as well: further scales, zero points, codebooks,
    low-rank factors, and what it takes to say which channel has which width.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        whole = max(layers.numel, 1)

        def share(layer: Layer, format: Format) -> float:
            codes = layer.numel * (format.weight_bits or FLOAT_BITS)
            more = 0 if format.kind == "float" else metadata_bytes(format, layer.shape, layer.channel_axis)
            return (codes + 8 * more) / whole

        return fill(layers, formats, share, "bits")
