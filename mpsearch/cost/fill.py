"""A cost table from a rule for one layer and one format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpsearch.types import Format, Layer, Layers, Table


def fill(
    layers: Layers,
    formats: Sequence[Format],
    rule: Callable[[Layer, Format], float],
    measure: str,
    constant: float = 0.0,
) -> Table:
    """``rule`` for every cell that a layer allows, NaN elsewhere; exact, so without error."""
    cells = [[rule(layer, f) if layer.allows(f) else np.nan for f in formats] for layer in layers]
    values = np.array(cells, np.float64)
    return Table(layers.units, tuple(formats), values, np.zeros_like(values), measure, measure, constant)
