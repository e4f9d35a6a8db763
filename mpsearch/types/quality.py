"""``QualityReport``: did the pictures survive, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from mpsearch.errors import ArtifactError


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval and the number of generated samples behind it."""

    value: float
    low: float
    high: float
    n: int


def decibels(mse: float | None, peak: float | None) -> float | None:
    """PSNR of a mean squared error; None where nothing differs, the images are constant, or either is not known."""
    return 10 * math.log10(peak**2 / mse) if mse and peak else None


def gap_db(calibration: float, stderr: float, heldback: Interval) -> Interval | None:
    """Held-back over calibration error in dB, 0 = it generalises; None where either is 0.

    The interval is that of independent relative errors, two standard errors either way.
    """
    if calibration <= 0 or heldback.value <= 0:
        return None
    gap = 10 * math.log10(heldback.value / calibration)
    relative = math.hypot(stderr / calibration, (heldback.high - heldback.low) / 4 / heldback.value)
    wide = 2 * relative * 10 / math.log(10)
    return Interval(gap, gap - wide, gap + wide, heldback.n)


@dataclass(frozen=True)
class Paired:
    """One map on the inputs that the search saw, and on those that it did not.

    Attributes:
        calibration_mse: paired mean squared error on the calibration inputs; None where it was not measured.
        calibration_db: its PSNR, the peak the range of the float images there.
        mse: paired mean squared error on the held-back inputs.
        psnr_db: its PSNR; None for equal outputs.
    """

    calibration_mse: float | None
    calibration_db: float | None
    mse: Interval
    psnr_db: Interval | None

    def gain_over(self, other: Paired) -> tuple[float | None, float | None]:
        """Less error than another map has, in dB: on calibration inputs, on held-back inputs."""
        pairs = [(other.calibration_mse, self.calibration_mse), (other.mse.value, self.mse.value)]
        seen, unseen = (10 * math.log10(worse / own) if worse and own else None for worse, own in pairs)
        return seen, unseen


@dataclass(frozen=True)
class Figure:
    """One figure of the distribution of pictures.

    Attributes:
        float: of the float generator against the reference.
        quantized: of the quantized one, on the same inputs.
        floor: of the float generator against itself with other seeds; None where there are too few samples.
    """

    float: Interval
    quantized: Interval
    floor: Interval | None


@dataclass(frozen=True)
class QualityReport:
    """Float against quantized generator on inputs that the search never saw.

    Attributes:
        mse: paired mean squared error of the outputs.
        psnr_db: paired PSNR of the mean error; its peak is the range of the float outputs. None for equal outputs.
        ssim: mean structural similarity of the pairs; None where the output is no picture of 11 pixels or more.
        feature_distance: paired mean squared distance of features.
        feature_share: that over the mean squared distance of features of different inputs; None where it is 0.
        floors: of the paired figures: what float pictures of different inputs, that is of other seeds, have.
        figures: ``fd`` (Fréchet distance), ``fd_infinity`` (extrapolated to endlessly many pictures), ``kid`` (unbiased
            squared MMD, cubic kernel), ``precision``, ``recall``, ``density``, ``coverage``; those that the number of
            samples allows.
        gap: ``error_db``: held-back over calibration error; ``fd_float``, ``fd_quantized``: Fréchet distance to test
            less that to training images. What is not known is left out.
        features: name of the feature network.
        reference: what the figures are against.
        reference_n: samples behind the reference.
        own: the reference is the float generator's own samples.
        warnings: what of this is less than was asked for.
        maps: ``found`` and the baselines of a search, each on both sets of inputs; empty for a map that was given.
        strata: paired mean squared error in every class or timestep, by its number; empty where the inputs hold none.
        worst_mse: paired mean squared error on inputs moved to where the map does worst; None if not asked for.
        worst_psnr_db: its PSNR.
    """

    mse: Interval
    psnr_db: Interval | None
    ssim: Interval | None
    feature_distance: Interval
    feature_share: Interval | None
    floors: Mapping[str, Interval]
    figures: Mapping[str, Figure]
    gap: Mapping[str, Interval]
    features: str
    reference: str
    reference_n: int
    own: bool
    warnings: tuple[str, ...] = ()
    maps: Mapping[str, Paired] = field(default_factory=dict)
    strata: Mapping[str, Interval] = field(default_factory=dict)
    worst_mse: Interval | None = None
    worst_psnr_db: Interval | None = None

    def new_warnings(self, before: QualityReport) -> tuple[str, ...]:
        """Those that an earlier report of the same run does not have."""
        return tuple(warning for warning in self.warnings if warning not in before.warnings)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> QualityReport:
        try:
            fields = cls.__dataclass_fields__.items()
            needed = {n: payload[n] for n, f in fields if n in payload or f.default is f.default_factory is MISSING}
            return TypeAdapter(cls).validate_python(needed)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"not a quality report: {str(error).splitlines()[0]}") from None
