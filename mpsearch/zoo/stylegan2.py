"""StyleGAN2 generator for 32x32 grey images, its convolutions in the form in which weights can be quantized.

Karras, Laine, Aittala, Hellsten, Lehtinen, Aila, "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020
(https://arxiv.org/abs/1912.04958): mapping network, modulated and demodulated convolutions, noise inputs, a skip to
grey at every size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 64
SIZES = (4, 8, 16, 32)
LIMIT = 0.5


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2).mul(math.sqrt(2))  # the gain keeps the variance of the next layer's input


def fresh(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Weights N(0, gain² / fan-in), biases zero: what an equalised learning rate computes with at the start."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Mapping(nn.Module):
    """Latents z ``(N, 64)`` to styles w ``(N, 64)``."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(LATENT, LATENT) for _ in range(depth))

    def forward(self, z: Tensor) -> Tensor:
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = activate(layer(w))
        return w


class ModulatedConv(nn.Module):
    """A convolution whose weights are scaled by a style, a sample each, without a weight for each sample.

    A style scales input channels, demodulation scales output channels, and scaling a channel of the weights is scaling
    that channel of the image. So the convolution between the two has one static weight: ``conv.weight``. The size of
    the style, its largest entry, acts behind it, where demodulation cancels it: what the convolution reads has one
    range whatever the style is.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, demodulate: bool = True, up: bool = False) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.up = up
        self.style = nn.Linear(LATENT, inputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)  # N inputs
        size: Tensor = style.abs().amax(1, keepdim=True).clamp_min(1e-8)  # N 1
        style = style / size
        x = x * style[:, :, None, None]
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="bilinear") if self.up else x)
        if not self.demodulate:
            return y * size[:, :, None, None]
        power: Tensor = style.square() @ self.conv.weight.square().sum((2, 3)).T  # N outputs
        return y * (power + 1e-8).rsqrt()[:, :, None, None]


class Layer(nn.Module):
    """Modulated convolution, noise, bias, leaky relu; the noise is fixed in evaluation mode.

    Features are cut at ``limit``, as the paper's successor cuts them at 256 to fit 16 bits: these are to fit 8.
    """

    def __init__(self, inputs: int, outputs: int, size: int, up: bool = False) -> None:
        super().__init__()
        self.modulated = ModulatedConv(inputs, outputs, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.limit = LIMIT
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(1, 1, size, size))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        h = self.modulated(x, w)
        noise = torch.randn_like(h[:, :1]) if self.training else self.noise
        h = activate(h + (self.strength * noise + self.bias[:, None, None]).to(h.dtype))
        return h.clamp(-self.limit, self.limit)


class ToGrey(nn.Module):
    """One grey image from features, the style without demodulation."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.modulated = ModulatedConv(inputs, 1, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        image: Tensor = self.modulated(x, w)
        return image + self.bias[:, None, None]


class Block(nn.Module):
    """Doubles height and width of the features and of the image so far."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.first = Layer(inputs, outputs, size, up=True)
        self.second = Layer(outputs, outputs, size)
        self.to_grey = ToGrey(outputs)

    def forward(self, x: Tensor, image: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = self.second(self.first(x, w), w)
        return x, F.interpolate(image, scale_factor=2, mode="bilinear") + self.to_grey(x, w)


class Synthesis(nn.Module):
    """Styles w ``(N, 64)`` to images ``(N, 1, 32, 32)``, cut to [-1, 1] in evaluation mode.

    A tanh at the end would let features and scores grow without bound, to where 8 bits no longer hold them.
    """

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.first = Layer(widths[0], widths[0], SIZES[0])
        self.to_grey = ToGrey(widths[0])
        sides = zip(widths[:-1], widths[1:], SIZES[1:], strict=True)
        self.blocks = nn.ModuleList(Block(inputs, outputs, size) for inputs, outputs, size in sides)

    def forward(self, w: Tensor) -> Tensor:
        x = self.first(self.constant, w)
        image: Tensor = self.to_grey(x, w)
        for block in self.blocks:
            x, image = block(x, image, w)
        return image if self.training else image.clamp(-1, 1)


class StyleGAN2Generator(nn.Module):
    """Latents z ``(N, 64)`` from N(0, 1) to images ``(N, 1, 32, 32)`` in [-1, 1]; ``synthesis`` starts from w.

    In evaluation mode a function of z alone.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (128, 96, 48, 24)) -> None:
        super().__init__()
        self.mapping: nn.Module = Mapping()
        self.synthesis = Synthesis(widths)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fresh(module)
            if isinstance(module, ModulatedConv):
                nn.init.ones_(module.style.bias)

    def forward(self, latents: Tensor) -> Tensor:
        image: Tensor = self.synthesis(self.mapping(latents))
        return image
