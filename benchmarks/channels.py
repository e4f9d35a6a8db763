"""Held-back PSNR, in dB, of maps with several widths a layer, at equal bits, what it takes to say them included.

Generators, inputs, budgets and peak are those of the allocation table. The layer-wise map is the one that the channels
start from (effort `standard`); `peers` are the best map of ModelOpt or MCT in the allocation table. Seconds are wall
times of one call with 8 groups, the layer-wise search included.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import mpsearch
from benchmarks.allocation import BUDGETS, FORMATS, PEERS, cases
from mpsearch.api import make_subject
from mpsearch.subject import Subject
from mpsearch.types import BitMap

GROUPS = (8,)
KEY, MEAN = ("generator", "bits"), "all"
ALLOCATION = Path(__file__).parent / "results" / "allocation.json"


def measure() -> Iterator[dict[str, str]]:
    for name, case in cases().items():
        model, batches, fresh = case()
        judge = make_subject(model, fresh)

        def decibels(bitmap: BitMap, judge: Subject = judge) -> float:
            return 10 * math.log10(judge.peak**2 / judge.error(bitmap).value)

        for bits in BUDGETS:
            found: dict[str, float] = {}
            for groups in GROUPS:
                start = time.perf_counter()
                solution = mpsearch.allocate(model, batches, [f"bits<={bits}"], FORMATS, groups=groups)
                seconds = time.perf_counter() - start
                whole = solution.baselines.get("layer-wise")
                found["uniform"] = decibels(solution.baselines["uniform"].bitmap)
                found["layer-wise"] = decibels(whole.bitmap if whole else solution.bitmap)
                found[f"{groups} groups"] = decibels(solution.bitmap)
            found["8 groups - layer-wise"] = found["8 groups"] - found["layer-wise"]
            if peers := found_by_peers(name, f"{bits:g}"):
                found["8 groups - peers"] = found["8 groups"] - max(peers)
            row = {head: f"{value:.2f}" for head, value in found.items()}
            yield {"generator": name, "bits": f"{bits:g}"} | row | {"8 groups, s": f"{seconds:.1f}"}


def found_by_peers(name: str, bits: str) -> list[float]:
    """Held-back PSNR of the peers' maps in the allocation table, as far as it has been printed."""
    rows = json.loads(ALLOCATION.read_text())["rows"] if ALLOCATION.exists() else []
    same = [row for row in rows if (row["generator"], row.get("bits")) == (name, bits)]
    return [float(row[peer]) for row in same for peer in PEERS if peer in row]
