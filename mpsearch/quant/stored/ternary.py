"""``ternary``: −a, 0 and b."""

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


@dataclass(frozen=True, eq=False)
class Ternary(QuantizedWeight):
    """Two levels beside zero, each of its own size (Trained Ternary Quantization, Zhu et al., ICLR 2017).

    The best levels are found exactly, not by the threshold of Ternary Weight Networks (Li et al. 2016): the squared
    error is least where ``(Σ of the k largest)² / k`` is largest, for each sign by itself.

    Attributes:
        codes: int8, −1, 0 or 1, in the weight's own shape.
        scale: float32, ``(channels, 2)``: a and b.
    """

    codes: Tensor
    scale: Tensor

    LEARNABLE: ClassVar = ("scale",)

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        rows = rows_of(weight, axis)
        below, a = _level(-rows)
        above, b = _level(rows)
        codes = from_rows(above.to(torch.int8) - below.to(torch.int8), weight.shape, axis)
        return cls(format, axis, weight.dtype, codes, torch.stack([a, b], 1))

    def dequantized(self) -> Tensor:
        a, b = (along(level, self.codes.shape, self.axis) for level in self.scale.T)
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
        return cls(format, axis, dtype, codes, parts["scale"].reshape(shape[axis], 2))


def _level(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(which of a row take its positive level, that level)."""
    ordered = rows.clamp_min(0).sort(dim=1, descending=True).values
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    sums = ordered.double().cumsum(1)
    at = (sums.square() / count).argmax(1, keepdim=True)
    taken = (rows >= ordered.gather(1, at)) & (rows > 0)
    return taken, ((rows * taken).double().sum(1) / taken.sum(1).clamp_min(1)).float()
