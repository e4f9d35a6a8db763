"""``coded``: bytes of the packed generator with its codes entropy-coded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpsearch.cost.fill import fill
from mpsearch.cost.size import layer_bytes
from mpsearch.types import Format, Layer, Layers, Table


@dataclass(frozen=True)
class Coded:
    """Exact payload bytes of the file that the exporter ``coded`` writes: ``size`` less what coding saves.

    That depends on the weights, so it is measured, layer by layer (:meth:`mpsearch.quant.WeightBank.saved`). Mixtures
    of widths are not: under a budget on it a layer keeps one width.

    Attributes:
        saved: (layer, format) → bytes.
    """

    saved: Callable[[str, Format], int]

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        def coded(layer: Layer, format: Format) -> float:
            less = math.nan if format.channel_bits else self.saved(layer.name, format.weight_only)
            return layer_bytes(layer, format) - less

        return fill(layers, formats, coded, "bytes", constant=float(layers.rest_bytes))
