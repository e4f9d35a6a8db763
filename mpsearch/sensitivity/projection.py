"""Gradients of weights and inputs against the rounding errors of every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.sensitivity.probes import Pullback, widths_of
from mpsearch.subject import Subject
from mpsearch.types import Format

Array = NDArray[np.float64]


def rounding_errors(subject: Subject, columns: Sequence[Format], power: int = 1) -> dict[str, Tensor]:
    """Layer → ``ΔW^power`` in float32, ``(weight formats, weights)``."""
    found = {}
    for layer in subject.layers:
        weight = subject.bank.weight(layer.name).float()
        deltas = [subject.bank.dequantized(layer.name, kind).float() - weight for kind in _kinds(columns)]
        found[layer.name] = torch.stack(deltas).flatten(1) ** power
    return found


def projected(pullback: Pullback, errors: Mapping[str, Tensor], columns: Sequence[Format], power: int = 1) -> Array:
    """``Σ_w (g_w ΔW_w)^power + Σ_e (g_e Δx_e)^power``, ``(layers, formats)``, all calls of a layer together.

    Args:
        pullback: the gradients ``g``.
        errors: :func:`rounding_errors` with the same ``columns`` and ``power``.
        columns: the formats.
        power: 1 or 2.
    """
    kinds, widths = _kinds(columns), widths_of(columns)
    weights = np.zeros((len(errors), len(kinds)))
    inputs = np.zeros((len(errors), 1 + len(widths)))  # the first column stays 0: float activations
    for row, (name, error) in enumerate(errors.items()):
        if (grad := pullback.weights[name]) is not None:
            weights[row] = (error @ grad.flatten().float() ** power).double().cpu().numpy()
        for grad, read in pullback.inputs.get(name, ()):
            if grad is not None:
                inputs[row, 1:] += (read.errors.float() ** power @ grad.flatten().float() ** power).cpu().numpy()
    kind = [kinds.index(format.weight_only) for format in columns]
    width = [0 if format.act_bits is None else 1 + widths.index(format.act_bits) for format in columns]
    return weights[:, kind] + inputs[:, width]


def _kinds(columns: Sequence[Format]) -> list[Format]:
    return list(dict.fromkeys(format.weight_only for format in columns))
