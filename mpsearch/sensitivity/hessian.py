"""``hessian``: Hutchinson's trace of the paired loss for each layer, scored as in HAWQ-V2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.probes import Pullback, pooled, pull_back
from mpsearch.subject import Subject
from mpsearch.types import Format, Table, activations_of


@dataclass(frozen=True)
class Hessian:
    """``½ · tr(H) / n · ‖ΔW‖²`` (Dong et al., "HAWQ-V2", NeurIPS 2020, arXiv 1911.03852), in units of output MSE.

    ``H`` is the Hessian of the mean squared change of the output. At the float weights the residual is zero, so ``H =
    2JᵀJ / n`` exactly, and Hutchinson's estimator runs in the output space, ``tr(JᵀJ) = E_v[‖vᵀJ‖²]``: no second
    derivatives, never negative, and all layers share a probe. Activations are scored alike, with the trace over the
    layer's input.

    Attributes:
        probes: Rademacher vectors a batch, the same for every layer.
        seed: of the probes.
    """

    probes: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 2:
            raise UsageError(f"hessian needs at least 2 probes for a standard error, not {self.probes}")

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers, bank = subject.layers, subject.bank
        columns = layers.columns(formats)
        weights, inputs = self.curvature(subject, columns)
        values = np.full((len(layers), len(columns)), np.nan)
        stderr = np.full_like(values, np.nan)
        for row, layer in enumerate(layers):
            weight = bank.weight(layer.name)
            for format in layers.choices(layer, formats):
                delta = (bank.dequantized(layer.name, format) - weight).double().square().sum().item()
                scale = delta / 2 / layer.numel
                column = columns.index(format)
                values[row, column], variance = weights[0, row] * scale, weights[1, row] * scale**2
                if format.act_bits:
                    values[row, column] += inputs[format.act_only][0, row]
                    variance += inputs[format.act_only][1, row]
                stderr[row, column] = variance**0.5
        return Table(layers.units, columns, values, stderr, "mse", describe("hessian", self))

    def traces(self, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
        """``tr(H)`` of every layer's weights and its standard error, ``(layers,)`` each."""
        weights, _ = self.curvature(subject, ())
        return weights[0], np.sqrt(weights[1])

    def curvature(self, subject: Subject, columns: Sequence[Format]) -> tuple[np.ndarray, dict[Format, np.ndarray]]:
        """(estimate, its variance) a layer, ``(2, layers)``: traces of the weights, terms of the inputs."""
        acts = activations_of(columns)
        shape = (2, 1 + len(acts), len(subject.layers))
        total = np.zeros(shape)
        what = ",".join([*(layer.name for layer in subject.layers), *map(str, acts)])
        for batch in range(len(subject.calibration)):
            subject.progress("hessian", batch, len(subject.calibration))
            key = f"{describe('hessian', self)} batch {batch} of {what}"
            total += np.reshape(subject.recall(key, total.size, partial(self._measure, subject, columns, batch)), shape)
        subject.progress("hessian", len(subject.calibration), len(subject.calibration))
        return total[:, 0], {act: total[:, 1 + at] for at, act in enumerate(acts)}

    def _measure(self, subject: Subject, columns: Sequence[Format], batch: int) -> list[float]:
        """One batch's share of :meth:`curvature`, ``(2, 1 + activations, layers)`` flat."""
        rows = {layer.name: row for row, layer in enumerate(subject.layers)}
        parts: list[int] = []
        shares: list[np.ndarray] = []

        def visit(pullback: Pullback) -> None:
            share = np.zeros((1 + len(activations_of(columns)), len(rows)))
            for name, grad in pullback.weights.items():
                if grad is not None:
                    share[0, rows[name]] = 2 * pullback.scale * grad.double().square().sum().item()
            for name, found in pullback.inputs.items():
                for grad, read in found:
                    mean = 0.0 if grad is None else grad.double().square().mean().item()
                    sizes = read.errors.double().square().sum(1).cpu().numpy()
                    share[1:, rows[name]] += pullback.scale * mean * sizes
            parts.append(pullback.part)
            shares.append(share)

        pull_back(subject, columns, batch, self.probes, self.seed, visit)
        return list(map(float, np.stack(pooled(parts, shares)).ravel()))
