"""Relative rounding noise of a format: how much energy it adds to the weights of a layer and to what it reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpsearch.model import evaluating, forward, inputs_mapped
from mpsearch.subject import Subject
from mpsearch.types import Format


def weight_noise(subject: Subject, layer: str, format: Format) -> float:
    """``‖ΔW‖² / ‖W‖²``; 0 for a weight of zeros."""
    weight = subject.bank.weight(layer).double()
    energy = weight.square().sum().item()
    return (subject.bank.dequantized(layer, format).double() - weight).square().sum().item() / (energy or 1.0)


def input_noise(subject: Subject, formats: Sequence[Format]) -> dict[tuple[str, Format], float]:
    """(layer, activations) → ``‖Δx‖² / ‖x‖²`` over all that the layer reads, for all activations in ``formats``."""
    keys = list(subject.grids(formats))
    name = f"input noise of {','.join(f'{layer} {act}' for layer, act in keys)}"
    return dict(zip(keys, subject.recall(name, len(keys), lambda: _measure(subject, formats)), strict=True))


def _measure(subject: Subject, formats: Sequence[Format]) -> list[float]:
    grids = subject.grids(formats)
    energy: defaultdict[str, float] = defaultdict(float)
    errors: defaultdict[tuple[str, Format], float] = defaultdict(float)

    def tap(layer: str) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            energy[layer] += x.double().square().sum().item()
            for (name, act), grid in grids.items():
                if name == layer:
                    errors[name, act] += (grid(x) - x).double().square().sum().item()
            return x

        return read

    layers = {layer for layer, _ in grids}
    taps = {place: tap(layer) for layer in layers for place in subject.bank.site(layer).places}
    with inputs_mapped(subject.model, taps):
        for seed, args in subject.calibration.runs() if grids else ():
            with evaluating(subject.model), torch.no_grad():
                forward(subject.model, args, seed)
    return [errors[key] / (energy[key[0]] or 1.0) for key in grids]
