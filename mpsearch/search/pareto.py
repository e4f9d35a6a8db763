"""The frontier of one cost and the predicted damage, and its knee."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.search.core import search_core
from mpsearch.search.dual import Cut
from mpsearch.search.lagrange import Lagrange, approach
from mpsearch.search.relaxation import Relaxed, better, from_best, proven, room
from mpsearch.types import TOLERANCE, Answer, Choice, Problem


def pareto(
    problem: Problem, cost_index: int = 0, points: int = 40, gap: float = 1e-6, time_limit: float = 60.0
) -> list[Answer]:
    """Answers from the least cost to the least damage that the other limits allow; none dominates another.

    Limits are spread evenly over the costs. What the prices choose is the best map of the cost that it happens to have
    (Everett, "Generalized Lagrange multiplier method", 1963): where it is near and meets the other limits, it needs no
    search. Elsewhere the core is searched. Cutting planes and answers hold for the looser limits that follow.

    Args:
        problem: the question; the value of the limit that varies is not used, the other limits stay.
        cost_index: which of the problem's limits varies.
        points: at most so many answers.
        gap: relative gap at which an answer is called optimal among those of its cost.
        time_limit: seconds for all points together.

    Returns:
        Sorted by cost, damage strictly falling.

    Raises:
        InfeasibleBudget: when the other limits cannot be met.
    """
    if points < 2:
        raise UsageError(f"a frontier of {points} points: ask for at least 2")
    if not 0 <= cost_index < len(problem.limits):
        raise UsageError(f"no frontier over limit {cost_index}: the problem has {len(problem.limits)}")
    deadline = time.perf_counter() + time_limit
    varied = problem.limits[cost_index]
    others = replace(problem, limits=tuple(limit for limit in problem.limits if limit is not varied))
    solver = Lagrange(gap, time_limit / points)
    cheapest = replace(varied.costs, values=np.where(problem.allowed, varied.costs.values, np.nan))
    best, last = solver(replace(others, damage=cheapest)).choice, solver(others)
    grid = np.unique(np.linspace(varied.of(best), varied.of(last.choice), points))
    gains, offset = from_best(problem)
    found, cuts, before = [last], list[Cut](), np.ones(len(problem.limits))
    for index, (least, most) in enumerate(zip([-np.inf, *grid], grid[:-1], strict=False)):
        limits = [replace(limit, limit=float(most)) if limit is varied else limit for limit in problem.limits]
        task = replace(gains, limits=tuple(limits))
        scale, before = room(task) / before, room(task)
        cuts = [Cut(cut.prices * scale, cut.total, cut.spent / scale) for cut in cuts]
        until = time.perf_counter() + (deadline - time.perf_counter()) / (len(grid) - index)
        start, met = approach(task, until, cuts)
        near = [choice for choice in (start.choice, met) if choice is not None and varied.of(choice) > least]
        choice, bound = _supported(task, start, near, cost_index, gap)
        if choice is None:
            choice, _, bound = search_core(task, start, better(task, [best, met])[0], gap, until)
        best = best if choice is None else choice
        late = "time limit" if time.perf_counter() > until else "feasible"
        status = "optimal" if proven(task.predicted(best), bound, gap) else late
        found.append(Answer("pareto", best, status, min(bound, task.predicted(best)) + offset))
    found.sort(key=lambda answer: (varied.of(answer.choice), problem.predicted(answer.choice)))
    least = np.minimum.accumulate([np.inf, *(problem.predicted(answer.choice) for answer in found)])
    return [replace(answer, method="pareto") for answer, new in zip(found, np.diff(least) < 0, strict=True) if new]


def _supported(
    task: Problem, start: Relaxed, choices: list[Choice], varied: int, gap: float
) -> tuple[Choice | None, float]:
    """One of the choices that the prices prove best for its own cost, with the lower bound there."""
    for choice in filter(task.feasible, choices):
        used = start.shares[np.arange(len(choice)), choice, varied].sum()
        bound = start.bound + float(start.prices[varied] * (1 - used * (1 + TOLERANCE)))
        if proven(task.predicted(choice), bound, gap):
            return choice, bound
    return None, start.bound


def knee(costs: Sequence[float], damages: Sequence[float]) -> int:
    """Index of the point farthest below the chord of the curve, logarithm of damage over cost, both from 0 to 1.

    From there on a unit of cost buys less than it does on average (Satopaa, Albrecht, Irwin and Raghavan, "Finding a
    'kneedle' in a haystack", 2011).

    Args:
        costs: rising.
        damages: falling; values <= 0 count as the least positive one.
    """
    if len(costs) != len(damages) or not len(costs):
        raise UsageError(f"a knee needs as many damages as costs, not {len(damages)} and {len(costs)}")
    cost, damage = np.array(costs, float), np.array(damages, float)
    log = np.log(np.maximum(damage, damage[damage > 0].min(initial=np.inf if (damage > 0).any() else 1.0)))
    wide, high = np.ptp(cost) or 1.0, np.ptp(log) or 1.0
    return int(np.argmin((cost - cost.min()) / wide + (log - log.min()) / high))
