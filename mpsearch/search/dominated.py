"""Choices that cost more and hurt more than another of the same unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.types import Problem


def dominated(problem: Problem) -> NDArray[np.bool_]:
    """``(units, formats)``: choices beside which another costs no more under any budget and hurts no more for sure.

    For sure: by more than both standard errors together, for a table of damages is an estimate. Of choices that are
    alike in all of this none is dominated.
    """
    damage, stderr = problem.damage.values, np.nan_to_num(problem.damage.stderr)
    found = np.zeros(damage.shape, bool)
    for column in range(damage.shape[1]):
        other, error = damage[:, [column]], stderr[:, [column]]
        no_worse = other + error + stderr <= damage  # False beside NaN
        better = other < damage
        for limit in problem.limits:
            costs = limit.costs.values
            no_worse &= costs[:, [column]] <= costs
            better |= costs[:, [column]] < costs
        found |= no_worse & better
    return found


def counted(problem: Problem) -> dict[str, int]:
    """Format → units in which it is dominated."""
    counts = dominated(problem).sum(axis=0)
    return {str(format): int(n) for format, n in zip(problem.formats, counts, strict=True) if n}


def undominated(problem: Problem) -> Problem:
    """The problem without its dominated choices, and without the starting points that use one."""
    out = dominated(problem)
    if not out.any():
        return problem
    rows = np.arange(len(problem.units))
    kept = replace(problem.damage, values=np.where(out, np.nan, problem.damage.values))
    starts = tuple(start for start in problem.starts if not out[rows, start].any())
    return replace(problem, damage=kept, starts=starts)
