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
from mpsearch.quant.activations import InputGrid
from mpsearch.quant.bank import Recovered, WeightBank
from mpsearch.quant.context import input_grids
from mpsearch.quant.stored import Integers, QuantizedWeight, quantize_weight
from mpsearch.types import BitMap, Format, Range

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
        scales: whether, where the rest is not, the scales of weights are; the codes of integers then follow from the
            float weight, which stays.

    Attributes:
        codes: layer → weights in units of their steps, where they are integers that are trained.
        numbers: layer → field → what else the weight is stored with.
        plain: name in ``state_dict`` → parameters that are not quantized.
        ends: layer → ``(ranges, 2)``, low and high.
        held: layer → codes that weights keep, NaN where they are free.
        formats: layer → format, of those that :meth:`reformat` has changed.
    """

    def __init__(
        self,
        model: nn.Module,
        bitmap: BitMap,
        bank: WeightBank,
        ranges: bool = False,
        weights: bool = True,
        scales: bool = False,
    ) -> None:
        self._model, self._bitmap, self._bank = model, bitmap, bank
        self._stored = {n: bank.quantized(n, f) for n, f in bitmap.items() if f.kind != "float"}
        self.codes: dict[str, Tensor] = {}
        self.numbers: dict[str, dict[str, Tensor]] = {}
        self.held: dict[str, Tensor] = {}
        self.formats: dict[str, Format] = {}
        self._fixed: dict[str, Tensor] = {}  # float weights that codes follow from
        for layer, stored in self._stored.items():
            if isinstance(stored, Integers) and weights:
                self.codes[layer] = stored.exact(bank.weight(layer)).requires_grad_()
            elif isinstance(stored, Integers) and scales:
                self._fixed[layer] = _times_steps(stored.exact(bank.weight(layer)), stored)
            names = [name for name in stored.learnable if weights or (scales and name == "scale")]
            self.numbers[layer] = {name: _leaf(stored.learnable[name].float()) for name in names}
        plain = _plain(model) if weights and any(self.numbers.values()) else {}
        # Single precision: a bias in half precision is coarser than the steps of a training, and Adam divides by zero.
        self.plain = {name: _leaf(bank.tensors.get(name, value).float()) for name, value in plain.items()}
        self._dtypes = {name: value.dtype for name, value in plain.items()}
        spans = {n: bank.ranges.get(n, bitmap.ranges[n]) for n, f in bitmap.items() if f.ranged} if ranges else {}
        self.ends = {n: _leaf(torch.tensor([own[:2] for own in span])) for n, span in spans.items()}
        self._sizes = {own: _size(own) for own in self.parameters}

    @property
    def parameters(self) -> list[Tensor]:
        numbers = [value for own in self.numbers.values() for value in own.values()]
        return [*self.codes.values(), *numbers, *self.plain.values(), *self.ends.values()]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The parameters for an optimizer, each with a rate in its own unit: ``rate`` is in steps of weights."""
        found = [{"params": list(self.codes.values()), "lr": rate}] if self.codes else []
        for layer, numbers in self.numbers.items():
            unit = self._wider(layer) if isinstance(self._stored[layer], Integers) else SLOWER
            found += [{"params": [own], "lr": rate * unit * self._sizes[own]} for own in numbers.values()]
        rest = [*self.plain.values(), *self.ends.values()]
        return found + [{"params": [own], "lr": rate * SLOWER * self._sizes[own]} for own in rest]

    def _wider(self, layer: str) -> float:
        """How many times a step has grown since its format was changed."""
        before, now = self._bitmap[layer].bits, self._stored[layer].format.bits
        return (2 ** ((before or 0) - 1) - 1) / (2 ** ((now or 0) - 1) - 1) if layer in self.formats else 1.0

    @contextmanager
    def applied(self, only: Callable[[str], bool] | None = None) -> Iterator[dict[str, Tensor]]:
        """The generator with what is trained in place, differentiable; ``only`` says which layers are quantized.

        Yields the weights in place, by layer.
        """
        chosen = {layer for layer in self._bitmap if only is None or only(layer)}
        quantized = self._stored.keys() & chosen
        weights = {n: self.weight(n) if n in quantized else self._bank.weight(n) for n in self._bitmap}
        values = {place: own for layer, own in weights.items() for place in self._bank.site(layer).places}
        values |= {**self._bank.tensors, **{name: own.to(self._dtypes[name]) for name, own in self.plain.items()}}
        grids: dict[str, Callable[[Tensor], Tensor]] = {}
        for place, grid in input_grids(self._bitmap, self._bank, chosen).items():
            layer = self._bank.first(place)
            if layer in self.ends and isinstance(grid, InputGrid):
                grids[place] = partial(_rounded, grid, self.ends[layer])
            else:
                grids[place] = grid
        with evaluating(self._model), substituted(self._model, values), inputs_mapped(self._model, grids):
            yield weights

    def weight(self, layer: str) -> Tensor:
        """What a layer computes with, differentiable."""
        stored = self._now(layer)
        if not isinstance(stored, Integers) or not self.numbers[layer]:
            return stored.dequantized()
        rounded: Tensor = _Rounding.apply(self._in_steps(layer, stored), *stored.limits)  # type: ignore[no-untyped-call]
        if layer in self.held:
            rounded = torch.where(self.held[layer].isnan(), rounded, self.held[layer])
        return _times_steps(rounded, stored).to(stored.dtype)

    def _in_steps(self, layer: str, stored: Integers) -> Tensor:
        """The weight in units of its steps."""
        if layer in self.codes:
            return self.codes[layer]
        return self._fixed[layer] / stored.spread(stored.scale) + stored.offset

    def nearest(self, layer: str) -> Tensor:
        """The codes of a layer of integers, float32."""
        stored = self._now(layer)
        assert isinstance(stored, Integers)
        with torch.no_grad():
            codes = self._in_steps(layer, stored).clamp(*stored.limits).round()
            return torch.where(self.held[layer].isnan(), codes, self.held[layer]) if layer in self.held else codes

    def unrounded(self, layer: str) -> Tensor:
        """The weight of a layer of integers before it is rounded, float32."""
        stored = self._now(layer)
        assert isinstance(stored, Integers)
        with torch.no_grad():
            return _times_steps(self._in_steps(layer, stored), stored)

    def reformat(self, layer: str, format: Format) -> list[Tensor]:
        """Give a layer of plain integers another width, its float weight stays.

        Returns:
            The parameters of the layer, whose units are others now.
        """
        weight, scale = self.unrounded(layer), self.numbers[layer]["scale"]
        stored = quantize_weight(weight, format.weight_only, self._stored[layer].axis)
        assert isinstance(stored, Integers)
        with torch.no_grad():
            scale.copy_(stored.scale)
            self.codes[layer].copy_(weight / stored.scale + stored.offset)
        self._stored[layer] = replace(stored, dtype=self._stored[layer].dtype)
        self.formats[layer] = format
        return [self.codes[layer], scale]

    def _now(self, layer: str) -> QuantizedWeight:
        """The stored form with what is trained of it beside the codes."""
        numbers = {n: v.clamp_min(TINY) if n == "scale" else v for n, v in self.numbers[layer].items()}
        return self._stored[layer].with_learnable(numbers)

    def recovered(self) -> Recovered:
        """What is trained, in its stored form."""
        weights = {}
        for layer in (layer for layer, numbers in self.numbers.items() if numbers):
            stored = self._now(layer)
            own = stored.with_learnable({name: value.detach().clone() for name, value in stored.learnable.items()})
            if isinstance(own, Integers):
                own = replace(own, codes=self.nearest(layer).to(torch.int8))
            weights[layer] = own
        tensors = {name: value.detach().to(self._dtypes[name], copy=True) for name, value in self.plain.items()}
        ranges = {}
        for layer, ends in self.ends.items():
            spans = zip(_ordered(ends.detach()).tolist(), self._bitmap.ranges[layer], strict=True)
            ranges[layer] = tuple(Range(low, high, own.channels) for (low, high), own in spans)
        return Recovered(weights, tensors, ranges, dict(self.formats))

    def state(self) -> dict[str, Tensor]:
        """Everything that is trained, by name; :meth:`load` takes it back."""
        found = {str(at): value.detach().clone() for at, value in enumerate(self.parameters)}
        found |= {f"held {layer}": codes.clone() for layer, codes in self.held.items()}
        for layer in self._flexible:
            stored = self._stored[layer]
            assert isinstance(stored, Integers)
            found |= {f"bits {layer}": torch.tensor(stored.format.bits), f"zero {layer}": torch.as_tensor(stored.zero)}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        for layer in self._flexible:
            bits = int(state[f"bits {layer}"])
            if bits != self._stored[layer].format.bits:
                self.reformat(layer, replace(self._bitmap[layer], bits=bits))
            stored, zero = self._stored[layer], state[f"zero {layer}"]
            assert isinstance(stored, Integers)
            self._stored[layer] = replace(stored, zero=zero.to(stored.scale) if zero.ndim else zero.item())
        with torch.no_grad():
            for at, value in enumerate(self.parameters):
                value.copy_(state[str(at)])
            for layer, codes in self.held.items():
                codes.copy_(state[f"held {layer}"])

    @property
    def _flexible(self) -> list[str]:
        """Layers that :meth:`reformat` can change."""
        return [layer for layer in self.codes if self._stored[layer].format.plain]


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


def _times_steps(codes: Tensor, stored: Integers) -> Tensor:
    """What the codes stand for."""
    if stored.shifted:
        codes = codes - stored.offset
    return codes * stored.spread(stored.scale)


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
