"""Random projections of the output, pulled back to every weight and every activation at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.model import evaluating, forward, inputs_mapped, substituted
from mpsearch.quant import quantize_activation
from mpsearch.subject import Subject
from mpsearch.types import Format


@dataclass(frozen=True, eq=False)
class Read:
    """One reading of a layer's input: the tensor ``x``, and its rounding error at each width."""

    x: Tensor
    errors: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Pullback:
    """``vᵀJ`` of one probe ``v`` over the output of one batch.

    Attributes:
        probe: its number; every batch is seen by every probe.
        weights: layer → ``vᵀ ∂y/∂W``, in the weight's shape; None where the output does not depend on it.
        inputs: layer → (``vᵀ ∂y/∂x``, the reading) of every time its owner was called.
        scale: ``1 / (samples of the whole calibration · elements of one image)``: turns ``(vᵀJΔ)²`` into its share of
            the mean squared error.
    """

    probe: int
    weights: dict[str, Tensor | None]
    inputs: dict[str, list[tuple[Tensor | None, Read]]]
    scale: float


def pullbacks(subject: Subject, formats: Sequence[Format], batch: int, probes: int, seed: int) -> Iterator[Pullback]:
    """One forward pass of calibration batch ``batch`` and ``probes`` backward passes, for all layers and formats.

    The probes are Rademacher vectors, so ``E[(vᵀJΔ)²] = ‖JΔ‖²`` (Hutchinson 1990).
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    names = [layer.name for layer in subject.layers]
    leaves = {name: subject.bank.weight(name).clone().requires_grad_() for name in names}
    reads: dict[str, list[Read]] = {}
    with (
        torch.enable_grad(),
        evaluating(subject.model),
        substituted(subject.model, {p: leaves[n] for n in names for p in subject.bank.site(n).places}),
        inputs_mapped(subject.model, _taps(subject, formats, reads)),
    ):
        noise_seed, args = subject.calibration.run(batch)
        images = forward(subject.model, args, noise_seed)
    spots = [(name, read) for name, found in reads.items() for read in found]
    wanted = [*leaves.values(), *(read.x for _, read in spots)]
    scale = 1 / (subject.samples * images[0].numel())
    for probe in range(probes):
        sign = torch.randint(0, 2, images.shape, generator=generator).mul_(2).sub_(1).to(images)
        grads = torch.autograd.grad(images, wanted, sign, retain_graph=probe + 1 < probes, allow_unused=True)
        inputs: dict[str, list[tuple[Tensor | None, Read]]] = {}
        for (name, read), grad in zip(spots, grads[len(names) :], strict=True):
            inputs.setdefault(name, []).append((grad, read))
        yield Pullback(probe, dict(zip(names, grads, strict=False)), inputs, scale)


def _taps(
    subject: Subject, formats: Sequence[Format], reads: dict[str, list[Read]]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Hooks that give each reading its own autograd node, so that layers reading one tensor stay apart."""
    ranges = subject.ranges(formats)
    widths = sorted({bits for _, bits in ranges})

    def tap(name: str) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            own = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            with torch.no_grad():
                errors = {bits: quantize_activation(x, ranges[name, bits]) - x for bits in widths}
            reads.setdefault(name, []).append(Read(own, errors))
            return own

        return read

    names = {name for name, _ in ranges}
    return {place: tap(name) for name in names for place in subject.bank.site(name).places}
