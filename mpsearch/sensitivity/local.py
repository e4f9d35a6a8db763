"""``local``: how far quantizing a layer moves that layer's own output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.registry import describe
from mpsearch.sensitivity.replays import replayed_table
from mpsearch.subject import Subject
from mpsearch.types import Format, Table


@dataclass(frozen=True)
class Local:
    """``mean (ΔW x)²``: the mean squared change of a layer's output on the float activations ``x`` that it reads.

    A format with activation bits rounds ``x`` too: ``(W + ΔW)(x + Δx) − W x``. Each module runs again on the input of
    its own call, so whatever it does with the weight (stride, modulation, attention) counts; what comes after it does
    not, and layers are compared as if all outputs mattered alike. Layer-wise error attribution (Houache, Traonmilin,
    Aujol 2026) ranks layers by it, and layer-wise reconstruction minimises it (Nagel et al., "Up or Down?", ICML 2020).

    In squared units of each layer's output, mean over its elements and calls; the standard error is that over samples.
    No gradients; costs one forward pass, and another of each layer for itself and for every format.
    """

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        return replayed_table(subject, formats, describe("local", self), "local mse", _scored)


def _scored(output: Tensor) -> Callable[[Tensor], Tensor]:
    def score(change: Tensor) -> Tensor:
        return change.square().mean((1, 2), dtype=torch.float64)

    return score
