"""``QualityReport``: did the pictures survive, with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> QualityReport:
        try:
            return TypeAdapter(cls).validate_python({name: payload[name] for name in cls.__dataclass_fields__})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"not a quality report: {str(error).splitlines()[0]}") from None
