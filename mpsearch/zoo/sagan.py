"""Self-Attention GAN generator for 32x32 grey images, the embedded default.

Zhang, Goodfellow, Metaxas, Odena, "Self-Attention Generative Adversarial Networks", ICML 2019
(https://arxiv.org/abs/1805.08318): spectral norm in every layer, batch norm, nearest-neighbour
upsampling in residual blocks, self-attention at 16x16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LATENT = 64


class SelfAttention(nn.Module):
    """``x + gamma * attention(x)`` over all positions, keys and values pooled 2x2 as in the paper."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = spectral_norm(nn.Conv2d(channels, channels // 8, 1, bias=False))
        self.key = spectral_norm(nn.Conv2d(channels, channels // 8, 1, bias=False))
        self.value = spectral_norm(nn.Conv2d(channels, channels // 2, 1, bias=False))
        self.out = spectral_norm(nn.Conv2d(channels // 2, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)  # N C/8 P
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # N C/8 P/4
        value = F.max_pool2d(self.value(x), 2).flatten(2)  # N C/2 P/4
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # N P P/4
        attended = (value @ weights.transpose(1, 2)).reshape(x.shape[0], -1, x.shape[2], x.shape[3])
        mixed: Tensor = self.out(attended)
        return x + self.gamma * mixed


class UpBlock(nn.Module):
    """Residual block that doubles height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x)), scale_factor=2, mode="nearest")
        h = F.relu(self.norm2(self.conv1(h)))
        changed: Tensor = self.conv2(h)
        # A 1x1 convolution commutes with nearest upsampling: the cheap order is the same function.
        return changed + F.interpolate(self.skip(x), scale_factor=2, mode="nearest")


class SAGANGenerator(nn.Module):
    """Latents ``(N, 64)`` from N(0, 1) to images ``(N, 1, 32, 32)`` in [-1, 1]."""

    def __init__(self, widths: tuple[int, int, int, int] = (128, 128, 64, 32)) -> None:
        super().__init__()
        self.widths = widths
        self.project = spectral_norm(nn.Linear(LATENT, widths[0] * 4 * 4))
        self.up8 = UpBlock(widths[0], widths[1])
        self.up16 = UpBlock(widths[1], widths[2])
        self.attention = SelfAttention(widths[2])
        self.up32 = UpBlock(widths[2], widths[3])
        self.norm = nn.BatchNorm2d(widths[3])
        self.to_grey = spectral_norm(nn.Conv2d(widths[3], 1, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        h = self.project(latents).reshape(-1, self.widths[0], 4, 4)
        h = self.up32(self.attention(self.up16(self.up8(h))))
        return torch.tanh(self.to_grey(F.relu(self.norm(h))))
