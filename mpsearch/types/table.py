"""``Table``: one number for every unit and format. Damage and costs share this type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.types.format import Format
from mpsearch.types.layer import Unit

Array = NDArray[np.float64]
Combine = Literal["sum", "max"]


def _nullable(values: Array) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]


def _floats(rows: Any) -> Array:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], np.float64)


@dataclass(frozen=True, eq=False)
class Table:
    """``values[i, j]``: what it does, or costs, to store ``units[i]`` as ``formats[j]``.

    Attributes:
        units: rows.
        formats: columns.
        values: ``(units, formats)`` float64; NaN = not allowed.
        stderr: standard error of each value, same shape; zeros where the value is exact.
        measure: what a value is: ``mse`` (mean squared change of the output), ``bytes``, ``bits``, ``bops`` …
        source: the method that made it, with its options.
        constant: added once to any sum (bytes that stay float, the noise floor is *not* one).
        notes: further scalar facts of the method (noise floor, seconds, probes).
        combine: what units make together: their ``sum``, or the ``max`` of them (peak memory).
    """

    units: tuple[Unit, ...]
    formats: tuple[Format, ...]
    values: Array
    stderr: Array
    measure: str
    source: str
    constant: float = 0.0
    notes: Mapping[str, float] | None = None
    combine: Combine = "sum"

    def __post_init__(self) -> None:
        shape = (len(self.units), len(self.formats))
        if self.values.shape != shape or self.stderr.shape != shape:
            raise UsageError(f"a table of {shape[0]} units and {shape[1]} formats has values of {self.values.shape}")
        if not all(isinstance(unit, Unit) for unit in self.units):
            raise UsageError("the rows of a table are of the type Unit, such as Unit('conv1.weight')")
        if not all(isinstance(format, Format) for format in self.formats):
            raise UsageError("the columns of a table are of the type Format, such as Format.parse('w4')")
        for name in ("values", "stderr"):  # whole numbers could not say what is not allowed
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if (self.stderr < 0).any():
            raise UsageError(f"a standard error is {self.stderr[self.stderr < 0][0]:g}: expected 0 or more")

    def value(self, unit: str | Unit, format: str | Format) -> float:
        unit = Unit(unit) if isinstance(unit, str) else unit
        format = Format.parse(format) if isinstance(format, str) else format
        return float(self.values[self.units.index(unit), self.formats.index(format)])

    def total(self, picked: Array) -> float:
        """The whole of one value a unit."""
        if self.combine == "max":
            return max(float(picked.max(initial=0.0)), self.constant)
        return float(picked.sum()) + self.constant

    def to_json(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "source": self.source,
            "constant": self.constant,
            "notes": dict(self.notes or {}),
            "formats": [str(f) for f in self.formats],
            "combine": self.combine,
            "units": [
                {"layer": u.layer, "channels": u.channels} | ({"others": list(u.others)} if u.others else {})
                for u in self.units
            ],
            "values": _nullable(self.values),
            "stderr": _nullable(self.stderr),
        }

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> Table:
        try:
            return cls(
                units=tuple(
                    Unit(
                        u["layer"], None if u["channels"] is None else tuple(u["channels"]), tuple(u.get("others", ()))
                    )
                    for u in payload["units"]
                ),
                formats=tuple(Format.parse(f) for f in payload["formats"]),
                values=_floats(payload["values"]),
                stderr=_floats(payload["stderr"]),
                measure=payload["measure"],
                source=payload["source"],
                constant=float(payload["constant"]),
                notes=dict(payload["notes"]),
                combine=TypeAdapter(Combine).validate_python(payload.get("combine", "sum")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise ArtifactError(f"not a table of units and formats: {error}") from None
