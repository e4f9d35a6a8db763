"""Fréchet and kernel distance of generated features to a reference, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpsearch.errors import ArtifactError, CalibrationError
from mpsearch.features import frechet_distance, moments
from mpsearch.quality.bootstrap import interval, resampled
from mpsearch.types import Interval

KERNEL_SAMPLES = 2000  # kernel matrices are quadratic in this


@dataclass(frozen=True, eq=False)
class Reference:
    """Features ``(N, D)`` that generated ones are compared with, and what they are of."""

    features: Tensor
    name: str

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a safetensors file with one tensor ``features`` and a ``name`` in its metadata."""
        try:
            with safe_open(path, "pt") as file:
                features, name = file.get_tensor("features").float(), (file.metadata() or {}).get("name", path.name)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} is no file of reference features: {error}") from None
        if features.ndim != 2 or len(features) < 2 or not bool(torch.isfinite(features).all()):
            raise ArtifactError(f"{path} holds features of {tuple(features.shape)}: expected 2 or more finite rows")
        return cls(features, name)


def distances(features: Tensor, reference: Reference, draws: int = 100, seed: int = 0) -> tuple[Interval, Interval]:
    """(Fréchet distance, kernel distance) of generated ``features`` ``(n, D)`` to the reference.

    The intervals resample the generated features only: the reference is the same for everything that is compared with
    it.
    """
    for name, n in (("generated", len(features)), ("reference", len(reference.features))):
        if n < 2:
            raise CalibrationError(f"a distance needs 2 {name} samples or more, there are {n}")
    target = moments(reference.features)
    picks = resampled(len(features), draws, seed)
    spread = torch.tensor([frechet_distance(moments(features[pick]), target) for pick in picks])
    fd = interval(frechet_distance(moments(features), target), spread, len(features))
    return fd, _kernel_distance(features[:KERNEL_SAMPLES], reference.features[:KERNEL_SAMPLES], draws, seed)


def _kernel_distance(x: Tensor, y: Tensor, draws: int, seed: int) -> Interval:
    """Unbiased squared MMD under ``(⟨x, y⟩ / D + 1)³`` (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018).

    A bootstrap draw weighs samples by how often they were drawn; pairs of copies of one sample are left out, as the
    unbiased estimator leaves out the diagonal.
    """
    x, y = x.double(), y.double()
    xx, yy, xy = _cubic(x, x).fill_diagonal_(0), _cubic(y, y).fill_diagonal_(0), _cubic(x, y)
    n, m = len(x), len(y)
    constant = yy.sum() / (m * (m - 1))
    picks = resampled(n, draws, seed)
    weights = torch.cat([torch.ones(1, n), *(torch.bincount(pick, minlength=n)[None] for pick in picks)]).double()
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    within = ((weights @ xx) * weights).sum(1) / pairs
    across = (weights @ xy.mean(1)) / n
    values = (within + constant - 2 * across)[pairs > 0]  # a draw of one and the same sample has no pairs
    return interval(values[0].item(), values[1:] if len(values) > 1 else values, n)


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
