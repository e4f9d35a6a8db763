"""Held-back PSNR, in dB, of maps of all kinds of formats and of integers alone, at equal bytes of the packed file.

Generators and inputs are those of the allocation table; a budget is the packed bytes of the uniform map of so many
bits, 2.5 being half-way between two. Both columns come from one search (effort `standard`), whose candidates the
integers are; seconds are those of the whole call.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator

from benchmarks.allocation import cases
from mpsearch import api, solving
from mpsearch.api import make_subject
from mpsearch.budgets import size_of
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Format, Layers, parse_formats

BUDGETS = (2.5, 3.0, 4.0)
KEY, MEAN = ("generator", "bytes of"), ("integers", "all formats", "gain")
INTEGERS = tuple(f"w{bits}" for bits in range(2, 9))
RICHER = (
    "w1",
    "w2z",
    "w3z",
    "w4z",
    "w2g32",
    "w3g32",
    "w4g32",
    "w2r2",
    "w3r2",
    "ternary",
    "p2",
    "p3",
    "p4",
    "p5",
    "k6x3",
    "k8x3",
    "k8x4",
    "k10x4",
    "fp8",
    "fp16",
    "bf16",
)


def measure() -> Iterator[dict[str, str]]:
    formats = parse_formats([*INTEGERS, *RICHER])
    solvers = solving.with_seed(solving.EFFORTS["standard"], 0)
    for name, case in cases().items():
        model, batches, fresh = case()
        judge = make_subject(model, fresh)

        def decibels(bitmap: BitMap, judge: Subject = judge) -> float:
            return 10 * math.log10(judge.peak**2 / judge.error(bitmap).value)

        for bits in BUDGETS:
            start = time.perf_counter()
            subject = make_subject(model, batches)
            limit = _bytes(subject.layers, bits)
            found = solving.search(
                api.estimate(model, batches, formats), subject.layers, [f"size<={limit}"], solvers, subject
            )
            seconds = time.perf_counter() - start
            plain, richer = decibels(found.baselines["integers"].bitmap), decibels(found.bitmap)
            used = Counter(map(str, found.bitmap.values()))
            yield {
                "generator": name,
                "bytes of": f"{bits:g} bits",
                "bytes": str(limit),
                "integers": f"{plain:.2f}",
                "all formats": f"{richer:.2f}",
                "gain": f"{richer - plain:.2f}",
                "formats of layers": ", ".join(f"{n} {text}" for text, n in used.most_common()),
                "s": f"{seconds:.0f}",
            }


def _bytes(layers: Layers, bits: float) -> int:
    """Packed bytes of the uniform map, a mean of two where ``bits`` is no whole number."""
    sizes = [size_of({layer.name: Format("int", width) for layer in layers}, layers) for width in _around(bits)]
    return round(sum(sizes) / len(sizes))


def _around(bits: float) -> tuple[int, ...]:
    return (math.floor(bits), math.ceil(bits))
