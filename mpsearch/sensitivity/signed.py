"""``signed``: first-order change of a loss, with its sign."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.registry import describe
from mpsearch.sensitivity.probes import Inputs, Pullback, Weights, gradients
from mpsearch.sensitivity.projection import Projection
from mpsearch.subject import Subject
from mpsearch.types import Format, Table

PARTS = 8  # of a batch: one backward pass each, and the spread between them is the standard error


@dataclass(frozen=True)
class Signed:
    """``g_W · ΔW + g_x · Δx``: first term of the Taylor series of a loss (Cheng & Chen, arXiv 2207.10083).

    Gradients of a task loss do not vanish on finite data, so rounding errors have a direction: values may be negative,
    and a map whose sum is negative is predicted to *lower* the loss. A solver minimises whatever it is given; with this
    table it looks for the largest predicted fall, which is a statement about these inputs and small errors only. Square
    terms are absent: coarse formats look harmless wherever errors happen to point downhill. Judge what comes out by its
    true error, and on other inputs.

    The loss must not be the paired one, ``‖y − y_float‖²``: at the float weights its residual is zero, hence its
    gradient, hence every value here. Its first term is of second order, which ``one-pass`` estimates.

    In units of the loss, mean over samples. The standard error is that between parts of batches (single samples, in
    batches of up to 8 that can be cut), 0 for a single part. Costs a forward and a backward pass.

    Attributes:
        loss: images ``(N, …)`` → a number, or one a sample, of which the mean is taken; differentiable. By default
            ``(rᵀy)² / n`` for one fixed random normal vector ``r`` over the ``n`` elements of an image: it needs no
            labels, and the gradient ``2 (rᵀy) r / n`` is not zero, not even for outputs that are normalised, whose own
            energy is constant. It says in which direction a layer pushes the images, not whether they become worse.
        seed: of ``r``.
    """

    loss: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    seed: int = 0

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        projection = Projection(subject, columns)
        size = len(layers) * len(columns)
        total = np.zeros(2 + 3 * size)
        what = ",".join([*(layer.name for layer in layers), *map(str, columns)])
        for batch in range(len(subject.calibration)):
            subject.progress("signed", batch, len(subject.calibration))
            key = f"{describe('signed', self)} {self._digest(subject, batch)} batch {batch} of {what}"
            total += subject.recall(key, total.size, partial(self._measure, subject, projection, batch))
        subject.progress("signed", len(subject.calibration), len(subject.calibration))
        parts, weight = total[:2]
        mean, cross, square = total[2:].reshape(3, len(layers), len(columns))
        variance = np.maximum(square - 2 * mean * cross + mean**2 * weight, 0) * parts / max(parts - 1, 1)
        allowed = layers.allowed(formats, columns)
        values, stderr = (np.where(allowed, found, np.nan) for found in (mean, np.sqrt(variance) * (parts > 1)))
        return Table(layers.units, columns, values, stderr, "loss", describe("signed", self))

    def value(self, images: Tensor) -> Tensor:
        """The loss of a batch of images, a scalar.

        Raises:
            UsageError: it is not a number, or has no gradient.
        """
        if self.loss is None:
            count = images[0].numel()
            vector = torch.randn(count, generator=torch.Generator().manual_seed(self.seed)).to(images.device).double()
            return (images.reshape(-1, count).double() @ vector).square().mean() / count
        found = self.loss(images)
        if not isinstance(found, Tensor) or found.numel() not in (1, len(images)) or not found.requires_grad:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"signed: the loss of {len(images)} images is {shape}: expected a tensor with one number, "
                "or one a sample, that has a gradient"
            )
        return found.mean()

    def _digest(self, subject: Subject, batch: int) -> str:
        """Short hash of the loss's gradient at the images: all that the first-order term knows of the loss."""
        with torch.inference_mode(False), torch.enable_grad():
            images = subject.reference[batch].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(images), images, allow_unused=True)
        if gradient is None:
            raise UsageError("signed: the loss does not depend on the images")
        return hashlib.sha256(gradient.float().cpu().numpy().tobytes()).hexdigest()[:16]

    def _measure(self, subject: Subject, projection: Projection, batch: int) -> list[float]:
        """(parts, Σw², Σw·s, Σw²·s, Σw²·s²) over parts with scores ``s`` and shares ``w`` of all samples, flat."""
        parts = subject.parts(batch, PARTS)

        def visit(weights: Weights, inputs: Inputs) -> None:
            projection.add(Pullback(0, weights, inputs, 1.0))

        for args, _ in parts:
            gradients(subject, projection.columns, batch, args, visit, head=self.value)
        sums = np.zeros((3, len(subject.layers), len(projection.columns)))
        shares = [len(images) / subject.samples for _, images in parts]
        for scores, share in zip(projection.take(), shares, strict=True):
            sums += share * scores, share**2 * scores, share**2 * scores**2
        return [float(len(parts)), sum(share**2 for share in shares), *map(float, sums.ravel())]
