"""Batches of positional arguments, and the columns that they were cut from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Batches = list[tuple[Tensor, ...]]


def joined(batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Every argument for all samples."""
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def batched(columns: Sequence[Tensor], batch: int) -> Batches:
    """Columns cut into batches of ``batch`` samples, the last one maybe smaller."""
    return list(zip(*(torch.split(column, batch) for column in columns), strict=True))
