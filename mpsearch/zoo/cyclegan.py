"""CycleGAN translator for 32x32 grey images: a residual generator that reads one domain and draws another.

Zhu, Park, Isola, Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks", ICCV 2017 (https://arxiv.org/abs/1703.10593), the generator of its appendix at a quarter of
the width: c7s1, two strided convolutions, residual blocks, two transposed convolutions, c7s1, tanh;
instance norm without learned parameters, reflection padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """``x + f(x)`` of two 3x3 convolutions; nothing follows the sum, as in the paper."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels, 3), nn.ReLU(), *_convolution(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.body(x)
        return x + changed


class CycleGANGenerator(nn.Module):
    """Images ``(N, 1, H, W)`` in [-1, 1] of one domain to images of the same size of the other; H and W in fours."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, width, 7), nn.ReLU())
        self.down = nn.Sequential(*_halving(width, 2 * width), *_halving(2 * width, 4 * width))
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(blocks)))
        self.up = nn.Sequential(*_doubling(4 * width, 2 * width), *_doubling(2 * width, width))
        self.to_grey = nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect")

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.to_grey(self.up(self.blocks(self.down(self.stem(images))))))


# Instance norm takes the mean of every channel away, and with it any bias of the convolution before.


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    padded = nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode="reflect", bias=False)
    return [padded, nn.InstanceNorm2d(outputs)]


def _halving(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.InstanceNorm2d(outputs), nn.ReLU()]


def _doubling(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1, bias=False), nn.InstanceNorm2d(outputs), nn.ReLU()]
