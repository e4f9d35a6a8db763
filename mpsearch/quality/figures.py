"""All figures of generated features against a reference, beside those of the float generator and their noise floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mpsearch.errors import CalibrationError
from mpsearch.features import moments, principal_axes, split
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


MEASURES: Mapping[str, Measure] = {
    "frechet": Frechet(),
    "fd-infinity": FDInfinity(),
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
        reference: what both are compared with. For samples fewer than D see
            :func:`mpsearch.features.principal_axes`.
        draws: of the bootstrap.
        seed: of the bootstrap, and of what subsets are.
    """
    _enough(full, reference)
    axes, warning = principal_axes(moments(reference.features), min(len(full), len(quantized)))
    covaried = None if axes is None else axes.shape[1]

    def measured(generated: Tensor, other: Tensor) -> dict[str, Interval]:
        found: dict[str, Interval] = {}
        for measure in MEASURES.values():
            if axes is not None and isinstance(measure, (Frechet, FDInfinity)):
                found |= replace(measure, full=covaried)(split(generated, axes), split(other, axes), draws, seed)
            else:
                found |= measure(generated, other, draws, seed)
        return found

    floor = _floor(full, len(reference.features), measured, seed)
    before, after = measured(full, reference.features), measured(quantized, reference.features)
    found = {name: Figure(before[name], after[name], floor.get(name)) for name in before}
    gap = {}
    if reference.train is not None:
        halves = split(reference.features, axes), split(reference.train, axes)
        for name, features in (("fd_float", full), ("fd_quantized", quantized)):
            gap[name] = frechet_gap(split(features, axes), *halves, draws, seed, covaried)
    return found, gap, warning


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
