"""``size``: bytes of the packed generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import Format, Layer, Layers, Table
from mpsearch.types.storage import parts

RANGE_BYTES = 8  # float32 low and high of a quantized input, or of each tensor that it is joined from


@dataclass(frozen=True)
class Size:
    """Exact payload bytes of the packed file: codes and what decodes them, ranges, and all that is left in float.

    Codes of one layer are packed without gaps and padded to a whole byte, see :func:`mpsearch.types.storage.parts`.
    ``constant`` is the rest of ``state_dict``.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        return fill(layers, formats, layer_bytes, "bytes", constant=float(layers.rest_bytes))


def layer_bytes(layer: Layer, format: Format) -> float:
    """Payload bytes of one layer."""
    activation = RANGE_BYTES * max(1, len(layer.input_parts)) if format.ranged else 0
    if format.kind == "float":
        return layer.float_bytes + activation
    return sum(parts(format, layer.shape, layer.channel_axis).values()) + activation
