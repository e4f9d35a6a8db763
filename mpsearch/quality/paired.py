"""Float and quantized pictures of the same inputs, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpsearch.quality.bootstrap import interval, resampled
from mpsearch.quality.ssim import WINDOW, ssim
from mpsearch.types import Interval

UNLIKE = 64  # pairs of different pictures are enough to see what they have in common


def paired_floor(
    before: Sequence[Tensor], draws: int = 500, seed: int = 0
) -> tuple[Interval, Interval | None, Interval | None] | None:
    """The figures of :func:`paired_quality` for float pictures of different inputs; None for a single one."""
    some: list[Tensor] = []
    for batch in before:
        if batch.shape[1:] == before[0].shape[1:]:
            some += batch[: UNLIKE - len(some)]
    if len(some) < 2:
        return None
    images = torch.stack(some)
    return paired_quality([images], [images.roll(1, 0)], draws, seed, peak_of(before))


def peak_of(images: Sequence[Tensor]) -> float:
    """The range of all values."""
    return max(batch.max().item() for batch in images) - min(batch.min().item() for batch in images)


def paired_quality(
    before: Sequence[Tensor], after: Sequence[Tensor], draws: int = 500, seed: int = 0, peak: float | None = None
) -> tuple[Interval, Interval | None, Interval | None]:
    """MSE, PSNR in dB, and SSIM of pairs, each with a bootstrap interval over samples.

    The PSNR is that of the mean error, its peak by default the range of ``before``; None when nothing differs or the
    float outputs are constant. SSIM is None unless the outputs are ``(N, C, H, W)`` of at least 11x11.
    """
    errors = torch.cat(
        [(b - a).double().square().reshape(len(b), -1).mean(1).cpu() for b, a in zip(before, after, strict=True)]
    )
    peak = peak_of(before) if peak is None else peak
    picks = resampled(len(errors), draws, seed)
    means = errors[picks].mean(1)
    mse = interval(errors.mean().item(), means, len(errors))
    if mse.value <= 0 or peak <= 0:
        return mse, None, _similarity(before, after, peak, picks) if peak > 0 else None
    psnr = interval(_psnr(errors.mean(), peak).item(), _psnr(means, peak), len(errors))
    return mse, psnr, _similarity(before, after, peak, picks)


def _psnr(mse: Tensor, peak: float) -> Tensor:
    return 10 * torch.log10(peak**2 / mse.clamp_min(1e-300))


def _similarity(before: Sequence[Tensor], after: Sequence[Tensor], peak: float, picks: Tensor) -> Interval | None:
    if any(batch.ndim != 4 or min(batch.shape[2:]) < WINDOW for batch in before):
        return None
    scores = torch.cat([ssim(b, a, peak).cpu() for b, a in zip(before, after, strict=True)])
    return interval(scores.mean().item(), scores[picks].mean(1), len(scores))
