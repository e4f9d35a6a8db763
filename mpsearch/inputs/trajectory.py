"""``trajectory``: what a diffusion U-Net reads on the way of its float sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
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
    far as the count allows, in any run of samples: of a batch, and of a map that is given up half way too. With
    ``weights`` a timestep is there in proportion to its weight, which is what it then weighs in every mean error.

    Attributes:
        sampler: the float sampler; in a config, its factory ``module:function``.
        shape: of one noise.
        weights: one for every step of the sampler, the noisiest first; None = all alike.
    """

    sampler: Any  # of Trajectories
    shape: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    arguments: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Trajectories):
            raise UsageError(f"a {type(self.sampler).__name__} is no sampler: it has no method trajectory(noise)")
        if self.weights is not None and (min(self.weights, default=0) < 0 or not 0 < sum(self.weights) < math.inf):
            raise UsageError(f"the weights of timesteps are {self.weights}: expected none below 0, and one above")

    @torch.no_grad()
    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noisy, times, given = list[Tensor](), list[int](), np.zeros(0)
        for noise in torch.split(Normal(self.shape)(count, generator), NOISES):
            steps = self.sampler.trajectory(noise)
            shares = self._shares(len(steps))
            given = given if len(given) else np.zeros(len(steps))
            for row in range(len(noise)):
                step = int(np.argmax(shares * (len(times) + 1) - given))  # the one that lags behind its share most
                given[step] += 1
                x, t = steps[step]
                noisy.append(x[row])
                times.append(t)
        return torch.stack(noisy), torch.tensor(times)

    def _shares(self, steps: int) -> NDArray[np.float64]:
        weights = np.ones(steps) if self.weights is None else np.array(self.weights, dtype=float)
        if len(weights) != steps:
            raise UsageError(f"{len(weights)} weights for a sampler of {steps} steps: pass one a step")
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares
