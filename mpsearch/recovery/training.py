"""What all recoveries by training have in common."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.errors import NotFinite, UsageError
from mpsearch.model import forward
from mpsearch.quant import Student
from mpsearch.recovery.trial import Trial, order

Loss = Callable[[int, int], Tensor]  # (step, batch) → what is to be small
After = Callable[[int], Iterable[Tensor] | None]  # told about a finished step; parameters that are in other units now
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
        if min(self.steps, self.checks, self.patience) < 1 or not 0 < self.rate < math.inf:
            raise UsageError(
                f"{self.name} needs steps, checks and patience of 1 or more and a rate above 0, "
                f"not {self.steps}, {self.checks}, {self.patience} and {self.rate}"
            )

    @property
    def name(self) -> str:
        """As in the registry."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def settled(self) -> int:
        """The step from which on the student is what it is going to be: checks before it do not try the patience."""
        return 0

    def train(
        self,
        trial: Trial,
        student: Student,
        loss: Loss | None = None,
        after: After | None = None,
        memory: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Train the student and show it to the trial; goes on where the trial's snapshot was left.

        A training that comes to NaN or infinite values ends with a warning; what was best before it stays.

        Args:
            trial: what to learn from and to be judged by.
            student: what is trained.
            loss: by default :func:`paired`, in units of the error of the start.
            after: told about every finished step; Adam forgets what it knows of the parameters that it returns.
            memory: what the method itself keeps from step to step, changed in place.
        """
        if not student.parameters:
            return
        unit = 1 / (trial.start or 1.0)
        loss = loss or (lambda step, batch: paired(trial, student, batch) * unit)
        optimizer = torch.optim.Adam(student.groups(self.rate))
        memory = memory or {}
        done, idle = _resumed(trial, student, optimizer, memory)
        every = -(-self.steps // self.checks)
        for step, batch in enumerate(order(len(trial.learning), self.steps, self.seed), start=1):
            if step <= done:
                continue
            if idle >= self.patience:
                break
            if not self._descend(student, optimizer, loss, step, batch):
                warnings.warn(
                    f"{self.name} diverged in step {step} of {self.steps}; the best before it is kept", stacklevel=2
                )
                break
            for parameter in (after(step) if after else None) or ():
                optimizer.state.pop(parameter, None)
            if step % every == 0 or step == self.steps:
                before = trial.error
                trial.show(student.recovered())
                better = trial.error < before
                idle = 0 if better or step <= self.settled else idle + 1
                _keep(trial, student, optimizer, memory, (step, idle), better)
            trial.progress(self.name, step, self.steps)

    def _descend(self, student: Student, optimizer: torch.optim.Adam, loss: Loss, step: int, batch: int) -> bool:
        """One step of Adam; False where the loss, or what it has led to, is not finite."""
        try:
            value = loss(step, batch)
        except NotFinite:
            return False
        if not math.isfinite(value.item()):
            return False
        found: Sequence[Tensor | None] = [None] * len(student.parameters)
        if value.requires_grad:  # a layer that the generator never calls has no say in it
            found = torch.autograd.grad(value, student.parameters, allow_unused=True)
        for parameter, gradient in zip(student.parameters, found, strict=True):
            parameter.grad = gradient
        slower = (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
        for group, own in zip(optimizer.param_groups, student.groups(self.rate), strict=True):
            group["lr"] = own["lr"] * slower
        optimizer.step()
        optimizer.zero_grad()  # as large as the weights, and in the way of the next forward pass
        return all(bool(parameter.isfinite().all()) for parameter in student.parameters)


def paired(trial: Trial, student: Student, batch: int, only: Callable[[str], bool] | None = None) -> Tensor:
    """Mean squared error to the float images of one batch to learn from; ``only`` says which layers are quantized."""
    seed, args = trial.learning.run(batch)
    with student.applied(only):
        return (forward(trial.model, args, seed) - trial.expected[batch]).float().square().mean()


def _keep(
    trial: Trial,
    student: Student,
    optimizer: torch.optim.Adam,
    memory: Mapping[str, Tensor],
    done: tuple[int, int],
    better: bool,
) -> None:
    """Write down where the training stands; ``best`` only where it has just become better."""
    if trial.snapshot is None:
        return
    kept = {name: value for name, value in trial.snapshot.read().items() if name.startswith("best ")}
    now = {f"now {name}": value for name, value in student.state().items()}
    if better:
        kept = {name.replace("now ", "best ", 1): value.clone() for name, value in now.items()}
    moments = {
        f"{moment} {at}": optimizer.state[parameter][moment]
        for at, parameter in enumerate(student.parameters)
        for moment in MOMENTS
        if parameter in optimizer.state
    }
    remembered = {f"memory {name}": value for name, value in memory.items()}
    trial.snapshot.write({**kept, **now, **moments, **remembered, "done": torch.tensor(done)})


def _resumed(
    trial: Trial, student: Student, optimizer: torch.optim.Adam, memory: Mapping[str, Tensor]
) -> tuple[int, int]:
    """(steps done, checks without a better one) of a training that was broken off; both 0 for a new one."""
    state = {} if trial.snapshot is None else trial.snapshot.read()
    if "done" not in state:
        return 0, 0
    for which in ("best ", "now "):  # where the best was the start, it is not there
        if f"{which}0" in state:
            own = {name.removeprefix(which): value for name, value in state.items() if name.startswith(which)}
            student.load(own)
            if which == "best ":
                trial.show(student.recovered())
    for at, parameter in enumerate(student.parameters):
        if f"step {at}" in state:
            places = {moment: "cpu" if moment == "step" else parameter.device for moment in MOMENTS}
            moments = {moment: state[f"{moment} {at}"].to(place, copy=True) for moment, place in places.items()}
            optimizer.state[parameter] = moments
    for name, value in memory.items():
        value.copy_(state[f"memory {name}"])
    step, idle = state["done"].tolist()
    return step, idle
