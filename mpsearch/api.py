"""The Python surface: one function a verb, and ``allocate`` for all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpsearch.budgets import check_budgets, parse_budgets, size_of
from mpsearch.calibration import Calibration, Progress, silent
from mpsearch.cost import Latency, cost_models
from mpsearch.errors import ModelError, UsageError
from mpsearch.export import EXPORTERS, payload_bytes
from mpsearch.layers import find_layers
from mpsearch.model import device_of
from mpsearch.protocols import Estimator, Recoverer
from mpsearch.quant import WeightBank, with_ranges
from mpsearch.recovery import RECOVERERS
from mpsearch.recovery.kept import recovered_from, tensors_of
from mpsearch.recovery.trial import Snapshot, Trial
from mpsearch.registry import lookup, make
from mpsearch.sensitivity import ESTIMATORS, OnePass, by_stratum
from mpsearch.solving import EFFORTS, search, with_seed
from mpsearch.subject import Memo, Subject
from mpsearch.types import (
    FLOAT,
    BitMap,
    Budget,
    Floors,
    Format,
    Layers,
    Pins,
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
    for layer in layers:  # what it cannot take is refused before any file
        bank.dequantized(layer.name, bitmap[layer.name])
        if bitmap[layer.name].act_bits and not layer.act_elements:
            raise UsageError(f"{layer.name} is never called on these inputs: its activations cannot be quantized")
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
