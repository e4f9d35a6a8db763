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


def share(values: Tensor, draws: int, seed: int) -> Interval:
    """Mean of a value a sample, and its interval."""
    values = values.double()
    picks = resampled(len(values), draws, seed)
    return interval(values.mean().item(), values[picks].mean(1), len(values))


def some(rows: Tensor, count: int, seed: int) -> Tensor:
    """At most ``count`` rows, drawn without replacement: the first ones of a file may all be of one class."""
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]
