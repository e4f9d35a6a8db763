"""All figures of generated features against a reference, beside those of the float generator and their noise floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from mpsearch.errors import CalibrationError
from mpsearch.features import moments, principal_axes
from mpsearch.quality.density_coverage import DensityCoverage
from mpsearch.quality.fd_infinity import FDInfinity
from mpsearch.quality.frechet import Frechet
from mpsearch.quality.gap import frechet_gap
from mpsearch.quality.kernel import Kernel
from mpsearch.quality.precision_recall import PrecisionRecall
from mpsearch.quality.reference import Reference
from mpsearch.types import Figure, Interval


class Measure(Protocol):
    """Figures by name of features ``(n, D)`` against ``(N, D)``, none where there are too few for them."""

    def __call__(self, generated: Tensor, reference: Tensor, draws: int, seed: int) -> Mapping[str, Interval]: ...


FITS: Mapping[str, Measure] = {"frechet": Frechet(), "fd-infinity": FDInfinity()}  # they fit a covariance
MEASURES: Mapping[str, Measure] = {
    **FITS,
    "kernel": Kernel(),
    "precision-recall": PrecisionRecall(),
    "density-coverage": DensityCoverage(),
}


def distances(features: Tensor, reference: Reference, draws: int = 100, seed: int = 0) -> tuple[Interval, Interval]:
    """(Fréchet distance, kernel distance) of generated ``features`` ``(n, D)`` to the reference, all D dimensions."""
    _enough(features, reference)
    found = [MEASURES[name](features, reference.features, draws, seed) for name in ("frechet", "kernel")]
    return found[0]["fd"], found[1]["kid"]


def figures(
    full: Tensor, quantized: Tensor, reference: Reference, draws: int = 100, seed: int = 0
) -> tuple[dict[str, Figure], dict[str, Interval], str]:
    """(every figure, the gap of the Fréchet distance, a warning or nothing).

    Args:
        full: features ``(n, D)`` of the float generator.
        quantized: those of the quantized one, on the same inputs.
        reference: what both are compared with. Where samples are fewer than D, ``fd`` is taken on some of its axes.
        draws: of the bootstrap.
        seed: of the bootstrap, and of what subsets are.
    """
    _enough(full, reference)
    target = moments(reference.features)
    axes, warning = principal_axes(target, min(len(full), len(quantized)))
    axes = None if axes is None else axes.float()

    def measured(generated: Tensor, other: Tensor) -> dict[str, Interval]:
        found: dict[str, Interval] = {}
        for name, measure in MEASURES.items():
            on = (_on(generated, axes), _on(other, axes)) if name in FITS else (generated, other)
            found |= measure(*on, draws, seed)
        return found

    floor = _floor(full, len(reference.features), measured, seed)
    before, after = measured(full, reference.features), measured(quantized, reference.features)
    found = {name: Figure(before[name], after[name], floor.get(name)) for name in before}
    gap = {}
    if reference.train is not None:
        pair = _on(reference.features, axes), _on(reference.train, axes)
        gap = {
            "fd_float": frechet_gap(_on(full, axes), *pair, draws, seed),
            "fd_quantized": frechet_gap(_on(quantized, axes), *pair, draws, seed),
        }
    return found, gap, warning


def _on(features: Tensor, axes: Tensor | None) -> Tensor:
    return features if axes is None else features @ axes


def _enough(features: Tensor, reference: Reference) -> None:
    for name, n in (("generated", len(features)), ("reference", len(reference.features))):
        if n < 2:
            raise CalibrationError(f"a distance needs 2 {name} samples or more, there are {n}")


def _floor(
    full: Tensor, n: int, measured: Callable[[Tensor, Tensor], dict[str, Interval]], seed: int
) -> dict[str, Interval]:
    """What the float generator scores against itself with other seeds, from two halves of its images.

    A Fréchet distance of equal distributions is all bias, in proportion to 1/n + 1/N: it is brought from the sizes of
    the halves to those of the figure beside it.
    """
    half = len(full) // 2
    if half < 2:
        return {}
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(seed))
    floor = measured(full[order[:half]], full[order[half : 2 * half]])
    scale, fd = (1 / len(full) + 1 / n) / (2 / half), floor["fd"]
    return floor | {"fd": Interval(fd.value * scale, fd.low * scale, fd.high * scale, fd.n)}
