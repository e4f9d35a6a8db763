"""``fd_infinity``: the Fréchet distance extrapolated to endlessly many generated images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import Tensor

from mpsearch.features import Moments, frechet_to, moments
from mpsearch.quality.bootstrap import interval, resampled
from mpsearch.quality.frechet import affordable
from mpsearch.types import Interval


@dataclass(frozen=True)
class FDInfinity:
    """Intercept of FD over 1/n (Chong & Forsyth, "Effectively Unbiased FID and Inception Score", CVPR 2020).

    Subsets of a quarter of the features and more; several of each size, cut from the features in a circle. What the
    finite reference adds stays, and may be read off the noise floor. The law in 1/n needs as many samples as
    dimensions in every subset: with less than twice as many in all there is no figure. It may be negative.

    Attributes:
        sizes: of subsets.
        turns: subsets of each size.
        full: as in :func:`mpsearch.features.moments`, where samples are too few for the covariance of all features.
    """

    sizes: int = 4
    turns: int = 4
    full: int | None = None

    def __call__(self, generated: Tensor, reference: Tensor, draws: int = 100, seed: int = 0) -> dict[str, Interval]:
        n, dims = len(generated), self.full or generated.shape[1]
        if n < max(2 * dims, 16):
            return {}
        distance = frechet_to(moments(reference, self.full))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        picks = resampled(n, affordable(draws * 2 // 5, dims), seed)
        value, *spread = [self._intercept(generated[pick], distance) for pick in [order, *picks]]
        return {"fd_infinity": interval(value, torch.tensor(spread, dtype=torch.float64), n)}

    def _intercept(self, features: Tensor, distance: Callable[[Moments], float]) -> float:
        n, dims = len(features), self.full or features.shape[1]
        sizes = torch.linspace(max(n // 4, dims), n, self.sizes).round().long().tolist()
        means = []
        for size in sizes:
            turned = [features.roll(n * turn // self.turns, 0)[:size] for turn in range(self.turns if size < n else 1)]
            means.append(sum(distance(moments(part, self.full)) for part in turned) / len(turned))
        return linear_regression([1 / size for size in sizes], means).intercept
