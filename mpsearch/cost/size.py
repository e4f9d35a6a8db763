"""``size``: bytes of the packed generator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.types import Format, Layer, Layers, Table

SCALE_BYTES = 4  # float32, one a channel
RANGE_BYTES = 8  # float32 low and high of a quantized input, or of each tensor that it is joined from


@dataclass(frozen=True)
class Size:
    """Exact payload bytes of the packed file: codes, scales, activation ranges, and everything left in float.

    Codes of one layer are packed without gaps and padded to a whole byte; where channels differ in width, a table of
    the widths and an index into it for every channel count too. ``constant`` is the rest of ``state_dict``.
    """

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        return fill(layers, formats, layer_bytes, "bytes", constant=float(layers.rest_bytes))


def layer_bytes(layer: Layer, format: Format) -> float:
    """Payload bytes of one layer."""
    activation = RANGE_BYTES * max(1, len(layer.input_parts)) if format.act_bits else 0
    if format.weight_bits is None:
        return layer.float_bytes + activation
    scales = layer.channels * SCALE_BYTES if format.kind == "int" else 0
    return code_bytes(layer, format) + grouping_bytes(format) + scales + activation


def code_bytes(layer: Layer, format: Format) -> int:
    """Codes of one layer; channels of one width lie together, padded to a whole byte."""
    if format.channel_bits is None:
        return -(-layer.numel * int(format.weight_bits or 0) // 8)
    each = layer.numel // max(layer.channels, 1)
    return sum(-(-each * n * bits // 8) for bits, n in Counter(format.channel_bits).items())


def grouping_bytes(format: Format) -> int:
    """What it takes to say which channel has which width: the widths, and an index into them for every channel."""
    if format.channel_bits is None:
        return 0
    groups = len(set(format.channel_bits))
    return groups - (-len(format.channel_bits) * (groups - 1).bit_length() // 8)
