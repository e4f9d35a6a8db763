"""Random projections of the output, pulled back to every weight and every activation at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.model import evaluating, forward, inputs_mapped, one_line, substituted
from mpsearch.quant import input_errors
from mpsearch.subject import Subject
from mpsearch.types import BitMap, Format, activations_of

Array = NDArray[np.float64]
ADVICE = "use the estimator 'perturbation', which needs no gradient"


@dataclass(frozen=True, eq=False)
class Read:
    """One reading of a layer's input: the tensor ``x``, and its rounding errors in float32, ``(kinds, elements)``, in
    the order of :func:`mpsearch.types.activations_of`."""

    x: Tensor
    errors: Tensor


Weights = dict[str, Tensor | None]
Inputs = dict[str, list[tuple[Tensor | None, Read]]]


@dataclass(frozen=True, eq=False)
class Pullback:
    """``vᵀJ`` of one probe ``v`` over the output of one batch.

    Attributes:
        part: number of the part of the batch that it saw.
        weights: layer → ``vᵀ ∂y/∂W``, in the weight's shape; None where the output does not depend on it.
        inputs: layer → (``vᵀ ∂y/∂x``, the reading) of every time its owner was called.
        scale: ``1 / (samples of the whole calibration · elements of one image)``: turns ``(vᵀJΔ)²`` into its part's
            share of the mean squared error.
    """

    part: int
    weights: Weights
    inputs: Inputs
    scale: float


def pull_back(
    subject: Subject,
    formats: Sequence[Format],
    batch: int,
    probes: int,
    seed: int,
    visit: Callable[[Pullback], None],
) -> None:
    """Call ``visit`` with ``vᵀJ`` of ``probes`` random ``v`` over one batch, at the cost of ``probes`` backward passes
    or less.

    The probes are Rademacher vectors, so ``E[(vᵀJΔ)²] = ‖JΔ‖²`` (Hutchinson 1990). The batch is cut into parts that
    share the probes, at least two each: samples do not disturb one another, so the sum over the parts is as exact as
    if every probe had seen the whole batch, for a fraction of the work. The backward passes run while the
    substitutes are in place: a generator with gradient checkpointing runs its forward pass again in them.

    Raises:
        ModelError: the output has no gradient, or computing it fails.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    parts = subject.parts(batch, probes // 2)
    for part, (args, _) in enumerate(parts):
        _pull_part(subject, formats, batch, part, args, probes // len(parts), generator, visit)


def _pull_part(
    subject: Subject,
    formats: Sequence[Format],
    batch: int,
    part: int,
    args: tuple[Any, ...],
    probes: int,
    generator: torch.Generator,
    visit: Callable[[Pullback], None],
) -> None:
    scale = 1 / (subject.samples * subject.reference[batch][0].numel())

    def sign(images: Tensor) -> Tensor:
        return torch.randint(0, 2, images.shape, generator=generator).mul_(2).sub_(1).to(images)

    def found(weights: Weights, inputs: Inputs) -> None:
        visit(Pullback(part, weights, inputs, scale))

    gradients(subject, formats, batch, args, found, sign, count=probes, check=part == 0)


def gradients(
    subject: Subject,
    formats: Sequence[Format],
    batch: int,
    args: tuple[Any, ...],
    visit: Callable[[Weights, Inputs], None],
    draw: Callable[[Tensor], Tensor] = torch.ones_like,
    head: Callable[[Tensor], Tensor] | None = None,
    count: int = 1,
    check: bool = True,
) -> None:
    """Call ``visit`` with ``vᵀ ∂y`` by every weight and every layer input, for ``count`` vectors ``v``.

    Args:
        subject: the generator.
        formats: whose activation rounding errors the readings hold.
        batch: number of the batch that ``args`` are a part of.
        args: arguments of the generator.
        visit: told the gradients of every vector.
        draw: ``y`` → ``v``.
        head: images → ``y``; by default the images themselves.
        count: backward passes.
        check: whether to refuse a layer that has no gradient but changes the output.

    Raises:
        ModelError: the output has no gradient, or computing it fails.
    """
    names = [layer.name for layer in subject.layers]
    reads: dict[str, list[Read]] = {}
    taps = _taps(subject, formats, reads)
    with evaluating(subject.model):
        leaves = {name: subject.bank.weight(name).clone().requires_grad_() for name in names}
        places = {place: leaves[name] for name in names for place in subject.bank.site(name).places}
        with substituted(subject.model, places), inputs_mapped(subject.model, taps):
            images = forward(subject.model, args, subject.calibration.run(batch)[0])
            if not images.requires_grad:
                raise ModelError(f"the generator's forward pass runs without gradients (torch.no_grad?): {ADVICE}")
            spots = [(name, read) for name, found in reads.items() for read in found]
            wanted = [*leaves.values(), *(read.x for _, read in spots)]
            target = images if head is None else head(images)
            for done in range(1, count + 1):
                grads = backward(target, wanted, draw(target), last=done == count)
                inputs: Inputs = {}
                for (name, read), grad in zip(spots, grads[len(names) :], strict=True):
                    inputs.setdefault(name, []).append((grad, read))
                visit(dict(zip(names, grads, strict=False)), inputs)
    if check:
        _refuse_blind(subject, [name for name, grad in zip(names, grads, strict=False) if grad is None])


def pooled(parts: Sequence[int], values: Sequence[Array]) -> tuple[Array, Array]:
    """(estimate, its variance) of a sum over parts from one value a probe; only probes of one part vary by chance."""
    numbers, stack = np.asarray(parts), np.stack(values)
    total, variance = np.zeros(stack.shape[1:]), np.zeros(stack.shape[1:])
    for part in np.unique(numbers):
        own = stack[numbers == part]
        total += own.mean(0)
        variance += own.var(0, ddof=1) / len(own)
    return total, variance


def backward(target: Tensor, wanted: Sequence[Tensor], vector: Tensor, last: bool) -> tuple[Tensor | None, ...]:
    """``vᵀ ∂target`` by everything wanted; the graph is kept unless it is the ``last`` vector; None = no gradient."""
    try:
        return torch.autograd.grad(target, wanted, vector, retain_graph=not last, allow_unused=True)
    except RuntimeError as error:
        raise ModelError(f"the generator cannot be differentiated ({one_line(error)}): {ADVICE}") from error


def _refuse_blind(subject: Subject, names: Sequence[str]) -> None:
    """A layer without gradient must be one that the output does not depend on, else its damage would look like zero."""
    for name in names:
        if subject.error(BitMap({name: "w2"})).value > 0:
            raise ModelError(f"{name} changes the output but has no gradient (detach, reentrant checkpoint?): {ADVICE}")


def _taps(
    subject: Subject, formats: Sequence[Format], reads: dict[str, list[Read]]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Hooks that give each reading its own autograd node, so that layers reading one tensor stay apart."""
    grids = subject.grids(formats)
    acts = activations_of(formats)

    def tap(name: str) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            own = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            errors = input_errors(x, [grids[name, act] for act in acts])
            reads.setdefault(name, []).append(Read(own, errors))
            return own

        return read

    names = {name for name, _ in grids}
    return {place: tap(name) for name in names for place in subject.bank.site(name).places}
