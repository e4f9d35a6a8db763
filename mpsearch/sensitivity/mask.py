"""``mask``: blank a share of a layer's weights and see how far the outputs move."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.model import evaluating, forward, inputs_mapped, substituted
from mpsearch.registry import describe
from mpsearch.sensitivity.noise import input_noise, weight_noise
from mpsearch.subject import Subject, mean_and_stderr
from mpsearch.types import Format, Table


@dataclass(frozen=True)
class Mask:
    """Mask-guided estimation of OHQ (Huang et al., "On-Chip Hardware-Aware Quantization", arXiv 2309.01945).

    A random share of the weights of one layer is set to zero; the Kullback-Leibler divergence of the outputs from the
    float ones is the layer's importance. Only forward passes, and their number does not grow with that of formats.

    The divergence needs distributions. ``output="normal"``: every pixel is the mean of a normal distribution of
    variance ½, so a pixel's divergence is its squared change; values are means over pixels. ``output="softmax"``: the
    whole output holds logits, as for the classifiers of the paper.

    OHQ gives one importance a layer to a linear programme over bits, whose details could not be looked up. Here the
    importance becomes damage by energy: blanking is a rounding error of energy ``‖M∘W‖²``, so a format with the error
    ``ΔW`` gets ``‖ΔW‖² / ‖M∘W‖²`` of the divergence. With ``output="normal"`` that estimates the same mean squared
    change as ``perturbation``, as far as damage grows with energy alone; the shapes of ``M∘W`` and ``ΔW`` differ. Where
    formats have activation bits, what a layer reads is blanked and scored in the same way, and added.

    The standard error has two parts, added in quadrature: over samples, and over masks.

    Attributes:
        share: of the weights that are blanked, at least one.
        draws: masks a layer.
        output: how images are read as distributions.
        seed: of the masks.
    """

    share: float = 0.05
    draws: int = 2
    output: Literal["normal", "softmax"] = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.draws < 1:
            raise UsageError(f"mask needs 0 < share <= 1 and draws >= 1, not {self.share} and {self.draws}")

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        noise = input_noise(subject, formats)
        read = {name for name, _ in noise}
        values = np.full((len(layers), len(columns)), np.nan)
        stderr = np.full_like(values, np.nan)
        for row, layer in enumerate(layers):
            subject.progress("mask", row, len(layers))
            weights = self._importance(subject, layer.name, "weights")
            inputs = self._importance(subject, layer.name, "inputs") if layer.name in read else (0.0, 0.0)
            for format in layers.choices(layer, formats):
                here = weight_noise(subject, layer.name, format)
                there = noise[layer.name, format.act_only] if format.act_bits else 0.0
                column = columns.index(format)
                values[row, column] = weights[0] * here + inputs[0] * there
                stderr[row, column] = np.hypot(weights[1] * here, inputs[1] * there)
        subject.progress("mask", len(layers), len(layers))
        return Table(layers.units, columns, values, stderr, "kl", describe("mask", self))

    def _importance(self, subject: Subject, layer: str, what: Literal["weights", "inputs"]) -> tuple[float, float]:
        """Divergence per relative energy blanked, and its standard error."""
        name = f"{describe('mask', self)} {what} of {layer} draw"
        count = subject.samples
        draws = torch.tensor(
            [
                subject.recall(f"{name} {draw}", count, partial(self._measure, subject, layer, what, draw))
                for draw in range(self.draws)
            ],
            dtype=torch.float64,
        )
        mean, over_samples = mean_and_stderr(draws.mean(0))
        return mean, float(np.hypot(over_samples, mean_and_stderr(draws.mean(1))[1]))

    def _measure(self, subject: Subject, layer: str, what: str, draw: int) -> list[float]:
        """The same for every sample under one mask."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {draw} {layer} {what}".encode()))
        energies = []  # (blanked, all) of every tensor

        def blanked(x: Tensor) -> Tensor:
            picks = torch.rand(x.numel(), generator=generator)
            hit = (picks < self.share).logical_or_(picks == picks.min()).reshape(x.shape).to(x.device)
            squares = x.double().square()
            energies.append((squares[hit].sum().item(), squares.sum().item()))
            return x.masked_fill(hit, 0)

        places = subject.bank.site(layer).places
        if what == "weights":
            weight = blanked(subject.bank.weight(layer))
            context = substituted(subject.model, dict.fromkeys(places, weight))
        else:
            context = inputs_mapped(subject.model, dict.fromkeys(places, blanked))
        divergences = self._divergences(subject, context)
        gone, total = map(sum, zip(*energies, strict=True)) if energies else (0.0, 0.0)
        return (divergences * (total / gone if gone else 0.0)).tolist()

    def _divergences(self, subject: Subject, context: AbstractContextManager[None]) -> Tensor:
        """Of every sample, ``(samples,)`` float64."""
        reference, found = subject.reference, []  # the reference is made by the float generator: before the context
        with context:
            for expected, (seed, args) in zip(reference, subject.calibration.runs(), strict=True):
                with evaluating(subject.model), torch.no_grad():  # each batch on its own, as the reference was made
                    images = forward(subject.model, args, seed).double().reshape(len(expected), -1)
                found.append(divergence(expected.double().reshape(len(expected), -1), images, self.output).cpu())
        return torch.cat(found)


def divergence(expected: Tensor, found: Tensor, output: str) -> Tensor:
    """``KL(expected ‖ found)`` of ``(samples, elements)``, one number a sample; see :class:`Mask`."""
    if output == "normal":
        return (found - expected).square().mean(1)
    p, q = expected.log_softmax(1), found.log_softmax(1)
    return (p.exp() * (p - q)).sum(1).clamp_min(0)
