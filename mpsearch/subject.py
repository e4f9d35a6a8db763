"""``Subject``: a generator on the table, with everything about it that is worth computing once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, Progress, output, outputs, paired_errors, silent
from mpsearch.errors import ArtifactError, ModelError
from mpsearch.model import Reuse
from mpsearch.quant import Grid, InputGrid, Observed, WeightBank, applied, input_grid, observe
from mpsearch.types import FLOAT, BitMap, Format, Layer, Layers, Measured, activations_of

HOPELESS = 4.0  # standard errors
FEW = 8  # samples that say nothing about hope,
WORSE = 2.0  # unless they alone outweigh the rival's whole error so many times: errors are never negative
SAME = 1e-3  # of the largest pixel: kernels differ in the last bits between batch sizes
Memo = MutableMapping[str, list[float]]  # what was measured once, by name; a run folder keeps it on disk


class Subject:
    """A generator, its layers and its calibration inputs; estimators and solvers ask it for the truth.

    Attributes:
        model: the caller's generator, never changed.
        layers: what may be quantized.
        calibration: the inputs on which damage is measured.
        memo: finished measurements by name; nothing that stands in it is measured again.
        progress: told about long work.
        evaluations: true evaluations spent, those found in ``memo`` included.
        asked: keys of the maps whose true error was asked for, since someone emptied it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        calibration: Calibration,
        memo: Memo | None = None,
        progress: Progress = silent,
    ) -> None:
        self.model = model
        self.layers = layers
        self.calibration = calibration
        self.memo: Memo = {} if memo is None else memo
        self.progress = progress
        self.evaluations = 0
        self.asked: set[str] = set()
        self._whole: Subject | None = None  # the subject that this is a part of
        self._grids: dict[tuple[str, Format], Grid] = {}
        self._least = math.inf  # error of the map whose activations are kept
        self._parts: dict[tuple[int, int], list[tuple[tuple[Any, ...], Tensor]]] = {}

    @cached_property
    def bank(self) -> WeightBank:
        return WeightBank(self.model)

    @cached_property
    def _observed(self) -> tuple[list[Tensor], dict[str, Observed]]:
        """The one pass of the float generator over all inputs: its images, and what the layers read."""
        places = {layer.name: self.bank.site(layer.name).places for layer in self.layers if layer.act_elements}
        parts = {layer.name: layer.input_parts for layer in self.layers}
        images, seen = observe(self.model, self.calibration, places, parts)
        again = output(self.model, self.calibration, 0)
        if (gap := (again - images[0]).abs().max().item()) > SAME * images[0].abs().max().item():
            raise ModelError(
                f"two runs of the generator on the same inputs differ by {gap:.3g}: what it draws at random must come "
                "from the global generators of torch, numpy or Python, and nothing may change from call to call"
            )
        return images, seen

    @property
    def reference(self) -> list[Tensor]:
        """Images of the float generator, one tensor a batch."""
        return self._observed[0]

    @cached_property
    def peak(self) -> float:
        """Range of the float images, the peak of a PSNR."""
        return max(images.max().item() for images in self.reference) - min(
            images.min().item() for images in self.reference
        )

    @property
    def samples(self) -> int:
        return sum(len(images) for images in self.reference)

    def weight(self, layer: Layer, format: Format) -> Tensor:
        """What ``layer`` computes with in a format; its float weight where it cannot take that."""
        return self.bank.dequantized(layer.name, format if layer.allows(format.weight_only) else FLOAT)

    def weights(self, layer: Layer, formats: Sequence[Format]) -> Iterator[Tensor]:
        """:meth:`weight` in every format."""
        self.bank.quantize(layer.name, filter(layer.allows, formats))
        return (self.weight(layer, format) for format in formats)

    def grids(self, formats: Iterable[Format]) -> dict[tuple[str, Format], Grid]:
        """(layer, activations alone) → how its input is rounded, for every layer and all activations in ``formats``;
        ranges are fitted on the calibration inputs."""
        if self._whole is not None:
            return self._whole.grids(formats)
        keys = [(name, act) for name in self._observed[1] for act in activations_of(formats)]
        found = {key: self._grids.get(key) or self._grid(*key) for key in keys}
        self._grids |= found
        return found

    def _grid(self, layer: str, act: Format) -> Grid:
        assert act.act_bits is not None
        seen, fit = self._observed[1][layer], self.layers[layer].range_fit
        ranges = seen.grid(act.act_bits, fit).ranges if act.ranged else ()
        return input_grid(act, ranges, self.bank.site(layer).input_axis)

    def with_ranges(self, bitmap: BitMap) -> BitMap:
        """The map with the calibrated range of every activation that needs one."""
        grids = self.grids(bitmap.values()).items()
        fitted = {key: grid.ranges for key, grid in grids if isinstance(grid, InputGrid)}
        return bitmap.with_ranges({n: fitted[n, f.act_only] for n, f in bitmap.items() if f.ranged})

    def error(self, bitmap: BitMap, rival: Measured | None = None) -> Measured:
        """True paired mean squared error of a whole map, with its standard error over samples.

        Convolutions and linear layers before the first change to the best map so far return what they returned then
        (:class:`mpsearch.model.Reuse`): the numbers are the same, bit for bit.

        Args:
            bitmap: the map.
            rival: a measured map to beat. A map that is worse by ``HOPELESS`` standard errors of the paired difference
                after some of the batches is not run on the rest; the answer then covers the samples seen.
        """
        key = f"errors {bitmap.key}"
        self.evaluations += 1
        self.asked.add(bitmap.key)
        if key in self.memo or rival is None:
            samples = self.recall(key, None, lambda: self._errors(bitmap, None))
        elif len(samples := self._errors(bitmap, rival)) == self.samples:
            samples = self.recall(key, None, lambda: samples)
        return Measured(*mean_and_stderr(samples), len(samples), samples=tuple(samples))

    def _errors(self, bitmap: BitMap, rival: Measured | None) -> list[float]:
        """Error of every sample, those of the remaining batches left out where the map cannot beat the rival."""
        reference = self.reference  # made by the float generator: before the map is on it
        whole = self.with_ranges(bitmap)
        formats = {layer.name: str(whole.get(layer.name, FLOAT)) for layer in self.layers}
        samples: list[float] = []
        with applied(self.model, whole, self.bank) as weights:
            for batch, expected in enumerate(reference):
                with self._reuse.watching(batch, formats, weights):
                    errors = paired_errors(self.model, self.calibration, batch, expected)
                samples += map(float, errors)
                if rival is not None and batch + 1 < len(reference) and hopeless(samples, rival.samples):
                    break
        error = sum(samples) / len(samples)
        best = len(samples) == self.samples and error < self._least
        self._reuse.settle(best)
        self._least = error if best else self._least
        return samples

    @cached_property
    def _reuse(self) -> Reuse:
        return Reuse({layer.name: [module for module, _ in self.bank.site(layer.name).owners] for layer in self.layers})

    def parts(self, batch: int, wanted: int) -> list[tuple[tuple[Any, ...], Tensor]]:
        """One batch cut into at most ``wanted`` parts, as (arguments, float images) each.

        A generator whose samples depend on each other (noise drawn for the batch, batch statistics) gives other images
        in parts; its batch stays whole.
        """
        if (batch, wanted) not in self._parts:
            self._parts[batch, wanted] = self._cut(batch, wanted)
        return self._parts[batch, wanted]

    def _cut(self, batch: int, wanted: int) -> list[tuple[tuple[Any, ...], Tensor]]:
        images = self.reference[batch]
        count = min(wanted, len(images))
        whole = [(self.calibration.batches[batch], images)]
        if count < 2:
            return whole
        cut = list(zip(self.calibration.cut(batch, len(images), count), images.tensor_split(count), strict=True))
        halves = list(zip(self.calibration.cut(batch, len(images), 2), images.tensor_split(2), strict=True))
        # Every sample once, away from half of the others, and one part of each size.
        args, expected = zip(*halves, cut[0], cut[-1], strict=True)
        try:
            found = outputs(self.model, Calibration(args, self.calibration.run(batch)[0]))
        except Exception:  # whatever a model that wants its batch whole says
            return whole
        size = images.abs().max().item()
        if any(a.shape != b.shape or (a - b).abs().max() > SAME * size for a, b in zip(found, expected, strict=True)):
            return whole
        return cut

    def part(self, rows: Tensor) -> Subject:
        """The same generator on some of the samples, with the activation ranges of all of them."""
        part = Subject(self.model, self.layers, self.calibration.some(rows), progress=self.progress)
        part.bank, part._whole = self.bank, self
        return part

    def recall(self, name: str, count: int | None, measure: Callable[[], list[float]]) -> list[float]:
        """The ``count`` numbers measured once under ``name``, in this process or an earlier one; None = any number."""
        if name not in self.memo:
            self.memo[name] = measure()
        if count not in (None, len(self.memo[name])):
            raise ArtifactError(f"the stored measurement {name[:60]!r} has {len(self.memo[name])} values, not {count}")
        return self.memo[name]

    def images(self, bitmap: BitMap) -> list[Tensor]:
        """Images of the generator under a map, on the calibration inputs."""
        with applied(self.model, self.with_ranges(bitmap), self.bank):
            return outputs(self.model, self.calibration)


def hopeless(samples: Sequence[float], rival: Sequence[float]) -> bool:
    """Whether the first samples of a map leave no hope that all of them together beat the rival's."""
    if len(samples) < len(rival) / 4:
        return False
    if sum(samples) > WORSE * sum(rival):
        return True
    if len(samples) < FEW:
        return False
    mean, stderr = mean_and_stderr([mine - other for mine, other in zip(samples, rival, strict=False)])
    return mean > HOPELESS * stderr


def mean_and_stderr(values: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the latter is 0 for a single value."""
    values = torch.as_tensor(values, dtype=torch.float64)
    spread = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return values.mean().item(), spread
