"""What modules give, channel by channel, in the quantized generator beside the float one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpsearch.model import evaluating, forward, input_axis
from mpsearch.quant import applied
from mpsearch.recovery.trial import Trial

ALIKE = 0.1  # of the mean weight, for every value: gradients do not tell where a large correction leads
Calls = dict[str, list[Tensor]]  # path of a module → a tensor for each of its calls


class Seen(NamedTuple):
    """One call of a module, everything as ``(channels, values)`` in float64.

    Attributes:
        output: what it gives in the quantized generator.
        wanted: what it gives in the float one.
        weights: how much every value counts.
    """

    output: Tensor
    wanted: Tensor
    weights: Tensor


Correct = Callable[[str, Seen], Tensor]  # (path of a module, one of its calls) → what it gives instead


def correct_calls(
    trial: Trial, modules: Mapping[str, nn.Module], batch: int, generator: torch.Generator | None, correct: Correct
) -> None:
    """Both generators over one batch to learn from; calls in the quantized one are corrected as they are made.

    Each module then sees what those before it already correct.

    Args:
        trial: the generator, its map and its inputs.
        modules: path → linear layer, convolution or norm.
        batch: its number.
        generator: a value counts by the squared gradient of the picture with respect to it, as a random projection of
            the picture shows it: what a ReLU or a tanh cuts off may be wrong. None = all count alike.
        correct: told about every call.
    """
    seed, args = trial.learning.run(batch)
    wanted, taps = {path: list[Tensor]() for path in modules}, {path: list[Tensor]() for path in modules}

    def note(path: str, output: Tensor) -> Tensor:
        taps[path].append(torch.zeros_like(output, requires_grad=generator is not None))
        wanted[path].append(output.detach())
        return output + taps[path][-1]

    def visit(path: str, output: Tensor) -> Tensor:
        axis = channels_of(modules[path])
        calls = (output, wanted[path].pop(0), weights[path].pop(0))
        own, target, counts = (call.movedim(axis, 0).flatten(1).double() for call in calls)
        new = correct(path, Seen(own, target, counts + ALIKE * counts.mean(1, keepdim=True)))
        return new.to(output.dtype).reshape(output.movedim(axis, 0).shape).movedim(0, axis)

    model, gradients = trial.model, torch.set_grad_enabled
    with trial.teacher(), evaluating(model), gradients(generator is not None), _hooked(modules, note):
        images = forward(model, args, seed)
    weights = _weights(images, taps, generator)
    with applied(model, trial.bitmap, trial.bank), evaluating(model), gradients(False), _hooked(modules, visit):
        forward(model, args, seed)


def channels_of(module: nn.Module) -> int:
    """Axis of the channels of what a linear layer, a convolution or a norm gives."""
    known = input_axis(module)
    return (-1 if isinstance(module, nn.LayerNorm) else 1) if known is None else known


def _weights(images: Tensor, taps: Calls, generator: torch.Generator | None) -> Calls:
    """How much every value counts, in the shapes of the taps."""
    if generator is None or not images.requires_grad:
        return {path: [torch.ones_like(tap) for tap in own] for path, own in taps.items()}
    probe = torch.randint(2, images.shape, generator=generator).to(images) * 2 - 1
    inputs = [tap for own in taps.values() for tap in own]
    found = iter(torch.autograd.grad(images, inputs, probe, materialize_grads=True))
    return {path: [next(found).square() for _ in own] for path, own in taps.items()}


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], visit: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Within the context ``visit`` is asked what every module gives instead of its output."""

    def hook(path: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return visit(path, output)

    with ExitStack() as stack:
        for path, module in modules.items():
            stack.callback(module.register_forward_hook(partial(hook, path)).remove)
        yield
