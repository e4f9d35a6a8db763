"""Cost of ``one-pass`` against the backward passes that it is made of, and its growth with the number of formats.

Every ratio is taken within one round (the machine drifts); the table gives the median and the range over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.allocation import at_hand
from mpsearch.api import make_subject
from mpsearch.sensitivity import OnePass
from mpsearch.types import parse_formats
from mpsearch.zoo import load_published, sagan

PROBES, ROUNDS, BATCHES = 32, 7, 4  # 64 inputs, as many as a run takes by default
FOUR = parse_formats(["w2", "w4", "w6", "w8"])
SIXTEEN = parse_formats([f"w{b}{a}" for b in (2, 3, 4, 8) for a in ("", "a4", "a6", "a8")])
WEIGHTS16 = parse_formats([f"w{b}" for b in range(2, 9)] + ["fp16"] + [f"w{b}a8" for b in range(2, 9)] + ["fp16a8"])


def generators() -> dict[str, tuple[nn.Module, list[tuple[Any, ...]]]]:
    """The embedded generator, and the DCGAN faces where they are at hand."""
    seed = torch.Generator().manual_seed(0)
    found: dict[str, tuple[nn.Module, list[tuple[Any, ...]]]] = {
        "sagan": (sagan(), [(torch.randn(16, 64, generator=seed),) for _ in range(BATCHES)])
    }
    if at_hand("dcgan-faces"):
        latents = [(torch.randn(16, 100, 1, 1, generator=seed),) for _ in range(BATCHES)]
        found["dcgan-faces"] = (load_published("dcgan-faces"), latents)
    return found


def plain(model: nn.Module, batches: list[tuple[Any, ...]]) -> None:
    """One forward pass and ``PROBES`` backward passes to all weights for every batch, with nothing of ours."""
    model.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    for batch in batches:
        images: Tensor = model(*batch)
        for _ in range(PROBES):
            torch.autograd.grad(images, weights, torch.ones_like(images), retain_graph=True, allow_unused=True)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratios(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def measure() -> list[dict[str, str]]:
    rows = []
    for name, (model, batches) in generators().items():
        subject = make_subject(model, batches)
        for formats in (FOUR, SIXTEEN, WEIGHTS16):  # quantized weights and ranges are made once, before
            OnePass(PROBES)(make_warm(subject), formats)
        cost, growth, growth8 = [], [], []
        for _ in range(ROUNDS):
            base = seconds(lambda: plain(model, batches))  # noqa: B023
            four = seconds(lambda: OnePass(PROBES)(make_warm(subject), FOUR))  # noqa: B023
            sixteen = seconds(lambda: OnePass(PROBES)(make_warm(subject), SIXTEEN))  # noqa: B023
            eights = seconds(lambda: OnePass(PROBES)(make_warm(subject), WEIGHTS16))  # noqa: B023
            cost.append(four / base)
            growth.append(sixteen / four)
            growth8.append(eights / four)
        rows.append(
            {
                "generator": name,
                "one-pass, 4 formats / (32 backward + 1 forward)": ratios(cost),
                "16 formats (4 weight x 4 activation widths) / 4": ratios(growth),
                "16 formats (8 weight x float and 8-bit activations) / 4": ratios(growth8),
            }
        )
    return rows


def make_warm(subject: Any) -> Any:
    """The same subject with nothing measured yet."""
    subject.memo = {}
    return subject
