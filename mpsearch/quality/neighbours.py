"""Nearest neighbours of features, a block of distances in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mpsearch.quality.bootstrap import some

MOST, BLOCK = 10_000, 1000


def level(generated: Tensor, reference: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """As many of the one as of the other, at most 10,000: what neighbours say depends on how dense either side is."""
    n = min(len(generated), len(reference), MOST)
    return some(generated, n, seed), some(reference, n, seed)


def blocks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Euclidean distances ``(rows of x, len(y))``, float32, some rows after the other."""
    centre = y.mean(0)  # distances are products of large numbers otherwise
    for start in range(0, len(x), BLOCK):
        yield torch.cdist(x[start : start + BLOCK] - centre, y - centre)


def radii(x: Tensor, k: int) -> Tensor:
    """Distance ``(n,)`` of every row to its ``k``-th nearest other row, or to the farthest where there are fewer."""
    k = min(k, len(x) - 1)
    return torch.cat([block.topk(k + 1, 1, largest=False).values[:, -1] for block in blocks(x, x)])
