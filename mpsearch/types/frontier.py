"""``Point``: one map of a frontier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpsearch.types.bitmap import BitMap


@dataclass(frozen=True, eq=False)
class Point:
    """A map that no other map of its frontier beats in the costs that are traded and the predicted damage.

    Attributes:
        bitmap: layer name → format, without activation ranges.
        costs: every cost of the map by name.
        predicted: sum of the damage table over the map, in its measure.
        optimal: whether the solver proved that no map under the same limits is better, within its gap.
        knee: whether this is the corner of the frontier, beyond which a unit of cost buys less than on average.
    """

    bitmap: BitMap
    costs: Mapping[str, float]
    predicted: float
    optimal: bool
    knee: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "formats": {name: str(format) for name, format in self.bitmap.items()},
            "costs": dict(self.costs),
            "predicted": self.predicted,
            "optimal": self.optimal,
            "knee": self.knee,
        }
