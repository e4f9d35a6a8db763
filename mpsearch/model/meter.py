"""``Meter``: what every module computes and reads in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from mpsearch.model.joins import Joins
from mpsearch.model.reading import input_tensors


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Flops and input elements of every called module, its children taken out.

    Counts with the formulas of torch's flop counter. ``FlopCounterMode`` itself cannot be used: its module tracker
    asks for the gradient of every module input, which a view of a parameter (StyleGAN's constant input) lacks under
    ``no_grad``.
    """

    # Products of two activations inside attention belong to no weight; only leaves may use these for their weights.
    ATTENTION = ("bmm", "scaled_dot_product")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # module -> (MACs, input elements, both of all calls together, input elements of the largest call)
        self.seen: dict[int, tuple[int, int, int]] = {}
        self.joins = Joins()
        self.parts: dict[int, list[tuple[int, ...]]] = {}  # module -> of what its input was joined, every time
        self._flops = [0, 0]  # outside attention products, in them
        self._stack: list[tuple[int, list[int]]] = []  # (flops at the start, flops of children)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry:  # inference mode leaves it to us to take operators apart
            with self:
                output = func.decompose(*args, **(kwargs or {}))
            if output is not NotImplemented:
                return output
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            attention = any(word in str(func) for word in self.ATTENTION)
            self._flops[attention] += int(formula(*args, **(kwargs or {}), out_val=output))
        return output

    def watch(self, module: nn.Module) -> Iterator[RemovableHandle]:
        leaf = next(module.children(), None) is None
        yield module.register_forward_pre_hook(lambda *_: self._stack.append((self._total(leaf), [])), with_kwargs=True)
        yield module.register_forward_hook(partial(self._leave, leaf), with_kwargs=True)

    def _total(self, leaf: bool) -> int:
        return sum(self._flops) if leaf else self._flops[0]

    def _leave(self, leaf: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        start, nested = self._stack.pop()
        flops = self._total(leaf) - start
        if self._stack:
            self._stack[-1][1].append(flops)
        inputs = list(input_tensors(module, args, kwargs).values())
        self.parts.setdefault(id(module), []).extend(self.joins.channels(module, tensor) for tensor in inputs)
        read = sum(tensor.numel() for tensor in inputs)
        macs, elements, largest = self.seen.get(id(module), (0, 0, 0))
        macs += max(0, flops - sum(nested)) // 2
        self.seen[id(module)] = (macs, elements + read, max(largest, read))
