"""``smallest``: the cheapest map whose pictures are good enough, and what "good enough" is measured by."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch import api, solving
from mpsearch.budgets import check_budgets, cost_of, limit_of, parse_budgets
from mpsearch.calibration import Progress, silent
from mpsearch.cost import Latency, cost_models
from mpsearch.errors import CalibrationError, ModelError, UsageError
from mpsearch.features import extract, frechet_to, moments, pooled_pixels, principal_axes
from mpsearch.protocols import CostModel, Estimator, FeatureNet, Solver
from mpsearch.quality import Reference
from mpsearch.registry import lookup, make
from mpsearch.search import Bisect, merged, problem_of
from mpsearch.sensitivity import ESTIMATORS
from mpsearch.subject import Subject
from mpsearch.types import (
    BitMap,
    Budget,
    Floors,
    Format,
    Layers,
    Pins,
    RangeFit,
    Solution,
    Table,
    Target,
    Together,
    decibels,
    parse_formats,
)

LEAST = 1e-300  # mean squared error that stands for none: its PSNR is finite


def smallest(
    model: nn.Module,
    batches: Iterable[Any],
    target: str | Target = "psnr>=35",
    cost: str = "size",
    budgets: Iterable[str | Budget] = (),
    formats: Iterable[str | Format] = api.FORMATS,
    effort: str = "standard",
    seed: int = 0,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    estimator: str | Estimator = "one-pass",
    groups: int = 1,
    features: FeatureNet = pooled_pixels,
    reference: Reference | None = None,
    progress: Progress = silent,
    pin: Pins | None = None,
    floor: Floors | None = None,
    together: Together | None = None,
    channel_ranges: Iterable[str] = (),
    latency: str | Path | Latency | None = None,
    activation_ranges: RangeFit = "mse",
) -> Solution:
    """Find the map of least cost whose pictures are good enough. ``model`` is left bit for bit as it was.

    Args:
        model: any image generator.
        batches: calibration inputs; the target is met on these, so check the answer on others.
        target: ``psnr>=35``: dB of the mean squared error to the float images, the peak being their range;
            ``fd<=float+0.5``: the Fréchet distance is at most 0.5 above that of the float generator, same inputs.
        cost: what is to be small: ``size``, ``bits``, ``bops``, ``memory``, ``coded``, or ``latency`` where it was
            measured.
        budgets: that hold besides.
        features: feature network of the distances.
        reference: real features; without them, those of the float generator on ``batches``.

    The other arguments are those of :func:`mpsearch.allocate`; every step of the bisection is a search of that effort.

    Raises:
        InfeasibleBudget: no map found meets the target, or none the budgets; the message says what can be had.
        UsageError, ModelError, CalibrationError: unusable arguments, generator or inputs.

    Example:
        >>> solution = mpsearch.smallest(generator, [(z,)], "psnr>=35")
        >>> solution.costs["size"], solution.target.margin
    """
    solvers = solving.with_seed(lookup("effort", solving.EFFORTS, effort), seed)
    api.check_groups(groups)
    costs = cost_models(latency, lambda layer, format: subject.bank.saved(layer, format))
    choices, limits = parse_formats(formats), _budgets(budgets, costs)
    goal = parse(target)
    check_cost(cost, costs)
    rules: dict[str, Any] = {
        "pin": pin,
        "floor": floor,
        "together": together,
        "channel_ranges": channel_ranges,
        "activation_ranges": activation_ranges,
    }
    subject = api.make_subject(model, batches, seed=seed, include=include, exclude=exclude, progress=progress, **rules)
    check_budgets(subject.layers, choices, limits, costs)
    judge = judge_of(goal, subject, features, reference)
    if isinstance(estimator, str):
        (estimator,) = solving.with_seed([make("estimator", ESTIMATORS, estimator)], seed)
    table, channels = api.tables(estimator, subject, choices, groups, seed)
    return meet(goal, cost, table, subject.layers, limits, solvers, subject, judge, groups, channels, costs)


def parse(target: str | Target) -> Target:
    return target if isinstance(target, Target) else Target.parse(target)


def _budgets(budgets: Iterable[str | Budget], costs: Mapping[str, CostModel]) -> tuple[Budget, ...]:
    """The budgets, or none."""
    several = (budgets,) if isinstance(budgets, (str, Budget)) else tuple(budgets)
    return parse_budgets(several, costs) if several else ()


def check_cost(cost: str, costs: Mapping[str, CostModel]) -> None:
    if cost == "latency" and cost not in costs:
        raise UsageError("the cost latency needs measured times: give a table of layer,format,milliseconds")
    lookup("cost", costs, cost)


def meet(
    target: Target,
    cost: str,
    table: Table,
    layers: Layers,
    budgets: Iterable[str | Budget],
    solvers: Sequence[Solver],
    subject: Subject,
    judge: Callable[[BitMap], float],
    groups: int = 1,
    channels: Table | None = None,
    costs: Mapping[str, CostModel] | None = None,
) -> Solution:
    """The map of least ``cost`` that meets the target, from a table; every step is an :func:`mpsearch.search`."""
    costs = cost_models(saved=subject.bank.saved) if costs is None else costs
    check_cost(cost, costs)
    limits = _budgets(budgets, costs)
    free = limit_of(Budget(cost, math.inf), layers, table.formats, costs)
    concrete = [limit_of(budget, layers, table.formats, costs) for budget in limits]
    problem = problem_of(table, layers, [*concrete, free], subject.error)
    problem = replace(problem, slopes=partial(solving.first_order, subject, problem))
    subject.asked = set()

    def answer(methods: Sequence[Solver], limit: float) -> Solution:
        asked = (*limits, Budget(cost, limit))
        return solving.search(table, layers, asked, methods, subject, groups, channels, costs)

    quick = partial(answer, ())
    long = partial(answer, solvers) if solvers else quick
    free = replace(free, costs=merged(free.costs, layers))
    solution = Bisect()(problem, free, target, judge, quick, long)
    spent = {name: cost_of(name, solution.bitmap, layers, costs) for name in solution.costs}
    known = [name for name, value in spent.items() if not math.isnan(value)]  # nobody measures single channels
    baselines = {
        name: replace(entry, costs={cost: entry.costs[cost] for cost in known})
        for name, entry in solution.baselines.items()
    }
    return replace(
        solution,
        bitmap=subject.with_ranges(solution.bitmap),
        costs={name: spent[name] for name in known},
        baselines=baselines,
        limits={str(limit.budget): limit.limit for limit in concrete},
        evaluations=len(subject.asked),
    )


def judge_of(
    target: Target, subject: Subject, features: FeatureNet = pooled_pixels, reference: Reference | None = None
) -> Callable[[BitMap], float]:
    """What measures a map in the measure of the target, on the calibration inputs; every map once."""
    if target.measure == "psnr":
        if subject.peak <= 0:
            raise ModelError(f"{target} means nothing here: the float images are constant")
        return lambda bitmap: _psnr(subject, bitmap)
    if subject.samples < 2:
        raise CalibrationError(f"{target} needs 2 calibration inputs or more, there is {subject.samples}")
    own = _features(features, subject.reference)
    goal = own if reference is None else reference.features
    if goal.shape[1] != own.shape[1]:
        raise CalibrationError(f"the reference has {goal.shape[1]} features, the network gives {own.shape[1]}")
    axes, few = principal_axes(moments(goal), len(own))
    if few:
        warnings.warn(few, stacklevel=2)
    distance = frechet_to(moments(goal).on(axes))
    base = distance(moments(own).on(axes))
    about = hashlib.sha256(own.numpy().tobytes() + goal.numpy().tobytes()).hexdigest()[:16]
    name = f"fd {about}" if axes is None else f"fd {about} on {axes.shape[1]} axes"

    def excess(bitmap: BitMap) -> float:
        def measure() -> list[float]:
            return [distance(moments(_features(features, subject.images(bitmap))).on(axes)) - base]

        return subject.recall(f"{name} {bitmap.key}", 1, measure)[0]

    return excess


def _psnr(subject: Subject, bitmap: BitMap) -> float:
    value = decibels(max(subject.error(bitmap).value, LEAST), subject.peak)
    assert value is not None, "the peak is above zero"
    return value


def _features(network: FeatureNet, images: Sequence[Tensor]) -> Tensor:
    return torch.cat([extract(network, batch) for batch in images])
