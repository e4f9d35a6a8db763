"""Did the pictures survive: the quantized beside the float generator on inputs that no search saw."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, Keep, Progress, at_once, output, silent
from mpsearch.errors import CalibrationError
from mpsearch.features import extract, pooled_pixels
from mpsearch.inputs import Adversarial, Region, Shell
from mpsearch.inputs.columns import batched, joined
from mpsearch.model import device_of
from mpsearch.protocols import FeatureNet
from mpsearch.quality import Reference, feature_distance, figures, paired_floor, paired_quality, paired_strata
from mpsearch.quant import WeightBank, applied
from mpsearch.quant.context import with_ranges
from mpsearch.types import BitMap, Format, Paired, QualityReport, Solution, decibels


def validate(
    model: nn.Module,
    bitmap: Mapping[str, Format | str],
    batches: Iterable[Any],
    features: FeatureNet = pooled_pixels,
    reference: Reference | None = None,
    more: Iterable[Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
    keep: Keep = at_once,
    bank: WeightBank | None = None,
) -> QualityReport:
    """Compare the quantized with the float generator on held-back inputs.

    Args:
        model: the float generator; left as it was.
        bitmap: layer name → format, with activation ranges (a map without them gets ranges fitted on ``batches``).
        batches: held-back inputs for the paired PSNR and SSIM.
        features: feature network of the distances.
        reference: real features; without them, those of the float generator on ``batches``.
        more: further held-back inputs for the distances, also those between paired features; by default ``batches``.
        seed: of the bootstrap and of inner noise.
        progress: called with (what, done, total).
        keep: where finished batches of images and features are kept, see :class:`mpsearch.store.Parts`.
        bank: quantized weights, those of :func:`mpsearch.recover`; by default the nearest ones.

    Warns:
        UserWarning: fewer samples than feature dimensions, both numbers named; it is in the report too.
    """
    device = device_of(model)
    pairs = Calibration.of(batches, device, seed)
    many = pairs if more is None else Calibration.of(more, device, seed + len(pairs))
    bank = bank or WeightBank(model)
    bitmap = with_ranges(model, bitmap if isinstance(bitmap, BitMap) else BitMap(bitmap), pairs, bank)
    before = _images(model, pairs, keep, "float pairs")
    float_features = featurise(model, many, features, progress, "float images", keep)
    with applied(model, bitmap, bank):
        after = _images(model, pairs, keep, "quantized pairs")
        small_features = featurise(model, many, features, progress, "quantized images", keep)
    target = reference or Reference(
        torch.cat([extract(features, images.to(device)) for images in before]),
        "the float generator on the same inputs",
        own=True,
    )
    if target.features.shape[1] != float_features.shape[1]:
        raise CalibrationError(
            f"the reference has {target.features.shape[1]} features, the network gives {float_features.shape[1]}"
        )
    found, gap, warning = figures(float_features, small_features, target, seed=seed)
    if warning:
        warnings.warn(warning, stacklevel=2)
    mse, psnr, similarity = paired_quality(before, after, seed=seed)
    moved, apart, share = feature_distance(float_features, small_features, seed=seed)
    unlike = (*(paired_floor(before, seed=seed) or (None, None, None)), apart)
    floors = zip(("mse", "psnr_db", "ssim", "feature_distance"), unlike, strict=True)
    return QualityReport(
        mse=mse,
        psnr_db=psnr,
        ssim=similarity,
        feature_distance=moved,
        feature_share=share,
        floors={name: floor for name, floor in floors if floor is not None},
        figures=found,
        gap=gap,
        features=getattr(features, "__name__", type(features).__name__),
        reference=target.name,
        reference_n=len(target.features),
        own=target.own,
        warnings=(warning,) if warning else (),
        strata=paired_strata(before, after, pairs.strata(), seed=seed),
    )


def worst_case(
    model: nn.Module,
    bitmap: Mapping[str, Format | str],
    batches: Iterable[Any],
    steps: int = 16,
    seed: int = 0,
    regions: Sequence[Region | None] | None = None,
) -> list[tuple[Any, ...]]:
    """Inputs that the map hurts most, by gradient ascent from ``batches`` within the prior (ZAQ, CVPR 2021).

    Args:
        model: the float generator; left as it was.
        bitmap: layer name → format, with activation ranges (a map without them gets ranges fitted on ``batches``).
        batches: inputs of the prior, where the ascent starts.
        steps: of the ascent.
        seed: of inner noise; the ascent draws nothing.
        regions: where each argument may go: :class:`mpsearch.inputs.Shell` keeps the norm of every sample,
            ``Box(low, high)`` the range, None the argument. By default every floating-point tensor of two dimensions or
            more stays on its shell, as normal latents do.

    Returns:
        As many batches of as many samples, none of them with a smaller error than where it started.
    """
    inputs = Calibration.of(batches, device_of(model), seed)
    if regions is None:
        regions = [Shell() if isinstance(arg, Tensor) and arg.ndim > 1 else None for arg in inputs.batches[0]]
    bank = WeightBank(model)
    bitmap = with_ranges(model, bitmap if isinstance(bitmap, BitMap) else BitMap(bitmap), inputs, bank)
    return list(Adversarial(steps)(model, bitmap, bank, inputs, regions).batches)


def with_worst(
    quality: QualityReport,
    model: nn.Module,
    bitmap: BitMap,
    batches: Sequence[Any],
    count: int,
    regions: Sequence[Region | None],
    seed: int = 0,
) -> QualityReport:
    """The report with the paired error on the worst inputs that an ascent from ``count`` of ``batches`` finds."""
    held, bank = Calibration.of(batches, device_of(model), seed), WeightBank(model)
    bitmap = with_ranges(model, bitmap, held, bank)
    near = batched([column[:count] for column in joined(held.batches)], len(held.batches[0][0]))
    inputs = Calibration(tuple(near), seed)
    found = Adversarial()(model, bitmap, bank, inputs, regions)
    before = _images(model, found, at_once, "worst float pairs")
    with applied(model, bitmap, bank):
        after = _images(model, found, at_once, "worst quantized pairs")
    mse, psnr, _ = paired_quality(before, after, seed=seed)
    return replace(quality, worst_mse=mse, worst_psnr_db=psnr)


def beside(
    model: nn.Module,
    solution: Solution,
    baselines: Mapping[str, BitMap],
    quality: QualityReport,
    batches: Iterable[Any],
    seed: int = 0,
    keep: Keep = at_once,
) -> dict[str, Paired]:
    """``found`` and every baseline on both sets of inputs, so that what fits the calibration inputs only is seen.

    Args:
        model: the float generator; left as it was.
        solution: measured on the calibration inputs.
        baselines: the maps of ``solution.baselines`` with their activation ranges; one pass over ``batches`` each.
        quality: of ``solution.bitmap`` on ``batches``.
        batches: the held-back inputs.
        seed: as in :func:`validate`.
        keep: as in :func:`validate`, whose float images are then used again.
    """
    pairs, bank = Calibration.of(batches, device_of(model), seed), WeightBank(model)
    before = _images(model, pairs, keep, "float pairs")
    known = {solution.bitmap.key: (quality.mse, quality.psnr_db)}
    errors = {"found": (solution.bitmap, solution.error)}
    errors |= {name: (baselines[name], entry.error) for name, entry in solution.baselines.items()}
    found = {}
    for name, (bitmap, error) in errors.items():
        if bitmap.key not in known:
            with applied(model, bitmap, bank):
                known[bitmap.key] = paired_quality(before, _images(model, pairs, keep, f"{name} pairs"), seed=seed)[:2]
        seen = error.value if error else None
        found[name] = Paired(seen, decibels(seen, solution.peak), *known[bitmap.key])
    return found


def featurise(
    model: nn.Module,
    inputs: Calibration,
    features: FeatureNet,
    progress: Progress = silent,
    what: str = "images",
    keep: Keep = at_once,
) -> Tensor:
    """Features ``(N, D)`` of the generator's images, one batch in memory at a time."""

    def compute(index: int) -> Tensor:
        return extract(features, output(model, inputs, index))

    found = []
    for index in range(len(inputs)):
        found.append(keep(f"{what} {index}", partial(compute, index)))
        progress(what, index + 1, len(inputs))
    return torch.cat(found)


def _images(model: nn.Module, inputs: Calibration, keep: Keep, what: str) -> list[Tensor]:
    """The generator's images for every batch, on the CPU."""

    def compute(index: int) -> Tensor:
        return output(model, inputs, index).cpu()

    return [keep(f"{what} {index}", partial(compute, index)) for index in range(len(inputs))]
