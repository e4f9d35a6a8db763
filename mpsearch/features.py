"""Statistics of image features: streaming moments, and the distances between two sets of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.model import one_line

POOLED = 8


def pooled_pixels(images: Tensor) -> Tensor:
    """Colour layout: images averaged to 8x8, ``(N, C·64)``. For generators that no feature network knows."""
    flat = images if images.ndim == 4 else images.reshape(len(images), 1, 1, -1)
    return F.adaptive_avg_pool2d(flat.float(), (min(POOLED, flat.shape[2]), min(POOLED, flat.shape[3]))).flatten(1)


@torch.no_grad()
def extract(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features ``(N, D)`` float32 on the CPU; a network that fails or gives anything else is a ``ModelError``."""
    try:
        features = network(images)
    except Exception as error:  # whatever a user's network raises is a fact about that network
        raise ModelError(f"the feature network fails on images of {tuple(images.shape)}: {one_line(error)}") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
        found = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ModelError(f"the feature network gives {found} for {len(images)} images, expected ({len(images)}, D)")
    if not bool(torch.isfinite(features).all()):
        raise ModelError("the feature network gives NaN or infinite values")
    return features.float().cpu()


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean ``(D,)`` and covariance ``(D, D)`` of ``n`` features, float64.

    Attributes:
        rest: of further features only the variances ``(R,)``; ``mean`` is then ``(D + R,)``.
    """

    n: int
    mean: Tensor
    covariance: Tensor
    rest: Tensor | None = None

    def on(self, axes: Tensor | None) -> Moments:
        """Those of :func:`split` features; None = as they are."""
        if axes is None:
            return self
        beside = torch.eye(len(axes), dtype=axes.dtype) - axes @ axes.T
        rest = ((beside @ self.covariance) * beside).sum(1).clamp_min(0)  # the diagonal of a product of three
        mean = torch.cat([self.mean @ axes, beside @ self.mean])
        return Moments(self.n, mean, axes.T @ self.covariance @ axes, rest)


def split(features: Tensor, axes: Tensor | None) -> Tensor:
    """``(N, D)`` to ``(N, k + D)``: on the axes ``(D, k)``, then what is beside all of them; None = as they are."""
    if axes is None:
        return features
    on = features.double() @ axes
    return torch.cat([on, features.double() - on @ axes.T], 1)


def moments(features: Tensor | Iterable[Tensor], full: int | None = None) -> Moments:
    """Moments of features ``(N, D)``, or of an iterable of such batches; independent of how they are cut.

    Args:
        features: on any device, of any float type.
        full: of how many of the first features the covariance is wanted; of the others the variances. None = all.
    """
    n, total, outer, squares = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    shift = None
    for batch in [features] if isinstance(features, Tensor) else features:
        batch = batch.double().cpu()
        shift = batch[0].clone() if shift is None else shift  # of the first feature: keeps the sums well conditioned
        centred = batch - shift
        first = centred[:, :full]
        n, total, outer = n + len(batch), total + centred.sum(0), outer + first.T @ first
        squares = squares if full is None else squares + centred[:, full:].square().sum(0)
    assert shift is not None, "moments of no features"
    mean = total / n
    covariance = (outer - n * torch.outer(mean[:full], mean[:full])) / max(n - 1, 1)
    rest = None if full is None else ((squares - n * mean[full:].square()) / max(n - 1, 1)).clamp_min(0)
    return Moments(n, shift + mean, covariance, rest)


def frechet_to(target: Moments) -> Callable[[Moments], float]:
    """What gives :func:`frechet_distance` to one target; the target's square root is taken once."""
    values, vectors = torch.linalg.eigh(target.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(of: Moments) -> float:
        cross = torch.linalg.eigvalsh(root @ of.covariance @ root).clamp_min(0).sqrt().sum()
        traces = of.covariance.trace() + target.covariance.trace()
        found = (of.mean - target.mean).square().sum() + traces - 2 * cross
        if of.rest is not None and target.rest is not None:
            found = found + (of.rest.sqrt() - target.rest.sqrt()).square().sum()
        return max(float(found), 0.0)

    return distance


def frechet_distance(a: Moments, b: Moments) -> float:
    """``‖μ₁−μ₂‖² + tr(C₁ + C₂ − 2(C₁C₂)^½)`` (Dowson & Landau 1982), by eigenvalues of ``C₁^½ C₂ C₁^½``.

    Of features whose variances alone are known: as if they were independent.
    """
    return frechet_to(a)(b)


def principal_axes(target: Moments, n: int) -> tuple[Tensor | None, str]:
    """(axes ``(D, k)`` for Fréchet distances of ``n`` features to the target, a warning), or (None, "").

    Fewer samples than dimensions leave a covariance singular, and the distance measures little but n. Covariances are
    then those of the first principal components of the target, of which there are four samples each or more; what is
    beside them counts by its mean and its variances, so that no change of the pictures goes unseen.
    """
    dims, least = len(target.mean), min(n, target.n)
    if least >= dims:
        return None, ""
    kept = max(1, least // 4)
    values, vectors = torch.linalg.eigh(target.covariance)
    total = float(values.clamp_min(0).sum())
    share = f" ({float(values[-kept:].clamp_min(0).sum()) / total:.1%} of its variance)" if total else ""
    return vectors[:, -kept:].flip(1), (
        f"few samples: {n} generated and {target.n} of the reference for {dims} feature dimensions; Fréchet distances "
        f"take covariances on the first {kept} principal components of the reference{share}, variances of the rest; "
        f"{dims} of each suffice for all"
    )
