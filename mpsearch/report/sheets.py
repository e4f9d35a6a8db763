"""Tables for a terminal: what the command line shows of each stage, rich renderables from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table as Sheet

from mpsearch.report.page import beside, gains, notes, number
from mpsearch.types import Interval, Layers, QualityReport, Solution, Table

Shown = Iterator[Sheet | str]


def of_layers(layers: Layers) -> Shown:
    sheet = Sheet("layer", "kind", "shape", "weights", "MACs", "activations")
    for layer in layers:
        shape = "×".join(map(str, layer.shape))
        sheet.add_row(
            layer.name, layer.kind, shape, number(layer.numel), number(layer.macs), number(layer.act_elements)
        )
    yield sheet
    for layer in layers:
        if layer.rule:
            yield f"{layer.name}: {layer.rule}"
    yield f"{len(layers)} layers, {layers.numel:,} weights; {layers.rest_bytes:,} bytes stay float"


def of_table(table: Table) -> Shown:
    sheet = Sheet("layer", *map(str, table.formats), title=f"{table.measure}, {table.source}")
    for unit, values, errors in zip(table.units, table.values, table.stderr, strict=True):
        cells = ["–" if np.isnan(v) else f"{v:.1e} ±{e:.0e}" for v, e in zip(values, errors, strict=True)]
        sheet.add_row(str(unit), *cells)
    yield sheet


def of_strata(strata: Mapping[str, Table]) -> Shown:
    first = next(iter(strata.values()))
    sheet = Sheet("class or timestep", *map(str, first.formats), title="sum of the layers")
    for name, table in strata.items():
        sheet.add_row(name, *(f"{value:.1e}" for value in np.nansum(table.values, 0)))
    yield sheet


def of_agreement(found: Mapping[str, tuple[float, float, int]]) -> Shown:
    """Estimator → (rank correlation with the true error, log correlation, cells)."""
    sheet = Sheet("estimator", "rank correlation with the true error", "log correlation", "cells")
    for name, (rank, log, cells) in found.items():
        sheet.add_row(name, f"{rank:.4f}", f"{log:.4f}", str(cells))
    yield sheet


def of_solution(solution: Solution) -> Shown:
    sheet = Sheet("layer", "format", "weight bits", "activation bits", title=f"bit map by {solution.method}")
    for name, format in solution.bitmap.items():
        bits = f"{format.weight_bits:.4g}" if format.weight_bits else "float"
        sheet.add_row(name, format.short, bits, str(format.act_bits or "float"))
    yield sheet
    sheet = Sheet("map", *solution.costs, "true error (MSE)")
    rows: dict[str, Any] = {solution.method: solution, **{f"baseline {n}": b for n, b in solution.baselines.items()}}
    for name, entry in rows.items():
        sheet.add_row(name, *map(number, entry.costs.values()), f"{entry.error.value:.4e}" if entry.error else "–")
    yield sheet
    yield from (f"searched on, {search}" for search in solution.searches)
    for text, limit in solution.limits.items():
        yield f"budget {text}: {number(solution.costs[text.split('<=')[0]])} <= {number(limit)}"
    if met := solution.target:
        value, spare = f"{met.value:.4g}", f"{met.margin:.2g} to spare"
        yield f"target {met.target} at the least {met.cost}: {value} on calibration inputs, {spare}"
    if solution.dominated:
        left = ", ".join(f"{format} ({n} of the layers)" for format, n in solution.dominated.items())
        yield f"left out, for they cost more and hurt more than others: {left}"


def of_quality(quality: QualityReport) -> Shown:
    sheet = Sheet("held-back", "float", "quantized", "noise floor", "n")
    for name in ("mse", "psnr_db", "ssim", "feature_distance", "feature_share"):
        if value := getattr(quality, name):
            sheet.add_row(name, "–", _spread(value), _spread(quality.floors.get(name)), str(value.n))
    for name, figure in quality.figures.items():
        cells = (_spread(figure.float), _spread(figure.quantized), _spread(figure.floor))
        sheet.add_row(name, *cells, str(figure.quantized.n))
    yield sheet
    if quality.maps:
        head, rows = beside(quality, brief=True)
        sheet = Sheet(*head, title="PSNR in dB, and the gain of the found map")
        for row in rows:
            sheet.add_row(*row)
        yield sheet
        yield gains(quality) or "gain over uniform: unknown, no uniform map meets the budgets"
    yield f"figures against {quality.reference} ({quality.reference_n} samples), features: {quality.features}"
    yield notes(quality)
    yield from (f"warning: {warning}" for warning in quality.warnings)


def of_comparison(rows: Mapping[str, Mapping[str, Any]]) -> Shown:
    """Map → its ``costs`` and ``quality``, as in ``comparison.json``."""
    costs = next(iter(rows.values()))["costs"]
    sheet = Sheet("map", *costs, "PSNR, dB", "SSIM", "FD float", "FD quantized")
    for name, row in rows.items():
        quality, fd = row["quality"], row["quality"]["figures"]["fd"]
        found = [quality["psnr_db"], quality["ssim"], fd["float"], fd["quantized"]]
        cells = [f"{q['value']:.4g} [{q['low']:.4g}, {q['high']:.4g}]" if q else "–" for q in found]
        sheet.add_row(name, *map(number, row["costs"].values()), *cells)
    yield sheet


def of_frontier(rows: Sequence[Mapping[str, Any]], traded: Sequence[str], measure: str) -> Shown:
    """The points of ``frontier.json``."""
    title = f"damage over {', '.join(traded)}"
    sheet = Sheet(*rows[0]["costs"], f"predicted {measure}", "PSNR, dB", "", title=title)
    for row in rows:
        db, marks = row["predicted_db"], ("knee" if row["knee"] else "") + ("" if row["optimal"] else " not proven")
        cells = (f"{row['predicted']:.4e}", "–" if db is None else f"{db:.2f}", marks.strip())
        sheet.add_row(*map(number, row["costs"].values()), *cells)
    yield sheet


def of_recovery(method: str, seconds: float, before: QualityReport, after: QualityReport) -> Shown:
    sheet = Sheet("the same map", "PSNR, dB", "SSIM", "FD", title=f"{method}, {seconds:.0f} s")
    for label, quality in (("nearest weights", before), ("recovered", after)):
        fd = quality.figures["fd"].quantized
        sheet.add_row(label, *map(_spread, (quality.psnr_db, quality.ssim, fd)))
    yield sheet
    yield from (f"warning: {warning}" for warning in after.new_warnings(before))


def _spread(value: Interval | None) -> str:
    return "–" if value is None else f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"
