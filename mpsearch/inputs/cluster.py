"""``cluster``: few samples that stand for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, output
from mpsearch.errors import UsageError
from mpsearch.features import extract, pooled_pixels
from mpsearch.inputs.columns import Batches, batched, joined
from mpsearch.model import device_of
from mpsearch.protocols import FeatureNet

ROUNDS = 50  # of k-means


@dataclass(frozen=True)
class Cluster:
    """The inputs nearest to the centres of a pool's feature clusters (after ClusterQ, Gao et al. 2022,
    https://arxiv.org/abs/2205.00179).

    Features are those of the float generator's images. Where the inputs hold classes or timesteps (whole numbers, one a
    sample), each keeps its share of the samples, and clusters are sought among its own.

    Attributes:
        pool: inputs drawn for every one wanted.
        clusters: how many of a class; None = one for every sample wanted. Fewer give samples in
            proportion to their sizes.
        features: feature network, by default pixels averaged to 8x8.
    """

    pool: int = 8
    clusters: int | None = None
    features: FeatureNet = pooled_pixels
    everywhere: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.pool < 1 or (self.clusters is not None and self.clusters < 1):
            raise UsageError(f"cluster needs a pool and clusters of 1 or more, not {self.pool} and {self.clusters}")

    def __call__(self, model: nn.Module, batches: Batches, count: int, generator: torch.Generator) -> Batches:
        inputs = Calibration.of(batches, device_of(model))
        features = torch.cat([extract(self.features, output(model, inputs, index)) for index in range(len(inputs))])
        columns = joined(batches)
        if len(features) != len(columns[0]):
            raise UsageError(f"cluster needs an image a sample: {len(features)} images of {len(columns[0])} samples")
        if count > len(features):
            raise UsageError(f"cluster is to choose {count} of {len(features)} samples: draw more")
        strata = list(inputs.strata().values()) or [torch.arange(len(features))]
        shares = apportioned([len(rows) for rows in strata], count)
        chosen = torch.cat(
            [rows[self._spread(features[rows], share, generator)] for rows, share in zip(strata, shares, strict=True)]
        )
        chosen = chosen[torch.randperm(count, generator=generator)]
        return batched([column[chosen] for column in columns], len(batches[0][0]))

    def _spread(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """``count`` rows of ``features`` ``(N, D)``."""
        centres = k_means(features.double(), min(self.clusters or count, count), generator)
        distances, owner = apart(features.double(), centres).min(1)
        members = [torch.nonzero(owner == number).flatten() for number in range(len(centres))]
        members = [rows for rows in members if len(rows)]
        shares = apportioned([len(rows) for rows in members], count, least=1) if count else []
        nearest = [rows[distances[rows].argsort()[:share]] for rows, share in zip(members, shares, strict=True)]
        return torch.cat([*nearest, owner.new_empty(0)])


def apportioned(sizes: Sequence[int], count: int, least: int = 0) -> list[int]:
    """``count`` seats in proportion to ``sizes`` (Sainte-Laguë), each at least ``least`` and at most its size."""
    weights, given = np.asarray(sizes), np.full(len(sizes), least)
    for _ in range(count - int(given.sum())):
        given[np.argmax(np.where(given < weights, weights / (2 * given + 1), -1.0))] += 1
    return [int(share) for share in given]


def k_means(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` centres of ``x`` ``(N, D)``: k-means++ (Arthur, Vassilvitskii 2007), then Lloyd's rounds."""
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(count - 1):
        far = apart(x, centres).amin(1).square()
        if not far.any():
            break  # fewer different points than centres
        centres = torch.cat([centres, x[torch.multinomial(far, 1, generator=generator)]])
    owner = None
    for _ in range(ROUNDS):
        nearest = apart(x, centres).argmin(1)
        if owner is not None and torch.equal(owner, nearest):
            break
        owner = nearest
        sizes = torch.bincount(owner, minlength=len(centres))[:, None]
        means = torch.zeros_like(centres).index_add_(0, owner, x) / sizes.clamp_min(1)
        centres = torch.where(sizes > 0, means, centres)
    return centres


def apart(x: Tensor, centres: Tensor) -> Tensor:
    """Distances ``(N, centres)``, exactly 0 for equal points."""
    return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist")
