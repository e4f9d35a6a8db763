"""``adversarial``: the inputs that a bit map hurts most, without leaving the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration
from mpsearch.errors import UsageError
from mpsearch.inputs.gradients import by_inputs
from mpsearch.inputs.regions import Region
from mpsearch.model import evaluating, forward
from mpsearch.quant import WeightBank, applied
from mpsearch.types import BitMap


@dataclass(frozen=True)
class Adversarial:
    """Projected gradient ascent on the squared difference of the float and the quantized image of every sample.

    Liu, Zhang, Wang, "Zero-shot Adversarial Quantization" (ZAQ), CVPR 2021, https://arxiv.org/abs/2103.15263; there a
    network makes the inputs, here they are moved themselves. Gradients pass straight through rounded activations.

    Attributes:
        steps: of the ascent, two forward passes and a backward pass each.
        rate: length of the first step, as a share of a latent's norm or of half a range; it falls to zero.
    """

    steps: int = 16
    rate: float = 0.4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rate <= 0:
            raise UsageError(f"adversarial needs 1 step or more and a rate above 0, not {self.steps} and {self.rate}")

    def __call__(
        self,
        model: nn.Module,
        bitmap: BitMap,
        bank: WeightBank,
        inputs: Calibration,
        regions: Sequence[Region | None] | None = None,
    ) -> Calibration:
        """As many inputs, each the worst that its ascent came by: never better than where it started.

        Args:
            model: the float generator; left as it was.
            bitmap: with its activation ranges.
            bank: of the generator's weights.
            inputs: where the ascent starts.
            regions: where each argument may go, None = it stays.
        """
        batches = []
        for seed, args in inputs.runs():
            movable = moved(args, regions)
            batches.append(self._ascend(model, bitmap, bank, args, movable, seed))
        return Calibration(tuple(batches), inputs.seed)

    def _ascend(
        self,
        model: nn.Module,
        bitmap: BitMap,
        bank: WeightBank,
        args: tuple[Any, ...],
        movable: dict[int, Region],
        seed: int,
    ) -> tuple[Any, ...]:
        start = {spot: args[spot].detach() for spot in movable}
        now, worst = dict(start), dict(start)
        largest = torch.zeros(())
        with evaluating(model):
            for step in range(self.steps + 1):
                leaves = {spot: x.clone().requires_grad_() for spot, x in now.items()}
                at = [leaves.get(spot, arg) for spot, arg in enumerate(args)]
                images = forward(model, at, seed)
                with applied(model, bitmap, bank):
                    gaps = (forward(model, at, seed) - images).square().flatten(1).mean(1)
                for spot, x in now.items():
                    if len(x) != len(gaps):
                        raise UsageError(f"adversarial needs an image a sample: {len(gaps)} images of {len(x)} samples")
                    further = (gaps.detach() > largest).view(-1, *[1] * (x.ndim - 1))
                    worst[spot] = torch.where(further, x, worst[spot])
                largest = gaps.detach().maximum(largest)
                if step == self.steps:
                    break
                rate = self.rate * (1 - step / self.steps)
                gradients = by_inputs(gaps.sum(), list(leaves.values()))
                for (spot, region), gradient in zip(movable.items(), gradients, strict=True):
                    now[spot] = region.step(now[spot], start[spot], gradient, rate)
        return tuple(worst.get(spot, arg) for spot, arg in enumerate(args))


def moved(args: tuple[Any, ...], regions: Sequence[Region | None] | None) -> dict[int, Region]:
    """Number of an argument → where it may go.

    Raises:
        UsageError: nothing may move.
    """
    found = {
        spot: region
        for spot, (arg, region) in enumerate(zip(args, regions or (), strict=False))
        if region is not None and isinstance(arg, Tensor) and arg.is_floating_point() and arg.ndim
    }
    if not found:
        raise UsageError("adversarial has nothing to move: it moves inputs of kind normal, uniform, images and tensors")
    return found
