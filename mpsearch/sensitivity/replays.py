"""What each layer makes of its float inputs, and what it would make of them in other formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from mpsearch.model import evaluating, forward
from mpsearch.model.calls import Replay, calls_visited, closest, modules_called
from mpsearch.quant import applied
from mpsearch.subject import Subject
from mpsearch.types import FLOAT, BitMap, Format, Table

Changed = Callable[[Format], Tensor]
Score = Callable[[Tensor], Callable[[Tensor], Tensor]]


class Replays:
    """Visits the layers of a generator while it runs on its calibration inputs.

    A layer's output is that of the module that owns its weight. A weight that no called module owns (the output
    projection of ``nn.MultiheadAttention``, a layer that the generator never runs) belongs to the closest ancestor that
    is called: a layer that nothing reads then changes nothing, as ``perturbation`` finds too.

    Args:
        subject: the generator.
        formats: those that visitors will ask for.
    """

    def __init__(self, subject: Subject, formats: Sequence[Format] = ()) -> None:
        self.subject, self.formats = subject, formats

    @cached_property
    def called(self) -> set[str]:
        """Paths of the modules that have an output."""
        seed, args = self.subject.calibration.run(0)
        return set(modules_called(self.subject.model, args, seed))

    def paths(self, layer: str) -> list[str]:
        """Paths of the modules that own a layer, called or not."""
        return [place.rpartition(".")[0] for place in self.subject.bank.site(layer).places]

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """Path of a called module → the layers whose output it makes."""
        found: dict[str, list[str]] = {}
        for layer in self.subject.layers:
            for path in dict.fromkeys(closest(path, self.called) for path in self.paths(layer.name)):
                found.setdefault(path, []).append(layer.name)
        return found

    @cached_property
    def maps(self) -> dict[tuple[str, Format], BitMap]:
        """Each layer in each format alone, with the activation range that it needs."""
        layers = self.subject.layers
        cells = [(layer.name, format) for layer in layers for format in layers.choices(layer, self.formats)]
        return {(name, format): self.subject.with_ranges(BitMap({name: format})) for name, format in cells}

    def visit(self, batch: int, visitor: Callable[[str, Tensor, Changed], None]) -> None:
        """Run one batch; for every call of every layer, in order, ``visitor(layer, output, changed)``.

        ``output`` is what the layer makes of its float input, ``changed(format)`` what it makes of it in a format.
        """
        subject, maps = self.subject, self.maps

        def visit_module(names: Sequence[str], replay: Replay) -> None:
            output = replay()
            for name in names:

                def changed(format: Format, name: str = name) -> Tensor:
                    with applied(subject.model, maps[name, format], subject.bank):
                        return replay()

                visitor(name, output, changed)

        visitors = {path: partial(visit_module, names) for path, names in self.users.items()}
        seed, args = subject.calibration.run(batch)
        with evaluating(subject.model), torch.no_grad(), calls_visited(subject.model, visitors):
            forward(subject.model, args, seed)


def replayed_table(subject: Subject, formats: Sequence[Format], source: str, measure: str, score: Score) -> Table:
    """Means of ``score(output)(output in a format - output)`` over the calls of each layer and over all samples.

    ``score`` gets outputs as :func:`per_sample` shapes them and gives one number a sample, ``(samples,)``; the standard
    error is that over samples. What is remembered is the sum of the numbers of each batch, and of their squares.
    """
    layers = subject.layers
    columns = layers.columns(formats)
    replays = Replays(subject, formats)
    sums = np.zeros((2, len(layers), len(columns)))
    what = ",".join([*(layer.name for layer in layers), *map(str, columns)])
    for batch in range(len(subject.calibration)):
        subject.progress(source.partition("(")[0], batch, len(subject.calibration))
        share = subject.recall(f"{source} batch {batch} of {what}", sums.size, partial(_sums, replays, batch, score))
        sums += np.reshape(share, sums.shape)
    subject.progress(source.partition("(")[0], len(subject.calibration), len(subject.calibration))
    n = subject.samples
    mean = sums[0] / n
    variance = np.maximum(sums[1] / n - mean**2, 0) / max(n - 1, 1)  # of the mean
    allowed = layers.allowed(formats, columns)
    values, stderr = (np.where(allowed, found, np.nan) for found in (mean, np.sqrt(variance)))
    return Table(layers.units, columns, values, stderr, measure, source)


def _sums(replays: Replays, batch: int, score: Score) -> list[float]:
    """Sums over the samples of one batch of their scores and of the squares of those, ``(2, layers, formats)`` flat."""
    layers = replays.subject.layers
    columns = layers.columns(replays.formats)
    samples = len(replays.subject.reference[batch])
    rows = {layer.name: row for row, layer in enumerate(layers)}
    scores = np.zeros((len(layers), len(columns), samples))
    calls = np.zeros((len(layers), 1, 1))

    def visitor(name: str, output: Tensor, changed: Changed) -> None:
        calls[rows[name]] += 1
        before = per_sample(output, samples)
        scored = score(before)
        for format in layers.choices(layers[name], replays.formats):
            if format != FLOAT:
                change = per_sample(changed(format), samples) - before
                scores[rows[name], columns.index(format)] += scored(change).cpu().numpy()

    replays.visit(batch, visitor)
    scores /= np.maximum(calls, 1)
    return list(map(float, np.stack([scores.sum(2), np.square(scores).sum(2)]).ravel()))


def per_sample(output: Tensor, samples: int) -> Tensor:
    """``(samples, channels, features)`` of a layer's output, in float32 or more.

    The first axis is taken to count samples, or a multiple of them, those of one sample together; the second counts
    channels or tokens. An output whose first axis cannot (a constant, a table) is repeated for every sample.
    """
    output = output if output.dtype == torch.float64 else output.float()
    if not output.ndim or len(output) % samples:
        return output.reshape(1, 1, -1).expand(samples, -1, -1)
    channels = output.shape[1] if output.ndim > 2 else 1
    return output.reshape(samples, -1, channels, output[0].numel() // channels).transpose(1, 2).flatten(2)
