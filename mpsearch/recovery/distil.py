"""``distil``: train the quantized generator to draw the pictures of the float one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from mpsearch.calibration import Calibration, Progress, silent
from mpsearch.errors import UsageError
from mpsearch.model import forward
from mpsearch.quant import Recovered, WeightBank
from mpsearch.recovery.student import Student
from mpsearch.recovery.trial import Trial, order
from mpsearch.types import BitMap


@dataclass(frozen=True)
class Distil:
    """Straight-through training on the paired error, with learned steps (LSQ, Esser et al., ICLR 2020).

    Everything that a map is stored with is trained, formats stay; see :class:`mpsearch.recovery.student.Student`. No
    label is used: the float images of the same inputs are the target.

    Attributes:
        steps: of Adam, one batch each; the rate falls as a cosine.
        rate: the most that a weight moves in the first steps, in its quantization steps.
        ranges: whether activation ranges are trained too.
        checks: how often the error on the inputs kept back is taken; the best of them is the answer.
        seed: of the order of the batches.
    """

    steps: int = 400
    rate: float = 0.003
    ranges: bool = False
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
        student = Student(model, bitmap, bank, self.ranges)
        if not student.parameters:
            return trial.best
        optimizer = torch.optim.Adam(student.groups(self.rate))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        every = -(-self.steps // self.checks)
        scale = 1 / (trial.start or 1.0)
        for step, batch in enumerate(order(len(trial.learning), self.steps, self.seed), start=1):
            seed, args = trial.learning.run(batch)
            with student.applied():
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
