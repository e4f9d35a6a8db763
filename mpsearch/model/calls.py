"""Run single modules again, in the middle of a forward pass of the whole generator."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.model.running import device_of, evaluating, first_tensor, forward

Replay = Callable[[], Tensor]


def modules_called(model: nn.Module, batch: Sequence[Any], seed: int = 0) -> set[str]:
    """Paths of the modules that one forward pass calls and that return a floating tensor; ``""`` is the model."""
    called: set[int] = set()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if first_tensor(output) is not None:
            called.add(id(module))

    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(after).remove)
        forward(model, batch, seed)
    return {path for path, module in model.named_modules(remove_duplicate=False) if id(module) in called}


@contextmanager
def calls_visited(model: nn.Module, visitors: Mapping[str, Callable[[Replay], None]]) -> Iterator[None]:
    """Within the context every call of the module at ``path`` is preceded by ``visitors[path](replay)``.

    ``replay()`` runs the module on copies of its arguments, in the state and with the random numbers that the real
    call is about to find, and returns its first floating tensor, detached; it may be called many times, with other
    weights or inputs in place (:func:`substituted`, :func:`inputs_mapped`). The real call then runs as if nothing had
    happened. Calls inside a replay are not visited.
    """
    inside: list[nn.Module] = []  # not empty while a visitor runs

    def before(visitor: Callable[[Replay], None], module: nn.Module, args: Any, kwargs: Any) -> None:
        if not inside:
            inside.append(module)
            try:
                visitor(partial(_replay, module, args, kwargs))
            finally:
                inside.clear()

    with ExitStack() as stack:
        for path, visitor in visitors.items():
            hook = model.get_submodule(path).register_forward_pre_hook(partial(before, visitor), with_kwargs=True)
            stack.callback(hook.remove)
        yield


@contextmanager
def outputs_visited(model: nn.Module, visitors: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Within the context every call of the module at ``path`` is followed by ``visitors[path](output)``.

    The output is the first floating tensor; what comes after may write into it once the visitor has returned.
    """

    def after(visitor: Callable[[Tensor], None], module: nn.Module, args: Any, output: Any) -> None:
        if (tensor := first_tensor(output)) is not None:
            visitor(tensor)

    with ExitStack() as stack:
        for path, visitor in visitors.items():
            hook = model.get_submodule(path).register_forward_hook(partial(after, visitor))
            stack.callback(hook.remove)
        yield


def closest(path: str, called: Container[str]) -> str:
    """The path itself, or that of the closest module around it, among those that are called."""
    while path not in called:
        path = path.rpartition(".")[0]
    return path


def _replay(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    device = device_of(module)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), evaluating(module), torch.no_grad():
        output = first_tensor(module(*_copied(args), **_copied(kwargs)))
    if output is None:
        raise ModelError(f"a {type(module).__name__} returns a tensor in one call and none in another")
    return output


def _copied(value: Any) -> Any:
    """Arguments with fresh tensors: some modules write into what they read."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return {key: _copied(entry) for key, entry in value.items()} if type(value) is dict else value
