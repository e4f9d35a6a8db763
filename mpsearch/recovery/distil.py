"""``distil``: train the quantized generator to draw the pictures of the float one."""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.quant import Student
from mpsearch.recovery.training import Training
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class Distil(Training):
    """Straight-through training on the paired error, with learned steps (LSQ, Esser et al., ICLR 2020).

    Everything that a map is stored with is trained, formats stay; see :class:`mpsearch.quant.Student`. No
    label is used: the float images of the same inputs are the target.

    Attributes:
        ranges: whether activation ranges are trained too.
    """

    ranges: bool = False

    def __call__(self, trial: Trial) -> None:
        self.train(trial, Student(trial.model, trial.bitmap, trial.bank, self.ranges))
