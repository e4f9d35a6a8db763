"""Arguments drawn from a distribution: ``normal``, ``uniform``, ``integers``, ``constant``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.inputs.regions import Box, Shell


def _checked(shape: tuple[int, ...]) -> None:
    if any(size < 1 for size in shape):
        raise UsageError(f"the shape {list(shape)} of an input must hold sizes of 1 or more")


@dataclass(frozen=True)
class Normal:
    """``scale · N(0, 1)`` of ``shape`` a sample: latents of a GAN, or the start of a diffusion sampler."""

    shape: tuple[int, ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        _checked(self.shape)

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *self.shape, generator=generator) * self.scale

    @property
    def region(self) -> Shell | None:
        return Shell() if self.shape else None


@dataclass(frozen=True)
class Uniform:
    """Uniform in ``low … high`` of ``shape`` a sample."""

    shape: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _checked(self.shape)

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, *self.shape, generator=generator) * (self.high - self.low) + self.low

    @property
    def region(self) -> Box:
        return Box(self.low, self.high)


@dataclass(frozen=True)
class Integers:
    """Class labels ``0 … classes − 1``, balanced and shuffled, ``(N,)`` int64."""

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise UsageError(f"integers needs 1 class or more, not {self.classes}")

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return (torch.arange(count) % self.classes)[torch.randperm(count, generator=generator)]


@dataclass(frozen=True)
class Constant:
    """One value of ``shape`` for every sample: the noise level of a one-step model, say."""

    value: float
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _checked(self.shape)

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count, *self.shape), self.value)
