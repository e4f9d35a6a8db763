"""Activations whose range is that of the sample at hand, found as the layer runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mpsearch.quant.activations import nearest, top
from mpsearch.types.format import Activation

FINEST = 2.0**-22  # of the largest value: float32 tells codes apart up to there


@dataclass(frozen=True)
class DynamicGrid:
    """How a layer's input is rounded: every channel of every sample by itself, to multiples of a step of its own.

    ``d`` is DAQ (Hong et al., "DAQ: Channel-Wise Distribution-Aware Quantization for Deep Image Super-Resolution
    Networks", WACV 2022): the step is a fixed multiple of the channel's deviation, that which rounds a normal
    distribution with the least squared error, and the levels lie around the channel's mean. What the paper's code does
    behind a ReLU is done everywhere: zero is exact, and levels that would lie beyond the least or the largest value
    serve the other side; where there are too many of them, the step shrinks. ``m`` has the step that reaches from the
    least value to the largest. The paper trains away what DAQ clips; without training ``m`` is mostly closer, for
    activations have longer tails than a normal distribution.

    Statistics are over the positions of a channel, or over the tokens of a feature. Where there is one position only,
    as in vectors and images of one pixel, they are over all features of the sample. Where the axis of the channels is
    not known (attention, modulated convolutions), it is the second. Samples do not disturb one another. A runtime needs
    a scale for every input channel, as with ``channel_ranges``, and a pass over the input for its statistics.

    Attributes:
        bits: of the codes.
        act: ``d`` or ``m``.
        axis: of the channels; the first counts samples.
    """

    bits: int
    act: Activation
    axis: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded, same shape and dtype; gradients pass straight through."""
        values = x.float()
        fixed = values.detach()
        return (nearest(fixed, self.levels(fixed)) + (values - fixed)).to(x.dtype)

    def levels(self, x: Tensor) -> Tensor:
        """Step, its inverse, lowest and highest code; float32, ``(4, …)``, broadcasting with ``x``."""
        axis, most = self.axis % x.ndim, top(self.bits)
        alone = math.prod(size for dim, size in enumerate(x.shape) if dim not in (0, axis)) == 1
        kept = {0} - {axis} if alone else {0, axis}
        over = [dim for dim in range(x.ndim) if dim not in kept]
        low, high = x.amin(over, keepdim=True), x.amax(over, keepdim=True)
        step, start = (high - low) / most, low
        if self.act == "d":
            variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
            step = torch.minimum(step, normal_step(self.bits) * variance.sqrt())
            start = mean - step * (most / 2)
        step = torch.maximum(step, torch.maximum(-low, high) * FINEST).clamp_min(1e-30)
        first, last = (low / step).round(), (high / step).round() - most
        start = (start / step).round().minimum(last).maximum(first)
        return torch.stack([step, 1 / step, start, start + most])


@cache
def normal_step(bits: int) -> float:
    """Step of the ``2^bits`` equidistant levels that round a unit normal with the least squared error.

    They lie at ``±½, ±1½, …`` of it (Max, "Quantizing for Minimum Distortion", IRE Trans. Inf. Theory 1960). The
    derivative of the error by the step is negative below the best one and positive above.
    """
    codes = torch.arange(1 << (bits - 1), dtype=torch.float64) + 0.5
    low, high = 0.0, 4.0
    for _ in range(60):
        step = (low + high) / 2
        edges = torch.cat([step * (codes - 0.5), torch.tensor([math.inf])])
        shares = torch.special.ndtr(edges).diff()
        moments = -torch.exp(-edges.square() / 2).diff() / math.sqrt(2 * math.pi)
        rising = bool(step * (codes.square() * shares).sum() > (codes * moments).sum())
        low, high = (low, step) if rising else (step, high)
    return low
