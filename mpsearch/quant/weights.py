"""Symmetric integers per output channel on the restricted range, scales fitted by mean squared error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.types import Format

CANDIDATES = (8, 8, 8)  # scales a round: the first over all, each later one around the best of the round before
BLOCK = 1 << 18  # products of weights and candidate scales at a time; larger ones are memory fresh from the system


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
        return self.codes.to(self.scale.dtype).mul_(self.scale).to(self.dtype)


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
    few = max(1, BLOCK // (CANDIDATES[0] * rows.shape[1]))
    codes = torch.empty_like(weight, dtype=torch.int8)
    scales = []
    for part, own in zip(torch.split(rows, few), torch.split(codes.movedim(axis, 0), few), strict=True):
        scales.append(_fit(part, top))
        own.copy_(_codes(part, scales[-1], top).reshape(own.shape))
    shape = [1] * weight.ndim
    shape[axis] = -1
    return QuantizedWeight(codes, torch.cat(scales).reshape(shape), weight.dtype)


def _fit(rows: Tensor, top: int) -> Tensor:
    """``(channels, n)`` → ``(channels, 1)`` scales of least squared error."""
    peak = rows.abs().amax(1, keepdim=True)
    largest = torch.where(peak > 0, peak / top, 1.0)
    first, *later = _shares(top, rows.device)
    scales = largest * first
    scale, error = _best(scales, _errors(rows, scales, top))
    for around in later:
        scales = torch.minimum(scale * around, largest)
        scale, error = _best(torch.cat([scale, scales], 1), torch.cat([error, _errors(rows, scales, top)], 1))
    # For given codes the error is a parabola in the scale, and rounding anew only lowers it: no need to compare.
    codes = _codes(rows, scale, top)
    fitted = torch.linalg.vecdot(rows, codes) / torch.linalg.vecdot(codes, codes).clamp_min(1.0)
    return torch.where(fitted[:, None] > 0, torch.minimum(fitted[:, None], largest), scale)


@cache
def _shares(top: int, device: torch.device) -> list[Tensor]:
    """Candidates of every round: first of the largest scale, then of the best one so far."""
    # Heavy-tailed channels at 2 or 3 bits clip at a tenth of their peak; 8 bits gain nothing below a third.
    lowest = math.log(0.08 if top <= 3 else 0.3)
    reach = lowest / (CANDIDATES[0] - 1)  # from one candidate to the next
    ends = [np.linspace(0, lowest, CANDIDATES[0])]
    for count in CANDIDATES[1:]:
        ends.append(np.linspace(-reach, reach, count + 2)[1:-1])
        reach *= 2 / (count + 1)
    return [torch.from_numpy(np.exp(logarithms).astype(np.float32)).to(device) for logarithms in ends]


def _codes(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    return torch.div(rows, scale).round_().clamp_(-top, top)


def _errors(rows: Tensor, scales: Tensor, top: int) -> Tensor:
    """``‖w − s·round(w/s)‖`` of every channel at every of its candidates, ``(channels, candidates)``."""
    steps = rows[:, None] * (1 / scales)[:, :, None]
    found: Tensor = torch.linalg.vector_norm(steps.sub_(torch.round(steps).clamp_(-top, top)), dim=2)
    return found.mul_(scales)


def _best(scales: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """(scale of least error, that error) of every channel, ``(channels, 1)`` each; the first among equals."""
    least, at = errors.min(1, keepdim=True)
    return scales.gather(1, at), least
