"""``realloc``: move bits from layer to layer while they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.model import forward
from mpsearch.quant import Student, quantize_weight
from mpsearch.recovery.training import Training, paired
from mpsearch.recovery.trial import Trial
from mpsearch.types import FLOAT_BITS, TOLERANCE, BitMap, Format, Layer, Layers, parse_formats
from mpsearch.types.storage import parts

KEPT = 0.98  # of the running mean, a step
Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Realloc(Training):
    """QBitOpt (Peters et al., ICCV 2023 workshops, arXiv 2307.04535): the map is trained too, and never costs more.

    What a width does to a layer is estimated from the steps of the training, as the running mean of ``(vᵀJΔW)²`` with
    the rounding error ``ΔW``, the gradient ``vᵀJ`` of a random projection of the images, and all layers quantized.
    Every so many steps an exact solver assigns the widths anew; no map has more bytes, or more bits, than the one that
    came in. A layer whose width changes keeps the float weight that it has been trained to.

    The gradient of the loss itself in place of ``vᵀJ`` ranks layers worse: the loss is a distance to what the float
    generator draws, so that it sees nothing but what the map of the moment does wrong.

    Layers of plain integers take part, unless they are pinned; floors hold, and layers that share one format go on
    sharing it. Activations keep their widths. The map that comes out is that of the bank (``WeightBank.formats``).

    Attributes:
        formats: widths to choose from, such as ``["w2", "w4"]``; by default those in the map.
        every: steps from one assignment to the next.
        until: share of the steps after which the map stays.
        bops: whether no map has more BOPs either.
    """

    formats: Sequence[str] = ()
    every: int = 25
    until: float = 0.5
    bops: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or not 0 <= self.until <= 1:
            raise UsageError(
                f"realloc needs every of 1 or more and until from 0 to 1, not {self.every} and {self.until}"
            )
        for format in parse_formats(self.formats) if self.formats else ():
            if not format.plain or format.act_bits:
                raise UsageError(f"realloc chooses among w2 … w8, not {format}")

    @property
    def settled(self) -> int:
        return int(self.until * self.steps)

    def __call__(self, trial: Trial) -> None:
        plain = {layer: format for layer, format in trial.bitmap.items() if format.plain}
        choices = parse_formats(self.formats) if self.formats else tuple({f.weight_only: None for f in plain.values()})
        student = Student(trial.model, trial.bitmap, trial.bank)
        widths = Widths(student, trial.layers, BitMap(plain), choices, self.bops)
        unit = 1 / (trial.start or 1.0)

        def loss(step: int, batch: int) -> Tensor:
            if step > self.settled or not widths.units:  # no more assignments to come
                return paired(trial, student, batch) * unit
            seed, args = trial.learning.run(batch)
            with student.applied() as weights:
                images = forward(trial.model, args, seed)
            widths.probe(images, weights, self.seed * 1_000_003 + step)
            return (images - trial.expected[batch]).float().square().mean() * unit

        def after(step: int) -> list[Tensor]:
            return widths.assign() if widths.units and step <= self.settled and step % self.every == 0 else []

        self.train(trial, student, loss, after, widths.memory)


class Widths:
    """Which widths the layers have, and what others would do to them.

    Args:
        student: what is trained.
        layers: of the generator, with what the user asked of them.
        bitmap: of the layers of plain integers; it says what may be spent.
        choices: of every layer.
        bops: whether BOPs are a limit too.

    Attributes:
        units: sets of layers that share a width; none of those that may take none of the choices.
        memory: what the training must remember.

    Raises:
        UsageError: the cheapest of the choices costs more than the map.
    """

    def __init__(
        self, student: Student, layers: Layers, bitmap: BitMap, choices: Sequence[Format], bops: bool = False
    ) -> None:
        self._student, self._choices = student, choices
        sets = dict.fromkeys(layers.together(layer) for layer in layers if layer.name in bitmap)
        allowed = dict(zip(layers, np.array(layers.allowed(choices, choices), bool), strict=True))
        masks = {own: np.all([allowed[layer] for layer in own], axis=0) for own in sets}
        self.units = [own for own in sets if masks[own].any() and all(layer.name in bitmap for layer in own)]
        self._layers = [layer for own in self.units for layer in own]
        self._map = {layer.name: bitmap[layer.name] for layer in self._layers}
        counted = (size, bits, operations) if bops else (size, bits)
        self._allowed = np.zeros((len(self.units), len(choices)), bool)
        self._costs = np.zeros((len(self.units), len(choices), len(counted)), np.int64)
        self._limits = np.zeros(len(counted), np.int64)
        for row, own in enumerate(self.units):
            self._allowed[row] = masks[own]
            for layer, acts in ((layer, bitmap[layer.name]) for layer in own):
                self._costs[row] += [[cost(layer, f.with_activations(acts)) for cost in counted] for f in choices]
                self._limits += [cost(layer, acts) for cost in counted]
        if self.units and (spent(self._costs, cheapest(self._costs, self._allowed)) > self._limits).any():
            fewest = min(choices, key=lambda format: format.bits or 0)
            raise UsageError(f"realloc cannot keep to the bytes of the map with {fewest} or more: add fewer bits")
        self._damage = torch.zeros(len(self._layers), len(choices), dtype=torch.float64)
        self._weights = {layer: student.unrounded(layer) for layer in self._map}  # at the last assignment
        self._errors: dict[str, Tensor] = {}  # layer → (choices, weights) of those
        self.memory = {"damage": self._damage} | self._weights

    def probe(self, images: Tensor, weights: Mapping[str, Tensor], seed: int) -> None:
        """Take one random projection of the images of a step into account."""
        generator = torch.Generator().manual_seed(seed)
        signs = (torch.randint(0, 2, images.shape, generator=generator) * 2 - 1).to(images)
        if not images.requires_grad:  # the generator calls none of the layers
            return
        wanted = [weights[layer] for layer in self._map]
        found = torch.autograd.grad(images, wanted, signs, retain_graph=True, allow_unused=True)
        self._damage.mul_(KEPT)
        for row, (layer, gradient) in enumerate(zip(self._map, found, strict=True)):
            if gradient is not None:  # the generator calls the layer
                if layer not in self._errors:
                    self._errors[layer] = self._rounding(self._layers[row])
                moved = self._errors[layer] @ gradient.detach().float().flatten()
                self._damage[row] += (1 - KEPT) * moved.double().square().cpu()

    def _rounding(self, layer: Layer) -> Tensor:
        weight = self._weights[layer.name]
        rounded = [quantize_weight(weight, format, layer.channel_axis).dequantized() for format in self._choices]
        return torch.stack([(own - weight).flatten() for own in rounded])

    def assign(self) -> list[Tensor]:
        """Give every unit its width anew; returns the parameters that are in other units now."""
        damage = dict(zip(self._map, self._damage.numpy(), strict=True))
        together = np.array([sum(damage[layer.name] for layer in own) for own in self.units])
        changed = []
        for own, at in zip(self.units, assigned(together, self._costs, self._limits, self._allowed), strict=True):
            for layer in (layer.name for layer in own):
                format = self._choices[at].with_activations(self._map[layer])
                if format != self._student.formats.get(layer, self._map[layer]):
                    changed += self._student.reformat(layer, format)
                self._weights[layer].copy_(self._student.unrounded(layer))
        self._errors.clear()
        return changed


def assigned(damage: Array, costs: Counts, limits: Counts, allowed: Mask) -> Counts:
    """The choice of every unit that does the least damage in all within the limits.

    Args:
        damage: ``(units, choices)``.
        costs: ``(units, choices, costs)``.
        limits: ``(costs,)``, which the cheapest choices meet.
        allowed: ``(units, choices)``.
    """
    units, choices = damage.shape
    x = cp.Variable(damage.size, boolean=True)
    once = cp.Constant(np.kron(np.eye(units), np.ones(choices))) @ x == 1
    meets = cp.Constant((costs / limits).reshape(damage.size, -1).T) @ x <= 1
    program = cp.Problem(cp.Minimize(damage.ravel() / (damage.max() or 1.0) @ x), [once, meets, x <= allowed.ravel()])
    options = {"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE, "mip_rel_gap": 0.0}
    program.solve(solver=cp.HIGHS, highs_options=options)  # type: ignore[no-untyped-call]
    found: Counts = np.asarray(x.value).reshape(damage.shape).argmax(1)
    within = (spent(costs, found) <= limits).all()
    return found if within else cheapest(costs, allowed)  # what the solver's rounding has let pass is not taken


def cheapest(costs: Counts, allowed: Mask) -> Counts:
    """The allowed choice of every unit that has the fewest bits."""
    found: Counts = np.where(allowed, costs[:, :, 1], np.iinfo(np.int64).max).argmin(1)
    return found


def spent(costs: Counts, found: Counts) -> Counts:
    """The sum of every cost over the units."""
    total: Counts = costs[np.arange(len(found)), found].sum(0)
    return total


def size(layer: Layer, format: Format) -> int:
    """Bytes."""
    return sum(parts(format, layer.shape, layer.channel_axis).values())


def bits(layer: Layer, format: Format) -> int:
    """Of all weights."""
    return layer.numel * (format.bits or 0)


def operations(layer: Layer, format: Format) -> int:
    """BOPs of a sample."""
    return layer.macs * (format.bits or 0) * (format.act_bits or FLOAT_BITS)
