"""How the sets of a run divide a fixed stock of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mpsearch.errors import CalibrationError

Purpose = Literal["calibration", "heldback", "distances", "reference"]


@runtime_checkable
class Stock(Protocol):
    """A source with a fixed number of samples."""

    def __len__(self) -> int: ...

    def rows(self, chosen: Tensor) -> Tensor:
        """Those samples, in this order."""
        ...


@dataclass(frozen=True)
class Shares:
    """Sizes of the sets, and the seed of the order in which they take a stock's samples, each at most once.

    No other set has a calibration sample. Where the stock is short, samples of the distances and of their reference
    may be held-back ones too, but never each other's. Stocks of one length are taken in one order, so that an image and
    its class stay together.
    """

    seed: int
    calibration: int
    heldback: int
    distances: int
    reference: int = 0

    def of(self, stock: Stock, purpose: Purpose, count: int) -> Tensor:
        """``count`` samples of a set.

        Raises:
            CalibrationError: the sets need more samples than there are.
        """
        total, apart = len(stock), self.distances + self.reference
        first = {
            "calibration": 0,
            "heldback": self.calibration,
            "distances": min(self.calibration + self.heldback, total - apart),
            "reference": total - self.reference,
        }[purpose]
        needed = max(self.calibration + max(self.heldback, apart), first + count)
        if needed > total:
            raise CalibrationError(
                f"{stock} holds {total:,} samples, the run needs {needed:,}: {self.calibration:,} for calibration and "
                f"{needed - self.calibration:,} others; lower {self._largest}"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        return stock.rows(order[first : first + count])

    @property
    def _largest(self) -> str:
        sizes = {"calibration": self.calibration, "heldback": self.heldback, "distances": self.distances}
        return f"samples.{max(sizes, key=sizes.__getitem__)}"
