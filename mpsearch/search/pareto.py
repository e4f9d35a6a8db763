"""The frontier of one cost or several and the predicted damage, and its knee."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from mpsearch.errors import UsageError
from mpsearch.search.core import search_core
from mpsearch.search.dual import Cut
from mpsearch.search.lagrange import Lagrange, approach
from mpsearch.search.relaxation import Relaxed, better, from_best, proven, room
from mpsearch.types import TOLERANCE, Answer, Choice, Problem


def pareto(
    problem: Problem, varied: Sequence[int] = (0,), points: int = 40, gap: float = 1e-6, time_limit: float = 60.0
) -> list[Answer]:
    """Answers from the least costs to the least damage that the other limits allow; none dominates another.

    Limits are spread evenly over the costs; of several costs, the last one's cut the surface into curves over the
    others.

    Args:
        problem: the question; the values of the limits that vary are not used, the other limits stay.
        varied: which of the problem's limits vary.
        points: at most so many answers.
        gap: relative gap at which an answer is called optimal among those of its costs.
        time_limit: seconds for all points together.

    Returns:
        Sorted by the costs, the first one first; over one cost the damage strictly falls.

    Raises:
        InfeasibleBudget: when the other limits cannot be met.
    """
    for index in varied:
        if not 0 <= index < len(problem.limits):
            raise UsageError(f"no frontier over limit {index}: the problem has {len(problem.limits)}")
    *inner, outer = varied
    if points < 2 ** len(varied):
        raise UsageError(f"a frontier of {points} points over {len(varied)} costs: ask for at least {2 ** len(varied)}")
    if not inner:
        return _curve(problem, outer, points, gap, time_limit)
    rows = max(2, round(points ** (1 / len(varied))))
    limit = problem.limits[outer]
    free = replace(problem, limits=tuple(other for at, other in enumerate(problem.limits) if at not in varied))
    cheapest = replace(limit.costs, values=np.where(problem.allowed, limit.costs.values, np.nan))
    solver = Lagrange(gap, time_limit / points)
    least, most = (limit.of(solver(task).choice) for task in (replace(free, damage=cheapest), free))
    found: list[Answer] = []
    for value in np.linspace(least, most, rows):
        fixed = tuple(replace(o, limit=float(value)) if at == outer else o for at, o in enumerate(problem.limits))
        found += pareto(replace(problem, limits=fixed), inner, points // rows, gap, time_limit / rows)
    return _undominated(problem, found, varied)


def _undominated(problem: Problem, answers: Sequence[Answer], varied: Sequence[int]) -> list[Answer]:
    """Answers that no other matches in every cost and in damage; of equal ones the first."""
    marks = [[*(problem.limits[at].of(a.choice) for at in varied), problem.predicted(a.choice)] for a in answers]
    kept: list[int] = []
    for at in sorted(range(len(answers)), key=marks.__getitem__):  # whatever beats a point comes before it
        if not any(np.less_equal(marks[other], marks[at]).all() for other in kept):
            kept.append(at)
    return [answers[at] for at in kept]


def _curve(problem: Problem, cost_index: int, points: int, gap: float, time_limit: float) -> list[Answer]:
    """The frontier of one cost and the damage.

    What the prices choose is the best map of the cost that it happens to have (Everett, "Generalized Lagrange
    multiplier method", 1963): where it is near and meets the other limits, it needs no search. Elsewhere the core is
    searched. Cutting planes and answers hold for the looser limits that follow.
    """
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
    return [replace(answer, method="pareto") for answer in _undominated(problem, found, (cost_index,))]


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


def knee(costs: ArrayLike, damages: Sequence[float]) -> int:
    """Index of the point farthest below the chord of the curve, logarithm of damage over cost, both from 0 to 1.

    From there on a unit of cost buys less than it does on average (Satopaa, Albrecht, Irwin and Raghavan, "Finding a
    'kneedle' in a haystack", 2011). Over several costs, the mean of them.

    Args:
        costs: one of each point, or a row of several.
        damages: of the same points; values <= 0 count as the least positive one.
    """
    cost, damage = np.array(costs, float), np.array(damages, float)
    if len(cost) != len(damage) or not len(cost):
        raise UsageError(f"a knee needs as many damages as costs, not {len(damage)} and {len(cost)}")
    cost = cost.reshape(len(damage), -1)
    log = np.log(np.maximum(damage, damage[damage > 0].min(initial=np.inf if (damage > 0).any() else 1.0)))
    wide, high = np.ptp(cost, axis=0), np.ptp(log) or 1.0
    share = (cost - cost.min(axis=0)) / np.where(wide > 0, wide, 1.0)
    return int(np.argmin(share.mean(axis=1) + (log - log.min()) / high))
