"""Held-back PSNR, in dB, of uniform maps with 8-bit weights and activations of every kind; the same weights throughout.

`a` has one range a tensor, fitted to calibration inputs and stored; `d` and `m` find one for every channel of every
sample as it comes, from its mean and deviation (DAQ), or from its extremes. Generators and inputs are those of the
allocation table.
"""

from __future__ import annotations

import math

from benchmarks.allocation import cases
from benchmarks.families import uniform
from mpsearch.api import make_subject
from mpsearch.calibration import paired_errors
from mpsearch.quant import WeightBank, applied
from mpsearch.types import Format

BITS, KINDS = (4, 6, 8), ("a", "d", "m")
KEY = ("generator",)


def measure() -> list[dict[str, str]]:
    rows = []
    for name, case in cases().items():
        model, batches, fresh = case()
        subject, judge = make_subject(model, batches), make_subject(model, fresh)
        images = judge.reference  # made by the float generator: before a map is on it
        row = {"generator": name}
        for text in ("w8", *(f"w8{kind}{bits}" for bits in BITS for kind in KINDS)):
            bitmap = subject.with_ranges(uniform(subject.layers, Format.parse(text)))
            with applied(model, bitmap, WeightBank(model)):
                found = [
                    error
                    for batch, expected in enumerate(images)
                    for error in paired_errors(model, judge.calibration, batch, expected).tolist()
                ]
            row[text] = f"{10 * math.log10(judge.peak**2 * len(found) / sum(found)):.1f}"
        rows.append(row)
        print(row, flush=True)
    return rows
