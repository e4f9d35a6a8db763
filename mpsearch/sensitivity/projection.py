"""Gradients of weights and inputs against the rounding errors of every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.sensitivity.probes import Pullback, widths_of
from mpsearch.subject import Subject
from mpsearch.types import Format, Layer, Layers

Array = NDArray[np.float64]


def rounding_errors(subject: Subject, columns: Sequence[Format], power: int = 1) -> dict[str, Tensor]:
    """Layer → ``ΔW^power`` in float32, ``(weight formats, weights)``."""
    found = {}
    kinds = _kinds(columns)
    for layer in subject.layers:
        weight = subject.bank.weight(layer.name).detach().float()
        errors = weight.new_empty(len(kinds), *weight.shape)
        for error, kind in zip(errors, kinds, strict=True):
            torch.sub(subject.bank.dequantized(layer.name, kind), weight, out=error)
        found[layer.name] = _powered(errors.flatten(1), power)
    return found


def projected(pullback: Pullback, errors: Mapping[str, Tensor], columns: Sequence[Format], power: int = 1) -> Array:
    """``Σ_w (g_w ΔW_w)^power + Σ_e (g_e Δx_e)^power``, ``(layers, formats)``, all calls of a layer together.

    Args:
        pullback: the gradients ``g``.
        errors: :func:`rounding_errors` with the same ``columns`` and ``power``.
        columns: the formats.
        power: 1 or 2.
    """
    weights = np.zeros((len(errors), len(_kinds(columns))))
    for row, (name, error) in enumerate(errors.items()):
        if (grad := pullback.weights[name]) is not None:
            weights[row] = (error @ _powered(grad.flatten().float(), power)).double().cpu().numpy()
    return _with_inputs(weights, pullback, list(errors), columns, power)


def channel_errors(subject: Subject, columns: Sequence[Format]) -> dict[str, Tensor]:
    """Layer → ``ΔW`` in float32, ``(channels, weights of one, weight formats)``."""
    found = {}
    for layer, error in zip(subject.layers, rounding_errors(subject, columns).values(), strict=True):
        found[layer.name] = torch.stack([rows(layer, delta.reshape(layer.shape)) for delta in error], dim=-1)
    return found


def projected_channels(
    pullback: Pullback, layers: Layers, errors: Mapping[str, Tensor], columns: Sequence[Format]
) -> Array:
    """:func:`projected` of the layers, then ``Σ_w g_w ΔW_w`` of all their channels, ``(layers + channels, formats)``.

    Args:
        pullback: the gradients ``g``.
        layers: those of the generator.
        errors: :func:`channel_errors` with the same ``columns``.
        columns: the formats.
    """
    kinds = _kinds(columns)
    parts = []
    for layer in layers:
        own = np.zeros((layer.channels, len(kinds)))
        if (grad := pullback.weights[layer.name]) is not None:
            own = torch.bmm(rows(layer, grad.float())[:, None], errors[layer.name])[:, 0].double().cpu().numpy()
        parts.append(own)
    whole = np.stack([own.sum(0) for own in parts])
    kind = [kinds.index(format.weight_only) for format in columns]
    return np.concatenate([_with_inputs(whole, pullback, list(errors), columns), *(own[:, kind] for own in parts)])


def rows(layer: Layer, weight: Tensor) -> Tensor:
    """``(channels, weights of one)``."""
    return weight.movedim(layer.channel_axis, 0).flatten(1)


def _with_inputs(
    weights: Array, pullback: Pullback, names: Sequence[str], columns: Sequence[Format], power: int = 1
) -> Array:
    """Projections a weight format made those of ``columns``, with what the layers' inputs add to them."""
    kinds, widths = _kinds(columns), widths_of(columns)
    inputs = np.zeros((len(names), 1 + len(widths)))  # the first column stays 0: float activations
    for row, name in enumerate(names):
        for grad, read in pullback.inputs.get(name, ()):
            if grad is not None:
                inputs[row, 1:] += (
                    (_powered(read.errors, power) @ _powered(grad.flatten().float(), power)).cpu().numpy()
                )
    kind = [kinds.index(format.weight_only) for format in columns]
    width = [0 if format.act_bits is None else 1 + widths.index(format.act_bits) for format in columns]
    return weights[:, kind] + inputs[:, width]


def _powered(values: Tensor, power: int) -> Tensor:
    return values if power == 1 else values.square()  # torch's pow copies even where there is nothing to raise


def _kinds(columns: Sequence[Format]) -> list[Format]:
    return list(dict.fromkeys(format.weight_only for format in columns))
