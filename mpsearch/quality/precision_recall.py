"""``precision`` and ``recall``: how many pictures lie among the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.quality.bootstrap import share
from mpsearch.quality.neighbours import blocks, level, radii
from mpsearch.types import Interval


@dataclass(frozen=True)
class PrecisionRecall:
    """Kynkäänniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019.

    Precision: share of generated features within the reach of a reference one, that is its distance to its ``k``-th
    neighbour; recall: share of reference features within the reach of a generated one. The interval of the former
    resamples the generated features, that of the latter the reference.

    Attributes:
        k: neighbours that define a reach.
    """

    k: int = 3

    def __call__(self, generated: Tensor, reference: Tensor, draws: int = 100, seed: int = 0) -> dict[str, Interval]:
        x, y = level(generated, reference, seed)
        reach, own = radii(y, self.k), radii(x, self.k)
        inside = torch.cat([(block <= reach).any(1) for block in blocks(x, y)])
        found = torch.cat([(block <= own).any(1) for block in blocks(y, x)])
        return {"precision": share(inside, draws, seed), "recall": share(found, draws, seed)}
