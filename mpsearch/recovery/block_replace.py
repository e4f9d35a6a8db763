"""``block_replace``: train quantized layers among float ones, until all are quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mpsearch.errors import UsageError
from mpsearch.quant import Student
from mpsearch.recovery.training import Training, paired
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class BlockReplace(Training):
    """Block replacement (Yu et al. 2024, arXiv 2412.15846): every step trains another mixture.

    A random part of the layers is quantized, weights and activations, the others are as in the float generator, so
    that a layer gets its gradient through float ones. The part rises from one layer to all of them. The paper trains
    the whole quantized network beside the mixtures; here a step is one mixture.

    Attributes:
        ramp: share of the steps after which all layers are quantized.
    """

    ramp: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ramp <= 1:
            raise UsageError(f"block_replace needs a ramp from 0 to 1, not {self.ramp}")

    @property
    def settled(self) -> int:
        return math.ceil(self.ramp * self.steps)

    def __call__(self, trial: Trial) -> None:
        student = Student(trial.model, trial.bitmap, trial.bank)
        unit = 1 / (trial.start or 1.0)

        def loss(step: int, batch: int) -> torch.Tensor:
            chosen = self.quantized(step, list(trial.bitmap))
            return paired(trial, student, batch, chosen.__contains__) * unit

        self.train(trial, student, loss)

    def quantized(self, step: int, layers: list[str]) -> set[str]:
        """The layers that are quantized in a step, drawn anew for each."""
        count = math.ceil(len(layers) * min(1.0, step / max(self.settled, 1)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return {layers[at] for at in torch.randperm(len(layers), generator=generator)[:count].tolist()}
