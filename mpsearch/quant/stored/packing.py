"""Integers of any width side by side in bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes to ``ceil(n · bits / 8)`` bytes: offset by ``2^(bits−1)``, least significant bit first."""
    return pack_unsigned((codes.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8), bits)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """The inverse of :func:`pack` for ``count`` codes."""
    codes: NDArray[np.int8] = (unpack_unsigned(packed, bits, count) - 2 ** (bits - 1)).astype(np.int8)
    return codes


def pack_unsigned(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers below ``2^bits`` to ``ceil(n · bits / 8)`` bytes, least significant bit first."""
    planes = (numbers.reshape(-1)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_unsigned(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int16]:
    """The inverse of :func:`pack_unsigned` for ``count`` numbers."""
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    numbers: NDArray[np.int16] = planes.astype(np.int16) @ (1 << np.arange(bits, dtype=np.int16))
    return numbers
