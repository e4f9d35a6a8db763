"""How inputs of layers are rounded: static affine activations, their ranges fitted on calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, output
from mpsearch.errors import UsageError
from mpsearch.model import input_axis, inputs_mapped, owner
from mpsearch.quant.rounding import rounding_errors
from mpsearch.types import Range, RangeFit, Ranges

SAMPLES = 2**16  # values kept a layer; range error falls with their square root and is below 1 % here
GRID = 8  # candidate ranges of each of two rounds, the second around the best of the first


class Grid(Protocol):
    """How a layer's input is rounded."""

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded, same shape and dtype; differentiable."""
        ...

    def levels(self, x: Tensor) -> Tensor:
        """Step, its inverse, lowest and highest code beside zero; float32, ``(4, …)``, broadcasting with ``x``."""
        ...


@dataclass(frozen=True, eq=False)
class InputGrid:
    """How a layer's input is rounded: unsigned integers over a range, in which zero is always exact.

    Tensors that meet in a skip connection seldom have one range (Q-Diffusion, Li et al., ICCV 2023); a runtime rounds
    each before it joins them.

    Attributes:
        ranges: one for the whole input, or for so many channels each, in their order: those of every tensor that it is
            joined from, or single ones.
        bits: of the codes.
        axis: of the channels.
    """

    ranges: Ranges
    bits: int
    axis: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded, same shape and dtype; gradients pass straight through where nothing is clipped."""
        scale, zero_point = self._steps
        values, most = x.float(), top(self.bits)
        if len(self.ranges) > 1 and len(scale) != x.shape[self.axis]:
            raise UsageError(f"the map has activation ranges for {len(scale)} channels, the input {x.shape[self.axis]}")
        if not (torch.is_grad_enabled() and x.requires_grad):
            rounded = nearest(values, self.levels(x))  # the same numbers, in half the time
        elif len(self.ranges) == 1:
            rounded = torch.fake_quantize_per_tensor_affine(values, scale.item(), int(zero_point), 0, most)
        else:
            steps = scale.float().to(x.device), zero_point.int().to(x.device)
            rounded = torch.fake_quantize_per_channel_affine(values, *steps, self.axis % x.ndim, 0, most)
        return rounded.to(x.dtype)

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, one a channel or one for all."""
        ends = torch.tensor([(low, high) for low, high, _ in self.ranges], dtype=torch.float64)
        if len(self.ranges) > 1:
            ends = ends.repeat_interleave(torch.tensor([channels for *_, channels in self.ranges]), dim=0)
        return _steps(ends[:, 0], ends[:, 1], self.bits)

    def levels(self, x: Tensor) -> Tensor:
        """See :class:`Grid`."""
        spread = [1] * x.ndim
        if len(self.ranges) > 1:
            spread[self.axis] = x.shape[self.axis]
        return self._levels.to(x.device).view(4, *spread)

    @cached_property
    def _levels(self) -> Tensor:
        return _levels(*self._steps, self.bits)


def input_errors(x: Tensor, grids: Sequence[Grid]) -> Tensor:
    """``grid(x) − x`` on every grid of one layer in float32, ``(grids, elements of x)``."""
    values = x.detach().float()
    errors = values.new_empty(len(grids), *values.shape)
    for grid, out in zip(grids, errors, strict=True):
        nearest(values, grid.levels(values), out).sub_(values)
    return errors.flatten(1)


def top(bits: int) -> int:
    """Largest code."""
    return (1 << bits) - 1


def _steps(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the ranges ``low … high``, float64, in their shape."""
    scale = ((high - low) / top(bits)).clamp_min(1e-12)
    return scale, (-low / scale).round().clamp(0, top(bits))


def _levels(scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Scale, its inverse, lowest and highest code beside zero; float32, ``(4, …)``."""
    step = scale.float()
    return torch.stack([step, 1 / step, -zero_point.float(), (top(bits) - zero_point).float()])


def nearest(x: Tensor, levels: Tensor, out: Tensor | None = None) -> Tensor:
    """``x`` rounded on grids that it broadcasts with, see :meth:`Grid.levels`."""
    scale, inverse, low, high = levels
    # clamp_(low, high) is the same; between tensors it takes five times as long
    return torch.mul(x, inverse, out=out).round_().clamp_min_(low).clamp_max_(high).mul_(scale)


class Observed:
    """What a layer read: the extremes and a random sample of everything that has a range of its own.

    Args:
        layer: its name.
        channels: that each range holds for; () = one for all.
        axis: of the channels.
        share: values kept a batch, of each tensor that the input is joined from.
        seed: of the samples.
    """

    def __init__(self, layer: str, channels: Sequence[int], axis: int, share: int, seed: int) -> None:
        self._layer = layer
        self._channels = tuple(channels)
        self._axis = axis
        self._single = bool(channels) and set(channels) == {1}
        self._parts = [_Values(share, seed) for _ in ((0,) if self._single else channels or (0,))]

    def __call__(self, x: Tensor) -> Tensor:
        """Take note of ``x``, and return it unchanged."""
        for rows, values in zip(self._rows(x.detach()), self._parts, strict=True):
            values.note(rows)
        return x

    def _rows(self, x: Tensor) -> list[Tensor]:
        """``(values, ranges)`` of everything that is kept apart."""
        if self._single:
            return [x.movedim(self._axis, -1).reshape(-1, len(self._channels))]
        pieces = torch.split(x, list(self._channels), dim=self._axis) if self._channels else [x]
        return [piece.reshape(-1, 1) for piece in pieces]

    def settle(self) -> None:
        """A batch is done: a layer that it called many times, as samplers do, keeps no more than others."""
        for values in self._parts:
            values.settle()

    def values(self) -> list[Tensor]:
        """The samples, float32, ``(values, ranges)`` of everything that is kept apart.

        Raises:
            UsageError: nothing was read.
        """
        if not self._parts[0].kept:
            raise UsageError(f"{self._layer} is never called on these inputs: its activations cannot be quantized")
        # A channel has few samples, perhaps none in the tail that a shrunken range clips: its extremes count as well.
        return [torch.cat([*part.kept, *[part.low[None], part.high[None]] * self._single]) for part in self._parts]

    def grid(self, bits: int, fit: RangeFit = "mse") -> InputGrid:
        """The ranges, as ``fit`` asks for.

        Args:
            bits: of the codes.
            fit: ``mse`` = of shrunken copies of the extremes that of least squared rounding error of the samples,
                ``minmax`` = the extremes, a number = what so many percent of the samples lie in, half of the rest on
                each side, and zero.

        Raises:
            UsageError: nothing was read.
        """
        pairs = zip(self.values(), self._parts, strict=True)
        ends = torch.cat([_ends(values, part.low, part.high, bits, fit) for values, part in pairs])
        counts = self._channels or (0,)
        return InputGrid(
            tuple(Range(low, high, count) for (low, high), count in zip(ends.tolist(), counts, strict=True)),
            bits,
            self._axis,
        )


class _Values:
    """Extremes and samples of columns that have a range each."""

    def __init__(self, share: int, seed: int) -> None:
        self.low = self.high = torch.zeros(1)
        self.kept: list[Tensor] = []
        self._share = share  # values kept a batch
        self._calls: list[Tensor] = []  # what is kept of those of the batch at hand
        self._generator = torch.Generator().manual_seed(seed)

    def note(self, rows: Tensor) -> None:
        low, high = torch.aminmax(rows, dim=0)
        self.low = torch.minimum(self.low.to(rows.device), low.float())
        self.high = torch.maximum(self.high.to(rows.device), high.float())
        self._calls.append(self._some(rows).float())

    def settle(self) -> None:
        if self._calls:
            self.kept.append(self._some(torch.cat(self._calls)))
        self._calls = []

    def _some(self, rows: Tensor) -> Tensor:
        count = max(self._share // rows.shape[1], 1)
        if len(rows) <= count:
            return rows
        spots = torch.randint(len(rows), (count,), generator=self._generator)
        return rows[spots.to(rows.device)]


def observe(
    model: nn.Module,
    calibration: Calibration,
    places: Mapping[str, Iterable[str]],
    parts: Mapping[str, Sequence[int]],
) -> tuple[list[Tensor], dict[str, Observed]]:
    """One pass of the float generator: its images, one tensor a batch, and what every layer read.

    Args:
        model: the float generator.
        calibration: the inputs.
        places: layer → every name that its tied copies are read under.
        parts: layer → the channels that each range of its input holds for; () = one for all.
    """
    share = max(SAMPLES // len(calibration), 1)
    axes = {name: input_axis(owner(model, place)[0]) or 1 for name, (place, *_) in places.items()}
    taps = {name: Observed(name, parts[name], axes[name], share, calibration.seed) for name in places}
    images = []
    with inputs_mapped(model, {place: tap for name, tap in taps.items() for place in places[name]}):
        for batch in range(len(calibration)):
            images.append(output(model, calibration, batch))
            for tap in taps.values():
                tap.settle()
    return images, taps


def _ends(values: Tensor, low: Tensor, high: Tensor, bits: int, fit: RangeFit) -> Tensor:
    """``(values, ranges)`` and the extremes of each → ``(ranges, 2)``, float32."""
    if fit == "mse":
        return _fit(values, low, high, bits)
    if fit == "minmax":
        return torch.stack([low, high], dim=1)
    tail = (1 - float(fit) / 100) / 2
    inside = torch.quantile(values, values.new_tensor([tail, 1 - tail]), dim=0)
    return torch.stack([inside[0].clamp(max=0), inside[1].clamp(min=0)], dim=1)


def _fit(values: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """``(values, ranges)`` and the extremes of each → ``(ranges, 2)``, float32 as the packed file stores them: what is
    loaded rounds exactly as what was searched."""
    # The two ends shrink together; one-sided data has only one end.
    ends = torch.stack([low, high]).double()[:, :, None]
    errors = rounding_errors(values.T.contiguous(), top(bits))

    def best(shares: Tensor) -> Tensor:
        """Of the shares of the extremes, ``(ranges, candidates)``, the best of every range, ``(ranges, 1)``."""
        lows, highs = (ends * shares).float().double()
        step, zero_point = _steps(lows, highs, bits)
        found = errors(top(bits), step, -zero_point).where((shares > 0) & (shares <= 1), torch.inf)
        return shares.gather(1, found.argmin(1, keepdim=True))

    shares = 1 - torch.arange(GRID, dtype=torch.float64, device=values.device) / GRID
    share = best(shares.expand(len(low), -1))
    around = torch.arange(GRID - 1, -GRID, -1, dtype=torch.float64, device=values.device) / GRID**2
    return (ends * best(share + around))[:, :, 0].float().T
