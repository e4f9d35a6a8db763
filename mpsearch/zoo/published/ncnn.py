"""Weights of an ncnn network (https://github.com/Tencent/ncnn): a ``.param`` text and a ``.bin`` of raw numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import ArtifactError

MAGIC = "7767517"
FLOAT32, FLOAT16 = 0, 0x01306B47  # what a block of weights may begin with; the others are ncnn's own quantizations
WEIGHTLESS = ("Input", "Split", "ReLU", "PixelShuffle", "Interp", "BinaryOp")
CONVOLUTIONS = ("Convolution", "Deconvolution")


@dataclass(frozen=True, eq=False)
class NcnnLayer:
    """Weight ``(outputs, inputs, height, width)`` of a convolution, also a transposed one; slopes of a PReLU."""

    kind: str
    weight: Tensor
    bias: Tensor | None = None


def read_ncnn(param: bytes, weights: bytes) -> list[NcnnLayer]:
    """The layers that have weights, in the order of the file, in float32.

    Raises:
        ArtifactError: not ncnn's format, another kind of layer or of numbers, bytes too few or too many.
    """
    lines = param.decode(errors="replace").splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise ArtifactError(f"no ncnn network: the first line is not {MAGIC}")
    source = _Source(weights)
    layers = []
    for line in lines[2:]:
        if not (words := line.split()):
            continue
        kind = words[0]
        if kind in WEIGHTLESS:
            continue
        if kind not in (*CONVOLUTIONS, "PReLU"):
            raise ArtifactError(
                f"the ncnn layer {kind} is not one of {', '.join((*CONVOLUTIONS, 'PReLU', *WEIGHTLESS))}"
            )
        first = 4 + int(words[2]) + int(words[3])  # after the names of what it reads and makes
        options = dict(word.split("=", 1) for word in words[first:])
        outputs = int(options["0"])
        if kind == "PReLU":
            layers.append(NcnnLayer(kind, source.floats(outputs)))
            continue
        width = int(options["1"])
        height = int(options.get("11", width))
        weight = source.block(int(options["6"])).reshape(outputs, -1, height, width)
        layers.append(NcnnLayer(kind, weight, source.floats(outputs) if int(options.get("5", 0)) else None))
    source.finish()
    return layers


class _Source:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise ArtifactError(f"the ncnn weights end at byte {len(self._data)}, {self._at + size} are needed")
        self._at += size
        return taken

    def floats(self, count: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(self._take(4 * count), "<f4").astype(np.float32))

    def block(self, count: int) -> Tensor:
        flag = int.from_bytes(self._take(4), "little")
        if flag == FLOAT32:
            return self.floats(count)
        if flag != FLOAT16:
            raise ArtifactError(f"ncnn weights of the kind {flag:#x} are neither float16 nor float32")
        halves = np.frombuffer(self._take(-(-2 * count // 4) * 4), "<f2")[:count]  # filled up to whole words
        return torch.from_numpy(halves.astype(np.float32))

    def finish(self) -> None:
        if self._at != len(self._data):
            raise ArtifactError(f"{len(self._data) - self._at} bytes of the ncnn weights belong to no layer")
