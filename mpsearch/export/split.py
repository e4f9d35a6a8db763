"""``split``: layers whose channels differ in width as ordinary layers, one a width, side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

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
        parts: ordinary layers; ``parts[i].bits`` is the width of part ``i``.
        order: where each output channel stands in the concatenated outputs.
    """

    order: Tensor

    def __init__(self, parts: list[nn.Module], order: Tensor, axis: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.register_buffer("order", order)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=self.axis).index_select(self.axis, self.order)


def split(model: nn.Module, bitmap: Mapping[str, Format | str]) -> nn.Module:
    """A copy of ``model`` with the weights of ``bitmap`` in place, its mixed layers split into ordinary ones.

    Any runtime can then give each layer its one width. The output is that of :func:`mpsearch.quantized`, up to the
    rounding of float sums in another order.

    Args:
        model: the float generator; left as it was.
        bitmap: layer name → format, with the ranges of the activations that it quantizes.

    Raises:
        UsageError: an activation range is missing, or a layer of several widths is no plain linear or ungrouped
            convolution layer.
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
                module = _split_layer(module, format.channel_bits, name)
                twin = _replaced(twin, path, module.to(device_of(twin)))
            if format.act_bits:
                map_input(module, input_grid(format, bitmap.ranges.get(name, ()), bank.site(name).input_axis))
    return twin


def _split_layer(layer: nn.Module, widths: tuple[int, ...], name: str) -> Split:
    ordinary = any(type(layer).forward is kind.forward for kind in (nn.Linear, *CONVOLUTIONS))
    if not ordinary or getattr(layer, "groups", 1) != 1:
        raise UsageError(
            f"{name} cannot be split: only linear layers and convolutions of one group can; give it one width"
        )
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    parts, rows = [], []
    for bits in sorted(set(widths)):
        own = torch.tensor([channel for channel, width in enumerate(widths) if width == bits])
        parts.append(_part(layer, own, axis, bits))
        rows.append(own)
    return Split(parts, torch.cat(rows).argsort(), axis=-1 if isinstance(layer, nn.Linear) else 1)


def _part(layer: Any, own: Tensor, axis: int, bits: int) -> nn.Module:
    """A layer of the same kind with the output channels ``own``; copied, for building one would draw random numbers."""
    part = copy.deepcopy(layer)
    for name, along in (("weight", axis), ("bias", 0)):
        whole = getattr(layer, name)
        if whole is not None:
            rows = whole.detach().index_select(along, own.to(whole.device))
            setattr(part, name, nn.Parameter(rows, whole.requires_grad))
    setattr(part, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(own))
    part.bits = bits
    return part  # type: ignore[no-any-return]


def _replaced(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The model with ``module`` at ``path``; the model itself may be what is replaced."""
    if not path:
        return module
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return model
