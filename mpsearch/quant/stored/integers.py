"""``w4``, ``w4z``, ``w4g32``, ``w[2*30,4]``: integers times scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mpsearch.quant.stored.form import Parts, QuantizedWeight, along, from_rows, rows_of
from mpsearch.quant.stored.packing import pack, pack_unsigned, unpack, unpack_unsigned
from mpsearch.quant.stored.scales import LEAST, affine_grid, blocks, fit, fit_affine, fit_signs
from mpsearch.types import Format

HALF = -0.5  # zero point of a single bit, which has no code for zero: the levels are −s/2 and s/2


@dataclass(frozen=True, eq=False)
class Integers(QuantizedWeight):
    """``scale · (codes − zero)``.

    Symmetric codes leave out the lowest one, −q … q with ``q = 2^(b−1) − 1``, so that ``w2`` has three levels.

    Attributes:
        codes: int8, in the weight's own shape.
        scale: float32; one a channel, shaped to broadcast over ``codes``, or ``(channels, groups)``.
        zero: zero points, integers in float32, shaped as ``scale``; or one number for all.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | float = 0.0

    LEARNABLE: ClassVar = ("scale",)

    @classmethod
    def of(cls, weight: Tensor, format: Format, axis: int) -> Self:
        bits = format.bits or 8
        rows = rows_of(weight, axis)
        pieces = rows.reshape(-1, format.group or rows.shape[1])
        zero: Tensor | float = HALF if bits == 1 else 0.0
        if format.zero:
            scale, zero = fit_affine(pieces, bits)
            zero = zero - 2 ** (bits - 1)
        else:
            scale = fit_signs(pieces) if bits == 1 else fit(pieces, [_top(bits)])[0]
        return cls._coded(pieces, scale, zero, weight, format, axis)

    @classmethod
    def of_widths(cls, weight: Tensor, widths: Sequence[int], axis: int) -> list[Self]:
        """Plain symmetric integers of every width, fitted together: what is common to them is found once."""
        rows = rows_of(weight, axis)
        scales = fit(rows, [_top(bits) for bits in widths])
        forms = zip(widths, scales, strict=True)
        return [cls._coded(rows, scale, 0.0, weight, Format("int", bits), axis) for bits, scale in forms]

    @classmethod
    def _coded(
        cls, pieces: Tensor, scale: Tensor, zero: Tensor | float, weight: Tensor, format: Format, axis: int
    ) -> Self:
        """``pieces``, ``(scales, weights of one)``, rounded."""
        low, high = _limits(format, format.bits or 8)
        codes = torch.empty_like(pieces, dtype=torch.int8)
        start = 0
        for part in blocks(pieces):
            own = slice(start, start := start + len(part))
            steps = torch.div(part, scale[own])
            if isinstance(zero, Tensor) or zero:
                steps += zero[own] if isinstance(zero, Tensor) else zero
            codes[own] = steps.round_().clamp_(low, high)
        scale = _shaped(scale, format, weight.shape, axis)
        zero = _shaped(zero, format, weight.shape, axis) if isinstance(zero, Tensor) else zero
        return cls(format, axis, weight.dtype, from_rows(codes, weight.shape, axis), scale, zero)

    def pieces(self, weight: Tensor) -> Tensor:
        """``(scales, weights that share one)``, float32."""
        rows = rows_of(weight, self.axis)
        return rows.reshape(-1, self.format.group or rows.shape[1])

    def between(self, weight: Tensor, low: Tensor, high: Tensor) -> Self:
        """``weight`` rounded on grids from ``low`` to ``high``, ``(scales, 1)`` each, no end beyond zero.

        Grids without a zero point reach as far on both sides.
        """
        shaped = partial(_shaped, format=self.format, shape=self.codes.shape, axis=self.axis)
        if isinstance(self.zero, Tensor):
            bits = self.format.bits or 8
            scale, zero = affine_grid((low, high), bits)
            moved = replace(self, scale=shaped(scale), zero=shaped(zero - 2 ** (bits - 1)))
        else:
            reach = self.limits[1] - self.zero  # of the highest code, in steps
            reach = reach.flatten().repeat_interleave(len(low) // self.codes.shape[self.axis])[:, None]
            moved = replace(self, scale=shaped((torch.maximum(-low, high) / reach).clamp_min(LEAST)))
        steps = weight.detach().float() / moved.spread(moved.scale) + moved.offset
        return replace(moved, codes=steps.round().clamp(*self.limits).to(torch.int8))

    def with_channels(self, chosen: Tensor, other: Self) -> Self:
        """The output channels ``chosen``, ``(channels,)`` bool, of another weight of this format."""

        def of(theirs: Tensor, ours: Tensor, axis: int) -> Tensor:
            return torch.where(along(chosen, ours.shape, axis), theirs, ours)

        axis = 0 if self.format.group else self.axis  # of the channels of scales
        zero = self.zero
        if isinstance(zero, Tensor) and isinstance(other.zero, Tensor):
            zero = of(other.zero, zero, axis)
        codes, scale = of(other.codes, self.codes, self.axis), of(other.scale, self.scale, axis)
        return replace(self, codes=codes, scale=scale, zero=zero)

    def spread(self, values: Tensor) -> Tensor:
        """Values shaped as ``scale``, so that they broadcast over ``codes``; differentiable."""
        if self.format.group is None:
            return values
        shape = self.codes.movedim(self.axis, 0).shape
        return values.repeat_interleave(self.format.group, dim=1).reshape(shape).movedim(0, self.axis)

    @property
    def shifted(self) -> bool:
        """Whether code 0 stands for something else than zero."""
        return isinstance(self.zero, Tensor) or self.zero != 0

    @property
    def offset(self) -> Tensor | float:
        """``zero``, broadcasting over ``codes``."""
        return self.spread(self.zero) if isinstance(self.zero, Tensor) else self.zero

    def exact(self, weight: Tensor) -> Tensor:
        """The float weight in units of its steps; the stored code where that is not the nearest."""
        exact = weight.detach().float() / self.spread(self.scale) + self.offset
        return torch.where(exact.clamp(*self.limits).round() == self.codes, exact, self.codes.float())

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """What the lowest and the highest code stand for, ``(scales, 1)`` each."""
        codes = (end.flatten()[:, None] if self.format.group else end for end in self.limits)
        low, high = ((self.scale * (code - self.zero)).reshape(-1, 1) for code in codes)
        return low, high

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest code, float32, one a channel, broadcasting over ``codes``."""
        widths = self.format.channel_bits or (self.format.bits or 8,) * self.codes.shape[self.axis]
        ends = torch.tensor([_limits(self.format, bits) for bits in widths], device=self.codes.device).float()
        low, high = (along(end, self.codes.shape, self.axis) for end in ends.T)
        return low, high

    def dequantized(self) -> Tensor:
        steps, scale = self.codes.float(), self.spread(self.scale)
        if self.shifted:
            steps -= self.offset
        return (steps * scale if scale.requires_grad else steps.mul_(scale)).to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        rows = self.codes.detach().cpu().movedim(self.axis, 0).numpy()
        found = {"scale": self.scale.detach().flatten().cpu()}
        if isinstance(self.zero, Tensor):
            offset = 2 ** ((self.format.bits or 8) - 1)
            found["zero"] = (self.zero + offset).flatten().to(torch.uint8).cpu()
        if self.format.channel_bits is None:
            codes = pack(self.codes.detach().contiguous().cpu().numpy(), self.format.bits or 8)
        else:
            widths, index = np.unique(self.format.channel_bits, return_inverse=True)
            codes = np.concatenate([pack(rows[index == at], int(bits)) for at, bits in enumerate(widths)])
            found["widths"] = torch.from_numpy(widths.astype(np.uint8))
            found["groups"] = torch.from_numpy(pack_unsigned(index.astype(np.uint8), _index_bits(len(widths))))
        return {"codes": torch.from_numpy(codes), **found}

    @classmethod
    def unpacked(cls, parts: Parts, format: Format, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Self:
        packed, bits = parts["codes"].numpy(), format.bits or 8
        if format.channel_bits is None:
            codes = torch.from_numpy(unpack(packed, bits, math.prod(shape)).reshape(tuple(shape)))
        else:
            codes = from_rows(torch.from_numpy(_unpack_mixed(packed, format.channel_bits, shape, axis)), shape, axis)
        scale = parts["scale"].reshape(shape[axis], -1) if format.group else along(parts["scale"], shape, axis)
        zero: Tensor | float = HALF if bits == 1 else 0.0
        if format.zero:
            zero = (parts["zero"].float() - 2 ** (bits - 1)).reshape(scale.shape)
        return cls(format, axis, dtype, codes, scale, zero)


def _shaped(values: Tensor, format: Format, shape: Sequence[int], axis: int) -> Tensor:
    """One value a scale, shaped as the scales of a weight are."""
    return values.reshape(shape[axis], -1) if format.group else along(values, shape, axis)


def _top(bits: int) -> int:
    """Largest code of symmetric integers."""
    return int(2 ** (bits - 1) - 1)


def _limits(format: Format, bits: int) -> tuple[int, int]:
    """Lowest and highest code of integers of ``bits`` bits."""
    half = 1 << (bits - 1)
    return (-half, half - 1) if format.zero or bits == 1 else (1 - half, half - 1)


def stored_widths(parts: Parts, channels: int) -> tuple[int, ...]:
    """The widths of channels that differ, as a file holds them."""
    widths = parts["widths"].numpy()
    return tuple(widths[unpack_unsigned(parts["groups"].numpy(), _index_bits(len(widths)), channels)].tolist())


def _index_bits(groups: int) -> int:
    return (groups - 1).bit_length()


def _unpack_mixed(packed: np.ndarray, channel_bits: Sequence[int], shape: Sequence[int], axis: int) -> np.ndarray:
    each = math.prod(shape) // max(shape[axis], 1)
    rows = np.empty((shape[axis], each), np.int8)
    start = 0
    for bits in sorted(set(channel_bits)):
        own = np.flatnonzero(np.array(channel_bits) == bits)
        size = -(-len(own) * each * bits // 8)
        rows[own] = unpack(packed[start : start + size], bits, len(own) * each).reshape(len(own), each)
        start += size
    return rows
