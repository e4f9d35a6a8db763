"""Cost of ``one-pass`` against the backward passes that it is made of, and its growth with the number of formats.

The growth of a whole call of effort ``fast``, whose table this is, stands beside it (4 bits on average).

Everything is made anew every time: the float images, the scales of all weight widths and the ranges of all activation
widths count. Processor time of one thread: where others use the machine too, wall times of one call differ by several
times. Every ratio is taken within one round; the table gives the median and the range over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mpsearch
from benchmarks.allocation import at_hand
from mpsearch.api import make_subject
from mpsearch.sensitivity import OnePass
from mpsearch.types import Format, parse_formats
from mpsearch.zoo import load_published, sagan

PROBES, ROUNDS = 32, 7
BATCHES = (1, 4)  # of 16 inputs; a run takes 64 by default
FOUR = parse_formats(["w2", "w4", "w6", "w8"])
SIXTEEN = parse_formats([f"w{b}{a}" for b in (2, 3, 4, 8) for a in ("", "a4", "a6", "a8")])
WEIGHTS16 = parse_formats([f"w{b}" for b in range(2, 9)] + ["fp16"] + [f"w{b}a8" for b in range(2, 9)] + ["fp16a8"])
KEY = ("generator", "inputs")


def generators() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """(generator, shape of an input): the embedded one, and the DCGAN faces where they are at hand."""
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {"sagan": (sagan(), (64,))}
    if at_hand("dcgan-faces"):
        found["dcgan-faces"] = (load_published("dcgan-faces"), (100, 1, 1))
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
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def one_pass(model: nn.Module, batches: list[tuple[Any, ...]], formats: Sequence[Format]) -> float:
    """Seconds of a table from nothing."""
    return seconds(lambda: OnePass(PROBES)(make_subject(model, batches), formats))


def fast(model: nn.Module, batches: list[tuple[Any, ...]], formats: Sequence[Format]) -> float:
    """Seconds of a map from nothing."""
    return seconds(lambda: mpsearch.allocate(model, batches, ["bits<=4"], formats, "fast"))


def measure() -> Iterator[dict[str, str]]:
    torch.set_num_threads(1)
    for name, (model, shape) in generators().items():
        seed = torch.Generator().manual_seed(0)
        inputs = [(torch.randn(16, *shape, generator=seed),) for _ in range(max(BATCHES))]
        for batches in (inputs[:count] for count in BATCHES):
            one_pass(model, batches, FOUR)
            cost, growth, growth8, whole, whole8 = [], [], [], [], []
            for _ in range(ROUNDS):
                base = seconds(lambda: plain(model, batches))  # noqa: B023
                four = one_pass(model, batches, FOUR)
                cost.append(four / base)
                growth.append(one_pass(model, batches, SIXTEEN) / four)
                growth8.append(one_pass(model, batches, WEIGHTS16) / four)
                four = fast(model, batches, FOUR)
                whole.append(fast(model, batches, SIXTEEN) / four)
                whole8.append(fast(model, batches, WEIGHTS16) / four)
            yield {
                "generator": name,
                "inputs": str(16 * len(batches)),
                "one-pass, 4 formats / (32 backward + 1 forward)": ratios(cost),
                "16 formats (4 weight x 4 activation widths) / 4": ratios(growth),
                "16 formats (8 weight x float and 8-bit activations) / 4": ratios(growth8),
                "fast, 16 (4 x 4) / 4": ratios(whole),
                "fast, 16 (8 x 2) / 4": ratios(whole8),
            }
