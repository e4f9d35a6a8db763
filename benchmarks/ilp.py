"""Time of the exact solver, cvxpy's compilation included."""

from __future__ import annotations

import statistics
import time

import numpy as np

from mpsearch.search import Ilp
from mpsearch.types import Budget, Limit, Problem, Table, Unit, parse_formats

SHAPE, BUDGETS, ROUNDS = (300, 8), 2, 7
FORMATS = parse_formats(["w2", "w3", "w4", "w5", "w6", "w7", "w8", "fp16"])


def problem(seed: int) -> Problem:
    """300 layers like those of real generators: damage falls as 4^-bits, sizes and sensitivities over four decades."""
    rng = np.random.default_rng(seed)
    units = tuple(Unit(f"layer{i}.weight") for i in range(SHAPE[0]))
    bits = np.array([f.weight_bits for f in FORMATS], float)
    damage = rng.lognormal(0, 2, (SHAPE[0], 1)) * 4.0**-bits * rng.uniform(0.7, 1.3, SHAPE)
    limits = []
    for cost in ("size", "bops")[:BUDGETS]:
        costs = rng.lognormal(8, 2, (SHAPE[0], 1)) * bits
        table = Table(units, FORMATS, costs, np.zeros(SHAPE), cost, cost)
        total = costs[:, FORMATS.index(parse_formats("w4")[0])].sum()
        limits.append(Limit(Budget(cost, total), table, total, costs[:, -1].sum() * 2))
    return Problem(Table(units, FORMATS, damage, np.zeros(SHAPE), "mse", "synthetic"), tuple(limits))


def measure() -> list[dict[str, str]]:
    times, gaps = [], []
    Ilp()(problem(0))  # the first solve imports the solver
    for seed in range(1, ROUNDS + 1):
        task = problem(seed)
        start = time.perf_counter()
        answer = Ilp(gap=1e-6)(task)
        times.append(time.perf_counter() - start)
        value = task.predicted(answer.choice)
        gaps.append((value - (answer.bound or 0)) / value)
    return [
        {
            "problem": f"{SHAPE[0]} layers x {SHAPE[1]} formats x {BUDGETS} budgets, {ROUNDS} instances",
            "seconds, median (range)": f"{statistics.median(times):.2f} ({min(times):.2f} … {max(times):.2f})",
            "largest gap": f"{max(gaps):.1e}",
        }
    ]
