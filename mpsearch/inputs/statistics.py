"""``statistics``: noise made into inputs that a generator's stored statistics would have come from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.inputs.columns import Batches
from mpsearch.inputs.gradients import by_inputs
from mpsearch.model import device_of, evaluating, forward, map_input

FLOOR = 0.01  # of the mean variance of a layer: channels that hardly vary must not outweigh all others


@dataclass(frozen=True)
class Statistics:
    """For generators that read images when no images are at hand.

    Adam moves every batch until what each normalisation layer reads has the mean and the variance that the layer stored
    in training (Cai et al., "ZeroQ", CVPR 2020, https://arxiv.org/abs/2001.00281; Choi et al., ZS-CGAN, ICIP 2021).

    Attributes:
        steps: of Adam.
        rate: its first step, as a share of ``low … high``; it falls to zero.
        smooth: weight of the total variation.
        low: least value of an input.
        high: largest value of an input.
        argument: number of the positional argument that holds the images.
    """

    steps: int = 200
    rate: float = 0.1
    smooth: float = 0.1
    low: float = 0.0
    high: float = 1.0
    argument: int = 0
    everywhere: ClassVar[bool] = True
    pool: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.low >= self.high:
            raise UsageError(
                f"statistics needs 1 step or more and low < high, not {self.steps} in {self.low:g} … {self.high:g}"
            )

    def __call__(self, model: nn.Module, batches: Batches, count: int, generator: torch.Generator) -> Batches:
        """The same number of samples as drawn, on the CPU; noise inside the model is that of seed 0.

        Raises:
            UsageError: the generator stored no statistics, or the drawn inputs leave ``low … high``.
        """
        norms = stored(model)
        return [self._matched(model, norms, batch) for batch in batches]

    def _matched(self, model: nn.Module, norms: list[nn.Module], batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        drawn, device = self._noise(batch), device_of(model)
        args = [arg.to(device) for arg in batch]
        span = self.high - self.low
        with evaluating(model):
            x = args[self.argument] = drawn.to(device).clone().requires_grad_()
            adam = torch.optim.Adam([x], lr=self.rate * span)
            for step in range(self.steps):
                adam.param_groups[0]["lr"] = self.rate * span * (1 - step / self.steps)
                (slope,) = by_inputs(mismatch(model, norms, args), [x])
                (rough,) = torch.autograd.grad(variation(x), x)
                x.grad = slope + rough * (self.smooth / span)
                adam.step()
                with torch.no_grad():
                    x.clamp_(self.low, self.high)
        return (*batch[: self.argument], x.detach().cpu(), *batch[self.argument + 1 :])

    def _noise(self, batch: tuple[Tensor, ...]) -> Tensor:
        if not 0 <= self.argument < len(batch) or not batch[self.argument].is_floating_point():
            raise UsageError(f"statistics moves argument {self.argument}, which is no floating-point input")
        drawn = batch[self.argument]
        least, most = drawn.min().item(), drawn.max().item()
        if least < self.low or most > self.high:
            raise UsageError(
                f"inputs drawn in {least:.3g} … {most:.3g} leave the {self.low:g} … {self.high:g} of statistics: "
                "set its low and high to those of the inputs"
            )
        return drawn


def stored(model: nn.Module) -> list[nn.Module]:
    """Layers with a running mean and a running variance of every channel.

    Raises:
        UsageError: there is none.
    """
    found = []
    for module in model.modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if (
            isinstance(mean, Tensor)
            and isinstance(variance, Tensor)
            and mean.ndim == 1
            and mean.shape == variance.shape
        ):
            found.append(module)
    if not found:
        raise UsageError(
            "statistics needs layers with stored statistics, such as batch norm, and the generator has none: "
            "give it real inputs, of kind images or tensors"
        )
    return found


def mismatch(model: nn.Module, norms: list[nn.Module], args: Any) -> Tensor:
    """Squared distance of the means and deviations read to those stored, in stored deviations; the mean over channels
    and layers. Call inside ``evaluating``."""
    distances: list[Tensor] = []

    def compare(norm: Any, x: Tensor) -> Tensor:
        values = x.clone().movedim(1, 0).flatten(1)  # a copy: some models go on to write into what they normalise
        variance = norm.running_var + FLOOR * norm.running_var.mean() + 1e-12
        off = (values.mean(1) - norm.running_mean).square() / variance
        wide = ((values.var(1, unbiased=False) + 1e-12) / variance).sqrt() - 1
        distances.append((off + wide.square()).mean())
        return x

    with ExitStack() as stack:
        for norm in norms:
            stack.callback(map_input(norm, partial(compare, norm)))
        forward(model, args)
    if not distances:
        raise UsageError("no layer with stored statistics is called on these inputs: statistics has nothing to match")
    return torch.stack(distances).mean()


def variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels; 0 for what is no picture."""
    if x.ndim != 4:
        return x.sum() * 0
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()
