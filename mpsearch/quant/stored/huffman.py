"""Canonical Huffman codes: a stream that says its own code and where it ends."""

from __future__ import annotations

import heapq
from itertools import accumulate, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import ArtifactError
from mpsearch.quant.stored.packing import pack_unsigned, unpack_unsigned

Array = NDArray[Any]

LONGEST = 15  # bits of a codeword: its length fits half a byte
WINDOW = (1 << LONGEST) - 1
COUNT_BYTES = 4  # number of symbols, little-endian


def encoded(symbols: Array, width: int) -> NDArray[np.uint8]:
    """Symbols below ``2^width`` as their number, half a byte for the length of every symbol's codeword, the codewords.

    The code is the best of whole bits (Huffman 1952) with lengths up to 15; lengths alone tell it, as codewords of one
    length are in the order of their symbols (Schwartz and Kallick 1964).
    """
    lengths = _lengths(np.bincount(symbols, minlength=1 << width))
    order, spans = _canonical(lengths)
    words = np.zeros((len(lengths), LONGEST), np.uint8)
    words[order] = (np.cumsum(spans) - spans)[:, None] >> np.arange(LONGEST)[::-1] & 1
    used = np.arange(LONGEST) < lengths[:, None]
    body = np.packbits(words[symbols][used[symbols]])
    count = np.frombuffer(len(symbols).to_bytes(COUNT_BYTES, "little"), np.uint8)
    return np.concatenate([count, pack_unsigned(lengths.astype(np.uint8), 4), body])


def encoded_bytes(symbols: Array, width: int) -> int:
    """Bytes of :func:`encoded`, without making them."""
    counts = np.bincount(symbols, minlength=1 << width)
    return _head(width) - (-int(counts @ _lengths(counts)) // 8)


def read(stream: NDArray[np.uint8], width: int) -> tuple[Array, int]:
    """The inverse of :func:`encoded`: the symbols at the head of a stream, and how many bytes they took.

    Raises:
        ArtifactError: the stream is truncated, or none.
    """
    head = _head(width)
    count = int.from_bytes(stream[:COUNT_BYTES].tobytes(), "little")
    lengths = unpack_unsigned(stream[COUNT_BYTES:head], 4, 1 << width)
    order, spans = _canonical(lengths)
    if len(stream) < head or spans.sum() != 1 << LONGEST:
        raise ArtifactError("there is no complete table of codewords")
    symbols, steps = np.repeat(order, spans), np.repeat(lengths[order], spans).astype(np.uint8)
    body = np.append(stream[head:], np.zeros(3, np.uint8)).astype(np.uint32)
    words = body[:-3] << 24 | body[1:-2] << 16 | body[2:-1] << 8 | body[3:]
    last = 32 - LONGEST
    # How long a codeword would be that began at this bit, for every bit: the walk is then one addition a symbol.
    step = np.stack([steps[words >> (last - bit) & WINDOW] for bit in range(8)], axis=1).tobytes()
    try:
        walk = accumulate(repeat(None, count), lambda place, _: place + step[place], initial=0)
        places = np.fromiter(walk, np.int64)
    except IndexError:
        places = np.array([8 * len(words) + 1])
    if places[-1] > 8 * len(words):
        raise ArtifactError(f"the codewords of {count} symbols are not all there")
    starts = places[:-1]
    windows = words[starts >> 3] >> (last - (starts & 7)).astype(np.uint32) & WINDOW
    return symbols[windows], head - (-int(places[-1]) // 8)


def _head(width: int) -> int:
    """Bytes before the codewords."""
    return COUNT_BYTES + (1 << width) // 2


def _lengths(counts: Array) -> NDArray[np.int64]:
    """Bits of the codeword of every symbol, 0 = it has none; two symbols have one in any case."""
    counts = counts.copy()
    often = np.argsort(-counts, kind="stable")[:2]
    counts[often] = np.maximum(counts[often], 1)
    while (lengths := _huffman(counts)).max() > LONGEST:
        counts = -(-counts // 2)  # the rare ones become less so
    return lengths


def _huffman(counts: Array) -> NDArray[np.int64]:
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(counts[symbol]), int(symbol), [int(symbol)]) for symbol in np.flatnonzero(counts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (rare, _, few), (other, order, more) = heapq.heappop(heap), heapq.heappop(heap)
        both = few + more
        lengths[both] += 1
        heapq.heappush(heap, (rare + other, order, both))
    return lengths


def _canonical(lengths: Array) -> tuple[Array, Array]:
    """(symbols by length and value, how many of the 2^15 strings of 15 bits begin with the codeword of each)."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    return order, 1 << (LONGEST - lengths[order].astype(np.int64))
