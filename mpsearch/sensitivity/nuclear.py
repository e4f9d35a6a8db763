"""``nuclear``: error of a layer's output, weighted by how diverse that output is."""

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
class Nuclear:
    """``‖Y‖_* · ‖ΔY‖²``: nuclear norm of a layer's output times the squared change when the layer is quantized.

    The sum of singular values stands for the diversity of a feature: what is nearly of rank one survives coarse
    formats. Liu et al., "Post-Training Quantization for Vision Transformer", NeurIPS 2021 (arXiv 2106.14156), sum it
    over attention maps and outputs of the MLPs and give whole blocks a width; here each layer stands for itself, with
    the output of its module (maps inside of an attention module are not visible from outside).

    ``Y`` is a matrix a sample: channels × positions, tokens × channels, or one row for a vector. Values are means over
    samples and calls of the product, in cubed units of the layer's output, summed over its elements: larger features
    weigh more. The standard error is that over samples. No gradients; costs what ``local`` does, and the singular
    values once a layer.
    """

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        return replayed_table(subject, formats, describe("nuclear", self), "nuclear", _scored)


def _scored(output: Tensor) -> Callable[[Tensor], Tensor]:
    norms = nuclear_norm(output)

    def score(change: Tensor) -> Tensor:
        return norms * change.square().sum((1, 2), dtype=torch.float64)

    return score


def nuclear_norm(matrices: Tensor) -> Tensor:
    """Sums of singular values of ``(samples, rows, columns)``, float64.

    From the eigenvalues of the smaller Gram matrix, one sample at a time: features are wide, and to decompose them is
    far slower. In float64 each singular value is still exact to 1e-8 of the largest.
    """
    return torch.stack([_norm(matrix.double()) for matrix in matrices])


def _norm(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp_min(0).sqrt().sum()
