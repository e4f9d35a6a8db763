"""``perturbation``: quantize one layer for real and measure the paired output error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.registry import describe
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Format, Table


@dataclass(frozen=True)
class Perturbation:
    """The true paired error of each layer × format alone: the oracle that cheaper estimators are judged by."""

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        columns = subject.layers.columns(formats)
        values = np.full((len(subject.layers), len(columns)), np.nan)
        stderr = np.full_like(values, np.nan)
        cells = [
            (row, columns.index(format), BitMap({layer.name: format}))
            for row, layer in enumerate(subject.layers)
            for format in subject.layers.choices(layer, formats)
        ]
        for done, (row, column, bitmap) in enumerate(cells, 1):
            measured = subject.error(bitmap)
            values[row, column], stderr[row, column] = measured.value, measured.stderr
            subject.progress("perturbation", done, len(cells))
        return Table(subject.layers.units, columns, values, stderr, "mse", describe("perturbation", self))
