"""``primal_dual``: train under the constraint that every layer stays close to what it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.quant import Closeness, Student
from mpsearch.recovery.training import Training, paired
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class PrimalDual(Training):
    """Least paired error such that no layer's output is far from that in the float generator.

    After "Neural Networks with Quantization Constraints" (Elenter et al. 2022, arXiv 2210.15623): the Lagrangian, the
    error plus a multiplier for every layer times what its relative squared distance exceeds the tolerance by, goes down
    in the weights and up in the multipliers. The paper trains the float network and needs no gradient of the
    rounding; here the quantized one is trained, straight through.

    Attributes:
        tolerance: relative squared distance of a layer's output that is allowed; 0.003 is 25 dB.
        ascent: how far a multiplier rises in a step, in units of the error of the start, for a distance of 1.
    """

    tolerance: float = 0.003
    ascent: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance < 0 or not self.ascent > 0:
            raise UsageError(
                f"primal_dual needs a tolerance of 0 or more and an ascent above 0, "
                f"not {self.tolerance} and {self.ascent}"
            )

    def __call__(self, trial: Trial) -> None:
        self.multipliers(trial)

    def multipliers(self, trial: Trial) -> dict[str, float]:
        """Train, and return the multiplier that every layer ends with: large where closeness is hard to have."""
        student = Student(trial.model, trial.bitmap, trial.bank)
        layers = list(trial.bitmap)
        closeness = Closeness(trial.model, trial.bank, layers, trial.learning)
        unit = 1 / (trial.start or 1.0)
        multipliers, excess = torch.zeros(2, len(layers), dtype=torch.float64)

        def loss(step: int, batch: int) -> Tensor:
            with closeness.measured(batch) as found:
                error = paired(trial, student, batch) * unit
            over = torch.stack([found[layer].mean() for layer in layers]) - self.tolerance
            excess.copy_(over.detach())
            charge: Tensor = multipliers.to(over) @ over
            return error + charge

        def after(step: int) -> None:
            multipliers.add_(self.ascent * excess).clamp_(min=0)

        self.train(trial, student, loss, after, {"multipliers": multipliers})
        return dict(zip(layers, multipliers.tolist(), strict=True))
