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
from mpsearch.quant.stored.scales import HALF, HALVED, LEAST, affine_grid, blocks, fit, fit_affine, fit_signs
from mpsearch.types import Format


@dataclass(frozen=True, eq=False)
class Integers(QuantizedWeight):
    """``scale · (codes − zero)``.

    Symmetric codes leave out the lowest one, −q … q with ``q = 2^(b−1) − 1``, or have a zero point of −½ and use it:
    the levels are ±½, ±1½ … steps then. A single bit is always like that; a channel of ``w2`` or ``w3`` is where it
    errs less so, which the sign of its scale says in a file.

    Attributes:
        codes: int8, in the weight's own shape.
        scale: float32; one a channel, shaped to broadcast over ``codes``, or ``(channels, groups)``.
        zero: zero points in float32, shaped as ``scale``, integers where the format has them; or one number for all.
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
        zero: Tensor | float
        if format.zero:
            scale, zero = fit_affine(pieces, bits)
            zero = zero - 2 ** (bits - 1)
        else:
            scale, zero = (fit_signs(pieces), HALF) if bits == 1 else fit(pieces, [_top(bits)])[0]
        return cls._coded(pieces, scale, zero, weight, format, axis)

    @classmethod
    def of_widths(cls, weight: Tensor, widths: Sequence[int], axis: int) -> list[Self]:
        """Plain symmetric integers of every width, fitted together: what is common to them is found once."""
        rows = rows_of(weight, axis)
        grids = fit(rows, [_top(bits) for bits in widths])
        forms = zip(widths, grids, strict=True)
        return [cls._coded(rows, *grid, weight, Format("int", bits), axis) for bits, grid in forms]

    @classmethod
    def _coded(
        cls, pieces: Tensor, scale: Tensor, zero: Tensor | float, weight: Tensor, format: Format, axis: int
    ) -> Self:
        """``pieces``, ``(scales, weights of one)``, rounded."""
        half = torch.tensor(2.0 ** ((format.bits or 8) - 1), device=pieces.device)
        low, high = _limits(format, half, zero)
        codes = torch.empty_like(pieces, dtype=torch.int8)
        start = 0
        for part in blocks(pieces):
            own = slice(start, start := start + len(part))
            steps = torch.div(part, scale[own])
            if isinstance(zero, Tensor) or zero:
                steps += zero[own] if isinstance(zero, Tensor) else zero
            codes[own] = steps.round_().clamp_(low[own] if low.ndim else low, high)
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
        if self.format.zero:
            bits = self.format.bits or 8
            scale, zero = affine_grid((low, high), bits)
            moved = replace(self, scale=shaped(scale), zero=shaped(zero - 2 ** (bits - 1)))
        else:
            moved = replace(self, scale=shaped((torch.maximum(-low, high) / self._reach).clamp_min(LEAST)))
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
        scale, reach = self.scale.reshape(-1, 1), self._reach
        levels = (1 << (self.format.bits or 8)) - 1
        return scale * (reach - levels if self.format.zero else -reach), scale * reach

    @property
    def _reach(self) -> Tensor:
        """How many steps the highest code lies above zero, ``(scales, 1)``."""
        high = self._halves.flatten()[:, None] - 1
        zero = self.zero.reshape(len(high), -1) if isinstance(self.zero, Tensor) else self.zero
        return (high - zero).expand(-1, self.scale.numel() // len(high)).reshape(-1, 1)

    @property
    def _halves(self) -> Tensor:
        """Half of the codes that each channel has, float32, broadcasting over ``codes``."""
        widths = self.format.channel_bits or (self.format.bits or 8,) * self.codes.shape[self.axis]
        halves = torch.tensor([1 << (bits - 1) for bits in widths], device=self.codes.device).float()
        return along(halves, self.codes.shape, self.axis)

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest code, float32, broadcasting over ``codes``."""
        return _limits(self.format, self._halves, self.offset)

    def dequantized(self) -> Tensor:
        steps, scale = self.codes.float(), self.spread(self.scale)
        if self.shifted:
            steps -= self.offset
        return (steps * scale if scale.requires_grad else steps.mul_(scale)).to(self.dtype)

    def packed(self) -> dict[str, Tensor]:
        rows = self.codes.detach().cpu().movedim(self.axis, 0).numpy()
        scale = self.scale.detach()
        if isinstance(self.zero, Tensor) and not self.format.zero:
            scale = torch.where(self.zero == HALF, -scale, scale)
        found = {"scale": scale.flatten().cpu()}
        if isinstance(self.zero, Tensor) and self.format.zero:
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
        if any(_top(width) in HALVED for width in format.channel_bits or (bits,)) and not format.zero:
            zero, scale = torch.where(scale < 0, HALF, 0.0), scale.abs()
        if format.zero:
            zero = (parts["zero"].float() - 2 ** (bits - 1)).reshape(scale.shape)
        return cls(format, axis, dtype, codes, scale, zero)


def _shaped(values: Tensor, format: Format, shape: Sequence[int], axis: int) -> Tensor:
    """One value a scale, shaped as the scales of a weight are."""
    return values.reshape(shape[axis], -1) if format.group else along(values, shape, axis)


def _top(bits: int) -> int:
    """Largest code of symmetric integers."""
    return int(2 ** (bits - 1) - 1)


def _limits(format: Format, half: Tensor, zero: Tensor | float) -> tuple[Tensor, Tensor]:
    """Lowest and highest code of so many halves, as many on both sides of zero where the format can choose."""
    if isinstance(zero, Tensor):
        return torch.where(zero == HALF, -half, 1 - half) if not format.zero else -half, half - 1
    return -half if zero == HALF else 1 - half, half - 1


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
