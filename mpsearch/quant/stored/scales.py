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
HALF = -0.5  # zero point of channels whose codes stand for ±½, ±1½ … steps
HALVED = (1, 3)  # largest codes of widths whose channels may do so: where −3, −1, 1, 3 … half steps still fit in 4 bits
LEAST = 1e-12  # scale of a row of zeros that has no code for zero


def fit(rows: Tensor, tops: Sequence[int]) -> list[tuple[Tensor, Tensor | float]]:
    """``(rows, n)`` → ``(rows, 1)`` scales of least squared error and zero points, for each of ``tops``.

    Codes are ``−top … top``; of 2 and 3 bits a row may take one more, and zero lies half-way between two, where that is
    closer: with three levels in place of four the rest of 2 bits would be lost.

    The scale of a row minimises ``‖w − s·round(w/s)‖²`` over a geometric grid of clipping points up to the largest
    magnitude, ever finer, then by least squares for the codes found, ``s = ⟨w, c⟩ / ⟨c, c⟩``. Scales never exceed
    ``max|w| / top``, so the outermost level is always used and quantizing twice changes nothing.
    """
    found: dict[int, tuple[Tensor, Tensor | float]] = {}
    for in_order, copies in ((True, 1), (False, CANDIDATES[0])):
        same = [top for top in tops if searched(rows.shape[1], top) == in_order]
        if same:
            parts = [_fit(part, same) for part in blocks(rows, copies)]
            for at, top in enumerate(same):
                scales, zeros = (torch.cat([part[at][which] for part in parts]) for which in (0, 1))
                found[top] = scales, zeros if top in HALVED else 0.0
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


def _fit(rows: Tensor, tops: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    magnitudes = rows.abs()
    peak = magnitudes.amax(1, keepdim=True)
    errors = rounding_errors(magnitudes, max(tops))
    found = []
    for top in tops:
        scale, error = _scale(magnitudes, peak, partial(errors, top), top, 0.0)
        zero = torch.zeros_like(scale)
        if top in HALVED:
            other, less = _scale(magnitudes, peak, partial(errors, top), top, -HALF)
            scale, zero = torch.where(less < error, other, scale), torch.where(less < error, HALF, zero)
        found.append((scale, zero))
    return found


def _scale(
    magnitudes: Tensor, peak: Tensor, errors: Callable[[Tensor, float], Tensor], top: int, low: float
) -> tuple[Tensor, Tensor]:
    """(scales, squared errors), ``(rows, 1)`` each, of grids whose positive codes are ``low, low + 1 … low + top``."""
    largest = torch.where(peak > 0, peak / (top + low), 1.0)
    first, *later = _shares(top, magnitudes.device)
    scales = largest * first
    scale, error = _best(scales, errors(scales, low))
    for around in later:
        scales = torch.minimum(scale * around, largest)
        scale, error = _best(torch.cat([scale, scales], 1), torch.cat([error, errors(scales, low)], 1))
    # For given codes the error is a parabola in the scale, and rounding anew only lowers it: no need to compare.
    codes = torch.div(magnitudes, scale).sub_(low).round_().clamp_(0, top).add_(low)
    product, energy = torch.linalg.vecdot(magnitudes, codes), torch.linalg.vecdot(codes, codes)
    fitted = (product / energy.clamp_min(LEAST))[:, None]
    scale = torch.where(fitted > 0, torch.minimum(fitted, largest), scale)
    squares = torch.linalg.vecdot(magnitudes, magnitudes)
    return scale, (squares - 2 * scale[:, 0] * product + scale[:, 0].square() * energy)[:, None]


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
