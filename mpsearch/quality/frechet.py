"""``fd``: the Fréchet distance with its bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.features import frechet_to, moments
from mpsearch.quality.bootstrap import interval, resampled
from mpsearch.types import Interval

WIDE, FEW = 256, 20  # dimensions from which an eigenvalue problem is no small matter, and the draws there


def affordable(draws: int, dims: int) -> int:
    return draws if dims <= WIDE else min(draws, FEW)


@dataclass(frozen=True)
class Frechet:
    """Fréchet distance of Gaussian fits (Heusel et al. 2017); biased upwards by ``1/n + 1/N``.

    The interval resamples the generated features only: the reference is the same for everything that is compared with
    it.

    Attributes:
        full: as in :func:`mpsearch.features.moments`, where samples are too few for the covariance of all features.
    """

    full: int | None = None

    def __call__(self, generated: Tensor, reference: Tensor, draws: int = 100, seed: int = 0) -> dict[str, Interval]:
        distance = frechet_to(moments(reference, self.full))
        picks = resampled(len(generated), affordable(draws, self.full or generated.shape[1]), seed)
        spread = torch.tensor([distance(moments(generated[pick], self.full)) for pick in picks])
        return {"fd": interval(distance(moments(generated, self.full)), spread, len(generated))}
