"""How the true error of a whole map would change if one layer took another format, to first order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.model import evaluating, forward, inputs_mapped, substituted
from mpsearch.sensitivity.probes import backward
from mpsearch.sensitivity.projection import rows
from mpsearch.subject import Subject
from mpsearch.types import FLOAT, BitMap, Format, Unit, activations_of

Array = NDArray[np.float64]
PARTS = 4  # of a batch: one backward pass keeps the activations of a part only


def slopes(subject: Subject, bitmap: BitMap, formats: Sequence[Format]) -> Array:
    """``(layers, formats)``: first-order change of the mean squared error of ``bitmap``.

    The error of a map is ``‖r‖²`` with the residual ``r`` of the quantized images. Another format in one layer changes
    it by ``2 rᵀJδ + ‖Jδ‖²``. One backward pass with ``r`` for the probe gives the first term for all layers and formats
    exactly; it holds the pair terms with everything else that the map quantizes, which no table of single layers knows.
    Rounding of activations passes gradients straight through.

    Raises:
        ModelError: the generator cannot be differentiated.
    """
    key = f"slopes at {bitmap.key} of {','.join([*(layer.name for layer in subject.layers), *map(str, formats)])}"
    count = len(subject.layers) * len(formats)
    found = subject.recall(key, count, lambda: list(map(float, _measure(subject, bitmap, formats).ravel())))
    return np.reshape(found, (-1, len(formats)))


def channel_slopes(subject: Subject, bitmap: BitMap, units: Sequence[Unit], formats: Sequence[Format]) -> Array:
    """``(units, formats)``: as :func:`slopes`, for single output channels in formats of weights alone.

    Raises:
        ModelError: the generator cannot be differentiated.
    """
    key = f"slopes at {bitmap.key} of {','.join([*map(str, units), *map(str, formats)])}"
    count = len(units) * len(formats)
    found = subject.recall(key, count, lambda: list(map(float, _by_channel(subject, bitmap, units, formats).ravel())))
    return np.reshape(found, (-1, len(formats)))


def _by_channel(subject: Subject, bitmap: BitMap, units: Sequence[Unit], formats: Sequence[Format]) -> Array:
    bank, kept = subject.bank, {}
    gradient, _ = _gradients(subject, bitmap, ())
    for name in dict.fromkeys(unit.layer for unit in units):
        layer = subject.layers[name]
        now = bank.dequantized(name, bitmap.get(name, FLOAT))
        moved = [rows(layer, gradient[name] * (subject.weight(layer, format) - now)) for format in formats]
        kept[name] = torch.stack([m.sum(dim=1, dtype=torch.float64) for m in moved], dim=1).cpu().numpy()
    return np.stack([kept[unit.layer][list(unit.channels or ())].sum(axis=0) for unit in units])


def _measure(subject: Subject, bitmap: BitMap, formats: Sequence[Format]) -> Array:
    bank, acts = subject.bank, [FLOAT, *activations_of(formats)]
    gradient, rounding = _gradients(subject, bitmap, formats)
    kinds = list(dict.fromkeys(format.weight_only for format in formats))
    column = [kinds.index(format.weight_only) for format in formats]
    act = [acts.index(format.act_only) for format in formats]
    found = []
    for name, grad in gradient.items():
        layer, now = subject.layers[name], bank.dequantized(name, bitmap.get(name, FLOAT))
        moved = [(grad * (subject.weight(layer, kind) - now)).sum(dtype=torch.float64) for kind in kinds]
        found.append(torch.stack(moved).cpu().numpy()[column] + rounding[name][act])
    return np.stack(found)


def _gradients(
    subject: Subject, bitmap: BitMap, formats: Sequence[Format]
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """Layer → gradient of the error with respect to its weight; layer → what every rounding of its input, float first,
    would change."""
    bank = subject.bank
    bitmap = subject.with_ranges(bitmap)
    now = {layer.name: bank.dequantized(layer.name, bitmap.get(layer.name, FLOAT)) for layer in subject.layers}
    slope = {name: torch.zeros_like(weight) for name, weight in now.items()}
    rounding = {name: np.zeros(1 + len(activations_of(formats))) for name in now}  # of activations, float first
    for batch in range(len(subject.calibration)):
        scale = 2 / (subject.samples * subject.reference[batch][0].numel())
        for args, expected in subject.parts(batch, PARTS):
            reads: list[tuple[str, Tensor, Tensor]] = []
            leaves = {name: weight.clone().requires_grad_() for name, weight in now.items()}
            places = {place: leaf for name, leaf in leaves.items() for place in bank.site(name).places}
            taps = _taps(subject, bitmap, formats, reads)
            with evaluating(subject.model), substituted(subject.model, places), inputs_mapped(subject.model, taps):
                images = forward(subject.model, args, subject.calibration.run(batch)[0])
                wanted = [*leaves.values(), *(x for _, x, _ in reads)]
                found = backward(images, wanted, (images.detach() - expected) * scale, last=True)
            for name, grad in zip(leaves, found, strict=False):
                if grad is not None:
                    slope[name] += grad
            for (name, _, changes), grad in zip(reads, found[len(leaves) :], strict=True):
                if grad is not None:
                    rounding[name] += (changes @ grad.flatten()).double().cpu().numpy()
    return slope, rounding


def _taps(
    subject: Subject, bitmap: BitMap, formats: Sequence[Format], reads: list[tuple[str, Tensor, Tensor]]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Hooks that round as the map says, and keep what each reading would change by in all activations, float first."""
    grids, acts = subject.grids([*formats, *bitmap.values()]), activations_of(formats)

    def tap(name: str) -> Callable[[Tensor], Tensor]:
        grid = grids.get((name, bitmap.get(name, FLOAT).act_only))

        def read(x: Tensor) -> Tensor:
            rounded = x if grid is None else grid(x)
            own = rounded.view_as(rounded) if rounded.requires_grad else rounded.detach().requires_grad_()
            with torch.no_grad():
                others = [x, *(grids[name, act](x) for act in acts)]
                reads.append((name, own, torch.stack([(other - rounded).flatten() for other in others])))
            return own

        return read

    names = {name for name, _ in grids}
    return {place: tap(name) for name in names for place in subject.bank.site(name).places}
