"""Static affine activations per tensor, their range fitted on calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration
from mpsearch.errors import UsageError
from mpsearch.model import evaluating, forward, inputs_mapped

SAMPLES = 2**16  # values kept a layer; range error falls with their square root and is below 1 % here
SHRINKS = 40


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
        return torch.tensor(list(values), dtype=torch.float32, device=x.device)[:, None]

    flat, scale = x.detach().float().reshape(1, -1), column(grid.scale for grid in grids)
    low, high = column(-grid.zero_point for grid in grids), column(grid.top - grid.zero_point for grid in grids)
    codes = torch.mul(flat, 1 / scale).round_()
    return torch.maximum(torch.minimum(codes, high, out=codes), low, out=codes).mul_(scale).sub_(flat)


def activation_ranges(
    model: nn.Module,
    widths: Mapping[str, Iterable[int]],
    calibration: Calibration,
    places: Mapping[str, Iterable[str]],
) -> dict[tuple[str, int], ActivationRange]:
    """Fit one range for every (layer, bits) on the inputs that the layer's owners read.

    The range minimises the mean squared rounding error over shrunken copies of the observed minimum and maximum.

    Args:
        model: the float generator.
        widths: layer → activation bits.
        calibration: the inputs.
        places: layer → every name that its tied copies are read under.

    Raises:
        UsageError: a layer is never called, so it reads nothing.
    """
    share = max(SAMPLES // len(calibration), 1)
    taps = {name: _Tap(share, calibration.seed) for name in widths}
    with (
        evaluating(model),
        torch.no_grad(),
        inputs_mapped(model, {place: tap for name, tap in taps.items() for place in places[name]}),
    ):
        for seed, batch in calibration.runs():
            forward(model, batch, seed)
            for tap in taps.values():
                tap.settle()
    ranges = {}
    for name, tap in taps.items():
        if not tap.kept:
            raise UsageError(f"{name} is never called on these inputs: its activations cannot be quantized")
        values = torch.cat(tap.kept)
        for bits in widths[name]:
            ranges[name, bits] = _fit(values, tap.low, tap.high, bits)
    return ranges


class _Tap:
    """Lets a tensor through unchanged, remembering its extremes and a random sample of its values."""

    def __init__(self, share: int, seed: int) -> None:
        self.low = 0.0
        self.high = 0.0
        self.kept: list[Tensor] = []
        self._share = share  # values kept a batch
        self._calls: list[Tensor] = []  # what is kept of those of the batch at hand
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        low, high = torch.aminmax(x.detach())
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        self._calls.append(self._some(x.detach().reshape(-1)).float())
        return x

    def settle(self) -> None:
        """A batch is done: a layer that it called many times, as samplers do, keeps no more than others."""
        if self._calls:
            self.kept.append(self._some(torch.cat(self._calls)))
        self._calls = []

    def _some(self, values: Tensor) -> Tensor:
        if len(values) <= self._share:
            return values
        spots = torch.randint(len(values), (self._share,), generator=self._generator)
        return values[spots.to(values.device)]


def _fit(values: Tensor, low: float, high: float, bits: int) -> ActivationRange:
    # The two ends shrink together; one-sided data has only one end.
    shares = [1 - step / SHRINKS for step in range(SHRINKS)]
    grids = [ActivationRange(_single(low * share), _single(high * share), bits) for share in shares]
    return min(grids, key=lambda grid: activation_errors(values, [grid]).square_().sum().item())


def _single(value: float) -> float:
    """Rounded to float32, as the packed file stores it: what is loaded rounds exactly as what was searched."""
    return torch.tensor(value, dtype=torch.float32).item()
