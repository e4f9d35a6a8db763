"""How well each estimator ranks the true damage of single layers, on those of the allocation table."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.allocation import OWN, cases
from mpsearch.api import make_subject
from mpsearch.sensitivity import ESTIMATORS, FidProxy
from mpsearch.sensitivity.compare import agreement
from mpsearch.types import parse_formats
from mpsearch.zoo import fashion_features

FORMATS = parse_formats(["w2", "w3", "w4", "w6", "w8"])
KEY = ("generator", "estimator")


def measure() -> Iterator[dict[str, str]]:
    for name, case in cases().items():
        model, batches, _ = case()
        subject = make_subject(model, batches)
        truth = ESTIMATORS["perturbation"]()(subject, FORMATS)
        for method, kind in ESTIMATORS.items():
            subject.memo = {}
            embedded = method == "fid-proxy" and name in OWN
            estimator = FidProxy(features=fashion_features) if embedded else kind()
            start = time.perf_counter()
            table = estimator(subject, FORMATS)
            spent = time.perf_counter() - start
            rank, log, cells = agreement(table, truth)
            yield {
                "generator": name,
                "estimator": method,
                "rank correlation": f"{rank:.4f}",
                "log correlation": f"{log:.4f}",
                "cells": str(cells),
                "seconds": f"{spent:.1f}",
            }
