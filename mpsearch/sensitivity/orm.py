"""``orm``: layers whose features are unlike those of all others deserve the most bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import CalibrationError
from mpsearch.registry import describe
from mpsearch.sensitivity.noise import input_noise, weight_noise
from mpsearch.sensitivity.replays import Changed, Replays, per_sample
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Format, Table
from mpsearch.types.format import FLOAT_BITS

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Orm:
    """Network orthogonality (Ma et al., "OMPQ: Orthogonal Mixed Precision Quantization", AAAI 2023, arXiv 2109.07865).

    ``ORM_ij = ‖X_jᵀX_i‖² / (‖X_iᵀX_i‖ ‖X_jᵀX_j‖)`` for the outputs ``X_i`` of layer ``i``, samples × features and
    centred (linear CKA): 1 for the same features up to rotation and scale, 0 for orthogonal ones. A layer's importance
    is ``θ_i = exp(−β γ_i)``, ``γ_i = Σ_{j≠i} ORM_ij``, and the paper maximises ``Σ_i θ̄_i b_i`` over bits ``b_i``, where
    ``θ̄_i`` is the mean of ``θ_j`` over this layer and all that run after it.

    The table holds what has to be minimised instead, ``θ̄_i (32 − b_i) / 32``: an affine map of the objective, so the
    optimum is the paper's, found here among integers. It is linear in bits, where true damage falls by 4 with each, so
    it is no prediction of an error: solutions go to the extremes of the list of formats, which the paper keeps short (2
    to 4 bits, or 4 to 8). Activation bits, fixed in the paper, are counted like weight bits, or else the fewest would
    be free. ``by="error"`` puts the relative rounding noise ``‖ΔW‖²/‖W‖² + ‖Δx‖²/‖x‖²`` in the place of missing bits.

    ORM compares the samples of a batch; several batches are pooled as in minibatch CKA (Nguyen et al. 2021), numerator
    and norms each summed. A few samples a batch bias it upwards. An output that is the same for all samples has ORM 0
    with all others; a layer that the generator never runs counts nowhere and has damage 0. Importances are relative to
    the largest ``θ``, so that they do not all vanish in deep networks. Standard errors are 0: nothing is drawn.

    Attributes:
        beta: β; the paper's scripts use 10 (ResNet-18) and 1e-9 (MobileNetV2: all layers alike, size decides).
        by: what importance is multiplied with.
    """

    beta: float = 1.0
    by: Literal["bits", "error"] = "bits"

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        importance = self.importance(subject)
        noise = input_noise(subject, formats) if self.by == "error" else {}
        values = np.full((len(layers), len(columns)), np.nan)
        for row, layer in enumerate(layers):
            for format in layers.choices(layer, formats):
                if self.by == "bits":
                    missing = 2 - ((format.weight_bits or FLOAT_BITS) + (format.act_bits or FLOAT_BITS)) / FLOAT_BITS
                else:
                    missing = weight_noise(subject, layer.name, format)
                    missing += noise[layer.name, format.act_only] if format.act_bits else 0.0
                values[row, columns.index(format)] = importance[row] * missing
        stderr = np.where(np.isnan(values), np.nan, 0.0)
        return Table(layers.units, columns, values, stderr, f"orthogonality × {self.by}", describe("orm", self))

    def importance(self, subject: Subject) -> Array:
        """``θ̄`` of every layer relative to the largest ``θ``, ``(layers,)``; 0 for those that never run."""
        similarity, order = orthogonality(subject)
        used = [row for row in order if _is_used(subject, row)]
        inner = similarity[np.ix_(used, used)]
        gamma = inner.sum(1) - np.diagonal(inner)
        theta = np.exp(-self.beta * (gamma - gamma.min(initial=np.inf)))
        found = np.zeros(len(subject.layers))
        found[used] = np.cumsum(theta[::-1])[::-1] / np.arange(len(used), 0, -1)
        return found


def orthogonality(subject: Subject) -> tuple[Array, list[int]]:
    """ORM of all pairs of layers, ``(layers, layers)``, and the rows in the order in which the layers run.

    Raises:
        CalibrationError: no batch has two samples.
    """
    layers = subject.layers
    if all(len(images) < 2 for images in subject.reference):
        raise CalibrationError("orm compares the samples of a batch, and every batch has one: put several in a batch")
    shape = (len(layers) + 1, len(layers))
    replays = Replays(subject)
    products, order = np.zeros((len(layers), len(layers))), list(range(len(layers)))
    what = ",".join(layer.name for layer in layers)
    for batch in range(len(subject.calibration)):
        subject.progress("orm", batch, len(subject.calibration))
        measure = partial(_products, replays, batch)
        share = np.reshape(subject.recall(f"orm batch {batch} of {what}", shape[0] * shape[1], measure), shape)
        products += share[1:]
        if batch == 0:
            order = np.argsort(share[0], kind="stable").tolist()
    subject.progress("orm", len(subject.calibration), len(subject.calibration))
    norms = np.sqrt(np.outer(np.diagonal(products), np.diagonal(products)))
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0), order


def _products(replays: Replays, batch: int) -> list[float]:
    """When each layer first ran, and ``⟨G_i, G_j⟩`` of their Gram matrices, ``(1 + layers, layers)`` flat."""
    names = [layer.name for layer in replays.subject.layers]
    samples = len(replays.subject.reference[batch])
    grams: dict[str, Tensor] = {}

    def visitor(name: str, output: Tensor, changed: Changed) -> None:
        own = gram(per_sample(output, samples).flatten(1)).cpu()
        grams[name] = grams[name] + own if name in grams else own  # outputs of several calls stand side by side

    replays.visit(batch, visitor)
    blank = torch.zeros(samples, samples, dtype=torch.float64)
    stack = torch.stack([grams.get(name, blank) for name in names]).flatten(1)
    rank = {name: place for place, name in enumerate(grams)}
    return [*(float(rank.get(name, len(names))) for name in names), *(stack @ stack.T).flatten().tolist()]


def gram(features: Tensor) -> Tensor:
    """Centred Gram matrix ``H X Xᵀ H`` of ``(samples, features)``, float64.

    Differences to the first sample come before products: features that do not vary at all then give exactly 0.
    """
    total = torch.zeros(len(features), len(features), dtype=torch.float64, device=features.device)
    for part in torch.split(features, 2**16, dim=1):  # in double, but not all at once
        shifted = part.double() - part[:1].double()
        total += shifted @ shifted.T
    return total - total.mean(0, keepdim=True) - total.mean(1, keepdim=True) + total.mean()


def _is_used(subject: Subject, row: int) -> bool:
    """Whether the output depends on a layer; only those that are never called as a module are in doubt."""
    layer = subject.layers[row]
    return layer.act_elements > 0 or subject.error(BitMap({layer.name: "w2"})).value > 0
