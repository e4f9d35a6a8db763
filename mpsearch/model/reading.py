"""Change what a module reads, by forward pre-hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mpsearch.model.weights import owner

Spot = int | str  # of a positional or of a keyword argument


def input_tensors(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Spot, Tensor]:
    """The activations that ``module`` multiplies with its weights.

    That is its first floating tensor argument (the style of a modulated convolution is left alone), and query, key and
    value of ``nn.MultiheadAttention``.
    """
    everything: dict[Spot, Any] = dict(enumerate(args))
    everything.update(kwargs)
    found = {s: v for s, v in everything.items() if isinstance(v, Tensor) and v.is_floating_point()}
    if isinstance(module, nn.MultiheadAttention):
        return {spot: value for spot, value in found.items() if spot in (0, 1, 2, "query", "key", "value")}
    return dict(list(found.items())[:1])


@contextmanager
def inputs_mapped(model: nn.Module, maps: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the context ``maps[layer]`` is applied to what the owner of ``layer`` reads."""
    with ExitStack() as stack:
        for name, function in maps.items():
            stack.callback(map_input(owner(model, name)[0], function))
        yield


def map_input(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Apply ``function`` to what ``module`` reads, until the returned function is called."""
    return module.register_forward_pre_hook(_Reader(function), with_kwargs=True).remove


class _Reader:
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        new_args, new_kwargs = list(args), dict(kwargs)
        seen: dict[int, Tensor] = {}  # self-attention passes one tensor three times and must get one back
        for spot, value in input_tensors(module, args, kwargs).items():
            if id(value) not in seen:
                seen[id(value)] = self.function(value)
            if isinstance(spot, int):
                new_args[spot] = seen[id(value)]
            else:
                new_kwargs[spot] = seen[id(value)]
        return tuple(new_args), new_kwargs
