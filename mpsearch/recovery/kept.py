"""What a method has made, as tensors that outlive the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from mpsearch.quant import QuantizedWeight, Recovered, WeightBank
from mpsearch.quant.stored import form_of
from mpsearch.types import BitMap, Format, Range

DONE = "method done"
MARK = "#"  # between a field of Recovered, a layer and a part of it


def tensors_of(found: Recovered) -> dict[str, Tensor]:
    """Everything by name; :func:`recovered_from` reads it."""
    named = {f"{layer}{MARK}{part}": own for layer, w in found.weights.items() for part, own in w.packed().items()}
    ranges = {name: torch.tensor(spans, dtype=torch.float64) for name, spans in found.ranges.items()}
    formats = {name: torch.tensor(list(str(own).encode()), dtype=torch.uint8) for name, own in found.formats.items()}
    parts = {"weights": named, "tensors": found.tensors, "ranges": ranges, "formats": formats, "floats": found.floats}
    kept = {f"{kind}{MARK}{name}": own.detach().clone() for kind, many in parts.items() for name, own in many.items()}
    return {DONE: torch.ones(1), **kept}


def recovered_from(
    kept: Mapping[str, Tensor], bitmap: BitMap, bank: WeightBank, device: torch.device
) -> Recovered | None:
    """What was kept; None where no method came to its end.

    Args:
        kept: tensors by name.
        bitmap: the map that was recovered.
        bank: the weights that the recovery started from.
        device: of the generator.
    """
    if DONE not in kept:
        return None
    by_kind: dict[str, dict[str, Tensor]] = {field.name: {} for field in fields(Recovered)}
    for name, own in kept.items():
        kind, _, rest = name.partition(MARK)
        if kind in by_kind:
            by_kind[kind][rest] = own
    formats = {name: Format.parse(bytes(text.tolist()).decode()) for name, text in by_kind["formats"].items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, own in by_kind["weights"].items():
        layer, _, part = name.rpartition(MARK)
        parts.setdefault(layer, {})[part] = own
    whole = {**bitmap, **formats}
    weights = {layer: _weight(own, whole[layer].weight_only, layer, bank) for layer, own in parts.items()}
    ranges = {
        name: tuple(Range(low, high, int(channels)) for low, high, channels in spans.tolist())
        for name, spans in by_kind["ranges"].items()
    }
    tensors, floats = ({n: own.to(device) for n, own in by_kind[kind].items()} for kind in ("tensors", "floats"))
    return Recovered(weights, tensors, ranges, formats, floats)


def _weight(parts: Mapping[str, Tensor], format: Format, layer: str, bank: WeightBank) -> QuantizedWeight:
    weight = bank.weight(layer)
    stored = form_of(format).unpacked(parts, format, weight.shape, bank.site(layer).axis, weight.dtype)
    numbers = {field.name: getattr(stored, field.name) for field in fields(stored)}
    moved: dict[str, Any] = {n: own.to(weight.device) for n, own in numbers.items() if isinstance(own, Tensor)}
    return replace(stored, **moved)
