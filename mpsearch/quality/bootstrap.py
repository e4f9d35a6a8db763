"""Intervals by the bootstrap."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsearch.types import Interval

LEVEL = 0.95


def interval(value: float, draws: Tensor, n: int) -> Interval:
    """95 % interval around ``value`` from statistics of resampled data.

    Deviations are taken from the mean of the draws: a Fréchet distance is biased upwards by every resampling, and
    plain percentiles would miss the estimate itself.
    """
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws.double() - draws.double().mean(), torch.tensor([tail, 1 - tail]).double()).tolist()
    return Interval(value, value + low, value + high, n)


def resampled(n: int, draws: int, seed: int) -> Tensor:
    """``(draws, n)`` indices drawn with replacement."""
    return torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
