"""``fp16``, ``bf16`` and ``fp8``: shorter floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from mpsearch.quant.stored.form import Parts, QuantizedWeight, along
from mpsearch.types import Format

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
EIGHT = torch.float8_e4m3fn  # FP8 formats for deep learning (Micikevicius et al. 2022, arXiv 2209.05433)


@dataclass(frozen=True, eq=False)
class Halves(QuantizedWeight):
    """Half floats; what lies beyond the largest becomes the largest, for there is only infinity.

    Attributes:
        codes: float16 or bfloat16, in the weight's own shape.
    """

    codes: Tensor

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        dtype = HALVES[format.kind]
        limit = torch.finfo(dtype).max
        return cls(format, axis, weight.dtype, weight.detach().clamp(-limit, limit).to(dtype))

    def dequantized(self) -> Tensor:
        return self.codes.to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        return {"codes": self.codes.contiguous().cpu()}

    @classmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        return cls(format, axis, dtype, parts["codes"].reshape(tuple(shape)))


@dataclass(frozen=True, eq=False)
class Eights(QuantizedWeight):
    """Floats of four exponent and three mantissa bits times a scale that makes a channel's largest their largest.

    Attributes:
        codes: float8, in the weight's own shape.
        scale: float32, one a channel, shaped to broadcast over ``codes``.
    """

    codes: Tensor
    scale: Tensor

    LEARNABLE: ClassVar = ("scale",)

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        peak = weight.detach().float().abs().amax([dim for dim in range(weight.ndim) if dim != axis], keepdim=True)
        scale = torch.where(peak > 0, peak / torch.finfo(EIGHT).max, 1.0)
        return cls(format, axis, weight.dtype, (weight.detach().float() / scale).to(EIGHT), scale)

    def dequantized(self) -> Tensor:
        return (self.codes.float() * self.scale).to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        return {"codes": self.codes.contiguous().cpu(), "scale": self.scale.detach().flatten().cpu()}

    @classmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        return cls(format, axis, dtype, parts["codes"].reshape(tuple(shape)), along(parts["scale"], shape, axis))
