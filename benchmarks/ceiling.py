"""Held-back PSNR, in dB, of `standard` beside the best map found by searching on the held-back inputs themselves.

What no method that sees only calibration inputs can be asked to beat with one width a layer. Generators, inputs and
peak are those of the allocation table; `refine` searches from several starts, the map of `standard` among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

import mpsearch
from benchmarks.allocation import BUDGETS, FORMATS, cases
from mpsearch.api import make_subject
from mpsearch.budgets import limit_of
from mpsearch.search import Ilp, Refine, SizeOnly, Uniform, problem_of
from mpsearch.sensitivity import OnePass
from mpsearch.solving import first_order
from mpsearch.types import Budget

KEY, MEAN = ("generator", "bits"), ("left",)
SEARCH = Refine(evaluations=90, restarts=3, others=2, patience=24)


def measure() -> Iterator[dict[str, str]]:
    for name, case in cases().items():
        model, batches, fresh = case()
        judge = make_subject(model, fresh)
        table = OnePass()(judge, FORMATS)
        for bits in BUDGETS:
            bitmap = mpsearch.allocate(model, batches, [f"bits<={bits}"], FORMATS).bitmap
            problem = problem_of(table, judge.layers, [limit_of(Budget("bits", bits), judge.layers, FORMATS)])
            found = np.array([problem.formats.index(bitmap[unit.layer]) for unit in problem.units])
            starts = (found, *(solver(problem).choice for solver in (Ilp(), SizeOnly(), Uniform())))
            led = partial(first_order, judge, problem)
            asked = replace(problem, evaluate=judge.error, race=judge.error, slopes=led, starts=starts)
            errors = asked.true_error(found), asked.true_error(SEARCH(asked).choice)
            ours, most = (10 * math.log10(judge.peak**2 / error) for error in errors)
            row = {"generator": name, "bits": f"{bits:g}", "standard": f"{ours:.2f}"}
            yield row | {"searched on the held-back inputs": f"{most:.2f}", "left": f"{most - ours:.2f}"}
