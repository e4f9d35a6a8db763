"""``one-pass``: the output error of every layer in every format from a handful of backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.probes import Pullback, pooled, pull_back, widths_of
from mpsearch.subject import Subject
from mpsearch.types import Format, Layer, Table, Unit


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
        return self._tables(subject, formats, False)[0]

    def by_channel(self, subject: Subject, formats: Sequence[Format]) -> tuple[Table, Table]:
        """(the table of layers, that of their output channels) from the same backward passes.

        A row of the second is one channel; it holds integer weight formats only, for the input is the layer's. A
        single channel is seen by few probes, so that its cells are noisy; what its formats share is its curvature. Each
        cell is therefore the geometric mean of its own estimate and of ``‖ΔW‖²`` times the channel's mean curvature.
        """
        layers, channels = self._tables(subject, formats, True)
        energy = np.concatenate([self._energy(subject, layer, channels.formats) for layer in subject.layers])
        curvature = np.where(energy > 0, channels.values / np.where(energy > 0, energy, 1), 0).mean(1, keepdims=True)
        steady = np.sqrt(channels.values * curvature * energy)
        return layers, replace(channels, values=steady)

    def _energy(self, subject: Subject, layer: Layer, formats: Sequence[Format]) -> np.ndarray:
        """``‖ΔW‖²`` of every channel, ``(channels, formats)``."""
        weight = subject.bank.weight(layer.name)
        errors = [subject.bank.dequantized(layer.name, format) - weight for format in formats]
        rows = [_rows(layer, error).double().square().sum(1) for error in errors]
        return torch.stack(rows, dim=1).cpu().numpy()

    def _tables(self, subject: Subject, formats: Sequence[Format], channels: bool) -> list[Table]:
        layers, source = subject.layers, describe("one-pass", self)
        columns = layers.columns(formats)
        projector = _Projector(subject, columns, self.probes, self.seed, channels)
        parts = [Unit(layer.name, (c,)) for layer in layers for c in range(layer.channels)] if channels else []
        shape = (2, len(layers) + len(parts), len(columns))
        total = np.zeros(shape)
        what = ",".join([*(layer.name for layer in layers), *map(str, columns), *["channels"] * channels])
        for batch in range(len(subject.calibration)):
            subject.progress("one-pass", batch, len(subject.calibration))
            key = f"{source} batch {batch} of {what}"
            total += np.reshape(subject.recall(key, total.size, partial(projector.measure, batch)), shape)
        subject.progress("one-pass", len(subject.calibration), len(subject.calibration))
        allowed = [[f in layers.choices(layer, formats) for f in columns] for layer in layers]
        values, stderr = (np.where(allowed, found[: len(layers)], np.nan) for found in (total[0], np.sqrt(total[1])))
        tables = [Table(layers.units, columns, values, stderr, "mse", source)]
        if channels:
            widths = [format.weight_only for format in columns]
            kinds = tuple(dict.fromkeys(format for format in widths if format.bits))
            own = [widths.index(kind) for kind in kinds]
            kept = total[:, len(layers) :, own]
            tables.append(Table(tuple(parts), kinds, kept[0], np.sqrt(kept[1]), "mse", source))
        return tables


class _Projector:
    """Turns pullbacks into ``vᵀ(J_W ΔW + J_x Δx)`` of every layer and format."""

    def __init__(
        self, subject: Subject, columns: Sequence[Format], probes: int, seed: int, channels: bool = False
    ) -> None:
        self.subject, self.columns, self.probes, self.seed, self.channels = subject, columns, probes, seed, channels
        self.widths = widths_of(columns)
        self.kinds = list(dict.fromkeys(format.weight_only for format in columns))

    @cached_property
    def deltas(self) -> dict[str, Tensor]:
        """Layer → rounding errors, ``(weight formats, weights)``, or ``(channels, weights of one, weight formats)``."""
        bank = self.subject.bank
        found = {}
        for layer in self.subject.layers:
            errors = [bank.dequantized(layer.name, kind) - bank.weight(layer.name) for kind in self.kinds]
            if self.channels:
                found[layer.name] = torch.stack([_rows(layer, error) for error in errors], dim=-1)
            else:
                found[layer.name] = torch.stack([error.flatten() for error in errors])
        return found

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
        """``vᵀ(J_W ΔW + J_x Δx)``, ``(layers, formats)``, a layer's calls together; then ``vᵀ J_W ΔW`` a channel."""
        weights = np.zeros((len(self.deltas), len(self.kinds)))
        inputs = np.zeros((len(self.deltas), 1 + len(self.widths)))  # the first column stays 0: float activations
        channels = []
        for row, (layer, (name, delta)) in enumerate(zip(self.subject.layers, self.deltas.items(), strict=True)):
            grad = pullback.weights[name]
            if self.channels:
                own = np.zeros((layer.channels, len(self.kinds)))
                if grad is not None:
                    own = torch.bmm(_rows(layer, grad)[:, None], delta)[:, 0].double().cpu().numpy()
                channels.append(own)
                weights[row] = own.sum(0)
            elif grad is not None:
                weights[row] = (delta @ grad.flatten()).double().cpu().numpy()
            for grad, read in pullback.inputs.get(name, ()):
                if grad is not None:
                    inputs[row, 1:] += (read.errors @ grad.flatten()).double().cpu().numpy()
        kinds = [self.kinds.index(format.weight_only) for format in self.columns]
        widths = [0 if format.act_bits is None else 1 + self.widths.index(format.act_bits) for format in self.columns]
        return np.concatenate([weights[:, kinds] + inputs[:, widths], *(own[:, kinds] for own in channels)])


def _rows(layer: Layer, weight: Tensor) -> Tensor:
    """``(channels, weights of one)``."""
    return weight.movedim(layer.channel_axis, 0).flatten(1)
