"""What a weight of some shape takes in some format, to the byte."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from mpsearch.types.format import Format

SCALE_BYTES = 4  # float32
VALUE_BYTES = 2  # float16, of codebooks and factors
TRITS = 5  # a byte holds so many: 3^5 = 243
LEVELS: Mapping[str, int] = {"ternary": 2, "twn": 1}  # beside zero, each stored


def unfit(format: Format, shape: Sequence[int], axis: int) -> str:
    """Why a weight of this shape cannot take ``format``, output channels along ``axis``; empty where it can."""
    channels, each = shape[axis], math.prod(shape) // max(shape[axis], 1)
    if format.channel_bits is not None and len(format.channel_bits) != channels:
        return f"{len(format.channel_bits)} widths for {channels} output channels"
    if format.group and each % format.group:
        return f"groups of {format.group} do not divide the {each} weights of a channel"
    if format.rank >= (least := min(channels, each)) and format.rank:
        return f"factors of rank {format.rank} of a matrix whose rank is {least} at most"
    kernels = tuple(shape[3:] if len(shape) == 5 and shape[0] == axis == 1 else shape[2:])  # modulated: a leading 1
    if format.side and kernels != (format.side, format.side):
        kernel = "×".join(map(str, kernels)) or "no kernels"
        return f"kernels of {format.side}×{format.side}, but it has {kernel}"
    return ""


def parts(format: Format, shape: Sequence[int], axis: int) -> Mapping[str, int]:
    """Part of the stored form → its bytes, for a weight that is not left float."""
    numel, channels = math.prod(shape), shape[axis]
    scale = {"scale": SCALE_BYTES * channels}
    if format.kind in ("fp16", "bf16"):
        return {"codes": 2 * numel}
    if format.kind == "fp8":
        return {"codes": numel, **scale}
    if format.kind in LEVELS:
        return {"codes": -(-numel // TRITS), "scale": LEVELS[format.kind] * SCALE_BYTES * channels}
    if format.kind == "palette":
        return {"codes": _bytes(numel, format.bits or 0), **scale, "values": VALUE_BYTES << (format.bits or 0)}
    if format.kind == "kernels":
        each = (format.side or 1) ** 2
        codebook = (VALUE_BYTES * each) << (format.bits or 0)
        return {"codes": _bytes(numel // each, format.bits or 0), **scale, "values": codebook}
    return _integers(format, numel, channels)


def _integers(format: Format, numel: int, channels: int) -> Mapping[str, int]:
    each = numel // max(channels, 1)
    scales = channels * (each // format.group if format.group else 1)
    found = {"codes": _bytes(numel, format.bits or 0), "scale": SCALE_BYTES * scales}
    if format.channel_bits is not None:  # channels of one width lie together, padded to a whole byte
        widths = Counter(format.channel_bits)
        found["codes"] = sum(_bytes(each * count, bits) for bits, count in widths.items())
        # Which channel has which width: the widths, and an index into them for every channel.
        found |= {"widths": len(widths), "groups": _bytes(channels, (len(widths) - 1).bit_length())}
    if format.zero:
        found["zero"] = scales
    if format.rank:
        found |= {"left": VALUE_BYTES * channels * format.rank, "right": VALUE_BYTES * each * format.rank}
    return found


def metadata_bytes(format: Format, shape: Sequence[int], axis: int) -> int:
    """Everything beside the codes and one scale an output channel."""
    found = parts(format, shape, axis)
    return sum(found.values()) - found["codes"] - min(found.get("scale", 0), SCALE_BYTES * shape[axis])


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)
