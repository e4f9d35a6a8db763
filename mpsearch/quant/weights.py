"""Symmetric integers per output channel on the restricted range, scales fitted by mean squared error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.types import Format

GRID = 8  # candidate scales a round
ROUNDS = 3  # the first over all scales, each later one around the best of the round before
BLOCK = 1 << 19  # products of weights and candidate scales at a time: what they need stays in the cache


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight in its stored form.

    Attributes:
        codes: int8 in −q … q (``q = 2^(b−1) − 1``), or float16, in the weight's own shape.
        scale: float32, one a channel, shaped to broadcast over ``codes``; None for float16.
        dtype: of the weight that it stands for.
    """

    codes: Tensor
    scale: Tensor | None
    dtype: torch.dtype

    def dequantized(self) -> Tensor:
        """The weight that the quantized generator computes with."""
        if self.scale is None:
            return self.codes.to(self.dtype)
        return (self.codes.to(self.scale.dtype) * self.scale).to(self.dtype)


def quantize_weight(weight: Tensor, format: Format, axis: int) -> QuantizedWeight:
    """Quantize ``weight`` as ``format`` says, one scale for every index of ``axis``.

    The scale of a channel minimises ``‖w − s·round(w/s)‖²`` over a geometric grid of clipping points up to the largest
    magnitude, ever finer, then by least squares for the codes found, ``s = ⟨w, c⟩ / ⟨c, c⟩``. Scales never exceed
    ``max|w| / q``, so the outermost level is always used and quantizing twice changes nothing.
    """
    if format.bits is None:
        if format.kind != "fp16":
            raise UsageError(f"{format} has no single width to quantize a whole weight with")
        limit = torch.finfo(torch.float16).max  # beyond it there is only infinity
        return QuantizedWeight(weight.detach().clamp(-limit, limit).to(torch.float16), None, weight.dtype)
    top = 2 ** (format.bits - 1) - 1
    rows = weight.detach().movedim(axis, 0).flatten(1).float()  # (channels, weights of a channel)
    few = max(1, BLOCK // (GRID * rows.shape[1]))
    scale = torch.cat([_fit(part, top) for part in torch.split(rows, few)])
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale = scale.reshape(shape)
    codes = torch.round(weight.detach().float() / scale).clamp_(-top, top).to(torch.int8)
    return QuantizedWeight(codes, scale, weight.dtype)


def _fit(rows: Tensor, top: int) -> Tensor:
    """``(channels, n)`` → ``(channels, 1)`` scales of least squared error."""
    peak = rows.abs().amax(1, keepdim=True)
    largest = torch.where(peak > 0, peak / top, torch.ones_like(peak))
    # Heavy-tailed channels at 2 or 3 bits clip at a tenth of their peak; 8 bits gain nothing below a third.
    lowest = math.log(0.08 if top <= 3 else 0.3)
    scale = _best(rows, largest * torch.linspace(0, lowest, GRID).exp().to(rows.device), top)
    reach = lowest / (GRID - 1)  # from one candidate to the next
    for _ in range(ROUNDS - 1):
        around = torch.linspace(-reach, reach, GRID + 2)[1:-1].exp().to(rows.device)
        scale = _best(rows, torch.cat([scale, torch.minimum(scale * around, largest)], 1), top)
        reach *= 2 / (GRID + 1)
    codes = torch.round(rows / scale).clamp_(-top, top)
    fitted = (rows * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp_min(1.0)
    fitted = torch.where(fitted > 0, torch.minimum(fitted, largest), scale)
    return _best(rows, torch.cat([scale, fitted], 1), top)


def _best(rows: Tensor, scales: Tensor, top: int) -> Tensor:
    """``(channels, candidates)`` → ``(channels, 1)`` of least squared error; the first among equals."""
    steps = rows[:, None] * (1 / scales)[:, :, None]
    error = torch.linalg.vector_norm(steps.sub_(torch.round(steps).clamp_(-top, top)), dim=2).mul_(scales)
    return scales.gather(1, error.argmin(1, keepdim=True))
