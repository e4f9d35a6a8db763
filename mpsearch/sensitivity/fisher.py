"""``fisher``: squared rounding errors, weighted by the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.probes import pooled
from mpsearch.sensitivity.projection import Projection, projections
from mpsearch.subject import Subject
from mpsearch.types import Format, Table


@dataclass(frozen=True)
class Fisher:
    """``Σ_w F_w ΔW_w²``, in units of output MSE, with ``F`` the diagonal of the Fisher information of the outputs.

    For outputs that are normal around the generator's, of variance 1 a pixel, the Fisher information of the weights is
    ``JᵀJ``. Its diagonal is ``E_v[(vᵀJ)_w²]`` over Rademacher vectors ``v`` of the output: true Fisher, which no label
    enters. It weighs the squared rounding errors as in Optimal Brain Damage (LeCun et al. 1990) and in BRECQ (Li et
    al., ICLR 2021).

    ``one-pass`` squares the sum, ``E_v[(Σ_w (vᵀJ)_w ΔW_w)²] = ΔWᵀJᵀJΔW``; here the squares are summed. That drops the
    off-diagonal terms: exact on average if rounding errors are independent with mean zero, and blind to errors that add
    up or cancel in what the layer feeds on, as those of weights on correlated inputs do. ``hessian`` drops more and
    spreads the trace evenly over the weights. Activations are scored alike, and added.

    Attributes:
        probes: random vectors a batch, shared by its samples and by all layers.
        seed: of the vectors.
    """

    probes: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 2:
            raise UsageError(f"fisher needs at least 2 probes for a standard error, not {self.probes}")

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        projection = Projection(subject, columns, power=2)
        total = np.zeros((2, len(layers), len(columns)))
        what = ",".join([*(layer.name for layer in layers), *map(str, columns)])
        for batch in range(len(subject.calibration)):
            subject.progress("fisher", batch, len(subject.calibration))
            key = f"{describe('fisher', self)} batch {batch} of {what}"
            measure = partial(self._measure, projection, batch)
            total += np.reshape(subject.recall(key, total.size, measure), total.shape)
        subject.progress("fisher", len(subject.calibration), len(subject.calibration))
        allowed = layers.allowed(formats, columns)
        values, stderr = (np.where(allowed, found, np.nan) for found in (total[0], np.sqrt(total[1])))
        return Table(layers.units, columns, values, stderr, "mse", describe("fisher", self))

    def _measure(self, projection: Projection, batch: int) -> list[float]:
        """One batch's share of the scores and of their variance, ``(2, layers, formats)`` flat."""
        return list(map(float, np.stack(pooled(*projections(projection, batch, self.probes, self.seed))).ravel()))
