"""Packed codes in fewer bytes: frequent ones take fewer bits, and all come back exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import ArtifactError
from mpsearch.quant.stored import huffman
from mpsearch.quant.stored.packing import pack_unsigned, unpack_unsigned
from mpsearch.types import Format
from mpsearch.types.storage import LEVELS, TRITS, parts

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

CODABLE = ("int", "ternary", "twn", "palette", "kernels")  # kinds of formats; short floats stay as they are
FREE = 3**TRITS  # the first byte that no five trits make
ZEROS = FREE // 2  # five zeros


def coded(codes: Bytes, format: Format, shape: Sequence[int], axis: int) -> Bytes:
    """The part ``codes`` of a weight, as :meth:`mpsearch.quant.QuantizedWeight.packed` gives it, by Huffman codes.

    A symbol is as many codes as a byte holds, so that a code may take less than a bit; runs of zeros of ternary weights
    are symbols too. Channels of one width have a stream of their own (:func:`mpsearch.quant.stored.huffman.encoded`).

    Returns:
        As many bytes as :func:`coded_bytes` says, perhaps more than there were.
    """
    return np.concatenate([huffman.encoded(*stream) for stream in _streams(codes, format, shape, axis)])


def coded_bytes(codes: Bytes, format: Format, shape: Sequence[int], axis: int) -> int:
    """Bytes of :func:`coded`, without making them."""
    return sum(huffman.encoded_bytes(*stream) for stream in _streams(codes, format, shape, axis))


def decoded(stream: Bytes, format: Format, shape: Sequence[int], axis: int) -> Bytes:
    """The inverse of :func:`coded`.

    Raises:
        ArtifactError: the stream is truncated, or none for such a weight.
    """
    found = []
    for bits, size in _pieces(format, shape, axis):
        symbols, used = huffman.read(stream, _width(bits))
        found.append(_with_runs(symbols, size) if format.kind in LEVELS else _repacked(symbols, bits, size))
        stream = stream[used:]
    if len(stream):
        raise ArtifactError(f"{len(stream)} bytes follow the last codeword")
    return np.concatenate(found)


def _pieces(format: Format, shape: Sequence[int], axis: int) -> list[tuple[int, int]]:
    """(width, bytes) of everything that is packed without a gap."""
    if format.channel_bits is None:
        return [(format.bits or 8, parts(format, shape, axis)["codes"])]
    each = math.prod(shape) // max(shape[axis], 1)
    return [(bits, -(-each * count * bits // 8)) for bits, count in sorted(Counter(format.channel_bits).items())]


def _streams(codes: Bytes, format: Format, shape: Sequence[int], axis: int) -> Iterator[tuple[Array, int]]:
    """(symbols, their width) of every piece."""
    start = 0
    for bits, size in _pieces(format, shape, axis):
        piece, width = codes[start : start + size], _width(bits)
        start += size
        if format.kind in LEVELS:
            piece = _without_runs(piece)
        yield piece if width == 8 else unpack_unsigned(piece, width, -(-8 * size // width)), width


def _width(bits: int) -> int:
    """Of a symbol: as many codes as a byte holds, or one that it does not."""
    return bits * max(1, 8 // bits)


def _repacked(symbols: Array, bits: int, size: int) -> Bytes:
    if len(symbols) != (expected := -(-8 * size // _width(bits))):
        raise ArtifactError(f"{len(symbols)} symbols in place of {expected}")
    return pack_unsigned(symbols, _width(bits))[:size]


def _without_runs(codes: Bytes) -> Bytes:
    """Zeros in a row as their number in binary: 243 stands for two bytes of them, 244 for four, … 255 for 8192."""
    zero = codes == ZEROS
    at = np.flatnonzero(~zero | ~np.append(False, zero)[:-1])
    lengths = np.diff(at, append=len(codes))
    powers = np.arange(256 - FREE + 1)
    times = lengths[:, None] >> powers & 1
    times[:, -1] = lengths >> powers[-1]
    marks = np.tile(FREE - 1 + powers, (len(at), 1))
    marks[:, 0] = codes[at]
    return np.repeat(marks.reshape(-1), times.reshape(-1)).astype(np.uint8)


def _with_runs(symbols: Array, size: int) -> Bytes:
    single = symbols < FREE
    lengths = np.where(single, 1, 1 << np.maximum(symbols.astype(np.int64) - (FREE - 1), 0))
    if (found := int(lengths.sum())) != size:
        raise ArtifactError(f"{found} bytes of trits in place of {size}")
    return np.repeat(np.where(single, symbols, ZEROS), lengths).astype(np.uint8)
