"""Run single modules again, in the middle of a forward pass of the whole generator."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.model.running import device_of, evaluating, first_tensor, forward

Replay = Callable[[], Tensor]


def modules_called(model: nn.Module, batch: Sequence[Any], seed: int = 0) -> list[str]:
    """Paths of the modules that one forward pass calls and that return a floating tensor; ``""`` is the model.

    In the order in which they first return.
    """
    called: dict[int, int] = {}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if first_tensor(output) is not None:
            called.setdefault(id(module), len(called))

    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(after).remove)
        forward(model, batch, seed)
    paths = {path: id(module) for path, module in model.named_modules(remove_duplicate=False) if id(module) in called}
    return sorted(paths, key=lambda path: called[paths[path]])


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
    with torch.random.fork_rng(devices=_cuda(module)), evaluating(module), torch.no_grad():
        output = first_tensor(module(*_copied(args), **_copied(kwargs)))
    if output is None:
        raise ModelError(f"a {type(module).__name__} returns a tensor in one call and none in another")
    return output


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in a forward pass: what it read, and the random numbers that it was about to find."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: tuple[Tensor, ...]

    def again(self, module: nn.Module) -> Any:
        """What ``module`` returns on copies of the arguments; differentiable. Call inside :func:`evaluating`."""
        cuda = _cuda(module)
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(self.random[0])
            for device, state in zip(cuda, self.random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return module(*_copied(self.args), **_copied(self.kwargs))

    def draws(self, module: nn.Module) -> bool:
        """Whether ``module`` takes random numbers, which parts of the call would not find where the whole did."""
        cuda = _cuda(module)
        with torch.random.fork_rng(devices=cuda), evaluating(module), torch.no_grad():
            before = (torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda))
            module(*_copied(self.args), **_copied(self.kwargs))
            after = (torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda))
            return not all(map(torch.equal, before, after))

    def cut(self, samples: int, parts: int) -> list[Call]:
        """The call in parts: tensors with a row a sample are cut, the rest is shared."""
        pieces = _cut((self.args, self.kwargs), samples, parts)
        return [Call(args, kwargs, self.random) for args, kwargs in pieces]


def calls_of(model: nn.Module, module: nn.Module, batch: Sequence[Any], seed: int, count: int) -> list[Call]:
    """The first ``count`` calls of ``module`` in a forward pass, which ends with the last of them."""
    found: list[Call] = []

    def before(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        random = (torch.get_rng_state(), *map(torch.cuda.get_rng_state, _cuda(model)))
        found.append(Call(_copied(args), _copied(kwargs), random))
        if len(found) == count:
            raise _Enough

    with evaluating(model), torch.no_grad(), suppress(_Enough), ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        forward(model, batch, seed)
    return found


def with_outputs(
    model: nn.Module, module: nn.Module, batch: Sequence[Any], seed: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """(images, what every call of ``module`` returned): the images have gradients with respect to those.

    Of a tuple it is the first entry. Nothing where some call returned no floating tensor.
    """
    found: list[Tensor] = []
    whole = True

    def after(called: nn.Module, args: Any, output: Any) -> Any:
        nonlocal whole
        own, *rest = output if type(output) is tuple and output else (output,)
        if not isinstance(own, Tensor) or not own.is_floating_point():
            whole = False
            return output
        found.append(own if own.requires_grad else own.detach().requires_grad_())
        kept = found[-1].clone()  # what follows may write into it
        return (kept, *rest) if type(output) is tuple else kept

    with evaluating(model), ExitStack() as stack:
        stack.callback(module.register_forward_hook(after).remove)
        images = forward(model, batch, seed)
    return images, found if whole else []


class _Enough(BaseException):  # no error: nothing on the way may take it for one
    """Ends a forward pass of which enough is known."""


def _cuda(module: nn.Module) -> list[torch.device]:
    device = device_of(module)
    return [device] if device.type == "cuda" else []


def _cut(value: Any, samples: int, parts: int) -> Sequence[Any]:
    if isinstance(value, Tensor) and value.ndim and len(value) == samples:
        return value.tensor_split(parts)
    if type(value) in (list, tuple):
        pieces = [_cut(entry, samples, parts) for entry in value]
        return [type(value)(own[at] for own in pieces) for at in range(parts)]
    if type(value) is dict:
        named = {key: _cut(entry, samples, parts) for key, entry in value.items()}
        return [{key: own[at] for key, own in named.items()} for at in range(parts)]
    return [value] * parts


def _copied(value: Any) -> Any:
    """Arguments with fresh tensors: some modules write into what they read."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return {key: _copied(entry) for key, entry in value.items()} if type(value) is dict else value
