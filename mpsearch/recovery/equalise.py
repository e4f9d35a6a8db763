"""``equalise``: scale channels between layers so that what one layer reads, and how it weighs it, fits its grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from mpsearch.calibration import Calibration
from mpsearch.errors import UsageError
from mpsearch.model import input_channels
from mpsearch.quant import Observed, Recovered, observe
from mpsearch.recovery.reconstruction import image_error
from mpsearch.recovery.scaling import Pair, Scaling, largest
from mpsearch.recovery.trial import Trial
from mpsearch.types import Ranges

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the activations in what is evened out; weights have the rest
MOST = 32.0  # times that a channel may be scaled up or down, beside the others
LEAST = 1e-6  # of the largest: a channel of less stays
CHECKS = 2  # batches at most that tell whether a pair has gained


@dataclass(frozen=True)
class Equalise:
    """Cross-layer equalisation where it is exact (Nagel et al., ICCV 2019).

    Between a layer or a norm and the one layer that reads its channels, through what a positive factor passes (ReLU,
    PReLU, upsampling, sums over positions), a channel can be divided by ``s`` and its weights multiplied by it: the
    float generator stays, what is rounded changes. Every output channel has a scale of its own here, so that the reader
    gains alone, whose input channels share one, and share one range. With ``a`` the deviation of a channel from zero
    and ``w`` its largest weight, ``s = a^α / w^(1−α)``; ``α = 1`` gives all channels activations of one size, 0 weights
    of one size (SmoothQuant, Xiao et al., ICML 2023, lies between). Each pair tries several and keeps the one with
    which the images come closest to the float ones, or none.

    Weights are quantized anew from the scaled ones: what another recovery has learnt of them is lost, and this one
    comes first. Later ones start from the scaled float weights.

    Attributes:
        lessons: batches of the inputs, at most, that show what the readers read.
        seed: of the factors that pairs are found with.
    """

    lessons: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lessons < 1:
            raise UsageError(f"equalise needs lessons of 1 or more, not {self.lessons}")

    def __call__(self, trial: Trial) -> None:
        scaling = Scaling(trial)
        pairs = scaling.pairs(self.seed)
        seen = _inputs(trial, scaling, pairs, self.lessons)
        batches = range(min(CHECKS, len(trial.learning)))
        for layer, format in trial.bitmap.items():
            if format.kind != "float":
                trial.bank.quantized(layer, format)  # known to all that is tried
        scales: Mapping[Pair, Tensor] = {}
        best = Recovered()
        least = image_error(trial, best, batches)
        for at, pair in enumerate(pairs):
            weight, values = trial.bank.weight(pair.reader), seen[pair.reader]
            tries = _scales(values, largest(scaling.readers[pair.reader], weight, trial.bank.site(pair.reader).axis))
            for tried in [{**scales, pair: scale} for scale in tries]:
                ranges = {**best.ranges, **_ranges(trial, pair.reader, values / tried[pair])}
                found = replace(scaling.changed(tried), ranges=ranges)
                if (error := image_error(trial, found, batches)) < least:
                    best, least, scales = found, error, tried
            trial.progress("equalising", at + 1, len(pairs))
        if scales:
            trial.show(best)


def _inputs(trial: Trial, scaling: Scaling, pairs: Iterable[Pair], lessons: int) -> dict[str, Tensor]:
    """Reader → a sample of what it reads in the float generator, ``(values, channels)``."""
    readers = [pair.reader for pair in pairs]
    inputs = Calibration(trial.learning.batches[:lessons], trial.learning.seed)
    places = {reader: trial.bank.site(reader).places for reader in readers}
    single = {reader: (1,) * input_channels(scaling.readers[reader]) for reader in readers}
    with trial.teacher():
        _, seen = observe(trial.model, inputs, places, single)
    return {reader: own.values()[0] for reader, own in seen.items()}


def _scales(values: Tensor, weights: Tensor) -> list[Tensor]:
    """Several scales of the channels, ``(channels,)``, from a sample of them and from their largest weights."""
    size = values.square().mean(0).sqrt()
    alive = (size > LEAST * size.max()) & (weights > LEAST * weights.max())
    found = []
    for share in SHARES:
        logarithms = share * size.where(alive, 1.0).log() - (1 - share) * weights.where(alive, 1.0).log()
        middle = logarithms[alive].mean() if alive.any() else 0.0
        found.append((logarithms - middle).where(alive, 0.0).clamp(-math.log(MOST), math.log(MOST)).exp())
    return found


def _ranges(trial: Trial, reader: str, values: Tensor) -> dict[str, Ranges]:
    """The activation ranges of a reader for what it reads once the scales are in place."""
    format = trial.bitmap[reader]
    if not format.ranged or not format.act_bits:
        return {}
    before = trial.bank.ranges.get(reader, trial.bitmap.ranges[reader])
    parts = tuple(span.channels for span in before) if len(before) > 1 else ()
    seen = Observed(reader, parts, -1, values.numel(), 0)
    seen(values)
    seen.settle()
    return {reader: seen.grid(format.act_bits).ranges}
