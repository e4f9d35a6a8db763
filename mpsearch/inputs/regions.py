"""Where a prior leaves room for an input: what a search for the worst inputs must not leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Region(Protocol):
    """A step from ``x``, up the ``gradient`` and no further than allowed from ``start``; all three of one shape."""

    def step(self, x: Tensor, start: Tensor, gradient: Tensor, rate: float) -> Tensor: ...


@dataclass(frozen=True)
class Shell:
    """Every sample keeps its norm: almost all of a normal distribution of many dimensions lies on such a shell."""

    def step(self, x: Tensor, start: Tensor, gradient: Tensor, rate: float) -> Tensor:
        radius = _norm(start)
        along = gradient - x * ((gradient * x).flatten(1).sum(1) / radius.flatten().square()).view_as(radius)
        moved = x + along * (rate * radius / _norm(along))
        return moved * (radius / _norm(moved))


@dataclass(frozen=True)
class Box:
    """Every value stays in ``low … high``, and within ``reach`` of where it started."""

    low: float
    high: float
    reach: float = math.inf

    def step(self, x: Tensor, start: Tensor, gradient: Tensor, rate: float) -> Tensor:
        moved = x + gradient.sign() * (rate * min(self.reach, (self.high - self.low) / 2))
        near = moved.maximum(start - self.reach).minimum(start + self.reach)
        return near.clamp(self.low, self.high)


PIXEL = 8 / 255  # of the range of a picture: what the eye does not see


def regions_of(sources: Sequence[Any]) -> list[Region | None]:
    """Where each positional argument may go, by the ``region`` of its source; None = it stays."""
    found: list[Region | None] = []
    for source in sources:
        found += [getattr(source, "region", None)] * getattr(source, "arguments", 1)
    return found


def _norm(x: Tensor) -> Tensor:
    """Length of every sample, shaped to broadcast; its square is never 0."""
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths.clamp_min(torch.finfo(x.dtype).tiny ** 0.5).view(-1, *[1] * (x.ndim - 1))
