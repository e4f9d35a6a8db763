"""The Python surface: one function a verb, and ``allocate`` for all of them at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpsearch.budgets import check_budgets, cost_of, limit_of, parse_budgets, reported_costs, size_of
from mpsearch.calibration import Calibration, Progress, silent
from mpsearch.cost import Latency, cost_models
from mpsearch.errors import ModelError, UsageError
from mpsearch.export import EXPORTERS, payload_bytes
from mpsearch.layers import find_layers
from mpsearch.model import device_of
from mpsearch.protocols import CostModel, Estimator, Recoverer, Solver
from mpsearch.quant import WeightBank, with_ranges
from mpsearch.recovery import RECOVERERS
from mpsearch.recovery.kept import recovered_from, tensors_of
from mpsearch.recovery.trial import Snapshot, Trial
from mpsearch.registry import lookup, make
from mpsearch.search import (
    SOLVERS,
    Bayes,
    Quadratic,
    Refine,
    Singles,
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
from mpsearch.sensitivity import ESTIMATORS, OnePass, by_stratum, channel_slopes, slopes
from mpsearch.subject import Memo, Subject
from mpsearch.types import (
    FLOAT,
    Baseline,
    BitMap,
    Budget,
    Floors,
    Format,
    Layers,
    Limit,
    Measured,
    Pins,
    Point,
    Problem,
    RangeFit,
    Solution,
    Table,
    Together,
    parse_formats,
)

T = TypeVar("T")
Array = NDArray[np.float64]
FORMATS = ("w2", "w3", "w4", "w5", "w6", "w7", "w8")
KINDS = ("json", "yaml", "csv", "packed")

EFFORTS: Mapping[str, tuple[Solver, ...]] = {
    "fast": (),
    "standard": (Singles(), Refine(evaluations=150, restarts=2)),
    "thorough": (
        Singles(),
        Refine(),
        Refine(evaluations=400, restarts=4, others=4, patience=96, sure=1.0),  # so long a search fits the inputs too
        Bayes(evaluations=60, sure=1.0),
    ),
}


def allocate(
    model: nn.Module,
    batches: Iterable[Any],
    budgets: Iterable[str | Budget] = ("bits<=4",),
    formats: Iterable[str | Format] = FORMATS,
    effort: str = "standard",
    seed: int = 0,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    estimator: str | Estimator = "one-pass",
    groups: int = 1,
    progress: Progress = silent,
    pin: Pins | None = None,
    floor: Floors | None = None,
    together: Together | None = None,
    channel_ranges: Iterable[str] = (),
    latency: str | Path | Latency | None = None,
    activation_ranges: RangeFit = "mse",
) -> Solution:
    """Find the best format for every layer under the budgets. ``model`` is left bit for bit as it was.

    Args:
        model: any image generator.
        batches: calibration inputs, a sequence of tuples of positional arguments; no labels.
        budgets: ``bits<=4``, ``size<=20%``, ``coded<=15%``, ``bops<=30%``, ``memory<=64KiB``, ``latency<=8ms`` …; they
            all hold.
        formats: the choices of every layer.
        effort: ``fast`` = one-pass table and exact solve; ``standard`` = then singles measured where they matter, and
            a search on the true error; ``thorough`` = a longer one from several starts, and Bayesian search.
        seed: same seed, same answer.
        include: globs of layers to quantize.
        exclude: globs of layers to leave float.
        estimator: of the table that proposes maps; ``perturbation`` for a generator without gradients.
        groups: different widths that the output channels of one layer may have; 1 = one width a layer.
        progress: called with (what, done, total).
        pin: glob → the one format of the layers that it matches, such as ``{"to_rgb*": "w8"}``.
        floor: glob → the fewest weight bits of the layers that it matches.
        together: lists of globs; the layers that one list matches share one format.
        channel_ranges: globs of layers whose input has an activation range for each of its channels.
        latency: measured milliseconds of every layer and format, a CSV or JSON file (:meth:`mpsearch.Latency.read`).
        activation_ranges: ``mse``, ``minmax`` or a percentage, see :func:`find_layers`.

    Raises:
        InfeasibleBudget: no map meets the budgets; the message says the smallest feasible value.
        UsageError, ModelError, CalibrationError: unusable arguments, generator or inputs.

    Example:
        >>> solution = mpsearch.allocate(generator, [(z,)], budgets=["bits<=4"])
        >>> solution.bitmap["up8.conv1.weight"].weight_bits
        4
    """
    solvers = with_seed(lookup("effort", EFFORTS, effort), seed)
    check_groups(groups)
    costs = cost_models(latency, lambda layer, format: subject.bank.saved(layer, format))
    choices, limits = parse_formats(formats), parse_budgets(budgets, costs)
    rules: dict[str, Any] = {
        "pin": pin,
        "floor": floor,
        "together": together,
        "channel_ranges": channel_ranges,
        "activation_ranges": activation_ranges,
    }
    subject = make_subject(model, batches, seed=seed, include=include, exclude=exclude, progress=progress, **rules)
    check_budgets(subject.layers, choices, limits, costs)
    if isinstance(estimator, str):
        (estimator,) = with_seed([make("estimator", ESTIMATORS, estimator)], seed)
    table, channels = tables(estimator, subject, choices, groups, seed)
    return search(table, subject.layers, limits, solvers, subject, groups, channels, costs)


def check_groups(groups: int) -> None:
    if not isinstance(groups, int) or groups < 1:
        raise UsageError(f"groups is {groups!r}: expected the number of widths a layer may have, such as 8; 1 = one")


def tables(
    estimator: Estimator, subject: Subject, formats: Sequence[Format], groups: int = 1, seed: int = 0
) -> tuple[Table, Table | None]:
    """(damage of the layers, damage of their output channels where a layer may have several widths)."""
    if groups == 1:
        return estimator(subject, formats), None
    if isinstance(estimator, OnePass):
        return estimator.by_channel(subject, formats)
    return estimator(subject, formats), OnePass(seed=seed).by_channel(subject, formats)[1]


def estimate(
    model: nn.Module,
    batches: Iterable[Any],
    formats: Iterable[str | Format] = FORMATS,
    estimator: str | Estimator = "one-pass",
    seed: int = 0,
    **options: Any,
) -> Table:
    """Damage of every layer in every format.

    Args:
        model: any image generator; left as it was.
        batches: calibration inputs.
        formats: the choices.
        estimator: a name of :data:`mpsearch.sensitivity.ESTIMATORS`, or an instance of one.
        seed: of inner noise of the generator.
        options: fields of the estimator, such as ``probes=64``.
    """
    return _estimator(estimator, options)(make_subject(model, batches, seed=seed), parse_formats(formats))


def estimate_strata(
    model: nn.Module,
    batches: Iterable[Any],
    formats: Iterable[str | Format] = FORMATS,
    estimator: str | Estimator = "one-pass",
    seed: int = 0,
    **options: Any,
) -> dict[str, Table]:
    """As :func:`estimate`, a table for every class or timestep: every whole number that is an argument of a sample.

    Raises:
        UsageError: no argument is a whole number a sample.
    """
    return by_stratum(_estimator(estimator, options), make_subject(model, batches, seed=seed), parse_formats(formats))


def _estimator(asked: str | Estimator, options: Mapping[str, Any]) -> Estimator:
    return make("estimator", ESTIMATORS, asked, options) if isinstance(asked, str) else asked


def make_subject(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Layers | None = None,
    seed: int = 0,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    memo: Memo | None = None,
    progress: Progress = silent,
    pin: Pins | None = None,
    floor: Floors | None = None,
    together: Together | None = None,
    channel_ranges: Iterable[str] = (),
    activation_ranges: RangeFit = "mse",
) -> Subject:
    """Check the inputs and the generator, find the layers, and put everything on one device."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, not a {type(model).__name__}")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"the seed is {seed!r}: expected an integer from 0 to {2**32 - 1}")
    calibration = Calibration.of(batches, device_of(model), seed)
    if layers is None:
        first, ranges = calibration.batches[0], (channel_ranges, activation_ranges)
        layers = find_layers(model, first, include, exclude, pin, floor, together, *ranges)
    return Subject(model, layers, calibration, memo, progress)


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
        with naming_rules(layers):
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
    with naming_rules(layers):
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
    with naming_rules(layers):
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
    return replace(
        solution,
        bitmap=found,
        predicted=after,
        error=error,
        costs=known(spent),
        seconds=seconds,
        method="channels",
        baselines={name: replace(baseline, costs=known(baseline.costs)) for name, baseline in baselines.items()},
    )


def with_seed(methods: Sequence[T], seed: int) -> tuple[T, ...]:
    """The same methods, those that draw at random with this seed."""
    return tuple(replace(m, seed=seed) if hasattr(m, "seed") else m for m in methods)  # type: ignore[type-var]


def export(
    model: nn.Module,
    bitmap: Mapping[str, Format | str],
    out: str | Path,
    batches: Iterable[Any],
    kinds: Iterable[str] = KINDS,
    layers: Layers | None = None,
    bank: WeightBank | None = None,
) -> dict[str, Path]:
    """Write the map and the quantized generator; every file is read back and verified.

    Args:
        model: the float generator; left as it was.
        bitmap: layer name → format.
        out: folder.
        batches: inputs, to measure layers and any missing activation range.
        kinds: ``json``, ``yaml``, ``csv`` (the map), ``packed`` (the generator, see :func:`mpsearch.load_packed`) and
            ``coded`` (the same in fewer bytes).
        layers: those of :func:`find_layers`, when they are known.
        bank: quantized weights, those of :func:`recover`; by default the nearest ones.

    Returns:
        kind → file.
    """
    exporters = [lookup("export", EXPORTERS, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    calibration = Calibration.of(batches, device_of(model))
    layers = layers or find_layers(model, calibration.batches[0])
    bank = bank or WeightBank(model)
    bitmap = with_ranges(model, bitmap if isinstance(bitmap, BitMap) else BitMap(bitmap), calibration, bank)
    bitmap = BitMap({layer.name: FLOAT for layer in layers} | dict(bitmap), bitmap.ranges)
    layers = _ranged(layers, bitmap)
    for layer in layers:
        bank.dequantized(layer.name, bitmap[layer.name])  # a format that it cannot take is refused before any file
    files: dict[str, Path] = {}
    for exporter in exporters:
        files |= exporter(model, layers, bitmap, bank, Path(out))
    for kind in ("packed", "coded"):
        if kind in files:
            saved = sum(bank.saved(layer.name, bitmap[layer.name]) for layer in layers) if kind == "coded" else 0
            predicted = size_of(bitmap, layers) - saved
            if (written := payload_bytes(files[kind])) != predicted:
                raise ModelError(f"the {kind} file holds {written} bytes, predicted were {predicted}")
    return files


def recover(
    model: nn.Module,
    bitmap: Mapping[str, Format | str],
    batches: Iterable[Any],
    method: str | Recoverer = "distil",
    seed: int = 0,
    progress: Progress = silent,
    bank: WeightBank | None = None,
    snapshot: Snapshot | None = None,
    layers: Layers | None = None,
    **options: Any,
) -> WeightBank:
    """Quantized weights that draw better pictures than those of the start, learnt from the float generator alone.

    Args:
        model: the float generator; left as it was.
        bitmap: layer name → format; every format stays, and the bytes of the packed file (those of the coded one follow
            the new codes); ``realloc`` alone moves bits from layer to layer, and takes no more bytes.
        batches: inputs to learn from, 2 or more, a few hundred samples; a quarter of them is kept back to judge by.
        method: a name of :data:`mpsearch.recovery.RECOVERERS`, or an instance of one.
        seed: of inner noise of the generator, and of the method.
        progress: called with (what, done, total).
        bank: what another recovery made of the same map, to start from; by default the nearest weights.
        snapshot: keeps the state of a training, so that one that was killed goes on, and then what the method made.
        layers: those of :func:`find_layers`; ``realloc`` obeys their pins, floors and groups.
        options: fields of the method, such as ``steps=1000``.

    Returns:
        ``bank=`` for :func:`mpsearch.quantized`, :func:`mpsearch.validate` and :func:`export`, which take formats from
        it where a method has changed them (``bank.formats``); the nearest weights where the method found none that are
        better on what it kept back.

    Example:
        >>> bank = mpsearch.recover(generator, solution.bitmap, [(z,) for z in latents])
        >>> with mpsearch.quantized(generator, solution.bitmap, bank=bank) as small:
        ...     images = small(latents[0])
    """
    if isinstance(method, str):
        (method,) = with_seed([make("recovery", RECOVERERS, method, options)], seed)
    elif options:
        raise UsageError(f"{', '.join(options)} belong to a method that is named: this one has its options")
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in, there is something to learn
        inputs = Calibration.of(batches, device_of(model), seed)
        bank = bank or WeightBank(model)
        whole = with_ranges(model, bitmap if isinstance(bitmap, BitMap) else BitMap(bitmap), inputs, bank)
        if made := recovered_from(snapshot.read() if snapshot else {}, whole, bank, device_of(model)):
            return bank.recovered(whole, made)
        trial = Trial(model, whole, bank, inputs, progress, snapshot, layers)
        method(trial)
        if snapshot:
            snapshot.write(tensors_of(trial.best))
        return trial.with_found(trial.best)


def _ranged(layers: Layers, bitmap: BitMap) -> Layers:
    """The layers with as many activation ranges as the map has for them."""
    parts = {name: tuple(span.channels for span in spans) for name, spans in bitmap.ranges.items() if len(spans) > 1}
    return replace(
        layers, items=tuple(replace(own, input_parts=parts.get(own.name, own.input_parts)) for own in layers)
    )
