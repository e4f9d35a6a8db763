"""Scales of integers, fitted by mean squared error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from mpsearch.quant.rounding import rounding_errors, searched

CANDIDATES = (8, 8, 8)  # scales a round: the first over all, each later one around the best of the round before
BLOCK = 1 << 18  # products of weights and candidate scales at a time; larger ones are memory fresh from the system
LEAST = 1e-12  # scale of a row of zeros that has no code for zero


def fit(rows: Tensor, tops: Sequence[int]) -> list[Tensor]:
    """``(rows, n)`` → ``(rows, 1)`` scales of least squared error for codes ``−top … top``, for each of ``tops``.

    The scale of a row minimises ``‖w − s·round(w/s)‖²`` over a geometric grid of clipping points up to the largest
    magnitude, ever finer, then by least squares for the codes found, ``s = ⟨w, c⟩ / ⟨c, c⟩``. Scales never exceed
    ``max|w| / top``, so the outermost level is always used and quantizing twice changes nothing.
    """
    found: dict[int, Tensor] = {}
    for in_order, copies in ((True, 1), (False, CANDIDATES[0])):
        same = [top for top in tops if searched(rows.shape[1], top) == in_order]
        if same:
            parts = zip(*(_fit(part, same) for part in blocks(rows, copies)), strict=True)
            found |= {top: torch.cat(scales) for top, scales in zip(same, parts, strict=True)}
    return [found[top] for top in tops]


def fit_signs(rows: Tensor) -> Tensor:
    """``(rows, n)`` → ``(rows, 1)`` steps between −s/2 and s/2: twice the mean magnitude, which is exact."""
    return (2 * rows.abs().mean(1, keepdim=True)).clamp_min(LEAST)


def fit_affine(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``(rows, n)`` → scales and zero points in ``0 … 2^bits − 1``, ``(rows, 1)`` each, over a range that holds zero.

    Both ends shrink together first, then each by itself.
    """
    scales, zeros = zip(*(_fit_affine(part, bits) for part in blocks(rows)), strict=True)
    return torch.cat(scales), torch.cat(zeros)


def blocks(rows: Tensor, copies: int = CANDIDATES[0]) -> tuple[Tensor, ...]:
    """The rows, as many at a time as fit into a cache with so many copies."""
    return torch.split(rows, max(1, BLOCK // (copies * rows.shape[1])))


def _fit(rows: Tensor, tops: Sequence[int]) -> list[Tensor]:
    magnitudes = rows.abs()
    peak = magnitudes.amax(1, keepdim=True)
    errors = rounding_errors(magnitudes, max(tops))
    return [_scale(rows, peak, partial(errors, top), top) for top in tops]


def _scale(rows: Tensor, peak: Tensor, errors: Callable[[Tensor, float], Tensor], top: int) -> Tensor:
    largest = torch.where(peak > 0, peak / top, 1.0)
    first, *later = _shares(top, rows.device)
    scales = largest * first
    scale, error = _best(scales, errors(scales, 0.0))
    for around in later:
        scales = torch.minimum(scale * around, largest)
        scale, error = _best(torch.cat([scale, scales], 1), torch.cat([error, errors(scales, 0.0)], 1))
    # For given codes the error is a parabola in the scale, and rounding anew only lowers it: no need to compare.
    codes = torch.div(rows, scale).round_().clamp_(-top, top)
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


def _best(scales: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """(scale of least error, that error) of every row, ``(rows, 1)`` each; the first among equals."""
    least, at = errors.min(1, keepdim=True)
    return scales.gather(1, at), least


def _fit_affine(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = (end.clamp(max=0) if at == 0 else end.clamp(min=0) for at, end in enumerate(torch.aminmax(rows, dim=1)))
    ends = torch.stack([low, high])[:, :, None]  # (2, rows, 1)
    count = CANDIDATES[0]
    coarse = torch.linspace(1, 1 / count, count, device=rows.device)
    fine = torch.linspace(1 + 1 / count, 1 - 1 / count, 2 * count, device=rows.device)
    keep = torch.ones_like(fine)
    levels = 2**bits - 1
    errors = rounding_errors(rows, levels)
    for shares in (torch.stack([coarse, coarse]), torch.stack([fine, keep]), torch.stack([keep, fine])):
        tried = torch.cat([ends, ends * shares[:, None]], 2)
        scale, zero = affine_grid(tried, bits)
        best = errors(levels, scale, -zero).argmin(1, keepdim=True)
        ends = tried.gather(2, best.expand(2, -1, -1))
    return affine_grid(ends, bits)


def affine_grid(ends: Tensor | tuple[Tensor, Tensor], bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points in ``0 … 2^bits − 1`` of grids from the first to the second end, zero between them."""
    low, high = ends
    top = 2**bits - 1
    scale = ((high - low) / top).clamp_min(LEAST)
    return scale, (-low / scale).round().clamp(0, top)
