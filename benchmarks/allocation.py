"""Held-back PSNR, in dB, of every way to choose a bit map, at equal bits under one quantizer (weights only).

Peak = range of the float images. Peers (ModelOpt, MCT) run where installed, as experts would. The columns with
a minus sign are differences in dB; `others` are all maps that are not the ladder's. Seconds are
wall times of one call each, everything from the float generator to the map included.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import mpsearch
from benchmarks.peers import PeerError, mct, modelopt
from mpsearch.api import make_subject
from mpsearch.budgets import limit_of
from mpsearch.config import load_config
from mpsearch.errors import MpsearchError, UsageError
from mpsearch.inputs import SOURCES, draw
from mpsearch.protocols import Estimator
from mpsearch.registry import make
from mpsearch.run import Run
from mpsearch.search import Ilp, SizeOnly, Uniform
from mpsearch.sensitivity import Hessian, OnePass, Perturbation
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Budget, Measured, Problem, Table, parse_formats
from mpsearch.workload import HELDBACK
from mpsearch.zoo import PUBLISHED, fetch_published, load_published, sagan, stylegan2

FORMATS = parse_formats([f"w{bits}" for bits in range(2, 9)])
BUDGETS = tuple(map(float, os.environ.get("BUDGETS", "2.5 3 3.5 4 5").split()))
OWN = ("sagan", "stylegan2", "cyclegan", "diffusion-step")
ONLY = os.environ.get("GENERATORS", " ".join([*OWN, *PUBLISHED])).split()
CONFIGS = Path(__file__).parents[1] / "configs"
LATENTS, PHOTOGRAPHS, RANDOM = (64, 256), (16, 64), 200  # calibration and held-back inputs
MEASURED = 1000  # cells of a damage table; to measure the 1,785 of the terrain U-Net takes an hour
KEY, MEAN = ("generator", "bits"), "all"
LADDER = ("fast", "standard", "thorough")
PEERS = {"ModelOpt": modelopt, "MCT": mct}
ASKED = os.environ.get("EFFORTS", " ".join(LADDER)).split()
Batches = list[tuple[Any, ...]]


def cases() -> dict[str, Callable[[], tuple[nn.Module, Batches, Batches]]]:
    """Generator, calibration batches and held-back batches of everything at hand; published weights are fetched."""

    def latents(model: nn.Module, *shape: int) -> tuple[nn.Module, Batches, Batches]:
        sets = []
        for seed, count in enumerate(LATENTS):
            z = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
            sets.append([(part,) for part in z.split(16)])
        return model, *sets

    def photographs(name: str) -> tuple[nn.Module, Batches, Batches]:
        model = load_published(name)
        crops = {"package": "skimage", "folder": "data", "crop": 32}
        source = [make("kind of input", SOURCES, "images", crops)]
        return model, draw(source, PHOTOGRAPHS[0], 16, 0), draw(source, PHOTOGRAPHS[1], 16, 1_000_000)

    def configured(name: str, calibration: int, heldback: int, batch: int) -> tuple[nn.Module, Batches, Batches]:
        samples = {"calibration": calibration, "heldback": heldback, "distances": heldback, "batch": batch}
        with TemporaryDirectory() as folder:
            run = Run(load_config(CONFIGS / f"{name}.yaml", samples=samples), Path(folder))
            return run.model, run.inputs(calibration, 0), run.inputs(heldback, HELDBACK)

    found = {
        "sagan": lambda: latents(sagan(), 64),
        "stylegan2": lambda: latents(stylegan2(), 64),
        "cyclegan": lambda: configured("cyclegan", 64, 256, 16),
        "diffusion-step": lambda: configured("diffusion-step", 80, 240, 20),
        "dcgan-faces": lambda: latents(load_published("dcgan-faces"), 100, 1, 1),
        "srvgg-x4": lambda: photographs("srvgg-x4"),
        "upconv7-x2": lambda: photographs("upconv7-x2"),
        "terrain-unet": lambda: configured("zoo-terrain-unet", 16, 64, 4),
    }
    return {name: case for name, case in found.items() if name in ONLY and (name not in PUBLISHED or at_hand(name))}


def at_hand(name: str) -> bool:
    """Whether a published network is in the cache, or can be fetched."""
    try:
        fetch_published(name, print)
    except UsageError as error:
        print(error)
        return False
    return True


def measure() -> Iterator[dict[str, str]]:
    for name, case in cases().items():
        model, batches, fresh = case()
        subject = make_subject(model, batches)
        judge = make_subject(model, fresh, subject.layers)
        tables: dict[str, Estimator] = {"one-pass + ilp": OnePass(), "hawq + ilp": Hessian()}
        if len(subject.layers) * len(FORMATS) <= MEASURED:
            tables["measured + ilp"] = Perturbation()
        scored = {method: estimator(subject, FORMATS) for method, estimator in tables.items()}
        for bits in BUDGETS:
            yield _cell(name, bits, subject, judge, scored, batches)


def _cell(
    name: str, bits: float, subject: Subject, judge: Subject, scored: dict[str, Table], batches: Batches
) -> dict[str, str]:
    peak = max(y.max().item() for y in judge.reference) - min(y.min().item() for y in judge.reference)
    limit = limit_of(Budget("bits", bits), subject.layers, FORMATS)
    one_pass = Problem(scored["one-pass + ilp"], (limit,))

    def decibels(bitmap: BitMap) -> float:
        return 10 * math.log10(peak**2 / judge.error(bitmap).value)

    found: dict[str, BitMap] = {}
    for method, solver in (("uniform", Uniform()), ("size-only", SizeOnly())):
        found[method] = one_pass.bitmap(solver(one_pass).choice)
    found["best of 200 random"] = _random(one_pass, subject)
    for method, table in scored.items():
        problem = Problem(table, (limit,))
        found[method] = problem.bitmap(Ilp()(problem).choice)
    peers, seconds = _peers(subject.model, batches, bits)
    found |= peers
    for effort in ASKED:
        start = time.perf_counter()
        found[effort] = mpsearch.allocate(subject.model, batches, [f"bits<={bits}"], FORMATS, effort).bitmap
        seconds[effort] = time.perf_counter() - start
    found_db = {method: decibels(bitmap) for method, bitmap in found.items()}
    rivals = [value for method, value in found_db.items() if method not in LADDER]
    gains = {}
    if "standard" in found_db:
        others = {"uniform": found_db["uniform"], "others": max(rivals)}
        if peers:
            others["peers"] = max(found_db[method] for method in peers)
        gains = {f"standard - {name}": found_db["standard"] - best for name, best in others.items()}
        if "thorough" in found_db:
            gains["thorough - standard"] = found_db["thorough"] - found_db["standard"]
    row = {"generator": name, "bits": f"{bits:g}"}
    row |= {method: f"{value:.2f}" for method, value in (found_db | gains).items()}
    return row | {f"{method}, s": f"{spent:.1f}" for method, spent in seconds.items()}


def _random(problem: Problem, subject: Subject) -> BitMap:
    """The best of random maps on calibration inputs: widths drawn by chance, then lowered until they fit."""
    rng = np.random.default_rng(0)
    best: tuple[Measured, BitMap] | None = None
    shape = problem.damage.values.shape
    for _ in range(RANDOM):
        choice = rng.integers(shape[1], size=shape[0])
        while not problem.feasible(choice):
            high = np.flatnonzero(choice > 0)
            choice[rng.choice(high)] -= 1
        bitmap = problem.bitmap(choice)
        error = subject.error(bitmap, best and best[0])  # a map without hope is not run on all samples
        if best is None or error.beats(best[0]):
            best = (error, bitmap)
    assert best is not None
    return best[1]


def _peers(model: nn.Module, batches: Batches, bits: float) -> tuple[dict[str, BitMap], dict[str, float]]:
    maps, seconds = {}, {}
    for label, call in PEERS.items():
        start = time.perf_counter()
        try:
            maps[label] = BitMap(call(model, batches, bits))
        except (ImportError, PeerError, MpsearchError):
            continue
        seconds[label] = time.perf_counter() - start
    return maps, seconds
