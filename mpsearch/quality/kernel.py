"""``kid``: the kernel distance with its bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.quality.bootstrap import interval, resampled, some
from mpsearch.types import Interval


@dataclass(frozen=True)
class Kernel:
    """Unbiased squared MMD under ``(⟨x, y⟩ / D + 1)³`` (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018).

    A bootstrap draw weighs samples by how often they were drawn; pairs of copies of one sample are left out, as the
    unbiased estimator leaves out the diagonal. It may be negative.

    Attributes:
        most: samples of either side; the kernel matrices are quadratic in this.
    """

    most: int = 2000

    def __call__(self, generated: Tensor, reference: Tensor, draws: int = 100, seed: int = 0) -> dict[str, Interval]:
        x, y = some(generated, self.most, seed).double(), some(reference, self.most, seed).double()
        xx, yy, xy = _cubic(x, x).fill_diagonal_(0), _cubic(y, y).fill_diagonal_(0), _cubic(x, y)
        n, m = len(x), len(y)
        constant = yy.sum() / (m * (m - 1))
        picks = resampled(n, draws, seed)
        weights = torch.cat([torch.ones(1, n), *(torch.bincount(pick, minlength=n)[None] for pick in picks)]).double()
        pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
        within = ((weights @ xx) * weights).sum(1) / pairs
        across = (weights @ xy.mean(1)) / n
        values = (within + constant - 2 * across)[pairs > 0]  # a draw of one and the same sample has no pairs
        return {"kid": interval(values[0].item(), values[1:] if len(values) > 1 else values, n)}


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
