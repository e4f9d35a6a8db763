"""Can the budgets be met at all, and if not, how close can one get?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpsearch.errors import InfeasibleBudget, UsageError
from mpsearch.types import Limit, Problem, within


def check_feasible(problem: Problem, given: Callable[[Limit], str] = lambda _: "") -> None:
    """Raise ``InfeasibleBudget`` for every budget that no map meets on its own, with its smallest feasible value.

    Args:
        problem: the question.
        given: what else stands in a budget's way, in words that follow "cannot be met".
    """
    lines = []
    for limit in problem.limits:
        costs = np.where(problem.allowed, limit.costs.values, np.inf)
        if limit.full <= 0 and limit.budget.relative:
            raise UsageError(f"{limit.budget} means nothing here: the float generator has no {limit.budget.cost}")
        least = limit.costs.total(costs.min(axis=1))
        if not within(least, limit.limit):
            lines.append(
                f"{limit.budget} cannot be met{given(limit)}: the smallest feasible value is {spell(limit, least)}"
            )
    if lines:
        raise InfeasibleBudget("; ".join(lines))


def spell(limit: Limit, value: float) -> str:
    """A cost as a user would write it in a budget, ``size<=41.2%``, rounded up so that it can be met."""
    unit, scale = ("%", 100 / limit.full) if limit.budget.relative else ("", 1.0)
    if limit.costs.measure == "ms" and not limit.budget.relative:
        unit = "ms"
    digits = 6 if limit.costs.measure in ("bits", "ms") or limit.budget.relative else 0
    rounded = np.ceil(value * scale * 10**digits - 1e-6) / 10**digits
    return f"{limit.budget.cost}<={rounded:.12g}{unit}"
