"""From a damage table to the best map: the solvers, the true error that judges them, and widths for channel groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.budgets import cost_of, limit_of, parse_budgets, reported_costs
from mpsearch.cost import cost_models
from mpsearch.errors import ModelError, UsageError
from mpsearch.protocols import CostModel, Solver
from mpsearch.registry import make
from mpsearch.search import (
    SOLVERS,
    Bayes,
    Quadratic,
    Refine,
    Singles,
    bound_by_channel,
    counted,
    knee,
    leap_channels,
    naming_rules,
    pareto,
    predicted_by_channel,
    problem_of,
    solve,
    split_channels,
    splittable,
)
from mpsearch.sensitivity import OnePass, channel_slopes, slopes
from mpsearch.subject import Subject
from mpsearch.types import (
    Baseline,
    BitMap,
    Budget,
    Format,
    Layers,
    Limit,
    Measured,
    Point,
    Problem,
    Solution,
    Table,
)

T = TypeVar("T")
Array = NDArray[np.float64]

# Standard errors that a longer search must win by: of five hundred maps judged on the same inputs some gain 2 by luck.
SURE = 2.5
EFFORTS: Mapping[str, tuple[Solver, ...]] = {
    "fast": (),
    "standard": (Singles(), Refine(evaluations=150, restarts=2)),
    "thorough": (
        Singles(),
        Refine(evaluations=150, restarts=2),
        Refine(evaluations=400, restarts=4, others=4, patience=96, sure=SURE),
        Bayes(evaluations=60, sure=SURE),
    ),
}


def with_seed(methods: Sequence[T], seed: int) -> tuple[T, ...]:
    """The same methods, those that draw at random with this seed."""
    return tuple(replace(m, seed=seed) if hasattr(m, "seed") else m for m in methods)  # type: ignore[type-var]


def search(
    table: Table,
    layers: Layers,
    budgets: Iterable[str | Budget],
    solvers: Sequence[Solver] | str = "ilp",
    subject: Subject | None = None,
    groups: int = 1,
    channels: Table | None = None,
    costs: Mapping[str, CostModel] | None = None,
) -> Solution:
    """The best map under the budgets, from a damage table (ours or another tool's).

    Args:
        table: one row a layer.
        layers: what the costs are computed from, with their pins, floors and groups.
        budgets: at least one.
        solvers: names or instances of what may improve on the exact solution; ``ilp`` adds nothing to it.
        subject: the generator, to judge maps by their true error; without it the table decides.
        groups: different widths that the output channels of one layer may have.
        channels: damage of every output channel; needed where ``groups`` is more than 1.
        costs: the cost models, :func:`mpsearch.cost.cost_models`, with measured latencies where there are any.
    """
    costs = cost_models(saved=subject.bank.saved if subject else None) if costs is None else costs
    limits = [limit_of(budget, layers, table.formats, costs) for budget in parse_budgets(budgets, costs)]
    problem = problem_of(table, layers, limits)
    reported = reported_costs(limits, problem, layers, costs)
    if isinstance(solvers, str):
        solvers = () if solvers == "ilp" else (make("solver", SOLVERS, solvers),)
    if subject is None:
        with naming_rules(layers, table.formats):
            solution = _completed(solve(problem, solvers, reported), problem, limits)
        return solution if channels is None else _regroup(solution, channels, problem, layers, groups, costs)
    before, known = subject.evaluations, subject
    expected = len(table.formats) + 2 + sum(getattr(solver, "evaluations", 0) for solver in solvers)

    def evaluate(bitmap: BitMap, rival: Measured | None = None) -> Measured:
        measured = known.error(bitmap, rival)
        known.progress("search", min(known.evaluations - before, expected), expected)
        return measured

    pairs = None
    for solver in solvers:
        if isinstance(solver, Quadratic):
            found = OnePass(seed=solver.seed).pairs(known, table.formats)
            pairs = found.over(problem.units, problem.formats)
    led = partial(first_order, known, problem)
    asked = replace(problem, evaluate=evaluate, race=evaluate, slopes=led, pairs=pairs)
    with naming_rules(layers, table.formats):
        solution = _completed(solve(asked, solvers, reported), problem, limits)
    if channels is not None:
        by_channel = partial(channel_order, known) if solvers else None
        divided = partial(
            _regroup, channels=channels, problem=problem, layers=layers, groups=groups, models=costs,
            evaluate=evaluate, slopes=by_channel,
        )  # fmt: skip
        solution = _better_divided(solution, divided)
    spent = subject.evaluations - before
    return replace(solution, bitmap=subject.with_ranges(solution.bitmap), evaluations=spent, peak=subject.peak)


def first_order(subject: Subject, problem: Problem, bitmap: BitMap) -> Array | None:
    """``(units, formats)``: slopes of the true error at a map; None where the generator has no gradients."""
    try:
        found = slopes(subject, bitmap, problem.formats)
    except ModelError:  # the estimator has said so, or needs no gradient
        return None
    rows = {layer.name: row for row, layer in enumerate(subject.layers)}
    return np.stack([found[[rows[name] for name in (unit.layer, *unit.others)]].sum(axis=0) for unit in problem.units])


def channel_order(subject: Subject, channels: Table, bitmap: BitMap) -> Array | None:
    """``(channels, formats)``: as :func:`first_order`, for single channels."""
    try:
        return channel_slopes(subject, bitmap, channels.units, channels.formats)
    except ModelError:
        return None


def frontier(
    table: Table,
    layers: Layers,
    cost: str | Sequence[str] = "size",
    points: int = 40,
    budgets: Iterable[str | Budget] = (),
    costs: Mapping[str, CostModel] | None = None,
) -> list[Point]:
    """Maps from the least cost to the least predicted damage, none better than another in every one of them.

    Args:
        table: one row a layer.
        layers: what the costs are computed from, with their pins, floors and groups.
        cost: what is traded for damage: any cost that adds up, such as ``size``, ``bops`` or ``bits``, or several.
        points: at most so many maps.
        budgets: what every map must meet besides.
        costs: the cost models, :func:`mpsearch.cost.cost_models`, with measured latencies where there are any.

    Returns:
        By rising cost (of several, the first); one of them is the knee.
    """
    costs = cost_models() if costs is None else costs
    traded = [cost] if isinstance(cost, str) else list(dict.fromkeys(cost))
    free = [Budget(name, math.inf) for name in traded]
    asked = parse_budgets((*free, *(parse_budgets(budgets, costs) if budgets else ())), costs)
    limits = [limit_of(budget, layers, table.formats, costs) for budget in asked]
    for name, limit in zip(traded, limits, strict=False):
        if limit.costs.combine != "sum":
            raise UsageError(f"no frontier over {name}: it is the peak of a map, not a sum; give it as a budget")
    problem = problem_of(table, layers, limits)
    with naming_rules(layers, table.formats):
        answers = pareto(problem, range(len(traded)), points)
    damages = [problem.predicted(answer.choice) for answer in answers]
    spent = [[limit.of(answer.choice) for limit in problem.limits[: len(traded)]] for answer in answers]
    corner = knee(spent, damages)
    reported = reported_costs(limits, problem, layers, costs)
    return [
        Point(
            bitmap=problem.bitmap(answer.choice),
            costs={limit.budget.cost: limit.of(answer.choice) for limit in reported},
            predicted=damage,
            optimal=answer.status == "optimal",
            knee=at == corner,
        )
        for at, (answer, damage) in enumerate(zip(answers, damages, strict=True))
    ]


def _completed(solution: Solution, problem: Problem, limits: Sequence[Limit]) -> Solution:
    """With the budgets that no solver saw, for cells that exceed them were no choices, and what else was left out."""
    met = {str(limit.budget): limit.limit for limit in limits}
    return replace(solution, limits=met, dominated=counted(problem))


def _better_divided(solution: Solution, divided: Callable[[Solution], Solution]) -> Solution:
    """The solution, or the best map of integers alone, with widths for single channels: other formats have one width a
    layer, so that the best map of whole layers need not be the best one to divide."""
    found = divided(solution)
    if (integers := solution.baselines.get("integers")) is None:
        return found
    other = divided(replace(solution, **vars(integers)))
    if other.method != "channels" or not (other.error and found.error and other.error.value < found.error.value):
        return found
    costs = {name: value for name, value in solution.costs.items() if name in other.costs}
    whole = Baseline(solution.bitmap, costs, solution.predicted, solution.error)
    return replace(other, baselines={**other.baselines, "layer-wise": whole})


def _regroup(
    solution: Solution,
    channels: Table,
    problem: Problem,
    layers: Layers,
    groups: int,
    models: Mapping[str, CostModel],
    evaluate: Callable[[BitMap], Measured] | None = None,
    slopes: Callable[[Table, BitMap], Array | None] | None = None,
) -> Solution:
    """The solution with widths for single channels, where that is better; the whole layers then stand beside it."""
    started = time.perf_counter()
    limits = problem.limits  # sums: what is a peak depends on activations, which stay as they are
    channels = splittable(channels, problem, solution.bitmap)

    @cache
    def column(format: Format) -> dict[str, Array]:
        costs = [models[limit.budget.cost](layers, (format,)).values[:, 0] for limit in limits]
        return dict(zip((layer.name for layer in layers), np.stack(costs, axis=1), strict=True))

    def price(name: str, format: Format) -> Array:
        return column(format)[name]

    found = split_channels(channels, solution.bitmap, limits, price, groups)
    if found is None:
        return solution
    if evaluate is not None and slopes is not None:
        found = leap_channels(channels, found, limits, price, groups, evaluate, partial(slopes, channels))
    before, after = (predicted_by_channel(channels, bitmap) for bitmap in (solution.bitmap, found))
    error = None if evaluate is None else evaluate(found)
    better = after < before if error is None or solution.error is None else error.value < solution.error.value
    seconds = solution.seconds + time.perf_counter() - started
    if not better:
        return replace(solution, seconds=seconds)
    whole = Baseline(solution.bitmap, solution.costs, solution.predicted, solution.error)
    spent = {name: cost_of(name, found, layers, models) for name in solution.costs}
    unknown = {name for name, value in spent.items() if math.isnan(value)}  # nobody measures single channels

    def known(costs: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in costs.items() if name not in unknown}

    baselines = {**solution.baselines, "layer-wise": whole}
    bound = bound_by_channel(channels, solution.bitmap, limits, price)
    return replace(
        solution,
        bitmap=found,
        predicted=after,
        status="feasible",
        bound=bound,
        gap=None if bound is None else max(after - bound, 0.0) / max(abs(after), 1e-300),
        error=error,
        costs=known(spent),
        seconds=seconds,
        method="channels",
        baselines={name: replace(baseline, costs=known(baseline.costs)) for name, baseline in baselines.items()},
    )
