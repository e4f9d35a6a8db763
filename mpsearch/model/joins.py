"""Which tensors are concatenations of others."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

SPATIAL: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 1,
    nn.ConvTranspose1d: 1,
    nn.Conv2d: 2,
    nn.ConvTranspose2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose3d: 3,
}


def input_axis(module: nn.Module) -> int | None:
    """Axis of the channels of what ``module`` reads, counted from the last; None where that is not known."""
    return next((-1 - spatial for kind, spatial in SPATIAL.items() if isinstance(module, kind)), None)


def input_channels(module: nn.Module) -> int:
    """How many channels ``module`` reads; 0 where that is not known."""
    known = input_axis(module) is not None
    return int(getattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels")) if known else 0


class Joins(TorchFunctionMode):
    """Notes, within the context, every tensor that is concatenated from others along its channels."""

    def __init__(self) -> None:
        super().__init__()
        self._channels: MutableMapping[Tensor, tuple[int, ...]] = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat, torch.concatenate):
            self._note(output, *args, **(kwargs or {}))
        return output

    def channels(self, module: nn.Module, x: Tensor) -> tuple[int, ...]:
        """Channels of each tensor that ``x``, read by ``module``, was joined from; () where it was not.

        Only where the second dimension holds the channels: in convolutions of batches, and linear layers of vectors.
        """
        axis = input_axis(module)
        return self._channels.get(x, ()) if axis is not None and axis % x.ndim == 1 else ()

    def _note(self, output: Tensor, tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None, **_: Any) -> None:
        dim = dim if axis is None else axis
        parts = [part for part in tensors if part.ndim == output.ndim]  # torch skips the empty vectors of old times
        if output.ndim > 1 and dim % output.ndim == 1 and len(parts) > 1:
            own = [self._channels.get(part, (part.shape[1],)) for part in parts]
            self._channels[output] = tuple(count for counts in own for count in counts if count)
