"""What rounding does to values, on many grids at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

SEARCH = 200  # a search takes as long as rounding so many values


def rounding_errors(rows: Tensor, levels: int) -> Callable[[int, Tensor, Tensor | float], Tensor]:
    """A function of levels, steps ``s`` and lowest codes, ``(rows, grids)`` each, to the squared error of every row.

    The error on a grid is that to the nearest of ``s·low, s·(low + 1) … s·(low + levels)``, float32 or better,
    ``(rows, grids)``. A lowest code that is the same for all may be a half.

    Args:
        rows: ``(rows, values)``.
        levels: codes above the lowest, at most.
    """
    return Ordered(rows) if searched(rows.shape[1], levels) else partial(one_by_one, rows)


def searched(values: int, levels: int) -> bool:
    """Whether so many values a row are put in order, which takes far less memory than all grids side by side."""
    return SEARCH * levels < values


def one_by_one(rows: Tensor, levels: int, steps: Tensor, low: Tensor | float) -> Tensor:
    """The errors, every value rounded on every grid."""
    values = rows[:, None] * (1 / steps).to(rows.dtype)[:, :, None]
    if isinstance(low, Tensor):
        lowest = low[:, :, None].to(rows.dtype)
        codes = values.round().clamp_min_(lowest).clamp_max_(lowest + levels)  # one call for both is far slower
    else:
        beside = low % 1
        codes = (values - beside if beside else values).round().clamp_(low - beside, low - beside + levels)
        codes = codes.add_(beside) if beside else codes  # most grids have none: no pass for it
    found: Tensor = torch.linalg.vector_norm(values.sub_(codes), dim=2)
    return found.mul_(steps).square_()


class Ordered:
    """The errors from the values in order: those that are rounded to code ``k`` or more are all that lie above
    ``(k − ½)·s``, so that a grid takes one search a level.

    With ``c`` the code of ``x``, ``Σ x·c`` and ``Σ c²`` are sums over levels: of ``Σ_{above} x``
    and of ``(2k − 1)·#above``.
    """

    def __init__(self, rows: Tensor) -> None:
        # numpy sorts floats some ten times faster than torch on a CPU.
        self._values = torch.from_numpy(np.sort(rows.cpu().numpy(), axis=1)).to(rows.device)
        self._energy = torch.linalg.vector_norm(self._values, dim=1, keepdim=True, dtype=torch.float64).square()
        self._sums = self._values.cumsum(1, dtype=torch.float64)  # at i: of the first i + 1

    def __call__(self, levels: int, steps: Tensor, low: Tensor | float) -> Tensor:
        size, low = steps.double(), torch.as_tensor(low, dtype=torch.float64, device=steps.device).expand(steps.shape)
        shape, most = (*steps.shape, levels), self._values.shape[1]
        codes = torch.arange(1, levels + 1, dtype=self._values.dtype, device=self._values.device)
        odd_one = torch.stack([2 * codes - 1, torch.ones_like(codes)], dim=1).double()
        borders = (codes - 0.5 + low[:, :, None].to(codes)) * steps[:, :, None].to(codes)
        at = torch.searchsorted(self._values, borders.flatten(1))
        total = self._sums[:, -1:]
        below = torch.where(at > 0, self._sums.gather(1, (at - 1).clamp_min_(0)), 0.0)
        products = (low + levels) * total - below.view(shape).sum(2)
        odd, count = ((most - at).double().view(shape) @ odd_one).unbind(2)
        squares = odd + 2 * low * count + most * low.square()
        found: Tensor = self._energy - 2 * size * products + size.square() * squares
        return found.clamp_min_(0)
