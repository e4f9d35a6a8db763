"""``distil``: train the quantized generator to draw the pictures of the float one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, Progress, silent
from mpsearch.errors import UsageError
from mpsearch.model import evaluating, forward, inputs_mapped, substituted
from mpsearch.quant import QuantizedWeight, Recovered, WeightBank, input_grids
from mpsearch.recovery.trial import Trial, order
from mpsearch.types import BitMap

SLOWER = 0.02  # a parameter moves by so much of its spread where a weight moves by one of its steps
TINY = 1e-12  # a scale stays above it


@dataclass(frozen=True)
class Distil:
    """Straight-through training on the paired error, with learned steps (LSQ, Esser et al., ICLR 2020).

    Weights are trained in units of their steps and rounded in the forward pass; gradients pass the rounding and stop
    where a weight is clipped. Steps, biases and the scales of norms are trained with them; formats and activation
    ranges stay. No label is used: the float images of the same inputs are the target.

    Attributes:
        steps: of Adam, one batch each; the rate falls as a cosine.
        rate: the most that a weight moves in the first steps, in its quantization steps.
        checks: how often the error on the inputs kept back is taken; the best of them is the answer.
        seed: of the order of the batches.
    """

    steps: int = 400
    rate: float = 0.003
    checks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checks < 1 or not self.rate > 0:
            raise UsageError(
                f"distil needs steps and checks of 1 or more and a rate above 0, "
                f"not {self.steps}, {self.checks} and {self.rate}"
            )

    def __call__(
        self, model: nn.Module, bitmap: BitMap, bank: WeightBank, inputs: Calibration, progress: Progress = silent
    ) -> Recovered:
        trial = Trial(model, bitmap, bank, inputs)
        student = _Student(model, bitmap, bank)
        if not student.parameters:
            return trial.best
        optimizer = torch.optim.Adam(student.groups(self.rate))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        grids, every = input_grids(bitmap, bank), -(-self.steps // self.checks)
        scale = 1 / (trial.start or 1.0)
        for step, batch in enumerate(order(len(trial.learning), self.steps, self.seed), start=1):
            seed, args = trial.learning.run(batch)
            with evaluating(model), substituted(model, student.tensors()), inputs_mapped(model, grids):
                images = forward(model, args, seed)
                loss = (images - trial.expected[batch]).square().mean() * scale
                found = torch.autograd.grad(loss, student.parameters, allow_unused=True)
            if not math.isfinite(loss.item()):
                break
            for parameter, gradient in zip(student.parameters, found, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == self.steps:
                trial.show(student.recovered())
            progress("distil", step, self.steps)
        return trial.best


class _Student:
    """Everything that is trained."""

    def __init__(self, model: nn.Module, bitmap: BitMap, bank: WeightBank) -> None:
        self._bank = bank
        self._codes: dict[str, Tensor] = {}  # layer → weights in units of their steps
        self._steps: dict[str, Tensor] = {}
        self._tops: dict[str, Tensor] = {}  # largest code of every channel
        for layer, format in bitmap.items():
            if format.kind == "int":
                scale = bank.quantized(layer, format).scale
                assert scale is not None  # integers have one
                self._codes[layer] = (bank.weight(layer).float() / scale).requires_grad_()
                self._steps[layer] = scale.clone().requires_grad_()
                bits = torch.tensor(format.channel_bits or (format.bits,), device=scale.device)
                self._tops[layer] = (2 ** (bits - 1) - 1).float().expand(scale.numel()).reshape(scale.shape)
        plain = {**_plain(model), **bank.tensors} if self._codes else {}
        self._plain = {name: value.detach().clone().requires_grad_() for name, value in plain.items()}

    @property
    def parameters(self) -> list[Tensor]:
        return [*self._codes.values(), *self._steps.values(), *self._plain.values()]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The parameters for an optimizer, each with a rate in its own unit."""
        steps = [{"params": [step], "lr": rate * step.mean().item()} for step in self._steps.values()]
        plain = [{"params": [own], "lr": rate * SLOWER * _size(own)} for own in self._plain.values()]
        return [{"params": list(self._codes.values()), "lr": rate}, *steps, *plain]

    def tensors(self) -> dict[str, Tensor]:
        """What the forward pass computes with, by place."""
        found = dict(self._plain)
        for layer, codes in self._codes.items():
            rounded: Tensor = _Rounding.apply(codes, self._tops[layer])  # type: ignore[no-untyped-call]
            weight = rounded * self._steps[layer].clamp_min(TINY)
            found.update(dict.fromkeys(self._bank.site(layer).places, weight.to(self._bank.weight(layer).dtype)))
        return found

    def recovered(self) -> Recovered:
        weights = {}
        for layer, codes in self._codes.items():
            top, step = self._tops[layer], self._steps[layer].detach().clamp_min(TINY).clone()
            rounded = codes.detach().clamp(-top, top).round().to(torch.int8)
            weights[layer] = QuantizedWeight(rounded, step, self._bank.weight(layer).dtype)
        return Recovered(weights, {name: value.detach().clone() for name, value in self._plain.items()})


class _Rounding(torch.autograd.Function):
    """Nearest integer in −top … top; the gradient passes where nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, top: Tensor) -> Tensor:
        ctx.save_for_backward(codes.abs() <= top)
        return codes.clamp(-top, top).round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


def _plain(model: nn.Module) -> dict[str, Tensor]:
    """Vectors that one module owns as a parameter: biases, and the scales of norms."""
    owners: dict[int, list[tuple[str, Tensor]]] = {}
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None and value.ndim == 1 and value.is_floating_point() and "parametrizations" not in path:
                owners.setdefault(id(value), []).append((f"{path}.{name}" if path else name, value))
    return dict(own[0] for own in owners.values() if len(own) == 1)


def _size(values: Tensor) -> float:
    return values.detach().double().square().mean().sqrt().item() or 1.0
