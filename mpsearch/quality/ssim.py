"""Structural similarity of image pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def ssim(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    """Mean SSIM of each pair, ``(N,)`` float64 (Wang, Bovik, Sheikh, Simoncelli 2004: 11x11 Gaussian, sigma 1.5).

    Args:
        a: images ``(N, C, H, W)``, height and width at least 11.
        b: images of the same shape.
        data_range: largest minus smallest possible value.
    """
    channels = a.shape[1]
    ramp = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    line = torch.exp(-ramp.square() / (2 * SIGMA**2))
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(channels, 1, WINDOW, WINDOW)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=channels)

    a, b = a.double(), b.double()
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return score.flatten(1).mean(1)
