"""Static affine activations per tensor, their range fitted on calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, output
from mpsearch.errors import UsageError
from mpsearch.model import inputs_mapped

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

    def column(values: Iterable[float]) -> Tensor:
        return torch.from_numpy(np.array(list(values), np.float32)[:, None]).to(x.device)

    flat, scale = x.detach().float().reshape(1, -1), column(grid.scale for grid in grids)
    low, high = column(-grid.zero_point for grid in grids), column(grid.top - grid.zero_point for grid in grids)
    codes = torch.mul(flat, 1 / scale).round_()
    return torch.maximum(torch.minimum(codes, high, out=codes), low, out=codes).mul_(scale).sub_(flat)


class Observed:
    """What a layer read: the extremes, and a random sample of the values."""

    def __init__(self, layer: str, share: int, seed: int) -> None:
        self._layer = layer
        self.low = 0.0
        self.high = 0.0
        self._share = share  # values kept a batch
        self._kept: list[Tensor] = []
        self._calls: list[Tensor] = []  # what is kept of those of the batch at hand
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Take note of ``x``, and return it unchanged."""
        low, high = torch.aminmax(x.detach())
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        self._calls.append(self._some(x.detach().reshape(-1)).float())
        return x

    def settle(self) -> None:
        """A batch is done: a layer that it called many times, as samplers do, keeps no more than others."""
        if self._calls:
            self._kept.append(self._some(torch.cat(self._calls)))
        self._calls = []

    def values(self) -> Tensor:
        """The sample, float32.

        Raises:
            UsageError: nothing was read.
        """
        if not self._kept:
            raise UsageError(f"{self._layer} is never called on these inputs: its activations cannot be quantized")
        return torch.cat(self._kept)

    def range(self, bits: int) -> ActivationRange:
        """The range of least squared rounding error of the sample among shrunken copies of the extremes."""
        return _fit(self.values(), self.low, self.high, bits)

    def _some(self, values: Tensor) -> Tensor:
        if len(values) <= self._share:
            return values
        spots = torch.randint(len(values), (self._share,), generator=self._generator)
        return values[spots.to(values.device)]


def observe(
    model: nn.Module, calibration: Calibration, places: Mapping[str, Iterable[str]]
) -> tuple[list[Tensor], dict[str, Observed]]:
    """One pass of the float generator: its images, one tensor a batch, and what every layer read.

    Args:
        model: the float generator.
        calibration: the inputs.
        places: layer → every name that its tied copies are read under.
    """
    share = max(SAMPLES // len(calibration), 1)
    taps = {name: Observed(name, share, calibration.seed) for name in places}
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
