"""What all recoveries by training have in common."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.model import forward
from mpsearch.recovery.student import Student
from mpsearch.recovery.trial import Trial, order

Loss = Callable[[int, int], Tensor]  # (step, batch) → what is to be small
After = Callable[[int], None]  # told about every finished step
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam


@dataclass(frozen=True)
class Training:
    """Adam against the float generator, a batch a step; the rate falls as a cosine.

    Attributes:
        steps: of Adam.
        rate: the most that a weight moves in the first steps, in its quantization steps.
        checks: how often the error on the inputs kept back is taken; the best of them is the answer.
        patience: training ends after so many checks without a better one.
        seed: of the order of the batches.
    """

    steps: int = 400
    rate: float = 0.003
    checks: int = 8
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.checks, self.patience) < 1 or not self.rate > 0:
            raise UsageError(
                f"{type(self).__name__.lower()} needs steps, checks and patience of 1 or more and a rate above 0, "
                f"not {self.steps}, {self.checks}, {self.patience} and {self.rate}"
            )

    def train(self, trial: Trial, student: Student, loss: Loss | None = None, after: After | None = None) -> None:
        """Train the student and show it to the trial; goes on where the trial's snapshot was left.

        A loss that is no longer finite ends the training with a warning; what was best before it stays.

        Args:
            trial: what to learn from and to be judged by.
            student: what is trained.
            loss: by default :func:`paired`, in units of the error of the start.
            after: told about every finished step.
        """
        if not student.parameters:
            return
        name = type(self).__name__.lower()
        unit = 1 / (trial.start or 1.0)
        loss = loss or (lambda step, batch: paired(trial, student, batch) * unit)
        optimizer = torch.optim.Adam(student.groups(self.rate))
        rates = [group["lr"] for group in optimizer.param_groups]
        done, idle = _resumed(trial, student, optimizer)
        every = -(-self.steps // self.checks)
        for step, batch in enumerate(order(len(trial.learning), self.steps, self.seed), start=1):
            if step <= done or idle >= self.patience:
                continue
            value = loss(step, batch)
            if not math.isfinite(value.item()):
                warnings.warn(
                    f"{name} diverged in step {step} of {self.steps}; the best before it is kept", stacklevel=2
                )
                break
            found = torch.autograd.grad(value, student.parameters, allow_unused=True)
            for parameter, gradient in zip(student.parameters, found, strict=True):
                parameter.grad = gradient
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
            optimizer.step()
            if after is not None:
                after(step)
            if step % every == 0 or step == self.steps:
                best = trial.error
                trial.show(student.recovered())
                idle = 0 if trial.error < best else idle + 1
                _keep(trial, student, optimizer, step, idle)
            trial.progress(name, step, self.steps)


def paired(trial: Trial, student: Student, batch: int, only: Callable[[str], bool] | None = None) -> Tensor:
    """Mean squared error to the float images of one batch to learn from; ``only`` says which layers are quantized."""
    seed, args = trial.learning.run(batch)
    with student.applied(only):
        return (forward(trial.model, args, seed) - trial.expected[batch]).square().mean()


def _keep(trial: Trial, student: Student, optimizer: torch.optim.Adam, step: int, idle: int) -> None:
    """Write down where the training stands; ``best`` only where it has just become better."""
    if trial.snapshot is None:
        return
    kept = {name: value for name, value in trial.snapshot.read().items() if name.startswith("best ")}
    now = {f"now {name}": value for name, value in student.state().items()}
    if idle == 0:
        kept = {name.replace("now ", "best ", 1): value.clone() for name, value in now.items()}
    moments = {
        f"{moment} {at}": optimizer.state[parameter][moment]
        for at, parameter in enumerate(student.parameters)
        for moment in MOMENTS
        if parameter in optimizer.state
    }
    trial.snapshot.write({**kept, **now, **moments, "done": torch.tensor([step, idle])})


def _resumed(trial: Trial, student: Student, optimizer: torch.optim.Adam) -> tuple[int, int]:
    """(steps done, checks without a better one) of a training that was broken off; both 0 for a new one."""
    state = {} if trial.snapshot is None else trial.snapshot.read()
    if "done" not in state:
        return 0, 0
    if "best 0" in state:
        student.load({name.removeprefix("best "): value for name, value in state.items()})
        trial.show(student.recovered())
    student.load({name.removeprefix("now "): value for name, value in state.items()})
    for at, parameter in enumerate(student.parameters):
        if f"step {at}" in state:
            optimizer.state[parameter] = {moment: state[f"{moment} {at}"].clone() for moment in MOMENTS}
    step, idle = state["done"].tolist()
    return step, idle
