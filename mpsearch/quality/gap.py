"""How much nearer a generator is to the images that it was trained on than to others."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsearch.features import frechet_to, moments
from mpsearch.quality.bootstrap import interval, resampled, some
from mpsearch.quality.frechet import affordable
from mpsearch.types import Interval


def frechet_gap(
    generated: Tensor, test: Tensor, train: Tensor, draws: int = 100, seed: int = 0, full: int | None = None
) -> Interval:
    """FD to test images less FD to training images, as many of the one as of the other: above 0 where it memorised.

    Both see the same bootstrap draws, so most of the noise cancels. What a feature network does differently to the
    images that it was itself trained on is part of the gap; that of the float generator beside it shows how much.
    ``full`` is that of :func:`mpsearch.features.moments`.
    """
    n = min(len(test), len(train))
    unseen, seen = (frechet_to(moments(some(features, n, seed), full)) for features in (test, train))

    def gap(features: Tensor) -> float:
        found = moments(features, full)
        return unseen(found) - seen(found)

    picks = resampled(len(generated), affordable(draws, full or generated.shape[1]), seed)
    spread = torch.tensor([gap(generated[pick]) for pick in picks], dtype=torch.float64)
    return interval(gap(generated), spread, len(generated))
