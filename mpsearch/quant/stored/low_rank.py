"""``w4r8``: integers, and what they leave over as a product of two thin factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from mpsearch.quant.stored.form import Parts, QuantizedWeight, from_rows, rows_of
from mpsearch.quant.stored.integers import Integers
from mpsearch.types import Format

ROUNDS = 4  # the factors fit what the integers leave, the integers what the factors leave


@dataclass(frozen=True, eq=False)
class LowRank(QuantizedWeight):
    """``integers + left · right`` on the weight as a matrix of output channels (LoftQ, Li et al., ICLR 2024).

    Attributes:
        integers: the full-rank part, of a float32 weight.
        left: float16, ``(channels, rank)``.
        right: likewise, ``(rank, weights of a channel)``.
    """

    integers: Integers
    left: Tensor
    right: Tensor

    LEARNABLE: ClassVar = ("left", "right")

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        rows = rows_of(weight, axis)
        plain = replace(format, rank=0)
        best, least = None, float("inf")
        left, right = rows.new_zeros(len(rows), format.rank).half(), rows.new_zeros(format.rank, rows.shape[1]).half()
        for _ in range(ROUNDS):
            rest = from_rows(rows - left.float() @ right.float(), weight.shape, axis)
            integers = Integers.of(rest, plain, axis)
            gap = rows - rows_of(integers.dequantized(), axis)
            left, right = _factors(gap, format.rank)
            error = (gap - left.float() @ right.float()).double().square().sum().item()
            if error < least:
                best, least = (integers, left, right), error
        assert best is not None  # an error of finite weights is finite
        return cls(format, axis, weight.dtype, *best)

    def dequantized(self) -> Tensor:
        product = from_rows(self.left.float() @ self.right.float(), self.integers.codes.shape, self.axis)
        return (self.integers.dequantized() + product).to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        factors = {"left": self.left, "right": self.right}
        return self.integers.packed() | {name: own.detach().half().flatten().cpu() for name, own in factors.items()}

    @classmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        integers = Integers.unpacked(parts, replace(format, rank=0), shape, axis, torch.float32)
        left, right = parts["left"].reshape(shape[axis], -1), parts["right"].reshape(format.rank, -1)
        return cls(format, axis, dtype, integers, left, right)


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of that rank, float16: principal axes of the shorter side."""
    wide = matrix.shape[0] <= matrix.shape[1]
    short = (matrix if wide else matrix.T).double()
    axes = torch.linalg.eigh(short @ short.T).eigenvectors[:, -rank:]
    other = axes.T @ short
    size = other.norm(dim=1).clamp_min(1e-30).sqrt()  # shared out evenly, for float16 has few exponents
    left, right = (axes * size).half(), (other / size[:, None]).half()
    return (left, right) if wide else (right.T.contiguous(), left.T.contiguous())
