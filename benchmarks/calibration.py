"""Held-back PSNR, in dB, of the answer over the number of calibration inputs, drawn at random or chosen by `cluster`.

Generators of the allocation table, weights only. Every cell is the median over the seeds of the calibration inputs,
the range in brackets; `cluster` chooses from a pool of eight times as many. `worst` is the PSNR of the standard answer
(random inputs) on inputs that a gradient ascent moved to where it does worst.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

import mpsearch
from benchmarks.allocation import FORMATS, at_hand
from mpsearch.api import make_subject
from mpsearch.inputs import Batches, Box, Cluster, Images, Normal, Region, Shell, draw
from mpsearch.sensitivity import OnePass
from mpsearch.solving import EFFORTS, search
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Layers
from mpsearch.zoo import load_published, sagan

SIZES = tuple(map(int, os.environ.get("SIZES", "4 8 16 32 64 128").split()))
BUDGETS = tuple(map(float, os.environ.get("BUDGETS", "3 4").split()))
SEEDS = int(os.environ.get("SEEDS", "3"))
ONLY = os.environ.get("GENERATORS", "sagan dcgan-faces upconv7-x2").split()
HELDBACK, WORST, BATCH = int(os.environ.get("HELDBACK", "256")), 32, 16
LADDER = ("fast", "standard")

Source = Normal | Images
SOURCES: dict[str, tuple[Source, Region]] = {
    "sagan": (Normal((64,)), Shell()),
    "dcgan-faces": (Normal((100, 1, 1)), Shell()),
    "upconv7-x2": (Images("data", crop=32, shrink=4, package="skimage"), Box(0.0, 1.0, 8 / 255)),
}
KEY = ("generator", "bits")


def measure() -> list[dict[str, str]]:
    rows = []
    for name, (source, region) in SOURCES.items():
        if name not in ONLY or not (name == "sagan" or at_hand(name)):
            continue
        model = sagan() if name == "sagan" else load_published(name)
        judge = make_subject(model, draw([source], HELDBACK, BATCH, 1_000_000))
        near = draw([source], min(WORST, HELDBACK), BATCH, 1_000_000)
        for size in SIZES:
            found: dict[tuple[float, str], list[float]] = {}
            for seed in range(SEEDS):
                for method in ("random", "cluster"):
                    batches = _inputs(model, source, size, seed, method)
                    for (bits, effort), bitmap in _maps(model, batches, judge.layers, seed).items():
                        found.setdefault((bits, f"{method}, {effort}"), []).append(_decibels(judge, bitmap))
                        if (method, effort) == ("random", "standard"):
                            worst = _worst(model, bitmap, near, region)
                            found.setdefault((bits, "worst"), []).append(worst)
            for bits in BUDGETS:
                row = {"generator": name, "bits": f"{bits:g}", "inputs": str(size)}
                rows.append(row | {head: _cell(values) for (at, head), values in found.items() if at == bits})
                print(rows[-1], flush=True)
    return sorted(rows, key=lambda row: (ONLY.index(row["generator"]), float(row["bits"])))


def _inputs(model: nn.Module, source: Source, size: int, seed: int, method: str) -> Batches:
    if method == "random":
        return draw([source], size, BATCH, seed)
    chooser = Cluster()
    pool = draw([source], size * chooser.pool, BATCH, seed)
    return chooser(model, pool, size, torch.Generator().manual_seed(seed))


def _maps(model: nn.Module, batches: Batches, layers: Layers, seed: int) -> dict[tuple[float, str], BitMap]:
    """(bits, effort) → the map that is found on these inputs."""
    subject = make_subject(model, batches, layers, seed)
    table = OnePass(seed=seed)(subject, FORMATS)
    found = {}
    for bits in BUDGETS:
        for effort in LADDER:
            solution = search(table, layers, [f"bits<={bits:g}"], EFFORTS[effort], subject)
            found[bits, effort] = solution.bitmap
    return found


def _decibels(judge: Subject, bitmap: BitMap) -> float:
    return 10 * math.log10(judge.peak**2 / judge.error(bitmap).value)


def _worst(model: nn.Module, bitmap: BitMap, near: Batches, region: Region) -> float:
    moved = make_subject(model, mpsearch.worst_case(model, bitmap, near, regions=[region]))
    return _decibels(moved, bitmap)


def _cell(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} … {max(values):.2f})"
