"""``primal-dual``: the shadow price of keeping every layer close to what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.model import forward
from mpsearch.quant import Closeness, Student, WeightBank
from mpsearch.registry import describe
from mpsearch.subject import Subject, mean_and_stderr
from mpsearch.types import BitMap, Format, Table


@dataclass(frozen=True)
class PrimalDual:
    """Final multipliers of a training under closeness constraints (Elenter et al. 2022, arXiv 2210.15623).

    With all layers in one format, the quantized generator is trained for a few steps to draw what the float one draws,
    while the multiplier of a layer rises by what its output's relative squared distance exceeds a tolerance by. It ends
    high where closeness is hard to have. By the paper it says too how much the loss would gain from a looser
    constraint; in so few steps it is mostly the distance itself that one sees, which grows with depth, and layers whose
    outputs matter little are as dear as those that matter much: a table to look at rather than to search with.

    Values have no unit; they are comparable within one table. Where a layer may not take a format that others take, it
    is in the first that it may. The standard error is that over samples of the distances that make up a multiplier.

    Attributes:
        steps: of Adam and of the ascent, a format.
        rate: the most that a weight moves in a step, in its quantization steps.
        tolerance: relative squared distance of a layer's output that is allowed.
        ascent: how far a multiplier rises in a step for a distance of 1; the loss is 1 at the start.
    """

    steps: int = 20
    rate: float = 0.003
    tolerance: float = 0.0
    ascent: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tolerance < 0 or not (self.rate > 0 and self.ascent > 0):
            raise UsageError(
                f"primal-dual needs steps of 1 or more, a tolerance of 0 or more, a rate and an ascent above 0, "
                f"not {self.steps}, {self.tolerance}, {self.rate} and {self.ascent}"
            )

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table:
        layers = subject.layers
        columns = layers.columns(formats)
        choices = {layer.name: layers.choices(layer, formats) for layer in layers}
        values = np.full((len(layers), len(columns)), np.nan)
        stderr = np.full_like(values, np.nan)
        for column, format in enumerate(columns):
            subject.progress("primal-dual", column, len(columns))
            bitmap = BitMap({name: format if format in own else own[0] for name, own in choices.items()})
            key = f"{describe('primal-dual', self)} of {bitmap.key}"
            found = subject.recall(key, 2 * len(layers), partial(self._measure, subject, bitmap))
            rows = [row for row, own in enumerate(choices.values()) if format in own]
            values[rows, column], stderr[rows, column] = np.reshape(found, (2, -1))[:, rows]
        subject.progress("primal-dual", len(columns), len(columns))
        return Table(layers.units, columns, values, stderr, "multiplier", describe("primal-dual", self))

    def _measure(self, subject: Subject, bitmap: BitMap) -> list[float]:
        """Multipliers of all layers, and then their standard errors."""
        unit = 1 / (subject.error(bitmap).value or 1.0)
        rises: list[list[Tensor]] = [[] for _ in subject.reference]  # (layers, samples) of every visit to a batch
        with torch.inference_mode(False), torch.enable_grad():
            multipliers = torch.zeros(len(subject.layers), dtype=torch.float64)
            bank = WeightBank(subject.model)  # one that was made in inference mode has no gradients
            student = Student(subject.model, subject.with_ranges(bitmap), bank)
            closeness = Closeness(subject.model, bank, bitmap, subject.calibration)
            optimizer = torch.optim.Adam(student.groups(self.rate)) if student.parameters else None
            for step in range(self.steps):
                batch = step % len(rises)
                with closeness.measured(batch) as found, student.applied():
                    seed, args = subject.calibration.run(batch)
                    error = (forward(subject.model, args, seed) - subject.reference[batch]).square().mean() * unit
                over = torch.stack([found[name].double() for name in bitmap]) - self.tolerance
                if optimizer is not None:
                    value = error + multipliers.to(over) @ over.mean(1)
                    gradients = torch.autograd.grad(value, student.parameters, allow_unused=True)
                    for parameter, gradient in zip(student.parameters, gradients, strict=True):
                        parameter.grad = gradient
                    optimizer.step()
                rises[batch].append(self.ascent * over.detach().cpu())
                multipliers = (multipliers + rises[batch][-1].mean(1)).clamp(min=0)
        # What a multiplier would be if all samples were as this one.
        whole = torch.cat([self.steps * torch.stack(visits).mean(0) for visits in rises if visits], 1)
        return multipliers.tolist() + [mean_and_stderr(row)[1] for row in whole]
