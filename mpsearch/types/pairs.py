"""``Pairs`` and ``Interactions``: what units do together, in factor form and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.types.format import Format
from mpsearch.types.layer import Unit
from mpsearch.types.table import Table

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """``damage(c) = ‖Σ_i vectors[i, c_i]‖²``: positive by construction, and no matrix of pairs is ever formed.

    Attributes:
        units: as in :class:`Table`.
        formats: as in :class:`Table`.
        vectors: ``(units, formats, R)``, in roots of the damage's unit; what is not allowed may hold anything finite.
    """

    units: tuple[Unit, ...]
    formats: tuple[Format, ...]
    vectors: Array

    def __post_init__(self) -> None:
        shape = (len(self.units), len(self.formats))
        if self.vectors.ndim != 3 or self.vectors.shape[:2] != shape:
            raise UsageError(f"pairs of {shape[0]} units and {shape[1]} formats have vectors of {self.vectors.shape}")
        if not np.isfinite(self.vectors).all():
            raise UsageError("the vectors of the pairs hold NaN or infinite values")

    def damage(self, choice: NDArray[np.int64]) -> float:
        """Of a whole map, ``choice`` being the column of every unit."""
        return float(np.square(self.vectors[np.arange(len(choice)), choice].sum(axis=0)).sum())

    def interaction(self, i: int, a: int, j: int, b: int) -> float:
        """What unit ``i`` in format ``a`` and unit ``j`` in format ``b`` do beyond the sum of the two alone."""
        return 2 * float(self.vectors[i, a] @ self.vectors[j, b])

    @property
    def diagonal(self) -> Array:
        """``(units, formats)``: damage of every unit alone."""
        found: Array = np.square(self.vectors).sum(axis=-1)
        return found

    def over(self, units: Sequence[Unit], formats: Sequence[Format]) -> Pairs:
        """Rows and columns in another order; units of several layers are the sum of these."""
        rows = {unit.layer: row for row, unit in enumerate(self.units)}
        columns = [self.formats.index(format) for format in formats]
        joined = [self.vectors[[rows[name] for name in (unit.layer, *unit.others)]].sum(axis=0) for unit in units]
        return Pairs(tuple(units), tuple(formats), np.stack(joined)[:, columns])

    def scaled_to(self, table: Table) -> Pairs:
        """The same directions with the lengths of a table: its damages of single units, these correlations."""
        if table.units != self.units or table.formats != self.formats:
            raise UsageError("the table has other units or formats than the pairs")
        own = self.diagonal
        target = np.maximum(np.nan_to_num(table.values), 0.0)
        lengths = np.sqrt(np.divide(target, own, out=np.zeros(own.shape), where=own > 0))
        return replace(self, vectors=self.vectors * lengths[:, :, None])


@dataclass(frozen=True, eq=False)
class Interactions:
    """``interaction[i, a, j, b]``: what two units do together beyond the sum of the two alone.

    Attributes:
        units: those that were paired.
        formats: their columns.
        interaction: ``(units, formats, units, formats)``, symmetric; NaN = not measured, 0 of a unit with itself.
        stderr: standard error of each, over samples.
        measure: as in :class:`Table`.
        source: as in :class:`Table`.
    """

    units: tuple[Unit, ...]
    formats: tuple[Format, ...]
    interaction: Array
    stderr: Array
    measure: str
    source: str

    def __post_init__(self) -> None:
        shape = 2 * (len(self.units), len(self.formats))
        if self.interaction.shape != shape or self.stderr.shape != shape:
            raise UsageError(f"interactions of shape {shape} expected, not {self.interaction.shape}")
