"""``Budget``: an upper limit on one cost, absolute or relative to the float generator."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mpsearch.errors import UsageError

_GRAMMAR = re.compile(r"\s*([a-z]\w*)\s*<=\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")
_SUFFIXES = {
    "": 1, "%": 0.01, "B": 1, "k": 1e3, "kB": 1e3, "KB": 1e3, "KiB": 2**10, "M": 1e6, "MB": 1e6, "MiB": 2**20,
    "G": 1e9, "GB": 1e9, "GiB": 2**30, "T": 1e12,
}  # fmt: skip
_TIMES = {"": 1, "%": 0.01, "us": 1e-3, "ms": 1, "s": 1e3}  # milliseconds; the suffixes of the cost called latency
# Sums of thousands of float64 terms differ in the last digits; one part in 10^9 is no violation of a budget.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Budget:
    """``cost <= limit``, for example ``bits<=4``, ``size<=20%``, ``memory<=64KiB``, ``bops<=1.2e11``, ``latency<=8ms``.

    Attributes:
        cost: name of a cost model.
        limit: the number; a share of the float generator's cost when ``relative``.
        relative: whether the limit was written with a percent sign.
    """

    cost: str
    limit: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Budget:
        match = _GRAMMAR.fullmatch(text) if isinstance(text, str) else None
        suffixes = _TIMES if match is not None and match[1] == "latency" else _SUFFIXES
        if match is None or match[3] not in suffixes:
            like = "latency<=8ms" if suffixes is _TIMES else "size<=100KiB"
            raise UsageError(f"cannot read the budget {text!r}: write it like bits<=4, size<=20% or {like}")
        limit = float(match[2]) * suffixes[match[3]]
        if not 0 < limit < math.inf:
            raise UsageError(f"the budget {text!r} must be above zero and finite")
        return cls(match[1], limit, match[3] == "%")

    def __str__(self) -> str:
        unit = "ms" if self.cost == "latency" else ""
        return f"{self.cost}<={self.limit * 100:g}%" if self.relative else f"{self.cost}<={self.limit:.12g}{unit}"

    def absolute(self, float_cost: float) -> float:
        """The limit in the cost's own unit."""
        return self.limit * float_cost if self.relative else self.limit


def within(value: float, limit: float) -> bool:
    """Whether a cost meets a limit, up to float64 summation error."""
    return value <= limit * (1 + TOLERANCE)
