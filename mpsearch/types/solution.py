"""``Measured``, ``Problem`` and ``Solution``: a question to a solver, and its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.special import ndtr, stdtrit

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.types.bitmap import BitMap
from mpsearch.types.budget import Budget, within
from mpsearch.types.format import FLOAT_BITS, Format
from mpsearch.types.layer import Unit
from mpsearch.types.pairs import Pairs
from mpsearch.types.quality import decibels
from mpsearch.types.table import Table
from mpsearch.types.target import Reached

Choice = NDArray[np.int64]  # (units,) column of each unit


@dataclass(frozen=True)
class Measured:
    """A number with its standard error, the number of samples behind it, its unit, and where known every sample."""

    value: float
    stderr: float
    n: int
    unit: str = "mse"
    samples: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def beats(self, other: Measured, sure: float = 0.0) -> bool:
        """Whether it is less, by more than ``sure`` standard errors of the difference over the same samples, or as
        many more as make up for few samples (Student 1908)."""
        gain = other.value - self.value
        return self.n >= other.n and gain > 0 and gain > self._by_chance(other, sure)  # fewer: given up half way

    def doubted(self, base: Measured, doubt: float) -> float:
        """The value, and on top ``doubt`` standard errors, counted as in :meth:`beats`, of what it differs from
        ``base`` by.

        Infinite where only some samples are known.
        """
        return math.inf if self.n < base.n else self.value + self._by_chance(base, doubt)

    def _by_chance(self, other: Measured, errors: float) -> float:
        """What a difference over the same samples exceeds as seldom as a normal one does so many standard errors; 0
        where the samples are not known."""
        count = len(self.samples)
        if count < 2 or count != len(other.samples):
            return 0.0
        stderr = float(np.subtract(self.samples, other.samples).std(ddof=1)) / math.sqrt(count)
        return stderr and stderr * float(stdtrit(count - 1, ndtr(errors)))  # none of no difference, however sure

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "stderr": self.stderr, "n": self.n, "unit": self.unit}


@dataclass(frozen=True, eq=False)
class Limit:
    """One budget made concrete.

    Attributes:
        budget: as the user wrote it.
        costs: the cost of every choice.
        limit: the most that they may be together, in the cost's own unit.
        full: the cost of the float generator.
    """

    budget: Budget
    costs: Table
    limit: float
    full: float

    def of(self, choice: Choice) -> float:
        return self.costs.total(self.costs.values[np.arange(len(choice)), choice])


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one format a unit: least damage, every limit met.

    Attributes:
        damage: ``(units, formats)``; NaN = not allowed. Additive; only a proposal.
        limits: the budgets with their cost tables over the same units and formats.
        evaluate: the true damage of a whole map, when a generator is at hand.
        starts: feasible choices that a local or sampling search may begin with.
        race: as ``evaluate``, and may stop early when the map is hopeless beside a measured one.
        pairs: damage with the terms of pairs of units, for a solver that can use them.
        slopes: ``(units, formats)`` first-order changes of the true damage when one unit of a map takes another format;
            None where the generator has no gradients.
    """

    damage: Table
    limits: tuple[Limit, ...]
    evaluate: Callable[[BitMap], Measured] | None = None
    starts: tuple[Choice, ...] = ()
    race: Callable[[BitMap, Measured], Measured] | None = None
    pairs: Pairs | None = None
    slopes: Callable[[BitMap], NDArray[np.float64] | None] | None = None

    def __post_init__(self) -> None:
        for limit in self.limits:
            if limit.costs.units != self.damage.units or limit.costs.formats != self.damage.formats:
                raise UsageError(f"the cost table of {limit.budget} has other units or formats than the damage table")
            if np.isnan(limit.costs.values[self.allowed]).any():
                raise UsageError(f"the cost table of {limit.budget} lacks a choice that the damage table allows")
        if self.pairs and (self.pairs.units != self.damage.units or self.pairs.formats != self.damage.formats):
            raise UsageError("the pairs have other units or formats than the damage table")
        if np.isinf(self.damage.values).any():
            raise UsageError("the damage table holds infinite values: mark what is not allowed as NaN")
        if not self.allowed.any(axis=1).all():
            row = int(np.flatnonzero(~self.allowed.any(axis=1))[0])
            raise UsageError(f"{self.damage.units[row]} can take none of the formats")

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.damage.units

    @property
    def formats(self) -> tuple[Format, ...]:
        return self.damage.formats

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """``(units, formats)``: which choices exist."""
        return ~np.isnan(self.damage.values)

    def predicted(self, choice: Choice) -> float:
        return float(self.damage.values[np.arange(len(choice)), choice].sum())

    def measured(self, choice: Choice, rival: Measured | None = None) -> Measured:
        """Paired error of the whole map; ``UsageError`` when no generator is at hand.

        With a ``rival`` that it is hopelessly worse than, it may cover a part of the samples only.
        """
        if self.evaluate is None:
            raise UsageError("this search needs a generator: the problem has no true error to evaluate")
        if rival is None or self.race is None:
            return self.evaluate(self.bitmap(choice))
        return self.race(self.bitmap(choice), rival)

    def true_error(self, choice: Choice) -> float:
        """The value of :meth:`measured`."""
        return self.measured(choice).value

    def damage_of(self, choice: Choice) -> float:
        """True error where it can be measured, the table's prediction otherwise."""
        return self.predicted(choice) if self.evaluate is None else self.true_error(choice)

    def feasible(self, choice: Choice) -> bool:
        return all(within(limit.of(choice), limit.limit) for limit in self.limits)

    def bitmap(self, choice: Choice) -> BitMap:
        return BitMap.from_units({u: self.formats[int(c)] for u, c in zip(self.units, choice, strict=True)})

    def bits(self) -> NDArray[np.float64]:
        """Stored bits of each column, float as 32."""
        return np.array([f.weight_bits or FLOAT_BITS for f in self.formats], np.float64)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver says.

    Attributes:
        method: its name.
        choice: column of each unit; feasible.
        status: ``optimal``, ``feasible``, ``time limit`` …
        bound: lower bound of the model that the solver minimises, where it proves one.
    """

    method: str
    choice: Choice
    status: str
    bound: float | None = None


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
