"""``incremental``: round a growing share of the weights for good, while the rest goes on training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from mpsearch.errors import UsageError
from mpsearch.quant import Student
from mpsearch.recovery.training import Training
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class Incremental(Training):
    """Incremental Network Quantization (Zhou et al., ICLR 2017), on the paired error.

    What is frozen keeps its code; what is free makes up for it. Every stage freezes half of what is free, ½, ¾, ⅞, and
    the last one all; scales and biases are trained throughout. In the paper what is free is float until it is frozen;
    here it is rounded too, straight through, which comes out better where a few hundred steps must do. Forms that are
    no integers keep their codes.

    Attributes:
        stages: of as many steps each.
        by: what a stage freezes: the ``weights`` of largest magnitude of every layer, or whole ``layers``, in the order
            of the map.
    """

    stages: int = 4
    by: Literal["weights", "layers"] = "weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stages <= self.steps:
            raise UsageError(f"incremental needs from 1 stage to one a step, not {self.stages} in {self.steps} steps")

    @property
    def settled(self) -> int:
        return self._begins(self.stages)

    def _begins(self, stage: int) -> int:
        """Steps before a stage, of which the first is 1."""
        return (stage - 1) * self.steps // self.stages

    def __call__(self, trial: Trial) -> None:
        student = Student(trial.model, trial.bitmap, trial.bank)
        student.held = {layer: torch.full_like(codes, math.nan) for layer, codes in student.codes.items()}
        self.freeze(student, 1)
        starts = {self._begins(stage): stage for stage in range(2, self.stages + 1)}

        def after(step: int) -> None:
            if step in starts:
                self.freeze(student, starts[step])

        self.train(trial, student, after=after)

    def freeze(self, student: Student, stage: int) -> None:
        """Hold the share of a stage at the codes of the moment; what is held already stays."""
        share = 1 - 0.5**stage if stage < self.stages else 1.0
        layers = list(student.held)
        for layer in layers[: math.ceil(share * len(layers))] if self.by == "layers" else layers:
            held = student.held[layer]
            count = math.ceil(share * held.numel()) if self.by == "weights" else held.numel()
            size = student.unrounded(layer).abs().where(held.isnan(), math.inf).flatten()
            chosen = torch.zeros_like(size, dtype=torch.bool)
            chosen[size.argsort(descending=True, stable=True)[:count]] = True
            student.held[layer] = torch.where(chosen.view_as(held), student.nearest(layer), held)
