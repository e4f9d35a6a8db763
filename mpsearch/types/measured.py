"""``Measured``: a number with what chance leaves of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit


@dataclass(frozen=True)
class Measured:
    """A number with its standard error, the number of samples behind it, its unit, and where known every sample."""

    value: float
    stderr: float
    n: int
    unit: str = "mse"
    samples: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def beats(self, other: Measured, sure: float = 0.0) -> bool:
        """Whether it is less, by more than ``sure`` standard errors of the difference over the same samples, or as
        many more as make up for few samples (Student 1908)."""
        gain = other.value - self.value
        return self.n >= other.n and gain > 0 and gain > self._by_chance(other, sure)  # fewer: given up half way

    def doubted(self, base: Measured, doubt: float) -> float:
        """The value, and on top ``doubt`` standard errors, counted as in :meth:`beats`, of what it differs from
        ``base`` by.

        Infinite where only some samples are known.
        """
        return math.inf if self.n < base.n else self.value + self._by_chance(base, doubt)

    def _by_chance(self, other: Measured, errors: float) -> float:
        """What a difference over the same samples exceeds as seldom as a normal one does so many standard errors; 0
        where the samples are not known."""
        count = len(self.samples)
        if count < 2 or count != len(other.samples):
            return 0.0
        stderr = float(np.subtract(self.samples, other.samples).std(ddof=1)) / math.sqrt(count)
        return stderr and stderr * float(stdtrit(count - 1, ndtr(errors)))  # none of no difference, however sure

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "stderr": self.stderr, "n": self.n, "unit": self.unit}
