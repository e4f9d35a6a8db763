"""``Target``: a floor under the quality of the pictures; ``Reached``: how a map meets it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from mpsearch.errors import ArtifactError, UsageError

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
_GRAMMAR = {
    "psnr": re.compile(rf"\s*psnr\s*>=\s*{_NUMBER}\s*(?:dB)?\s*"),
    "fd": re.compile(rf"\s*fd\s*<=\s*float\s*\+\s*{_NUMBER}\s*"),
}
Trace = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Target:
    """``psnr>=35`` or ``fd<=float+0.5``.

    Attributes:
        measure: ``psnr``: of the mean squared error to the float images, in dB, its peak the range of those; ``fd``: by
            how much the Fréchet distance to the reference exceeds that of the float generator on the same inputs.
        limit: the least PSNR, or the most that the distance may exceed.
    """

    measure: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Target:
        for measure, grammar in _GRAMMAR.items():
            match = grammar.fullmatch(text) if isinstance(text, str) else None
            if match is not None:
                limit = float(match[1])
                if not math.isfinite(limit) or (measure == "psnr" and limit == 0):
                    raise UsageError(f"the target {text!r} must be {'above zero and ' * (measure == 'psnr')}finite")
                return cls(measure, limit)
        raise UsageError(f"cannot read the target {text!r}: write it like psnr>=35 or fd<=float+0.5")

    def __str__(self) -> str:
        return self.spell(self.limit)

    def spell(self, value: float) -> str:
        """This target with another number."""
        number = repr(float(value)).removesuffix(".0")
        return f"psnr>={number}" if self.measure == "psnr" else f"fd<=float+{number}"

    def reachable(self, value: float) -> str:
        """The target that ``value`` just meets, to two digits, rounded so that it does."""
        return self.spell(math.floor(value * 100) / 100 if self.measure == "psnr" else math.ceil(value * 100) / 100)

    def margin(self, value: float) -> float:
        """How much better than needed ``value`` is; negative where it falls short."""
        return value - self.limit if self.measure == "psnr" else self.limit - value

    def met(self, value: float) -> bool:
        return self.margin(value) >= 0


@dataclass(frozen=True)
class Reached:
    """A target that a map meets on the calibration inputs.

    Attributes:
        target: as the user wrote it.
        cost: the cost that was made as small as possible.
        value: of the map, in the measure of the target.
        uniform: cost of the cheapest uniform map that meets the target; None where none does.
        trace: (cost, value) of every map that was judged on the way, in order.
    """

    target: Target
    cost: str
    value: float
    uniform: float | None = None
    trace: Trace = field(default=(), repr=False)

    @property
    def margin(self) -> float:
        """By how much the target is met."""
        return self.target.margin(self.value)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": str(self.target),
            "cost": self.cost,
            "value": self.value,
            "margin": self.margin,
            "uniform": self.uniform,
            "trace": [list(step) for step in self.trace],
        }

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> Reached:
        try:
            return cls(
                Target.parse(payload["target"]),
                TypeAdapter(str).validate_python(payload["cost"]),
                TypeAdapter(float).validate_python(payload["value"]),
                TypeAdapter(float | None).validate_python(payload["uniform"]),
                TypeAdapter(Trace).validate_python(payload["trace"]),
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ArtifactError(f"not a met target: {str(error).splitlines()[0]}") from None
