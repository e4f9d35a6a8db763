"""Where generator inputs come from: sources that serve the positional arguments in turn. One kind a dict line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mpsearch.inputs.draws import Constant, Integers, Normal, Uniform
from mpsearch.inputs.images import Images
from mpsearch.inputs.shares import Purpose, Shares, Stock
from mpsearch.inputs.tensors import Tensors
from mpsearch.inputs.trajectory import Trajectories, Trajectory


class Source(Protocol):
    """``count`` samples of one argument or of several; the same generator state gives the same samples."""

    def __call__(self, count: int, generator: torch.Generator) -> Tensor | tuple[Tensor, ...]: ...


SOURCES: dict[str, type[Source]] = {
    "normal": Normal,
    "uniform": Uniform,
    "integers": Integers,
    "constant": Constant,
    "images": Images,
    "trajectory": Trajectory,
    "tensors": Tensors,
}


def draw(
    sources: Sequence[Source], count: int, batch: int, seed: int, take: Callable[[Stock], Tensor] | None = None
) -> list[tuple[Tensor, ...]]:
    """``count`` samples as batches of positional arguments; the samples do not depend on ``batch``.

    ``take`` says which samples of a fixed stock these are; without it they are drawn from all of it.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: list[Tensor] = []
    for source in sources:
        drawn = take(source) if take is not None and isinstance(source, Stock) else source(count, generator)
        columns += [drawn] if isinstance(drawn, Tensor) else drawn
    return list(zip(*(torch.split(column, batch) for column in columns), strict=True))


__all__ = [
    "SOURCES",
    "Constant",
    "Images",
    "Integers",
    "Normal",
    "Purpose",
    "Shares",
    "Source",
    "Stock",
    "Tensors",
    "Trajectories",
    "Trajectory",
    "Uniform",
    "draw",
]
