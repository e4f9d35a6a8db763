"""``p4`` and ``k8x3``: indices into a codebook of values, or of whole kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mpsearch.quant.stored.form import Parts, QuantizedWeight, from_rows, rows_of
from mpsearch.quant.stored.packing import pack_unsigned, unpack_unsigned
from mpsearch.types import Format

ROUNDS = 20  # of Lloyd's iterations
SAMPLES = 1 << 15  # points that entries are learnt from; all are assigned in the end
BLOCK = 1 << 22  # products of points and entries at a time


@dataclass(frozen=True, eq=False)
class Codebook(QuantizedWeight):
    """``scale · values[codes]``: k-means over the weights of a layer, or over its kernels.

    Deep Compression (Han et al., ICLR 2016) for values, Kernel Quantization (Yu et al. 2020, arXiv 2003.05148) for
    kernels. Every output channel is divided by its root mean square first, so that all share one codebook.

    Attributes:
        codes: int16, ``(channels, points of one)``.
        scale: float32, ``(channels, 1)``.
        values: float16, ``(entries, weights of a point)``.
        shape: of the weight.
    """

    codes: Tensor
    scale: Tensor
    values: Tensor
    shape: tuple[int, ...]

    LEARNABLE: ClassVar = ("scale", "values")

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        rows = rows_of(weight, axis)
        size = (format.side or 1) ** 2
        scale = rows.double().square().mean(1, keepdim=True).sqrt().float()
        scale = torch.where(scale > 0, scale, 1.0)
        points = (rows / scale).reshape(-1, size)
        weights = scale.square().expand(len(rows), len(points) // len(rows)).reshape(-1)
        values = _means(points, weights, 1 << (format.bits or 0)).half()
        codes = _nearest(points, values.float()).to(torch.int16).reshape(len(rows), -1)
        # For given codes the error is a parabola in every scale.
        looked = values.float()[codes.long()].flatten(1)
        energy = looked.square().sum(1, keepdim=True)
        fitted = (rows * looked).sum(1, keepdim=True) / energy.where(energy > 0, 1.0)
        return cls(
            format, axis, weight.dtype, codes, torch.where(fitted > 0, fitted, scale), values, tuple(weight.shape)
        )

    def dequantized(self) -> Tensor:
        rows = self.values.float()[self.codes.long()].flatten(1) * self.scale
        return from_rows(rows, self.shape, self.axis).to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        codes = pack_unsigned(self.codes.cpu().numpy().astype(np.uint16), self.format.bits or 0)
        return {
            "codes": torch.from_numpy(codes),
            "scale": self.scale.detach().flatten().cpu(),
            "values": self.values.detach().half().flatten().cpu(),
        }

    @classmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        size, bits = (format.side or 1) ** 2, format.bits or 0
        codes = unpack_unsigned(parts["codes"].numpy(), bits, math.prod(shape) // size).reshape(shape[axis], -1)
        scale, values = parts["scale"].reshape(-1, 1), parts["values"].reshape(-1, size)
        return cls(format, axis, dtype, torch.from_numpy(codes.astype(np.int16)), scale, values, tuple(shape))


def _means(points: Tensor, weights: Tensor, count: int) -> Tensor:
    """``(n, d)`` and the weight of each → ``(count, d)``: Lloyd's algorithm on a sample; no chance in it."""
    generator = torch.Generator().manual_seed(0)
    if len(points) > SAMPLES:
        some = torch.randperm(len(points), generator=generator)[:SAMPLES].to(points.device)
        points, weights = points[some], weights[some]
    if points.shape[1] == 1:  # spread evenly over what there is, both ends included
        start = points.sort(dim=0).values[torch.linspace(0, len(points) - 1, count).round().long()]
    else:
        start = points[torch.randint(len(points), (count,), generator=generator).to(points.device)]
    means = start.double()
    for _ in range(ROUNDS):
        own = _nearest(points, means.float())
        total = torch.zeros(count, dtype=torch.float64, device=points.device).index_add_(0, own, weights.double())
        sums = torch.zeros_like(means).index_add_(0, own, points.double() * weights.double()[:, None])
        means = torch.where(total[:, None] > 0, sums / total.clamp_min(1e-300)[:, None], means)
    return means.float()


def _nearest(points: Tensor, entries: Tensor) -> Tensor:
    """Index of the nearest entry of every point."""
    if points.shape[1] == 1:
        ordered, at = entries[:, 0].sort()
        return at[torch.bucketize(points[:, 0], (ordered[1:] + ordered[:-1]) / 2)]
    offset = entries.square().sum(1) / 2
    parts = torch.split(points, max(1, BLOCK // len(entries)))
    return torch.cat([(part @ entries.T - offset).argmax(1) for part in parts])
