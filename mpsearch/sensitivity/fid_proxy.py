"""``fid-proxy``: how far quantizing one layer moves the Fréchet distance, on the same latents."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mpsearch.features import Moments, extract, frechet_to, moments, pooled_pixels, principal_axes
from mpsearch.protocols import FeatureNet
from mpsearch.registry import describe
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Format, Table


@dataclass(frozen=True)
class FidProxy:
    """``FD(quantized, reference) − FD(float, reference)`` of each layer × format alone, in feature space.

    Both distances see the same latents, so sampling noise mostly cancels; what remains is the standard error, from a
    paired bootstrap. ``notes["noise_floor"]`` is the bootstrap deviation of the float distance itself: changes below
    it say nothing about a ranking. A change may be negative. Few samples:
    :func:`mpsearch.features.principal_axes`. Heusel et al. 2017 (arXiv 1706.08500) for the distance.

    Attributes:
        features: feature network; by default colour layout.
        reference: moments of real features; by default those of the float generator's own images.
        resamples: bootstrap draws.
        seed: of the bootstrap.
    """

    features: FeatureNet = pooled_pixels
    reference: Moments | None = field(default=None, repr=False)
    resamples: int = 20
    seed: int = 0

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        base = self._features(subject.reference)
        target = self.reference or moments(base)
        axes, few = principal_axes(target, len(base))
        if few:
            warnings.warn(few, stacklevel=2)
        target = target.on(axes)
        distance = frechet_to(target)

        def measured(features: Tensor) -> float:
            return distance(moments(features).on(axes))

        generator = torch.Generator().manual_seed(self.seed)
        draws = [torch.randint(len(base), (len(base),), generator=generator) for _ in range(self.resamples)]
        floats = np.array([measured(base[draw]) for draw in [torch.arange(len(base)), *draws]])
        values = np.full((len(layers), len(columns)), np.nan)
        stderr = np.full_like(values, np.nan)
        cells = [(row, layer, f) for row, layer in enumerate(layers) for f in layers.choices(layer, formats)]
        about = f"{describe('fid-proxy', self)} {_name(self.features)} {digest(target)}"
        for done, (row, layer, format) in enumerate(cells, 1):

            def measure(bitmap: BitMap = BitMap({layer.name: format})) -> list[float]:  # noqa: B008
                moved = self._features(subject.images(bitmap))
                change = [measured(moved[d]) for d in [torch.arange(len(base)), *draws]] - floats
                return [float(change[0]), float(change[1:].std(ddof=1))]

            cell = subject.recall(f"{about} {layer.name}={format}", 2, measure)
            values[row, columns.index(format)], stderr[row, columns.index(format)] = cell
            subject.progress("fid-proxy", done, len(cells))
        notes = {"fd_float": float(floats[0]), "noise_floor": float(floats[1:].std(ddof=1)), "n": float(len(base))}
        return Table(layers.units, columns, values, stderr, "fd", describe("fid-proxy", self), notes=notes)

    def _features(self, images: Sequence[Tensor]) -> Tensor:
        return torch.cat([extract(self.features, batch).double() for batch in images])


def _name(features: FeatureNet) -> str:
    return getattr(features, "__name__", type(features).__name__)


def digest(target: Moments) -> str:
    """Short hash of a reference: measurements against another one are other measurements."""
    raw = target.mean.numpy().tobytes() + target.covariance.numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]
