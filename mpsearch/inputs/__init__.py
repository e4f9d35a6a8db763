"""Where generator inputs come from: sources that serve the positional arguments in turn, and refiners, which ask the
float generator what to make of the drawn samples. One kind a dict line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mpsearch.inputs.adversarial import Adversarial
from mpsearch.inputs.cluster import Cluster
from mpsearch.inputs.columns import Batches, batched
from mpsearch.inputs.draws import Constant, Integers, Normal, Uniform
from mpsearch.inputs.images import Images
from mpsearch.inputs.regions import Box, Region, Shell, regions_of
from mpsearch.inputs.shares import Purpose, Shares, Stock
from mpsearch.inputs.statistics import Statistics
from mpsearch.inputs.styles import Styles
from mpsearch.inputs.tensors import Tensors
from mpsearch.inputs.trajectory import Trajectories, Trajectory


class Source(Protocol):
    """``count`` samples of one argument or of several; the same generator state gives the same samples."""

    def __call__(self, count: int, generator: torch.Generator) -> Tensor | tuple[Tensor, ...]: ...


class Refiner(Protocol):
    """``count`` samples out of the drawn ones, or made of them, as the float generator says; it is left as it was."""

    @property
    def everywhere(self) -> bool:
        """Whether all sets of a run are refined, a batch at a time, or the calibration inputs only, all at once."""
        ...

    @property
    def pool(self) -> int:
        """Samples to draw for every one wanted."""
        ...

    def __call__(self, model: nn.Module, batches: Batches, count: int, generator: torch.Generator) -> Batches: ...


SOURCES: dict[str, type[Source]] = {
    "normal": Normal,
    "uniform": Uniform,
    "integers": Integers,
    "constant": Constant,
    "styles": Styles,
    "images": Images,
    "tensors": Tensors,
    "trajectory": Trajectory,
}

REFINERS: dict[str, type[Refiner]] = {"cluster": Cluster, "statistics": Statistics}


def draw(
    sources: Sequence[Source], count: int, batch: int, seed: int, take: Callable[[Stock], Tensor] | None = None
) -> Batches:
    """``count`` samples as batches of positional arguments; the samples do not depend on ``batch``.

    ``take`` says which samples of a fixed stock these are; without it they are drawn from all of it.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: list[Tensor] = []
    for source in sources:
        if take is not None and isinstance(source, Stock):
            columns.append(take(source))
        else:
            drawn = source(count, generator)
            columns += [drawn] if isinstance(drawn, Tensor) else drawn
    return batched(columns, batch)


__all__ = [
    "REFINERS",
    "SOURCES",
    "Adversarial",
    "Batches",
    "Box",
    "Cluster",
    "Constant",
    "Images",
    "Integers",
    "Normal",
    "Purpose",
    "Refiner",
    "Region",
    "Shares",
    "Shell",
    "Source",
    "Statistics",
    "Stock",
    "Styles",
    "Tensors",
    "Trajectories",
    "Trajectory",
    "Uniform",
    "draw",
    "regions_of",
]
