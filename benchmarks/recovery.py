"""What recovery gives back: the same maps with the nearest weights, and after each method.

The runs are those of ``configs/`` with 8-bit activations; a recovery learns from the float generator on inputs of its
own (a fixed stock of images: on the calibration inputs), and every row is measured on inputs that neither it nor the
search saw. PSNR and Fréchet distance come with 95 % bootstrap intervals; `gap closed` is how much of what the nearest
weights added to the distance is gone again, where that took it out of the float one's interval; seconds are the
recovery's alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.families import of_each, text, uniform
from mpsearch import api, solving, validation
from mpsearch.quant import WeightBank
from mpsearch.recovery import RECOVERERS
from mpsearch.run import Run
from mpsearch.types import BitMap, Figure, Format, QualityReport
from mpsearch.workload import DISTANCES, HELDBACK

BEST = ("adaround", "distil")  # without training, and with
USUAL: dict[str, tuple[str, ...]] = {"uniform w8a8": (), "2 or 3 bits, 2.5 on average": ("distil",)}
EVERY = ("mpsearch.zoo:sagan", "searched, 4 bits")  # all methods, on one map of one generator
LOW = ("w2", "w3")
KEY = ("generator", "map", "weights")
MAPS = os.environ.get("MAPS", "w8a8 w4a8 4 3 mixed").split()
METHODS: tuple[str, ...] = tuple(os.environ.get("METHODS", "").split())  # "adaround bias": these, on every map


def measure() -> Iterator[dict[str, str]]:
    return of_each(_family)


def _family(run: Run) -> Iterator[dict[str, str]]:
    for label, bitmap in _maps(run).items():
        ranged = run.subject.with_ranges(bitmap)
        every = (run.config.model.factory, label) == EVERY
        methods = METHODS or (tuple(RECOVERERS) if every else USUAL.get(label, BEST))
        nearest = 0.0
        for method in ("nearest", *methods):
            start = time.perf_counter()
            bank = None
            if method != "nearest":
                bank = api.recover(run.model, ranged, run.workload.lessons(), method, run.config.seed)
            seconds = time.perf_counter() - start
            quality = _quality(run, ranged, bank)
            fd = quality.figures["fd"]
            nearest = fd.quantized.value if bank is None else nearest
            yield {
                "map": label,
                "weights": method,
                "PSNR, dB": text(quality.psnr_db, 1),
                "FD": text(fd.quantized),
                "FD of float": text(fd.float),
                "inside": "yes" if fd.quantized.value <= fd.float.high else "no",
                "gap closed": "–" if bank is None else closed(nearest, fd),
                "s": "–" if bank is None else f"{seconds:.0f}",
            }


def closed(nearest: float, fd: Figure) -> str:
    """Share of the distance between ``nearest`` and float that is gone; nothing where it was within the interval."""
    if nearest <= fd.float.high:
        return "–"
    return f"{100 * (nearest - fd.quantized.value) / (nearest - fd.float.value):.0f} %"


def _maps(run: Run) -> dict[str, BitMap]:
    asked = [text for text in ("w8a8", "w4a8") if text in MAPS]
    maps = {f"uniform {text}": uniform(run.layers, Format.parse(text)) for text in asked}
    solvers = solving.with_seed(solving.EFFORTS[run.config.effort], run.config.seed)
    table = run.sensitivity
    low = np.array([str(format.weight_only) in LOW for format in table.formats])
    lowest = replace(table, values=np.where(low, table.values, np.nan))
    for name, label, damage, bits in (
        ("4", "searched, 4 bits", table, 4),
        ("3", "searched, 3 bits", table, 3),
        ("mixed", "2 or 3 bits, 2.5 on average", lowest, 2.5),
    ):
        if name not in MAPS:
            continue
        maps[label] = solving.search(damage, run.layers, [f"bits<={bits}"], solvers, run.subject).bitmap
    return maps


def _quality(run: Run, bitmap: BitMap, bank: WeightBank | None) -> QualityReport:
    samples, seed = run.config.samples, run.config.seed
    held, many = run.inputs(samples.heldback, HELDBACK), run.inputs(samples.distances, DISTANCES)
    return validation.validate(run.model, bitmap, held, run.workload.features, run.reference, many, seed, bank=bank)
