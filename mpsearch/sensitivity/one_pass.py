"""``one-pass``: the output error of every layer in every format from a handful of backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.probes import Pullback, pooled, pull_back, widths_of
from mpsearch.subject import Subject
from mpsearch.types import Format, Table


@dataclass(frozen=True)
class OnePass:
    """First-order output error, ``E_v[(vᵀ(J_W ΔW + J_x Δx))²]``, for all layers × formats at once.

    Quantizing a layer changes the output by about ``JΔ``. For a Rademacher vector ``v`` over the output, one backward
    pass gives ``vᵀJ`` of every weight and every layer input, and ``(vᵀJΔ)²`` is an unbiased estimate of ``‖JΔ‖²``,
    whatever the number of formats. With the paired loss the gradient at the float weights is zero and the Hessian is
    ``2JᵀJ/n``, so this is its exact quadratic form along the real rounding error, where HAWQ's trace averages over
    directions.

    Attributes:
        probes: random projections a batch, each a backward pass of a part of it; the relative standard error of a
            batch is about ``sqrt(2 / probes)``.
        seed: of the probes.
    """

    probes: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 2:
            raise UsageError(f"one-pass needs at least 2 probes for a standard error, not {self.probes}")

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        projector = _Projector(subject, columns, self.probes, self.seed)
        shape = (2, len(layers), len(columns))
        total = np.zeros(shape)
        what = ",".join([*(layer.name for layer in layers), *map(str, columns)])
        for batch in range(len(subject.calibration)):
            subject.progress("one-pass", batch, len(subject.calibration))
            key = f"{describe('one-pass', self)} batch {batch} of {what}"
            total += np.reshape(subject.recall(key, total.size, partial(projector.measure, batch)), shape)
        subject.progress("one-pass", len(subject.calibration), len(subject.calibration))
        allowed = [[f in layers.choices(layer, formats) for f in columns] for layer in layers]
        values, stderr = (np.where(allowed, found, np.nan) for found in (total[0], np.sqrt(total[1])))
        return Table(layers.units, columns, values, stderr, "mse", describe("one-pass", self))


class _Projector:
    """Turns pullbacks into ``vᵀ(J_W ΔW + J_x Δx)`` of every layer and format."""

    def __init__(self, subject: Subject, columns: Sequence[Format], probes: int, seed: int) -> None:
        self.subject, self.columns, self.probes, self.seed = subject, columns, probes, seed
        self.widths = widths_of(columns)
        self.kinds = list(dict.fromkeys(format.weight_only for format in columns))

    @cached_property
    def deltas(self) -> dict[str, Tensor]:
        """Layer → ``(weight formats, weights)`` rounding errors."""
        bank = self.subject.bank
        return {
            layer.name: torch.stack(
                [(bank.dequantized(layer.name, kind) - bank.weight(layer.name)).flatten() for kind in self.kinds]
            )
            for layer in self.subject.layers
        }

    def measure(self, batch: int) -> list[float]:
        """One batch's share of the mean squared error and its variance, ``(2, layers, formats)`` flat."""
        parts: list[int] = []
        squares: list[np.ndarray] = []

        def visit(pullback: Pullback) -> None:
            parts.append(pullback.part)
            squares.append(pullback.scale * self._project(pullback) ** 2)

        pull_back(self.subject, self.columns, batch, self.probes, self.seed, visit)
        return list(map(float, np.stack(pooled(parts, squares)).ravel()))

    def _project(self, pullback: Pullback) -> np.ndarray:
        """``vᵀ(J_W ΔW + J_x Δx)``, ``(layers, formats)``; all calls of a layer together."""
        weights = np.zeros((len(self.deltas), len(self.kinds)))
        inputs = np.zeros((len(self.deltas), 1 + len(self.widths)))  # the first column stays 0: float activations
        for row, (name, delta) in enumerate(self.deltas.items()):
            if (grad := pullback.weights[name]) is not None:
                weights[row] = (delta @ grad.flatten()).double().cpu().numpy()
            for grad, read in pullback.inputs.get(name, ()):
                if grad is not None:
                    inputs[row, 1:] += (read.errors @ grad.flatten()).double().cpu().numpy()
        kinds = [self.kinds.index(format.weight_only) for format in self.columns]
        widths = [0 if format.act_bits is None else 1 + self.widths.index(format.act_bits) for format in self.columns]
        return weights[:, kinds] + inputs[:, widths]
