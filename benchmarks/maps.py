"""Held-back PSNR of searched maps beside uniform and size-only ones, at equal bits."""

from __future__ import annotations

import math
import time

import torch

import mpsearch
from benchmarks.one_pass import generators
from mpsearch.api import make_subject
from mpsearch.subject import Subject
from mpsearch.types import BitMap

BUDGETS, EFFORTS, SAMPLES = (3.0, 4.0, 5.0), ("fast", "standard"), 64


def measure() -> list[dict[str, str]]:
    rows = []
    for name, (model, batches) in generators().items():
        shape = batches[0][0].shape[1:]
        fresh = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))
        judge = make_subject(model, [(z,) for z in fresh.split(16)])
        peak = max(y.max().item() for y in judge.reference) - min(y.min().item() for y in judge.reference)

        def decibels(bitmap: BitMap, judge: Subject = judge, peak: float = peak) -> float:
            return 10 * math.log10(peak**2 / judge.error(bitmap).value)

        for bits in BUDGETS:
            row = {"generator": name, "bits": f"{bits:g}"}
            for effort in EFFORTS:
                start = time.perf_counter()
                solution = mpsearch.allocate(model, batches, [f"bits<={bits}"], effort=effort)
                row[f"{effort}, dB"] = f"{decibels(solution.bitmap):.2f}"
                row[f"{effort}, s"] = f"{time.perf_counter() - start:.1f}"
            for baseline, entry in solution.baselines.items():
                row[f"{baseline}, dB"] = f"{decibels(entry.bitmap):.2f}"
            rows.append(row)
    return rows
