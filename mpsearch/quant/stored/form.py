"""``QuantizedWeight``: a weight in its stored form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mpsearch.types import Format

Parts = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class QuantizedWeight(ABC):
    """A weight as it is stored: integers, and the numbers that they stand for.

    A family of formats is one subclass; :data:`mpsearch.quant.stored.FORMS` names them.

    Attributes:
        format: of the weight; its activations do not matter.
        axis: of the output channels.
        dtype: of the weight that it stands for.
        LEARNABLE: names of the fields that are numbers and not codes, so that gradients reach them.
    """

    format: Format
    axis: int
    dtype: torch.dtype

    LEARNABLE: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        """The stored form of least squared error that the family knows to find."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The weight that the quantized generator computes with; differentiable in the learnable fields."""

    @abstractmethod
    def packed(self) -> dict[str, Tensor]:
        """Part → its content in a file; the bytes are those of :func:`mpsearch.types.storage.parts`."""

    @classmethod
    @abstractmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        """The inverse of :meth:`packed`."""

    @property
    def learnable(self) -> dict[str, Tensor]:
        """The fields that gradients reach."""
        return {name: getattr(self, name) for name in self.LEARNABLE}

    def with_learnable(self, values: Mapping[str, Tensor]) -> Self:
        """The same codes for other numbers, rounded as they are stored; differentiable."""
        rounded: dict[str, Any] = {name: value.to(getattr(self, name).dtype) for name, value in values.items()}
        return replace(self, **rounded)


def rows_of(weight: Tensor, axis: int) -> Tensor:
    """``(channels, weights of one)`` in float32."""
    return weight.detach().movedim(axis, 0).flatten(1).float()


def from_rows(rows: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """The inverse of :func:`rows_of` in the dtype of ``rows``."""
    moved = [shape[axis], *shape[:axis], *shape[axis + 1 :]]
    return rows.reshape(moved).movedim(0, axis).contiguous()


def along(values: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """One value a channel, shaped to broadcast over the weight."""
    spread = [1] * len(shape)
    spread[axis] = -1
    return values.reshape(spread)
