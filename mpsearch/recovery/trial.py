"""What a recovery works on, and how good it is on inputs that it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, Progress, outputs, paired_errors, silent
from mpsearch.errors import CalibrationError, NotFinite
from mpsearch.layers import find_layers
from mpsearch.model import substituted
from mpsearch.quant import Recovered, WeightBank, applied
from mpsearch.types import BitMap, Layers

KEPT_BACK = 4  # of so many batches, one


class Snapshot(Protocol):
    """Tensors by name that are kept, all at once."""

    def read(self) -> dict[str, Tensor]: ...

    def write(self, tensors: Mapping[str, Tensor]) -> None: ...


class Trial:
    """Divides the inputs into those to learn from and those to judge by, and remembers the best that it was shown.

    Args:
        model: the float generator.
        bitmap: the map, with its ranges.
        bank: the weights that the recovery starts from.
        inputs: two batches or more.
        progress: called with (what, done, total).
        snapshot: what outlives a kill, so that a method that was broken off goes on.
        layers: of the model, with what the user asked of them; by default they are found.

    Attributes:
        learning: the inputs to learn from.
        expected: the float images of those, one tensor a batch.
        start: mean squared error of the start on the inputs kept back.
        error: that of the best so far.
        best: the best so far.

    Raises:
        CalibrationError: a single batch, of which nothing can be kept back.
    """

    def __init__(
        self,
        model: nn.Module,
        bitmap: BitMap,
        bank: WeightBank,
        inputs: Calibration,
        progress: Progress = silent,
        snapshot: Snapshot | None = None,
        layers: Layers | None = None,
    ) -> None:
        if len(inputs) < 2:
            raise CalibrationError("a recovery needs 2 batches of inputs or more, to keep one back: got 1")
        back = -(-len(inputs) // KEPT_BACK)
        self.model, self.bitmap, self.bank, self.progress = model, bitmap, bank, progress
        self.snapshot = snapshot
        self._layers = layers
        self.learning = Calibration(inputs.batches[:-back], inputs.seed)
        self.expected = outputs(model, self.learning)
        self._judging = Calibration(inputs.batches[-back:], inputs.seed + len(self.learning))
        self._images = outputs(model, self._judging)
        self.best = Recovered()
        self.error = self.start = self._error(self.best)

    @cached_property
    def layers(self) -> Layers:
        return self._layers or find_layers(self.model, self.learning.batches[0])

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """The float generator as its single layers compare with those of the start: see ``Recovered.floats``."""
        with substituted(self.model, self.bank.floats):
            yield

    def with_found(self, found: Recovered) -> WeightBank:
        """The weights that a recovery makes."""
        return self.bank.recovered(self.bitmap, found)

    def show(self, found: Recovered) -> float:
        """Mean squared error of a recovery on the inputs kept back; the best so far is kept.

        What is not finite, itself or in its images, has an infinite error.
        """
        numbers = [*found.tensors.values(), *(n for own in found.weights.values() for n in own.learnable.values())]
        if not all(bool(own.isfinite().all()) for own in numbers):  # rounded activations hide it from the images
            return math.inf
        try:
            error = self._error(found)
        except NotFinite:
            return math.inf
        if error < self.error:
            self.best, self.error = found, error
        return error

    def _error(self, found: Recovered) -> float:
        bank = self.with_found(found)
        with applied(self.model, bank.normalised(self.bitmap), bank):
            errors = [
                paired_errors(self.model, self._judging, batch, images) for batch, images in enumerate(self._images)
            ]
        return float(torch.cat(errors).mean())


def order(count: int, steps: int, seed: int) -> Iterator[int]:
    """Batches in random order, each as often as the others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(count, generator=generator).tolist():
            if steps == 0:
                return
            steps -= 1
            yield batch
