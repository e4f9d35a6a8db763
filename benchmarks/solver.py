"""Time, proof and memory of the solver for large problems; each row in a process of its own, libraries included."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from mpsearch.search import Lagrange
from mpsearch.types import Budget, Limit, Problem, Table, Unit, parse_formats

FORMATS = parse_formats([f"w{bits}{more}" for bits in range(2, 9) for more in ("", "a8")] + ["fp16", "w6a6"])
FAMILIES = {
    "log2": "sizes and sensitivities log-normal, σ 2",
    "log1": "sizes and sensitivities log-normal, σ 1",
    "uni": "sizes and sensitivities uniform",
    "rand": "damages and costs without any order",
}
LARGE = "100000 x 16 x 3"
ROWS = [("300 x 8 x 2", "log2", 1e-6), *(("1000 x 16 x 3", family, 1e-6) for family in FAMILIES)]
ROWS += [(LARGE, family, gap) for family in FAMILIES for gap in (1e-4, 1e-6)]


def problem(seed: int, shape: tuple[int, int, int], family: str) -> Problem:
    """Damage falls as 4^-bits, costs rise with the bits; limits at four fifths of the mean format."""
    units, formats, budgets = shape
    rng = np.random.default_rng(seed)
    bits = np.array([f.weight_bits for f in FORMATS[:formats]], float) + rng.uniform(0, 0.3, formats)
    wide = float(family[3:]) if family.startswith("log") else None

    def drawn(mean: float) -> np.ndarray:
        return rng.lognormal(mean, wide, (units, 1)) if wide else np.exp(mean) * rng.uniform(0.1, 1, (units, 1))

    damage = drawn(0) * 4.0**-bits * rng.uniform(0.7, 1.3, (units, formats))
    costs = [np.round(drawn(8) * bits * rng.uniform(0.9, 1.1, formats)) for _ in range(budgets)]
    if family == "rand":
        damage = rng.uniform(0, 1, (units, formats))
        costs = [np.round(rng.uniform(1, 100, (units, formats))) for _ in range(budgets)]
    names = tuple(Unit(f"layer{i}.weight") for i in range(units))
    tables = [Table(names, FORMATS[:formats], values, np.zeros_like(values), "mse", "") for values in (damage, *costs)]
    budget = [Budget("size", 0.8 * float(cost.mean(axis=1).sum())) for cost in costs]
    limits = (Limit(one, made, one.limit, one.limit) for one, made in zip(budget, tables[1:], strict=True))
    return Problem(tables[0], tuple(limits))


def solve(size: str, family: str, gap: float) -> None:
    """Print the seconds, the gaps and the peak memory in GB of one row."""
    units, formats, budgets = (int(part) for part in size.split(" x "))
    times, gaps = [], []
    Lagrange()(problem(0, (30, formats, budgets), family))  # the first solve imports the rest
    for seed in range(1, 4 if size == LARGE else 9):
        task = problem(seed, (units, formats, budgets), family)
        start = time.perf_counter()
        answer = Lagrange(gap)(task)
        times.append(time.perf_counter() - start)
        value = task.predicted(answer.choice)
        gaps.append((value - (answer.bound or 0)) / value)
    print(json.dumps([times, gaps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))


def measure() -> list[dict[str, str]]:
    rows = []
    for size, family, gap in ROWS:
        command = [sys.executable, "-m", "benchmarks.solver", size, family, str(gap)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        times, gaps, memory = json.loads(printed)
        rows.append(
            {
                "units x formats x budgets": size,
                "family": FAMILIES[family],
                "asked gap": f"{gap:.0e}",
                "instances": str(len(times)),
                "seconds, median (range)": f"{statistics.median(times):.2f} ({min(times):.2f} … {max(times):.2f})",
                "largest gap": f"{max(gaps):.1e}",
                "peak memory, GB": f"{memory:.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    solve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
