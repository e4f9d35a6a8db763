"""How well one table ranks what another measured."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from mpsearch.errors import UsageError
from mpsearch.types import Table


def agreement(table: Table, truth: Table) -> tuple[float, float, int]:
    """(Spearman rank correlation, correlation of logarithms, cells) over all cells that both tables allow.

    The second is NaN where a damage is not positive: a Fréchet distance may fall.
    """
    if table.units != truth.units or table.formats != truth.formats:
        raise UsageError("the two tables have other units or formats")
    both = ~np.isnan(table.values) & ~np.isnan(truth.values)
    a, b = table.values[both], truth.values[both]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan"), float("nan"), len(a)  # nothing to rank
    rank = float(spearmanr(a, b).statistic)
    positive = (a > 0).all() and (b > 0).all()
    log = float(np.corrcoef(np.log(a), np.log(b))[0, 1]) if positive else float("nan")
    return rank, log, int(both.sum())
