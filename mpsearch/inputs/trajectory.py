"""``trajectory``: what a diffusion U-Net reads on the way of its float sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.inputs.draws import Normal

NOISES = 32  # sampled together


@runtime_checkable
class Trajectories(Protocol):
    """A sampler that tells its steps, such as :class:`mpsearch.zoo.diffusion.Sampler`."""

    def trajectory(self, noise: Tensor) -> Sequence[tuple[Tensor, int]]: ...


@dataclass(frozen=True)
class Trajectory:
    """Two arguments of a single-step generator: noisy images ``x_t``, ``(N, *shape)``, and timesteps ``(N,)`` int64.

    Sample ``i`` is step ``i mod steps`` of a trajectory of its own, so that every timestep is there equally often, as
    far as the count allows, in any run of samples: of a batch, and of a map that is given up half way too.

    Attributes:
        sampler: the float sampler; in a config, its factory ``module:function``.
        shape: of one noise.
    """

    sampler: Any  # of Trajectories
    shape: tuple[int, ...]
    arguments: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Trajectories):
            raise UsageError(f"a {type(self.sampler).__name__} is no sampler: it has no method trajectory(noise)")

    @torch.no_grad()
    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noisy, times = list[Tensor](), list[int]()
        for noise in torch.split(Normal(self.shape)(count, generator), NOISES):
            steps = self.sampler.trajectory(noise)
            for row in range(len(noise)):
                x, t = steps[len(times) % len(steps)]
                noisy.append(x[row])
                times.append(t)
        return torch.stack(noisy), torch.tensor(times)
