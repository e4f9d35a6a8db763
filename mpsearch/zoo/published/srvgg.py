"""Compact super-resolution network: plain convolutions, then pixel shuffle over the enlarged input.

Wang, Xie, Dong, Shan, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCVW 2021
(https://arxiv.org/abs/2107.10833), its SRVGGNetCompact.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SRVGGNetCompact(nn.Module):
    """Images ``(N, 3, H, W)`` in [0, 1] to ``(N, 3, scale·H, scale·W)``."""

    def __init__(self, depth: int = 16, width: int = 64, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = []
        for inputs in (3, *[width] * depth):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3 * scale**2, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        residual = F.pixel_shuffle(self.body(images), self.scale)
        return residual + F.interpolate(images, scale_factor=self.scale, mode="nearest")
