"""``pairwise``: layers quantized two at a time, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.perturbation import Perturbation
from mpsearch.subject import Subject, mean_and_stderr
from mpsearch.types import FLOAT, FLOAT_BITS, BitMap, Format, Interactions, Table, Unit

Array = NDArray[np.float64]
Cell = tuple[str, Format]


@dataclass(frozen=True)
class Pairwise:
    """``Ω(ia) + ½ Σ_j mean_b I(ia, jb)``: damage of each layer, and half of what it does together with others.

    ``I(ia, jb) = Ω(i as a, j as b) − Ω(i as a) − Ω(j as b)`` of true paired errors, from forward passes alone, as CLADO
    measures them (Deng et al., arXiv 2307.05657) and as the inter-layer terms of Schaefer et al. (arXiv 2306.04879) ask
    for. The sum of the table is then the mean error, to second order, of maps whose layers are all cheap. Only cheap
    formats of the layers that hurt most in them are paired; what is left out counts as additive. A value may be
    negative where errors cancel those of other layers.

    :meth:`interactions` has the terms themselves. ``one-pass`` estimates those of all pairs from the backward passes of
    its table, see :meth:`OnePass.pairs`, to first order.

    Attributes:
        layers: how many are paired with one another.
        formats: how many of its formats are cheap: those of fewest bits.
    """

    layers: int = 6
    formats: int = 2

    def __post_init__(self) -> None:
        if self.layers < 2 or self.formats < 1:
            raise UsageError(f"pairwise needs at least 2 layers and 1 format, not {self.layers} and {self.formats}")

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        columns = subject.layers.columns(formats)
        alone = Perturbation()(subject, formats)
        values, stderr = alone.values.copy(), alone.stderr.copy()
        singles, terms = self._terms(subject, formats, alone)
        names = [layer.name for layer in subject.layers]
        for (name, format), single in singles.items():
            others: dict[str, list[Array]] = {}
            for (first, second), samples in terms.items():
                for own, other in ((first, second), (second, first)):
                    if own == (name, format):
                        others.setdefault(other[0], []).append(samples)
            augmented = single + sum((np.mean(found, axis=0) for found in others.values()), np.zeros(len(single))) / 2
            cell = names.index(name), columns.index(format)
            values[cell], stderr[cell] = mean_and_stderr(list(augmented))
        return Table(subject.layers.units, columns, values, stderr, "mse", describe("pairwise", self))

    def interactions(self, subject: Subject, formats: Sequence[Format]) -> Interactions:
        """The measured terms, of the layers that are paired."""
        singles, terms = self._terms(subject, formats, Perturbation()(subject, formats))
        names = list(dict.fromkeys(name for name, _ in singles))
        columns = tuple(f for f in subject.layers.columns(formats) if any(f == format for _, format in singles))
        shape = 2 * (len(names), len(columns))
        values, stderr = np.full(shape, np.nan), np.full(shape, np.nan)
        for i in range(len(names)):
            values[i, :, i], stderr[i, :, i] = 0.0, 0.0
        for ((one, a), (two, b)), samples in terms.items():
            left, right = (names.index(one), columns.index(a)), (names.index(two), columns.index(b))
            for where in ((*left, *right), (*right, *left)):
                values[where], stderr[where] = mean_and_stderr(list(samples))
        return Interactions(tuple(map(Unit, names)), columns, values, stderr, "mse", describe("pairwise", self))

    def _terms(
        self, subject: Subject, formats: Sequence[Format], alone: Table
    ) -> tuple[dict[Cell, Array], dict[tuple[Cell, Cell], Array]]:
        """(damage of every cheap cell, what every two of them do beyond their sum), every sample of the inputs."""

        def samples(cells: Mapping[str, Format]) -> Array:
            return np.array(subject.error(BitMap(cells)).samples)

        cells = self._cheap(subject, formats, alone)
        singles = {cell: samples(dict([cell])) for cell in cells}
        pairs = [(one, two) for one, two in combinations(cells, 2) if one[0] != two[0]]
        terms = {}
        for done, (one, two) in enumerate(pairs, 1):
            terms[one, two] = samples(dict([one, two])) - singles[one] - singles[two]
            subject.progress("pairwise", done, len(pairs))
        return singles, terms

    def _cheap(self, subject: Subject, formats: Sequence[Format], alone: Table) -> list[Cell]:
        """(layer, format) of everything that is paired, in the order of the layers."""
        cheap = {}
        for layer in subject.layers:
            choices = [format for format in subject.layers.choices(layer, formats) if format != FLOAT]
            cheap[layer.name] = sorted(choices, key=_bits)[: self.formats]
        worst = {name: max((alone.value(name, f) for f in found), default=0.0) for name, found in cheap.items()}
        paired = set(sorted(worst, key=lambda name: -worst[name])[: self.layers])
        return [(name, format) for name, found in cheap.items() if name in paired for format in found]


def _bits(format: Format) -> tuple[float, int]:
    return format.weight_bits or FLOAT_BITS, format.act_bits or FLOAT_BITS
