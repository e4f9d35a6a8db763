"""The quantized generator as something that can be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.model import evaluating, inputs_mapped, substituted
from mpsearch.quant import InputGrid, Integers, Recovered, WeightBank, input_grids
from mpsearch.types import BitMap, Range

SLOWER = 0.02  # a parameter moves by so much of its spread where a weight moves by one of its steps
TINY = 1e-12  # a scale stays above it


class Student:
    """Everything about a map that gradients reach.

    Integers are trained in units of their steps and rounded in the forward pass; gradients pass the rounding and stop
    where a weight is clipped (LSQ, Esser et al., ICLR 2020). Steps, codebooks, low-rank factors, biases and the scales
    of norms are trained as they are, and so are the ends of activation ranges (LSQ+, Bhalgat et al. 2020).

    Args:
        model: the float generator.
        bitmap: the map, with its ranges.
        bank: the weights to start from.
        ranges: whether the ends of activation ranges are trained.
        weights: whether everything else is.

    Attributes:
        codes: layer → weights in units of their steps, where they are integers.
        numbers: layer → field → what else the weight is stored with.
        plain: name in ``state_dict`` → parameters that are not quantized.
        ends: layer → ``(ranges, 2)``, low and high.
    """

    def __init__(
        self, model: nn.Module, bitmap: BitMap, bank: WeightBank, ranges: bool = False, weights: bool = True
    ) -> None:
        self._model, self._bitmap, self._bank = model, bitmap, bank
        self._stored = {n: bank.quantized(n, f) for n, f in bitmap.items() if f.kind != "float"} if weights else {}
        self.codes: dict[str, Tensor] = {}
        self.numbers: dict[str, dict[str, Tensor]] = {}
        for layer, stored in self._stored.items():
            if isinstance(stored, Integers):
                self.codes[layer] = _exact(stored, bank.weight(layer)).requires_grad_()
            self.numbers[layer] = {name: _leaf(value.float()) for name, value in stored.learnable.items()}
        plain = {**_plain(model), **bank.tensors} if any(self.numbers.values()) else {}
        self.plain = {name: _leaf(value) for name, value in plain.items()}
        spans = {n: bank.ranges.get(n, bitmap.ranges[n]) for n, f in bitmap.items() if f.ranged} if ranges else {}
        self.ends = {n: _leaf(torch.tensor([own[:2] for own in span])) for n, span in spans.items()}

    @property
    def parameters(self) -> list[Tensor]:
        numbers = [value for own in self.numbers.values() for value in own.values()]
        return [*self.codes.values(), *numbers, *self.plain.values(), *self.ends.values()]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The parameters for an optimizer, each with a rate in its own unit: ``rate`` is in steps of weights."""
        found = [{"params": list(self.codes.values()), "lr": rate}] if self.codes else []
        for layer, numbers in self.numbers.items():
            unit = 1.0 if layer in self.codes else SLOWER
            found += [{"params": [own], "lr": rate * unit * _size(own)} for own in numbers.values()]
        rest = [*self.plain.values(), *self.ends.values()]
        return found + [{"params": [own], "lr": rate * SLOWER * _size(own)} for own in rest]

    @contextmanager
    def applied(self, only: Callable[[str], bool] | None = None) -> Iterator[None]:
        """The generator with what is trained in place, differentiable; ``only`` says which layers are quantized."""
        chosen = {layer for layer in self._bitmap if only is None or only(layer)}
        values = dict(self.plain)
        for layer in self._stored.keys() & chosen:
            values.update(dict.fromkeys(self._bank.site(layer).places, self.weight(layer)))
        if not self._stored:  # only ranges are trained
            for layer, format in self._bitmap.items():
                if layer in chosen and format.kind != "float":
                    stored = self._bank.dequantized(layer, format)
                    values.update(dict.fromkeys(self._bank.site(layer).places, stored))
        grids: dict[str, Callable[[Tensor], Tensor]] = {}
        for place, grid in input_grids(self._bitmap, self._bank, chosen).items():
            layer = self._bank.first(place)
            if layer in self.ends and isinstance(grid, InputGrid):
                grids[place] = partial(_rounded, grid, self.ends[layer])
            else:
                grids[place] = grid
        with evaluating(self._model), substituted(self._model, values), inputs_mapped(self._model, grids):
            yield

    def weight(self, layer: str) -> Tensor:
        """What a layer computes with, differentiable."""
        stored = self._stored[layer].with_learnable(self._clamped(layer))
        if not isinstance(stored, Integers):
            return stored.dequantized()
        low, high = stored.limits
        rounded: Tensor = _Rounding.apply(self.codes[layer], low, high)  # type: ignore[no-untyped-call]
        return ((rounded - stored.offset) * stored.spread(stored.scale)).to(stored.dtype)

    def _clamped(self, layer: str) -> dict[str, Tensor]:
        return {n: v.clamp_min(TINY) if n == "scale" else v for n, v in self.numbers[layer].items()}

    def recovered(self) -> Recovered:
        """What is trained, in its stored form."""
        weights = {}
        for layer in self._stored:
            numbers = {name: value.detach().clone() for name, value in self._clamped(layer).items()}
            weights[layer] = self._stored[layer].with_learnable(numbers)
            if isinstance(stored := weights[layer], Integers):
                low, high = stored.limits
                codes = self.codes[layer].detach().clamp(low, high).round().to(torch.int8)
                weights[layer] = replace(stored, codes=codes)
        tensors = {name: value.detach().clone() for name, value in self.plain.items()}
        ranges = {}
        for layer, ends in self.ends.items():
            spans = zip(_ordered(ends.detach()).tolist(), self._bitmap.ranges[layer], strict=True)
            ranges[layer] = tuple(Range(low, high, own.channels) for (low, high), own in spans)
        return Recovered(weights, tensors, ranges)

    def state(self) -> dict[str, Tensor]:
        """Everything that is trained, by name; :meth:`load` takes it back."""
        return {str(at): value.detach().clone() for at, value in enumerate(self.parameters)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for at, value in enumerate(self.parameters):
                value.copy_(state[str(at)])


class _Rounding(torch.autograd.Function):
    """Nearest integer in low … high; the gradient passes where nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp(low, high).round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def _rounded(grid: InputGrid, ends: Tensor, x: Tensor) -> Tensor:
    """``x`` on the grid between the ends; differentiable in both."""
    low, high = _ordered(ends).to(x.device).T
    if len(ends) > 1:
        counts = torch.tensor([channels for *_, channels in grid.ranges], device=x.device)
        low, high = (end.repeat_interleave(counts) for end in (low, high))
        spread = [1] * x.ndim
        spread[grid.axis] = -1
        low, high = low.reshape(spread), high.reshape(spread)
    top = float((1 << grid.bits) - 1)
    scale = ((high - low) / top).clamp_min(TINY)
    zero = _through(-low / scale).clamp(0, top)
    codes = _through(x.float() / scale + zero).clamp(0, top)
    found: Tensor = (codes - zero) * scale
    return found.to(x.dtype)


def _through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    rounded: Tensor = x + (x.round() - x).detach()
    return rounded


def _ordered(ends: Tensor) -> Tensor:
    """Ends around zero."""
    return torch.stack([ends[:, 0].clamp(max=0), ends[:, 1].clamp(min=0)], dim=1)


def _exact(stored: Integers, weight: Tensor) -> Tensor:
    """The float weight in units of its steps; the stored code where that is not the nearest."""
    exact = weight.detach().float() / stored.spread(stored.scale) + stored.offset
    low, high = stored.limits
    return torch.where(exact.clamp(low, high).round() == stored.codes, exact, stored.codes.float())


def _plain(model: nn.Module) -> dict[str, Tensor]:
    """Vectors that one module owns as a parameter: biases, and the scales of norms."""
    owners: dict[int, list[tuple[str, Tensor]]] = {}
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None and value.ndim == 1 and value.is_floating_point() and "parametrizations" not in path:
                owners.setdefault(id(value), []).append((f"{path}.{name}" if path else name, value))
    return dict(own[0] for own in owners.values() if len(own) == 1)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _size(values: Tensor) -> float:
    return values.detach().double().square().mean().sqrt().item() or 1.0
