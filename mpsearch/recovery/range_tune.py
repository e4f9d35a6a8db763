"""``range_tune``: train the thresholds of a quantized generator, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.quant import Student
from mpsearch.recovery.training import Training
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class RangeTune(Training):
    """Fast Adjustable Threshold (Goncharenko et al. 2018, arXiv 1812.07872), on the paired error.

    The ends of activation ranges and the scales of weights are trained; the float weights stay, and codes are what they
    round to at the scales of the moment, whose gradient is that of LSQ (Esser et al., ICLR 2020). Forms that are no
    integers keep their codes. So few numbers are learnt that few inputs suffice.

    Attributes:
        rate: the most that a scale moves in the first steps, relative to itself.
    """

    def __call__(self, trial: Trial) -> None:
        self.train(trial, Student(trial.model, trial.bitmap, trial.bank, ranges=True, weights=False, scales=True))
