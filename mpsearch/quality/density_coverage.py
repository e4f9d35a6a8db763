"""``density`` and ``coverage``: precision and recall that outliers do not flatter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.quality.bootstrap import share
from mpsearch.quality.neighbours import blocks, level, radii
from mpsearch.types import Interval


@dataclass(frozen=True)
class DensityCoverage:
    """Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020.

    Density: by how many reference features a generated one is reached, over ``k``; 1 for equal distributions, more is
    possible. Coverage: share of reference features that reach a generated one; ``1 − 2⁻ᵏ`` for equal distributions.
    Intervals as those of precision and recall.

    Attributes:
        k: neighbours that define a reach.
    """

    k: int = 5

    def __call__(self, generated: Tensor, reference: Tensor, draws: int = 100, seed: int = 0) -> dict[str, Interval]:
        x, y = level(generated, reference, seed)
        reach = radii(y, self.k)
        counts, found = [], torch.zeros(len(y), dtype=torch.bool)
        for block in blocks(x, y):
            near = block <= reach
            counts.append(near.sum(1))
            found |= near.any(0)
        k = min(self.k, len(y) - 1)
        return {"density": share(torch.cat(counts) / k, draws, seed), "coverage": share(found, draws, seed)}
