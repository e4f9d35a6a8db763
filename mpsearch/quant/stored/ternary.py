"""``ternary``: −a, 0 and b. ``twn``: −a, 0 and a."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mpsearch.quant.stored.form import Parts, QuantizedWeight, along, from_rows, rows_of
from mpsearch.types import Format
from mpsearch.types.storage import TRITS

POWERS = 3 ** np.arange(TRITS)
THRESHOLD = 0.7  # of the mean magnitude: near the best for normal and uniform weights, says the paper


@dataclass(frozen=True, eq=False)
class Ternary(QuantizedWeight):
    """Two levels beside zero, each of its own size (Trained Ternary Quantization, Zhu et al., ICLR 2017), or of one.

    The best levels of ``ternary`` are found exactly: the squared error is least where ``(Σ of the k largest)² / k`` is
    largest, for each sign by itself. ``twn`` has the one level of Ternary Weight Networks (Li et al. 2016), the mean of
    the magnitudes above a threshold of 0.7 times their mean, in half the bytes for levels.

    Attributes:
        codes: int8, −1, 0 or 1, in the weight's own shape.
        scale: float32, ``(channels, 2)``: a and b; ``(channels, 1)`` where they are one.
    """

    codes: Tensor
    scale: Tensor

    LEARNABLE: ClassVar = ("scale",)

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        rows = rows_of(weight, axis)
        if format.kind == "twn":
            kept, level = _above_threshold(rows)
            codes, levels = rows.sign().to(torch.int8) * kept, [level]
        else:
            below, a = _level(-rows)
            above, b = _level(rows)
            codes, levels = above.to(torch.int8) - below.to(torch.int8), [a, b]
        return cls(format, axis, weight.dtype, from_rows(codes, weight.shape, axis), torch.stack(levels, 1))

    def dequantized(self) -> Tensor:
        a, b = (along(self.scale[:, at], self.codes.shape, self.axis) for at in (0, -1))
        return torch.where(self.codes > 0, b, torch.where(self.codes < 0, -a, 0.0)).to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        trits = (self.codes.flatten().cpu().numpy() + 1).astype(np.uint8)
        trits = np.pad(trits, (0, -len(trits) % TRITS)).reshape(-1, TRITS)
        codes = torch.from_numpy((trits @ POWERS).astype(np.uint8))
        return {"codes": codes, "scale": self.scale.detach().flatten().cpu()}

    @classmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        trits = parts["codes"].numpy()[:, None] // POWERS % 3
        codes = torch.from_numpy(trits.reshape(-1)[: math.prod(shape)].astype(np.int8) - 1).reshape(tuple(shape))
        return cls(format, axis, dtype, codes, parts["scale"].reshape(shape[axis], -1))


def _level(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(which of a row take its positive level, that level)."""
    ordered = rows.clamp_min(0).sort(dim=1, descending=True).values
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    sums = ordered.double().cumsum(1)
    at = (sums.square() / count).argmax(1, keepdim=True)
    taken = (rows >= ordered.gather(1, at)) & (rows > 0)
    return taken, ((rows * taken).double().sum(1) / taken.sum(1).clamp_min(1)).float()


def _above_threshold(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(which weights of a row are more than zero in size, their mean magnitude)."""
    size = rows.abs()
    kept = size > THRESHOLD * size.mean(1, keepdim=True)
    return kept, ((size * kept).double().sum(1) / kept.sum(1).clamp_min(1)).float()
