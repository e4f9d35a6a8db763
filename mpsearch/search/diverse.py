"""Maps about as good as the best one, and as different from each other as that allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.search.core import search_core
from mpsearch.search.ilp import Ilp
from mpsearch.search.lagrange import approach
from mpsearch.search.relaxation import better, from_best
from mpsearch.types import Budget, Choice, Limit, Problem

TIES = 0.1  # of a unit's weight: which units differ first is drawn
WIDTHS = (64, 512)  # of the passes over the core: no proof is needed


def diverse(problem: Problem, count: int, slack: float = 0.05, seed: int = 0) -> list[Choice]:
    """Up to ``count`` feasible maps of predicted damage within ``1 + slack`` of the best; the best first.

    Each next map is the solution of another knapsack: what the earlier maps take costs one a map and unit, the damage
    is one more budget, and first passes over its core come near enough to the most different map (the sequential
    method of Danna, Fenelon, Gu and Wunderling, "Generating multiple solutions for mixed integer programming problems",
    2007). Fewer come back where the slack leaves no further map, or where none was found.

    Args:
        problem: the question; only its table is asked.
        count: of maps.
        slack: share of the best predicted damage.
        seed: of the draw that breaks ties between units.
    """
    if count < 1 or slack < 0:
        raise UsageError(f"diverse needs count >= 1 and slack >= 0, not {count} and {slack}")
    best = Ilp()(problem).choice
    gains, _ = from_best(problem)
    most = gains.predicted(best) + slack * abs(problem.predicted(best))
    near = Limit(Budget("damage", most), gains.damage, most, most)
    rng, rows, found = np.random.default_rng(seed), np.arange(len(best)), [best]
    same = np.where(problem.allowed, 0.0, np.nan)
    same[rows, best] += 1
    for _ in range(count - 1):
        weighted = same * rng.uniform(1 - TIES, 1 + TIES, (len(rows), 1))
        rival, _ = from_best(Problem(replace(problem.damage, values=weighted), (*problem.limits, near)))
        start, met = approach(rival)
        choice, _, _ = search_core(rival, start, better(rival, [*found, met])[0], 0.0, np.inf, WIDTHS)
        if choice is not None and not any((choice == other).all() for other in found):
            found.append(choice)
            same[rows, choice] += 1
    return sorted(found, key=problem.predicted)
