"""Static affine activations per tensor, their range fitted on calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, output
from mpsearch.errors import UsageError
from mpsearch.model import inputs_mapped
from mpsearch.types import Range, Ranges

SAMPLES = 2**16  # values kept a layer; range error falls with their square root and is below 1 % here
GRID = 8  # candidate ranges of each of two rounds, the second around the best of the first


@dataclass(frozen=True)
class ActivationRange:
    """Unsigned integers of ``bits`` bits over ``low … high``; zero is always exact.

    Attributes:
        low: at most 0.
        high: at least 0.
    """

    low: float
    high: float
    bits: int

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def scale(self) -> float:
        return max((self.high - self.low) / self.top, 1e-12)

    @property
    def zero_point(self) -> int:
        return min(max(round(-self.low / self.scale), 0), self.top)


def quantize_activation(x: Tensor, grid: ActivationRange) -> Tensor:
    """Round ``x`` to the grid; any shape, same dtype."""
    rounded = torch.fake_quantize_per_tensor_affine(x.float(), grid.scale, grid.zero_point, 0, grid.top)
    return rounded.to(x.dtype)


def activation_errors(x: Tensor, grids: Sequence[ActivationRange]) -> Tensor:
    """``quantize_activation(x, grid) − x`` on every grid in float32, ``(grids, elements of x)``."""
    flat = x.detach().float().reshape(1, -1)
    scale, inverse, low, high = _columns(tuple(grids), x.device)
    codes = torch.mul(flat, inverse).round_()
    return torch.maximum(torch.minimum(codes, high, out=codes), low, out=codes).mul_(scale).sub_(flat)


@lru_cache(maxsize=4096)  # a layer is read hundreds of times on the same grids
def _columns(grids: tuple[ActivationRange, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Scale, its inverse, lowest and highest code of every grid, ``(grids, 1)`` each."""
    rows = [(grid.scale, 1 / np.float32(grid.scale), -grid.zero_point, grid.top - grid.zero_point) for grid in grids]
    values = torch.from_numpy(np.array(rows, np.float32).reshape(-1, 4, 1)).to(device)
    return values.unbind(1)


@dataclass(frozen=True)
class InputGrid:
    """How a layer's input is rounded: on one grid, or on one for each tensor of the concatenation that it reads.

    Tensors that meet in a skip connection seldom have one range (Q-Diffusion, Li et al., ICCV 2023); a runtime rounds
    each before it joins them.
    """

    ranges: Ranges
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded; any shape, or ``(N, channels, …)`` for a concatenation; same dtype."""
        pieces = zip(divided(x, self._channels), self.parts, strict=True)
        return joined([quantize_activation(piece, grid) for piece, grid in pieces], dim=1)

    @cached_property
    def parts(self) -> tuple[ActivationRange, ...]:
        return tuple(ActivationRange(low, high, self.bits) for low, high, _ in self.ranges)

    @property
    def _channels(self) -> tuple[int, ...]:
        return tuple(channels for *_, channels in self.ranges)


def input_errors(x: Tensor, grids: Sequence[InputGrid]) -> Tensor:
    """``grid(x) − x`` on every grid of one layer in float32, ``(grids, elements of x)``."""
    if not grids:
        return activation_errors(x, [])
    found = []
    for part, piece in enumerate(divided(x, grids[0]._channels)):
        errors = activation_errors(piece, [grid.parts[part] for grid in grids])
        found.append(errors.view(len(grids), *piece.shape))
    return joined(found, dim=2).flatten(1)


def divided(x: Tensor, channels: Sequence[int]) -> Sequence[Tensor]:
    """The tensors that ``x`` was joined from; ``x`` itself where it was not."""
    return torch.split(x, list(channels), dim=1) if len(channels) > 1 else (x,)


def joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat(list(pieces), dim=dim) if len(pieces) > 1 else pieces[0]


class Observed:
    """What a layer read: of every tensor that its input is joined from, the extremes and a random sample.

    Args:
        layer: its name.
        channels: of those tensors; () for an input that is not joined.
        share: values kept of each and a batch.
        seed: of the samples.
    """

    def __init__(self, layer: str, channels: Sequence[int], share: int, seed: int) -> None:
        self._layer = layer
        self._channels = tuple(channels)
        self._parts = [_Values(share, seed) for _ in channels or (0,)]

    def __call__(self, x: Tensor) -> Tensor:
        """Take note of ``x``, and return it unchanged."""
        for piece, values in zip(divided(x.detach(), self._channels), self._parts, strict=True):
            values.note(piece)
        return x

    def settle(self) -> None:
        """A batch is done: a layer that it called many times, as samplers do, keeps no more than others."""
        for values in self._parts:
            values.settle()

    def values(self) -> list[Tensor]:
        """The samples, float32, one tensor a part.

        Raises:
            UsageError: nothing was read.
        """
        if not self._parts[0].kept:
            raise UsageError(f"{self._layer} is never called on these inputs: its activations cannot be quantized")
        return [torch.cat(part.kept) for part in self._parts]

    def grid(self, bits: int) -> InputGrid:
        """The ranges of least squared rounding error of the samples among shrunken copies of the extremes.

        Raises:
            UsageError: nothing was read.
        """
        pairs = zip(self.values(), self._parts, strict=True)
        fitted = [_fit(values, part.low, part.high, bits) for values, part in pairs]
        channels = self._channels or (0,)
        return InputGrid(tuple(Range(r.low, r.high, c) for r, c in zip(fitted, channels, strict=True)), bits)


class _Values:
    def __init__(self, share: int, seed: int) -> None:
        self.low = 0.0
        self.high = 0.0
        self.kept: list[Tensor] = []
        self._share = share  # values kept a batch
        self._calls: list[Tensor] = []  # what is kept of those of the batch at hand
        self._generator = torch.Generator().manual_seed(seed)

    def note(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        self._calls.append(self._some(x.reshape(-1)).float())

    def settle(self) -> None:
        if self._calls:
            self.kept.append(self._some(torch.cat(self._calls)))
        self._calls = []

    def _some(self, values: Tensor) -> Tensor:
        if len(values) <= self._share:
            return values
        spots = torch.randint(len(values), (self._share,), generator=self._generator)
        return values[spots.to(values.device)]


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
        parts: layer → channels of the tensors that its input is joined from; () = not joined.
    """
    share = max(SAMPLES // len(calibration), 1)
    taps = {name: Observed(name, parts[name], share, calibration.seed) for name in places}
    images = []
    with inputs_mapped(model, {place: tap for name, tap in taps.items() for place in places[name]}):
        for batch in range(len(calibration)):
            images.append(output(model, calibration, batch))
            for tap in taps.values():
                tap.settle()
    return images, taps


def _fit(values: Tensor, low: float, high: float, bits: int) -> ActivationRange:
    # The two ends shrink together; one-sided data has only one end.
    def best(shares: Sequence[float]) -> float:
        grids = [_shrunk(low, high, share, bits) for share in shares]
        return shares[int(activation_errors(values, grids).square_().sum(1).argmin())]

    share = best([1 - step / GRID for step in range(GRID)])
    around = [share + step / GRID**2 for step in range(GRID - 1, -GRID, -1)]
    return _shrunk(low, high, best([share for share in around if 0 < share <= 1]), bits)


def _shrunk(low: float, high: float, share: float, bits: int) -> ActivationRange:
    return ActivationRange(_single(low * share), _single(high * share), bits)


def _single(value: float) -> float:
    """Rounded to float32, as the packed file stores it: what is loaded rounds exactly as what was searched."""
    return float(np.float32(value))
