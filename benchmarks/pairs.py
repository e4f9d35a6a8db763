"""Pair terms beside the additive table, both of one-pass with 32 probes: how each ranks maps, and what comes of it.

Of 100 random feasible maps, on the calibration inputs: rank correlation of the prediction with the true error, and
their root mean square distance in dB; `half` counts half of the pair terms. Then held-back PSNR, in dB, of the additive
optimum (ILP) and of `quadratic` with a quarter, half and all of the pair terms; `judged` is that of these four which is
best on the calibration inputs. Weights only, w2 … w8; peak = range of the float images.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.allocation import FORMATS, cases
from mpsearch.api import make_subject
from mpsearch.budgets import limit_of
from mpsearch.search import Ilp, Quadratic
from mpsearch.sensitivity import OnePass
from mpsearch.types import Budget, Choice, Problem

BUDGETS, MAPS, SAMPLES, BATCH = (3.0, 4.0), 100, (16, 64), 8  # calibration and held-back inputs
SHARES = {"quarter": 0.25, "half": 0.5, "all": 1.0}
KEY = ("generator", "bits")


def measure() -> list[dict[str, str]]:
    rows = []
    for name, case in cases().items():
        model, batches, fresh = case()
        subject = make_subject(model, _first(batches, SAMPLES[0]))
        judge = make_subject(model, _first(fresh, SAMPLES[1]), subject.layers)
        peak = max(y.max().item() for y in judge.reference) - min(y.min().item() for y in judge.reference)
        start = time.perf_counter()
        pairs = OnePass().pairs(subject, FORMATS)
        spent = time.perf_counter() - start
        table = OnePass()(subject, FORMATS)
        for bits in BUDGETS:
            limit = limit_of(Budget("bits", bits), subject.layers, FORMATS)
            problem = Problem(table, (limit,), subject.error, pairs=pairs)
            row = {"generator": name, "bits": f"{bits:g}", "pairs, s": f"{spent:.1f}"} | _ranked(problem)
            maps = {"ilp": problem.bitmap(Ilp()(problem).choice)}
            start = time.perf_counter()
            for label, share in SHARES.items():
                maps[f"quadratic, {label}"] = problem.bitmap(Quadratic(share=share)(problem).choice)
            seconds = (time.perf_counter() - start) / len(SHARES)
            maps["judged"] = min(maps.values(), key=lambda bitmap: subject.error(bitmap).value)
            for label, bitmap in maps.items():
                row[f"{label}, dB"] = f"{10 * math.log10(peak**2 / judge.error(bitmap).value):.2f}"
            rows.append(row | {"quadratic, s": f"{seconds:.2f}"})
            print(rows[-1], flush=True)
    return rows


def _first(batches: list[tuple[Any, ...]], samples: int) -> list[tuple[Any, ...]]:
    """The first samples, in small batches."""
    found = [(part,) for (batch, *_) in batches for part in batch.split(BATCH)]
    return found[: samples // BATCH]


def _ranked(problem: Problem) -> dict[str, str]:
    """Rank correlation and rms distance in dB of the predictions of random maps."""
    rng = np.random.default_rng(0)
    choices = [_random(problem, rng) for _ in range(MAPS)]
    truth = np.array([problem.true_error(choice) for choice in choices])
    alone = np.array([problem.predicted(choice) for choice in choices])
    assert problem.pairs is not None
    whole = np.array([problem.pairs.damage(choice) for choice in choices])
    found = {}
    for label, predicted in (("additive", alone), ("half", (alone + whole) / 2), ("pairs", whole)):
        distance = 10 * np.log10(predicted / truth)
        found[f"{label}: rank"] = f"{spearmanr(predicted, truth).statistic:.3f}"
        found[f"{label}: rms dB"] = f"{np.sqrt(np.square(distance).mean()):.2f}"
    return found


def _random(problem: Problem, rng: np.random.Generator) -> Choice:
    """Widths drawn by chance, then lowered until they fit."""
    choice: Choice = rng.integers(len(problem.formats), size=len(problem.units))
    while not problem.feasible(choice):
        choice[rng.choice(np.flatnonzero(choice > 0))] -= 1
    return choice
