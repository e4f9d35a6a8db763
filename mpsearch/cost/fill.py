"""A cost table from a rule for one layer and one format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpsearch.types import Format, Layer, Layers, Table
from mpsearch.types.table import Combine


def fill(
    layers: Layers,
    formats: Sequence[Format],
    rule: Callable[[Layer, Format], float],
    measure: str,
    constant: float = 0.0,
    combine: Combine = "sum",
) -> Table:
    """``rule`` for every cell that a layer allows, NaN elsewhere; exact, so without error."""
    cells = [[rule(layer, f) if layer.allows(f) else np.nan for f in formats] for layer in layers]
    values = np.array(cells, np.float64).reshape(len(layers), len(formats))
    zeros = np.zeros_like(values)
    return Table(layers.units, tuple(formats), values, zeros, measure, measure, constant, combine=combine)
