"""``scales``: search the scales of weights and the ranges of activations again, for what layers give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.model import evaluating, input_axis, inputs_mapped, substituted
from mpsearch.model.calls import Call, calls_of, modules_called
from mpsearch.quant import InputGrid, Integers, Recovered, applied
from mpsearch.recovery.reconstruction import image_error, roundable
from mpsearch.recovery.trial import Trial
from mpsearch.types import BitMap, Range

Rule = Literal["output", "pearson", "mse", "percentile", "minmax"]
AROUND = (0.8, 0.9, 1.1, 1.2)  # times the grid of least squared error of the weights
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the largest weight
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)  # of the range at hand
TAILS = (1e-3, 1e-4)  # shares of values beyond a percentile
MANY = 1 << 30  # calls: all of them
FEW = 1 << 16  # values that a percentile is taken of


@dataclass(frozen=True)
class RangeSearch:
    """Scales and ranges chosen among many, a layer after the other, each for what it reads under the map so far.

    A scale is that of an output channel, or of a group of its weights: the largest weight, two percentiles, that of
    least squared error of the weights, and some between and around; with a zero point it is both ends that move. A
    range is that of a tensor: its extremes, percentiles, and multiples of the one at hand, chosen for the squared error
    of what the layer gives. A layer that does not bring the images closer to the float ones stays as it was. Layers of
    integers take part, whatever their scales and zero points.

    Attributes:
        rule: by which a channel chooses. ``output``: the squared error of what it gives (output-aware). ``pearson``:
            the correlation of that with what it gives in float (EasyQuant, Wu et al. 2020, takes cosines). ``mse``,
            ``percentile``, ``minmax``: no choice.
        lessons: batches of the inputs to look at, at most.
    """

    rule: Rule = "output"
    lessons: int = 4

    def __post_init__(self) -> None:
        if self.lessons < 1:
            raise UsageError(f"scales needs lessons of 1 or more, not {self.lessons}")

    def __call__(self, trial: Trial) -> None:
        places = {own: layer for layer, own in roundable(trial).items()}
        seed, args = trial.learning.run(0)
        called = {path: at for at, path in enumerate(modules_called(trial.model, args, seed))}
        ordered = sorted((p for p in places if _path(p) in called), key=lambda place: called[_path(place)])
        batches = range(min(self.lessons, len(trial.learning)))
        best = Recovered()
        least = image_error(trial, best, batches)
        for at, place in enumerate(ordered):
            for found in self._layer(trial, best, places[place], place):
                if (error := image_error(trial, found, batches)) < least:
                    best, least = found, error
            trial.progress("range search", at + 1, len(ordered))
        trial.show(best)

    def _layer(self, trial: Trial, now: Recovered, layer: str, place: str) -> list[Recovered]:
        """What to try: the layer with another scale a channel, with another range, with both."""
        bank, format = trial.with_found(now), trial.bitmap[layer]
        stored, module = bank.quantized(layer, format), trial.model.get_submodule(_path(place))
        if not isinstance(stored, Integers) or input_axis(module) is None:
            return []
        open_map = BitMap({**trial.bitmap, layer: format.weight_only}, trial.bitmap.ranges)
        calls: list[Call] = []
        with applied(trial.model, open_map, bank):
            for batch in range(min(self.lessons, len(trial.learning))):
                seed, args = trial.learning.run(batch)
                calls += calls_of(trial.model, module, args, seed, MANY)
        with evaluating(module), torch.no_grad(), substituted(trial.model, {**bank.floats, **bank.tensors}):
            targets = [call.again(module) for call in calls]

            def outputs(weight: Tensor, grid: InputGrid | None) -> list[Tensor]:
                grids = {} if grid is None else {place: grid}
                with substituted(trial.model, {place: weight}), inputs_mapped(trial.model, grids):
                    return [call.again(module) for call in calls]

            ranges = bank.ranges.get(layer, trial.bitmap.ranges.get(layer, ())) if format.ranged else ()
            grid = InputGrid(ranges, format.act_bits or 8, input_axis(module) or 1) if ranges else None
            scaled = self._scaled(stored, bank.weight(layer), module, targets, lambda weight: outputs(weight, grid))
            tried = [Recovered({**now.weights, layer: scaled}, ranges=now.ranges)]
            if grid is not None and len(ranges) == 1:
                for weights in (now.weights, tried[0].weights):
                    own = weights.get(layer, stored).dequantized()
                    other = _ranged(grid, calls, lambda at, own=own: _gap(outputs(own, at), targets))  # type: ignore[misc]
                    tried.append(Recovered(weights, ranges={**now.ranges, layer: other}))
        return tried

    def _scaled(
        self,
        stored: Integers,
        weight: Tensor,
        module: nn.Module,
        targets: Sequence[Tensor],
        outputs: Callable[[Tensor], list[Tensor]],
    ) -> Integers:
        """The layer with the scale of every channel that the rule prefers."""
        made = _candidates(stored, weight, self.rule)
        axis, channels = input_axis(module) or 0, weight.shape[stored.axis]
        scores = [_score(self.rule, outputs(form.dequantized()), targets, axis, channels) for form in made]
        chosen, best = torch.stack(scores).argmin(0), made[0]
        for number, form in enumerate(made):
            best = best.with_channels(chosen == number, form)
        return best


def _candidates(stored: Integers, weight: Tensor, rule: Rule) -> list[Integers]:
    """A layer on the grids that a rule may choose among."""
    pieces = stored.pieces(weight)
    low, high = _tails(pieces, 0.0)
    shares = [(low * share, high * share) for share in SHARES]
    tails = [_tails(pieces if stored.format.zero else pieces.abs(), tail) for tail in TAILS]
    known = {"mse": [], "minmax": shares[:1], "percentile": tails}
    first, last = stored.ends
    near = [(first * times, last * times) for times in AROUND]
    ends = known.get(rule, [*tails, *shares, *near])
    made = [stored.between(weight, *pair) for pair in ends]
    return [*made, stored] if rule in ("mse", "output", "pearson") else made


def _tails(pieces: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """What all but this share of the values lie under, and what all but this share lie above; zero between them."""
    last = pieces.shape[1]
    most = min(max(round((1 - share) * last), 1), last)
    low, high = (pieces.kthvalue(k, 1, keepdim=True).values for k in (last + 1 - most, most))
    return low.clamp_max(0), high.clamp_min(0)


def _ranged(grid: InputGrid, calls: Sequence[Call], gap: Callable[[InputGrid], float]) -> tuple[Range, ...]:
    """The range of least gap among multiples of the one at hand, percentiles and the extremes."""
    (now,) = grid.ranges
    values = torch.cat([call.args[0].detach().float().flatten() for call in calls if call.args])
    some = values[:: max(1, len(values) // FEW)]
    ends = [(now.low * width, now.high * width) for width in WIDTHS]
    ends += [(values.min().item(), values.max().item())]
    ends += [(torch.quantile(some, tail).item(), torch.quantile(some, 1 - tail).item()) for tail in TAILS]
    tried = [replace(grid, ranges=(Range(min(low, 0.0), max(high, 0.0)),)) for low, high in ends]
    return min(tried, key=gap).ranges


def _score(rule: Rule, outputs: Sequence[Tensor], targets: Sequence[Tensor], axis: int, channels: int) -> Tensor:
    """``(channels,)``: less is better. Groups of a transposed convolution share the scales of their channels."""

    def by_channel(values: Tensor) -> Tensor:
        outputs = values.movedim(axis % values.ndim, 0)
        return outputs.reshape(-1, channels, *outputs.shape[1:]).movedim(1, 0).flatten(1).double()

    ours, theirs = (torch.cat(list(map(by_channel, side)), dim=1) for side in (outputs, targets))
    if rule != "pearson":
        return (ours - theirs).square().sum(1)
    ours, theirs = ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True)
    size = (ours.square().sum(1) * theirs.square().sum(1)).sqrt()
    return -(ours * theirs).sum(1) / size.clamp_min(1e-30)


def _gap(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    return sum((own - other).double().square().sum().item() for own, other in zip(outputs, targets, strict=True))


def _path(place: str) -> str:
    return place.rpartition(".")[0]
