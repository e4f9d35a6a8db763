"""``Solution``: the map that was found, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.types.bitmap import BitMap
from mpsearch.types.measured import Measured
from mpsearch.types.quality import decibels
from mpsearch.types.target import Reached


@dataclass(frozen=True, eq=False)
class Baseline:
    """A map that needs no search, reported beside every answer. ``error`` is None where it was not measured."""

    bitmap: BitMap
    costs: Mapping[str, float]
    predicted: float
    error: Measured | None

    def to_json(self) -> dict[str, Any]:
        return {
            "formats": {name: str(format) for name, format in self.bitmap.items()},
            "costs": dict(self.costs),
            "predicted": self.predicted,
            "error": self.error.to_json() if self.error else None,
        }

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> Baseline:
        error = TypeAdapter(Measured | None).validate_python(payload["error"])
        costs = TypeAdapter(dict[str, float]).validate_python(payload["costs"])
        return cls(BitMap(payload["formats"]), costs, float(payload["predicted"]), error)


@dataclass(frozen=True, eq=False)
class Solution:
    """A bit map that meets its budgets, and how good it is.

    Attributes:
        bitmap: layer name → format.
        predicted: sum of the table over the map, MSE.
        error: true paired error of the whole map on the calibration inputs; None when no generator was at hand.
        costs: every cost of the map by name, the budgets' among them.
        limits: the budgets with their limits in absolute units.
        status: what the exact solver says of the additive model: ``optimal`` or ``time limit``; ``feasible`` where
            channels have widths of their own.
        bound: lower bound of the additive model, in the table's measure; with widths of channels, of a model in which
            any number of them may stand in a layer.
        gap: how far the exact solver's own answer is from ``bound``, as a share of its predicted damage; with widths
            of channels, how far the map is.
        seconds: wall time of the search.
        method: the candidate that won: ``ilp``, ``refine``, ``bayes``, ``uniform``, ``channels``, ``bisect`` …
        evaluations: true evaluations spent on whole maps.
        baselines: ``uniform`` (the best feasible one) and ``size-only``, where feasible.
        dominated: format → units in which it was left out of the search: another costs no more and hurts less.
        peak: range of the float images on the calibration inputs, the peak of a PSNR; None without a generator.
        target: the quality floor that the map meets at the least cost, where one was asked for.
        searches: what tried to improve on the exact answer, in turn, and how each ended: ``refine: local optimum``.
    """

    bitmap: BitMap
    predicted: float
    error: Measured | None
    costs: Mapping[str, float]
    limits: Mapping[str, float]
    status: str
    bound: float | None
    gap: float | None
    seconds: float
    method: str
    evaluations: int = 0
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    dominated: Mapping[str, int] = field(default_factory=dict)
    peak: float | None = None
    target: Reached | None = None
    searches: tuple[str, ...] = ()

    @property
    def psnr_db(self) -> float | None:
        """On the calibration inputs, of the mean error; None where there is no error."""
        return decibels(self.error.value if self.error else None, self.peak)

    @property
    def gain_db(self) -> float | None:
        """Gain over the best feasible uniform map on the calibration inputs; None where one of them is not known."""
        uniform = self.baselines.get("uniform")
        if uniform is None or not uniform.error or not self.error or min(uniform.error.value, self.error.value) <= 0:
            return None
        return 10 * math.log10(uniform.error.value / self.error.value)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.bitmap.to_json(),
            "predicted": self.predicted,
            "error": self.error.to_json() if self.error else None,
            "costs": dict(self.costs),
            "limits": dict(self.limits),
            "status": self.status,
            "bound": self.bound,
            "gap": self.gap,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "method": self.method,
            "baselines": {name: baseline.to_json() for name, baseline in self.baselines.items()},
            "dominated": dict(self.dominated),
            "peak": self.peak,
            "gain_db": self.gain_db,
            "target": self.target.to_json() if self.target else None,
            "searches": list(self.searches),
        }

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> Solution:
        hints = get_type_hints(cls)
        plain = ("predicted", "error", "costs", "limits", "status", "bound", "gap", "seconds", "evaluations", "method")
        try:
            return cls(
                bitmap=BitMap.from_json(payload),
                baselines={name: Baseline.from_json(entry) for name, entry in payload["baselines"].items()},
                dominated=TypeAdapter(dict[str, int]).validate_python(payload.get("dominated", {})),
                peak=TypeAdapter(float | None).validate_python(payload.get("peak")),
                target=Reached.from_json(payload["target"]) if payload.get("target") else None,
                searches=TypeAdapter(tuple[str, ...]).validate_python(payload.get("searches", ())),
                **{name: TypeAdapter(hints[name]).validate_python(payload[name]) for name in plain},
            )
        except (KeyError, TypeError, AttributeError, ValueError, UsageError, ArtifactError) as error:
            raise ArtifactError(f"not a solution: {str(error).splitlines()[0]}") from None
