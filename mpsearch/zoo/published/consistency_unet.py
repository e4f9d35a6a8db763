"""One-step consistency model: a U-Net with attention, time and class embeddings, and its preconditioning.

Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021 (https://arxiv.org/abs/2105.05233) for
the U-Net; Song, Dhariwal, Chen, Sutskever, "Consistency Models", ICML 2023 (https://arxiv.org/abs/2303.01469) for the
rest. Modules are named as in the published weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 32  # channels of an attention head
SIGMA_DATA, SIGMA_MIN = 0.5, 0.002


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class ResBlock(nn.Module):
    """Residual block whose second half is scaled and shifted by the embedding; may halve or double the size."""

    def __init__(self, inputs: int, outputs: int, embedding: int, resize: Literal["up", "down"] | None = None) -> None:
        super().__init__()
        self.resize = resize
        self.in_layers = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.out_layers = nn.Sequential(
            _norm(outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "up":
            doubled: Tensor = F.interpolate(x, scale_factor=2, mode="nearest")
            return doubled
        return x if self.resize is None else F.avg_pool2d(x, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.in_layers[2](self._resized(self.in_layers[:2](x)))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        kept: Tensor = self.skip_connection(self._resized(x))
        return kept + h


class Attention(nn.Module):
    """``x + attention(norm(x))`` over all positions; the embedding is not looked at."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        query, key, value = (part.reshape(len(x) * self.heads, HEAD, -1) for part in parts)  # NH C P
        scale = HEAD**-0.25  # on both sides: the product stays small
        weights = torch.softmax(torch.einsum("bct,bcs->bts", query * scale, key * scale), dim=-1)
        attended = torch.einsum("bts,bcs->bct", weights, value).reshape(x.shape)
        mixed: Tensor = self.proj_out(attended)
        return x + mixed


class Stage(nn.ModuleList):
    """Blocks in a row, each given the embedding if it takes one."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x) if isinstance(block, nn.Conv2d) else block(x, embedding)
        return x


class ConsistencyUNet(nn.Module):
    """Height maps ``(N, 1, 128, 128)`` in [-1, 1] from one look at noise.

    Args of forward: noise of standard deviation sigma ``(N, 1, H, W)``; sigma ``(N,)``, 80 for pure noise; difficulty
    of the terrain in [0, 1] ``(N,)``.
    """

    frequencies: Tensor

    def __init__(
        self,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 1, 2, 3, 4),
        depth: int = 4,
        attention: tuple[int, ...] = (4, 8, 16),
    ) -> None:
        super().__init__()
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label_emb = nn.Sequential(nn.Linear(1, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def stage(inputs: int, outputs: int, shrunk: int) -> Stage:
            block = ResBlock(inputs, outputs, embedding)
            return Stage([block, Attention(outputs)] if shrunk in attention else [block])

        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(1, width, 3, padding=1)])])
        kept, channels, shrunk = [width], width, 1
        last = len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            for _ in range(depth):
                self.input_blocks.append(stage(channels, width * multiplier, shrunk))
                channels = width * multiplier
                kept.append(channels)
            if level < last:
                self.input_blocks.append(Stage([ResBlock(channels, channels, embedding, "down")]))
                kept.append(channels)
                shrunk *= 2
        self.middle_block = Stage(
            [ResBlock(channels, channels, embedding), Attention(channels), ResBlock(channels, channels, embedding)]
        )
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(depth + 1):
                found = stage(channels + kept.pop(), width * multiplier, shrunk)
                channels = width * multiplier
                if level and block == depth:
                    found.append(ResBlock(channels, channels, embedding, "up"))
                    shrunk //= 2
                self.output_blocks.append(found)
        self.out = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1))
        half = width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half).float() / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _network(self, x: Tensor, times: Tensor, difficulty: Tensor) -> Tensor:
        angles = times[:, None] * self.frequencies
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1)) + self.label_emb(difficulty[:, None])
        kept = []
        for stage in self.input_blocks:
            x = stage(x, embedding)
            kept.append(x)
        x = self.middle_block(x, embedding)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], 1), embedding)
        found: Tensor = self.out(x)
        return found

    def forward(self, noise: Tensor, sigma: Tensor, difficulty: Tensor) -> Tensor:
        wide = sigma[:, None, None, None]
        root = (wide.square() + SIGMA_DATA**2).sqrt()
        skip = SIGMA_DATA**2 / ((wide - SIGMA_MIN).square() + SIGMA_DATA**2)
        out = (wide - SIGMA_MIN) * SIGMA_DATA / root
        return (out * self._network(root.reciprocal() * noise, 250 * sigma.log(), difficulty) + skip * noise).clamp(
            -1, 1
        )
