"""``Problem`` and ``Answer``: a question to a solver, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.types.bitmap import BitMap
from mpsearch.types.budget import Budget, within
from mpsearch.types.format import FLOAT_BITS, Format
from mpsearch.types.layer import Unit
from mpsearch.types.measured import Measured
from mpsearch.types.pairs import Pairs
from mpsearch.types.table import Table

Choice = NDArray[np.int64]  # (units,) column of each unit


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
