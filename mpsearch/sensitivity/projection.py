"""Gradients of weights and inputs against the rounding errors of every format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mpsearch.sensitivity.probes import Pullback, pull_back
from mpsearch.subject import Subject
from mpsearch.types import FLOAT, Format, Layer, activations_of

Array = NDArray[np.float64]
TOGETHER = 4  # gradients multiplied at a time
BLOCK = 256  # weights of one small matrix product


class Projector(Protocol):
    """Turns pullbacks into numbers; its ``columns`` are the formats."""

    subject: Subject
    columns: Sequence[Format]

    def add(self, pullback: Pullback) -> None: ...

    def take(self) -> list[Array]: ...


def projections(projector: Projector, batch: int, probes: int, seed: int) -> tuple[list[int], list[Array]]:
    """(part, what the projector makes of it) of every probe over one batch, see :func:`pull_back`."""
    parts: list[int] = []

    def visit(pullback: Pullback) -> None:
        parts.append(pullback.part)
        projector.add(pullback)

    pull_back(projector.subject, projector.columns, batch, probes, seed, visit)
    return parts, projector.take()


class Projection:
    """``scale^(power/2) (Σ_w (g_w ΔW_w)^power + Σ_e (g_e Δx_e)^power)`` of pullbacks ``g``, ``(layers, formats)`` each.

    Gradients are taken :data:`TOGETHER` at a time: the rounding errors of all formats, many times what a gradient
    holds, are then read from memory once for all of them, and that is what the work consists of.

    Args:
        subject: the generator; its weights are quantized at the first gradient.
        columns: the formats.
        power: 1 or 2.
    """

    def __init__(self, subject: Subject, columns: Sequence[Format], power: int = 1) -> None:
        self.subject, self.columns, self.power = subject, columns, power
        self._choices = _Choices(columns)
        self._scales: list[float] = []  # of every pullback since the last `take`
        self._inputs: list[Array] = []
        self._weights: list[Array] = []  # of those whose turn came

    def add(self, pullback: Pullback) -> None:
        """Take in the gradients of one probe; they may be freed afterwards."""
        slot = len(self._inputs) % TOGETHER
        for name, gradients in self._gradients.items():
            grad = pullback.weights[name]
            if grad is None:
                gradients[slot].zero_()
            else:
                own = gradients[slot, : grad.numel()].copy_(grad.flatten())
                _raise(own, self.power)
        self._scales.append(pullback.scale ** (self.power / 2))
        self._inputs.append(self._choices.of_inputs(pullback, list(self._errors), self.power))
        if slot == TOGETHER - 1:
            self._multiply(TOGETHER)

    def take(self) -> list[Array]:
        """``(layers, formats)`` of every pullback since the last time."""
        if rest := len(self._inputs) % TOGETHER:
            self._multiply(rest)
        each = zip(self._scales, self._weights, self._inputs, strict=True)
        found = [scale * self._choices.joined(weights, inputs) for scale, weights, inputs in each]
        self._scales, self._inputs, self._weights = [], [], []
        return found

    def _multiply(self, count: int) -> None:
        found = []
        for name, errors in self._errors.items():
            gradients = self._gradients[name][:count].view(count, -1, BLOCK)
            found.append(torch.bmm(errors, gradients.permute(1, 2, 0)).double().sum(0).T.cpu().numpy())
        self._weights.extend(np.stack(found, axis=1))

    @cached_property
    def _errors(self) -> dict[str, Tensor]:
        """Layer → ``ΔW^power`` in float32, ``(blocks of weights, formats of weights, BLOCK)``, the last block filled
        up with zeros."""
        found = {}
        for layer in self.subject.layers:
            weight = _blocks(self.subject.bank.weight(layer.name))
            found[layer.name] = weight.new_empty(len(weight), len(self._choices.kinds), BLOCK)
            for row, rounded in enumerate(self.subject.weights(layer, self._choices.kinds)):
                torch.sub(_blocks(rounded), weight, out=found[layer.name][:, row])
            _raise(found[layer.name], self.power)
        return found

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        """Layer → those whose turn is next, ``(TOGETHER, weights)``, with the zeros of the last block."""
        return {name: errors.new_zeros(TOGETHER, len(errors) * BLOCK) for name, errors in self._errors.items()}


class ChannelProjection:
    """:class:`Projection` of the layers, then ``scale^½ Σ_w g_w ΔW_w`` of all their channels, one below the other.

    Args:
        subject: the generator; its weights are quantized at the first gradient.
        columns: the formats.
    """

    def __init__(self, subject: Subject, columns: Sequence[Format]) -> None:
        self.subject, self.columns = subject, columns
        self._choices = _Choices(columns)
        self._found: list[Array] = []

    def add(self, pullback: Pullback) -> None:
        """Take in the gradients of one probe; they may be freed afterwards."""
        parts = []
        for layer in self.subject.layers:
            own = np.zeros((layer.channels, len(self._choices.kinds)))
            if (grad := pullback.weights[layer.name]) is not None:
                sums = torch.bmm(rows(layer, grad.float())[:, None], self._errors[layer.name])[:, 0]
                own = sums.double().cpu().numpy()
            parts.append(own)
        of_inputs = self._choices.of_inputs(pullback, list(self._errors), power=1)
        whole = self._choices.joined(np.stack([own.sum(0) for own in parts]), of_inputs)
        own_columns = [own[:, self._choices.kind] for own in parts]
        self._found.append(pullback.scale**0.5 * np.concatenate([whole, *own_columns]))

    def take(self) -> list[Array]:
        """``(layers + channels, formats)`` of every pullback since the last time."""
        found, self._found = self._found, []
        return found

    @cached_property
    def _errors(self) -> dict[str, Tensor]:
        """Layer → ``ΔW`` in float32, ``(channels, weights of one, formats of weights)``."""
        found = {}
        for layer in self.subject.layers:
            weight = self.subject.bank.weight(layer.name).detach().float()
            moved = [rounded.detach() - weight for rounded in self.subject.weights(layer, self._choices.kinds)]
            found[layer.name] = torch.stack([rows(layer, error) for error in moved], dim=-1)
        return found


def rows(layer: Layer, weight: Tensor) -> Tensor:
    """``(channels, weights of one)``."""
    return weight.movedim(layer.channel_axis, 0).flatten(1)


class _Choices:
    """Columns as pairs of a weight format and activations, each of which is projected once.

    Attributes:
        kinds: the formats of weights.
        kind: of every column, its place among them.
    """

    def __init__(self, columns: Sequence[Format]) -> None:
        acts = [FLOAT, *activations_of(columns)]
        self.kinds = list(dict.fromkeys(format.weight_only for format in columns))
        self.kind = [self.kinds.index(format.weight_only) for format in columns]
        self._act = [acts.index(format.act_only) for format in columns]
        self._acts = len(acts)

    def of_inputs(self, pullback: Pullback, names: Sequence[str], power: int) -> Array:
        """``Σ_e (g_e Δx_e)^power``, ``(layers, activations)``, float first; all calls of a layer together."""
        inputs = np.zeros((len(names), self._acts))
        for row, name in enumerate(names):
            for grad, read in pullback.inputs.get(name, ()):
                if grad is not None:
                    moved = _powered(read.errors, power) @ _powered(grad.flatten().float(), power)
                    inputs[row, 1:] += moved.cpu().numpy()
        return inputs

    def joined(self, weights: Array, inputs: Array) -> Array:
        """``(layers, formats of weights)`` and ``(layers, activations)`` → ``(layers, columns)``."""
        return weights[:, self.kind] + inputs[:, self._act]


def _blocks(weight: Tensor) -> Tensor:
    """``(blocks, BLOCK)`` in float32, the last one filled up with zeros."""
    flat = weight.detach().flatten().float()
    if missing := -len(flat) % BLOCK:  # a copy
        flat = functional.pad(flat, (0, missing))
    return flat.view(-1, BLOCK)


def _powered(values: Tensor, power: int) -> Tensor:
    return values if power == 1 else values.pow(power)  # torch copies even where there is nothing to raise


def _raise(values: Tensor, power: int) -> None:
    if power > 1:
        values.pow_(power)
