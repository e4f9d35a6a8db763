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
class QualityReport:
    """Float against quantized generator on inputs that the search never saw.

    Attributes:
        mse: paired mean squared error of the outputs.
        psnr_db: paired PSNR of the mean error; its peak is the range of the float outputs. None for equal outputs.
        ssim: mean structural similarity of the pairs; None where the output is no picture of 11 pixels or more.
        fd_float: Fréchet distance of the float generator to the reference.
        fd_quantized: the same of the quantized generator.
        kid_float: kernel distance (unbiased squared MMD, cubic kernel) of the float generator.
        kid_quantized: the same of the quantized generator.
        features: name of the feature network.
        reference: what the distances are to.
        reference_n: samples behind the reference.
        maps: ``found`` and the baselines of a search, each on both sets of inputs; empty for a map that was given.
        worst_mse: paired mean squared error on inputs moved to where the map does worst; None if not asked for.
        worst_psnr_db: its PSNR.
    """

    mse: Interval
    psnr_db: Interval | None
    ssim: Interval | None
    fd_float: Interval
    fd_quantized: Interval
    kid_float: Interval
    kid_quantized: Interval
    features: str
    reference: str
    reference_n: int
    maps: Mapping[str, Paired] = field(default_factory=dict)
    worst_mse: Interval | None = None
    worst_psnr_db: Interval | None = None

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
