"""Outputs of convolutions and linear layers, kept from map to map as long as nothing before them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CAPACITY = 2**30  # bytes kept: the first calls of a forward pass are the ones that are asked for again
CLASSES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
PURE = {kind.forward for kind in CLASSES}  # no state, no random numbers: what they return follows from what they read


class Reuse:
    """What the calls of one generator returned under the best map so far.

    A forward pass is a fixed programme: what it has computed at any moment follows from its inputs and from the weights
    used until then. Every use of a quantized weight is seen (``__torch_function__``), so that two passes over one batch
    which used the same layers in the same formats so far are the same pass so far, and a call may return what it
    returned then, bit for bit.
    """

    def __init__(self, owners: Mapping[str, Sequence[nn.Module]], capacity: int = CAPACITY) -> None:
        """``owners``: layer → the modules that hold its weight."""
        self._owners = owners
        self._capacity = capacity
        self._kept: dict[tuple[int, int, int], Tensor] = {}
        self._fresh: dict[tuple[int, int, int], Tensor] = {}
        self._bytes = 0
        self._numbers: dict[tuple[int, str, str], int] = {}  # (history, layer, format) -> the history that follows
        self.served = 0

    def settle(self, keep: bool) -> None:
        """The map is done: keep what its calls returned, in place of what was kept before, or forget it."""
        if keep:
            self._kept = self._fresh
        self._fresh, self._bytes = {}, 0

    def _store(self, key: tuple[int, int, int], tensor: Tensor) -> None:
        if self._bytes + tensor.nbytes <= self._capacity:
            self._fresh[key] = tensor if tensor is self._kept.get(key) else tensor.clone()
            self._bytes += tensor.nbytes

    @contextmanager
    def watching(self, batch: int, formats: Mapping[str, str], weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the generator makes one forward pass over ``batch``.

        Args:
            batch: number of the batch.
            formats: layer → what its weight and its activations are stored as.
            weights: layer → the tensor that stands for its weight; those that are missing are used from the start.
        """
        history, used, calls = 0, set[str](), 0

        def use(layer: str) -> None:
            nonlocal history
            if layer not in used:
                used.add(layer)
                history = self._numbers.setdefault((history, layer, formats[layer]), len(self._numbers) + 1)

        def call(layers: Sequence[str], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            for layer in layers:
                use(layer)
            calls += 1
            key = (batch, calls, history)
            if (known := self._kept.get(key)) is not None:
                self.served += 1
                self._store(key, known)
                return known.clone()  # what follows may write into it
            found = forward(*args, **kwargs)
            if isinstance(found, Tensor) and len(used) < len(formats):  # after the last layer no other map is the same
                self._store(key, found)
            return found

        def before(layers: Sequence[str], module: nn.Module, args: Any) -> None:
            for layer in layers:
                use(layer)

        for layer in sorted(set(formats) - set(weights)):
            use(layer)
        held: dict[nn.Module, list[str]] = {}
        for layer in formats:
            for module in self._owners[layer]:
                held.setdefault(module, []).append(layer)
        with ExitStack() as stack:
            for module, layers in held.items():
                if type(module).forward in PURE and "forward" not in module.__dict__:
                    module.__dict__["forward"] = partial(call, layers, module.forward)
                    stack.callback(module.__dict__.pop, "forward", None)
                else:  # its activations are rounded before it is called
                    hook = module.register_forward_pre_hook(partial(before, layers))
                    stack.callback(hook.remove)
            stack.enter_context(_Watch({id(weight): layer for layer, weight in weights.items()}, use))
            yield


class _Watch(TorchFunctionMode):
    """Tells which of the given tensors are used, each once."""

    def __init__(self, watched: dict[int, str], use: Callable[[str], None]) -> None:
        super().__init__()
        self._watched, self._use = watched, use

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()) if self._watched else ():  # a sampler goes on long after the last
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor) and id(tensor) in self._watched:
                    self._use(self._watched.pop(id(tensor)))
        return func(*args, **kwargs)
