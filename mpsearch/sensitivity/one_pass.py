"""``one-pass``: the output error of every layer in every format from a handful of backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.probes import pooled
from mpsearch.sensitivity.projection import ChannelProjection, Projection, Projector, projections, rows
from mpsearch.subject import Subject
from mpsearch.types import Format, Layer, Pairs, Table, Unit


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

    def by_batch(self, subject: Subject, formats: Sequence[Format]) -> list[Table]:
        """A table for every calibration batch; their sum is the table of the whole.

        A batch that holds one timestep of a sampler, one class or one sample gives the damage there; the backward
        passes are those of the table itself.
        """
        return [self._tables(subject, formats, False, [batch])[0] for batch in range(len(subject.calibration))]

    def pairs(self, subject: Subject, formats: Sequence[Format]) -> Pairs:
        """Damage with all pair terms, from the very projections that the table squares.

        ``E_v[(Σ_i vᵀJΔ_i)²] = ‖Σ_i JΔ_i‖²`` holds for a whole map as for a single layer, so the projections of the
        layers are the vectors of a map. The diagonal is the table's; a pair term ``2⟨JΔ_i, JΔ_j⟩`` is unbiased too,
        with a standard error of about ``2 ‖JΔ_i‖ ‖JΔ_j‖ / sqrt(projections)``. Asked for first, it leaves the table of
        the same passes in the memo.
        """
        layers = subject.layers
        columns = layers.columns(formats)
        projector = Projection(subject, columns)
        what = ",".join([*(layer.name for layer in layers), *map(str, columns)])
        found = []
        for batch in range(len(subject.calibration)):
            subject.progress("one-pass", batch, len(subject.calibration))
            key = f"{describe('one-pass', self)} batch {batch} of {what}"
            flat = subject.recall(f"{key},pairs", None, partial(self._vectors, projector, batch, key))
            found.append(np.reshape(flat, (-1, len(layers), len(columns))))
        subject.progress("one-pass", len(subject.calibration), len(subject.calibration))
        return Pairs(layers.units, columns, np.ascontiguousarray(np.moveaxis(np.concatenate(found), 0, -1)))

    def _energy(self, subject: Subject, layer: Layer, formats: Sequence[Format]) -> np.ndarray:
        """``‖ΔW‖²`` of every channel, ``(channels, formats)``."""
        weight = subject.bank.weight(layer.name)
        errors = [subject.bank.dequantized(layer.name, format) - weight for format in formats]
        return torch.stack([rows(layer, error).double().square().sum(1) for error in errors], dim=1).cpu().numpy()

    def _tables(
        self, subject: Subject, formats: Sequence[Format], channels: bool, batches: Sequence[int] | None = None
    ) -> list[Table]:
        layers, source = subject.layers, describe("one-pass", self)
        columns = layers.columns(formats)
        projector = (ChannelProjection if channels else Projection)(subject, columns)
        parts = [Unit(layer.name, (c,)) for layer in layers for c in range(layer.channels)] if channels else []
        shape = (2, len(layers) + len(parts), len(columns))
        total = np.zeros(shape)
        what = ",".join([*(layer.name for layer in layers), *map(str, columns), *["channels"] * channels])
        for batch in range(len(subject.calibration)) if batches is None else batches:
            subject.progress("one-pass", batch, len(subject.calibration))
            key = f"{source} batch {batch} of {what}"
            total += np.reshape(subject.recall(key, total.size, partial(self._measure, projector, batch)), shape)
        subject.progress("one-pass", len(subject.calibration), len(subject.calibration))
        allowed = layers.allowed(formats, columns)
        values, stderr = (np.where(allowed, found[: len(layers)], np.nan) for found in (total[0], np.sqrt(total[1])))
        tables = [Table(layers.units, columns, values, stderr, "mse", source)]
        if channels:
            widths = [format.weight_only for format in columns]
            kinds = tuple(dict.fromkeys(format for format in widths if format.plain))
            own = [widths.index(kind) for kind in kinds]
            kept = total[:, len(layers) :, own]
            tables.append(Table(tuple(parts), kinds, kept[0], np.sqrt(kept[1]), "mse", source))
        return tables

    def _measure(self, projector: Projector, batch: int) -> list[float]:
        """One batch's share of the mean squared error and its variance, ``(2, layers, formats)`` flat."""
        parts, found = projections(projector, batch, self.probes, self.seed)
        return list(map(float, np.stack(pooled(parts, list(np.square(found)))).ravel()))

    def _vectors(self, projector: Projector, batch: int, key: str) -> list[float]:
        """``(probes, layers, formats)`` flat: a batch's part of the vectors; its part of the table goes to the memo."""
        parts, found = projections(projector, batch, self.probes, self.seed)
        stack = np.stack(found)
        shares = np.stack(pooled(parts, list(np.square(stack))))
        projector.subject.memo.setdefault(key, list(map(float, shares.ravel())))
        return list(map(float, (stack / np.sqrt(np.bincount(parts))[parts][:, None, None]).ravel()))
