"""``split``: layers whose channels differ in width as ordinary layers, one a width, side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.model import copy_of, device_of, make_permanent, map_input, owner
from mpsearch.quant import WeightBank, input_grid
from mpsearch.types import BitMap, Format

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


class Split(nn.Module):
    """One layer as several, each with the output channels of one width; their outputs are put in the old order.

    Attributes:
        parts: ordinary layers; ``parts[i].bits`` is the width of part ``i``, ``parts[i].reads`` the channels of the
            input that it reads, None for all.
        order: where each output channel stands in the concatenated outputs.
    """

    order: Tensor
    stored: Tensor

    def __init__(self, layer: Any, parts: Sequence[_Part]) -> None:
        super().__init__()
        for name in layer.__constants__:  # sizes, strides: what a generator may read of its layers
            setattr(self, name, getattr(layer, name))
        self.parts = nn.ModuleList(part.layer for part in parts)
        self.register_buffer("order", torch.cat([part.channels for part in parts]).argsort())
        self.register_buffer("stored", torch.cat([part.rows for part in parts]).argsort())
        self.axis = 1 - layer.weight.ndim if isinstance(layer, CONVOLUTIONS) else -1
        self.weight_axis = _axis(layer)

    @property
    def weight(self) -> Tensor:
        """That of the whole layer, for a generator that computes with it on its own (modulated convolutions do)."""
        parts: list[Any] = [part.weight for part in self.parts]
        return torch.cat(parts, self.weight_axis).index_select(self.weight_axis, self.stored)

    @property
    def bias(self) -> Tensor | None:
        parts: list[Any] = [part.bias for part in self.parts]
        return None if parts[0] is None else torch.cat(parts).index_select(0, self.order)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for part in self.parts:
            reads: Any = part.reads
            found.append(part(x if reads is None else x.index_select(self.axis, reads)))
        return torch.cat(found, dim=self.axis).index_select(self.axis, self.order)


def split(model: nn.Module, bitmap: Mapping[str, Format | str]) -> nn.Module:
    """A copy of ``model`` with the weights of ``bitmap`` in place, its mixed layers split into ordinary ones.

    Any runtime can then give each layer its one width. The output is that of :func:`mpsearch.quantized`, up to the
    rounding of float sums in another order.

    Args:
        model: the float generator; left as it was.
        bitmap: layer name → format, with the ranges of the activations that it quantizes.

    Raises:
        UsageError: an activation range is missing, or a layer of several widths is neither a linear layer nor a
            convolution of torch.
    """
    bank = WeightBank(model)
    bitmap = bank.normalised(bitmap if isinstance(bitmap, BitMap) else BitMap(bitmap))
    twin = copy_of(model).eval()
    for name, format in bitmap.items():
        if format.ranged and name not in bitmap.ranges:
            raise UsageError(f"{name} lacks its activation range: pass the map of a solution, or one that was exported")
        for place in bank.site(name).places:
            module, tensor = owner(twin, place)
            if format.kind != "float":
                make_permanent(module, tensor, bank.dequantized(name, format))
            if format.channel_bits is not None:
                path = place.rpartition(".")[0]
                module = _split_layer(module, format.channel_bits, name, bank.site(name).axis)
                twin = _replaced(twin, path, module.to(device_of(twin)))
            if format.act_bits:
                map_input(module, input_grid(format, bitmap.ranges.get(name, ()), bank.site(name).input_axis))
    return twin


class _Part(NamedTuple):
    """Attributes:
    layer: with output channels of one width.
    rows: of the whole weight, along its axis of output channels.
    channels: of the whole layer; those of a transposed convolution have a row for each of its groups.
    """

    layer: nn.Module
    rows: Tensor
    channels: Tensor


def _axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, TRANSPOSED) else 0


def _split_layer(layer: Any, widths: tuple[int, ...], name: str, axis: int) -> Split:
    ordinary = any(type(layer).forward is kind.forward for kind in (nn.Linear, *CONVOLUTIONS))
    if not ordinary or axis != _axis(layer):
        raise UsageError(f"{name} cannot be split: only linear layers and convolutions can; give it one width")
    groups, parts = getattr(layer, "groups", 1), []
    for bits in sorted(set(widths)):
        rows = torch.tensor([row for row, width in enumerate(widths) if width == bits])
        if isinstance(layer, TRANSPOSED):
            channels = (torch.arange(groups)[:, None] * len(widths) + rows).flatten()
            parts.append(_Part(_part(layer, bits, rows, channels), rows, channels))
            continue
        # Groups with as many channels of this width are one convolution: all of them where there is but one group.
        group = rows // (len(widths) // groups)
        counts = torch.bincount(group, minlength=groups)
        for count in sorted(set(counts[counts > 0].tolist())):
            chosen = (counts == count).nonzero().flatten()
            own = rows[torch.isin(group, chosen)]
            parts.append(_Part(_part(layer, bits, own, own, chosen), own, own))
    return Split(layer, parts)


def _part(layer: Any, bits: int, rows: Tensor, channels: Tensor, chosen: Tensor | None = None) -> nn.Module:
    """A layer of the same kind with some output channels; copied, for building one would draw random numbers.

    Args:
        layer: the whole one.
        bits: width of the part.
        rows: of its weight.
        channels: of its bias.
        chosen: the groups that it reads; by default all.
    """
    part = copy.deepcopy(layer)
    for name, along, own in (("weight", _axis(layer), rows), ("bias", 0, channels)):
        whole = getattr(layer, name)
        if whole is not None:
            kept = whole.detach().index_select(along, own.to(whole.device))
            setattr(part, name, nn.Parameter(kept, whole.requires_grad))
    setattr(part, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(channels))
    reads = None
    if chosen is not None and len(chosen) < getattr(layer, "groups", 1):
        each = layer.in_channels // layer.groups
        reads = (chosen[:, None] * each + torch.arange(each)).flatten()
        part.groups, part.in_channels = len(chosen), len(reads)
    part.register_buffer("reads", reads)
    part.bits = bits
    return part  # type: ignore[no-any-return]


def _replaced(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The model with ``module`` at ``path``; the model itself may be what is replaced."""
    if not path:
        return module
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return model
