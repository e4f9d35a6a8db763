"""``size``: bytes of the packed generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import Format, Layer, Layers, Table

SCALE_BYTES = 4  # float32, one a channel
RANGE_BYTES = 8  # float32 low and high of a quantized input


@dataclass(frozen=True)
class Size:
    """Exact payload bytes of the packed file: codes, scales, activation ranges, and everything left in float.

    Codes of one layer are packed without gaps and padded to a whole byte. ``constant`` is the rest of ``state_dict``.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        return fill(layers, formats, layer_bytes, "bytes", constant=float(layers.rest_bytes))


def layer_bytes(layer: Layer, format: Format) -> float:
    """Payload bytes of one layer."""
    activation = RANGE_BYTES if format.act_bits else 0
    if format.weight_bits is None:
        return layer.float_bytes + activation
    scales = layer.channels * SCALE_BYTES if format.kind == "int" else 0
    return -(-layer.numel * format.weight_bits // 8) + scales + activation
