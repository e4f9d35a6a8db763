"""Peak memory of ``one-pass`` and of recoveries against one training step at the same batch, a process each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mpsearch
from benchmarks.one_pass import FOUR, generators
from mpsearch.api import make_subject
from mpsearch.sensitivity import OnePass

BATCH = 128  # large enough for activations to matter beside the libraries
KEY = ("generator",)


def case(name: str, batches: int = 1) -> tuple[torch.nn.Module, list[tuple[Any, ...]]]:
    model, shape = generators()[name]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(batches)]
    return model, [(torch.randn(BATCH, *shape, generator=seed),) for seed in seeds]


def nothing(name: str) -> None:
    case(name)


def training_step(name: str) -> None:
    model, batches = case(name)
    model.train()
    optimizer = torch.optim.Adam(model.parameters())
    model(*batches[0]).square().mean().backward()
    optimizer.step()


def one_pass(name: str) -> None:
    OnePass(probes=4)(make_subject(*case(name)), FOUR)


def recovery(method: str, name: str) -> None:
    """One batch to learn from and one that is kept back, weights of 4 bits and activations of 8."""
    model, batches = case(name, 2)
    bitmap = dict.fromkeys((layer.name for layer in mpsearch.find_layers(model, batches[0])), "w4a8")
    mpsearch.recover(model, bitmap, batches, method, steps=4)


RECOVERIES = ("adaround", "distil")
WORK: dict[str, Callable[[str], None]] = {
    "nothing": nothing,
    "training": training_step,
    "one-pass": one_pass,
    **{method: partial(recovery, method) for method in RECOVERIES},
}


def peak(work: str, name: str) -> float:
    """MB of resident memory at the most."""
    command = [sys.executable, "-m", "benchmarks.memory", work, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure() -> list[dict[str, str]]:
    rows = []
    for name in generators():
        base, training, *ours = (peak(work, name) for work in WORK)
        rows.append(
            {
                "generator": name,
                "process with the model, MB": f"{base:.0f}",
                "training step (Adam), MB": f"{training:.0f}",
                **{
                    f"{work}, MB (ratio above the process with the model)": f"{found:.0f} "
                    f"({(found - base) / max(training - base, 1e-9):.2f})"
                    for work, found in zip(list(WORK)[2:], ours, strict=True)
                },
            }
        )
    return rows


if __name__ == "__main__":
    WORK[sys.argv[1]](sys.argv[2])
    # VmHWM, since the kernel lets ru_maxrss of a child begin at the size of its parent
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) / 1024)
