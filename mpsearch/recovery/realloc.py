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
from mpsearch.layers import Site
from mpsearch.model import forward
from mpsearch.quant import Student, quantize_weight
from mpsearch.recovery.training import Training, paired
from mpsearch.recovery.trial import Trial
from mpsearch.types import TOLERANCE, BitMap, Format, parse_formats
from mpsearch.types.storage import parts

KEPT = 0.98  # of the running mean, a step
Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Realloc(Training):
    """QBitOpt (Peters et al., ICCV 2023 workshops, arXiv 2307.04535): the map is trained too, and never costs more.

    What a width does to a layer is estimated from the steps of the training, as the running mean of ``(vᵀJΔW)²`` with
    the rounding error ``ΔW``, the gradient ``vᵀJ`` of a random projection of the images, and all layers quantized.
    Every so many steps an exact solver assigns the widths anew; no map has more bytes, or more bits, than the one that
    came in. A layer whose width changes keeps the float weight that it has been trained to.

    The gradient of the loss itself in place of ``vᵀJ`` ranks layers worse: the loss is a distance to what the float
    generator draws, so that it sees nothing but what the map of the moment does wrong.

    Layers of plain integers take part; activations keep their widths. The map that comes out is that of the bank
    (``WeightBank.formats``). What was asked of single layers (pins, floors) is no part of a map and is not obeyed.

    Attributes:
        formats: widths to choose from, such as ``["w2", "w4"]``; by default those in the map.
        every: steps from one assignment to the next.
        until: share of the steps after which the map stays.
    """

    formats: Sequence[str] = ()
    every: int = 25
    until: float = 0.5

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
        own = {layer: format for layer, format in trial.bitmap.items() if format.plain}
        choices = parse_formats(self.formats) if self.formats else tuple({f.weight_only: None for f in own.values()})
        student = Student(trial.model, trial.bitmap, trial.bank)
        widths = Widths(student, [trial.bank.site(layer) for layer in own], BitMap(own), choices)
        unit = 1 / (trial.start or 1.0)

        def loss(step: int, batch: int) -> Tensor:
            if step > self.settled or not own:  # no more assignments to come
                return paired(trial, student, batch) * unit
            seed, args = trial.learning.run(batch)
            with student.applied() as weights:
                images = forward(trial.model, args, seed)
            widths.probe(images, weights, self.seed * 1_000_003 + step)
            return (images - trial.expected[batch]).square().mean() * unit

        def after(step: int) -> list[Tensor]:
            return widths.assign() if own and step <= self.settled and step % self.every == 0 else []

        self.train(trial, student, loss, after, widths.memory)


class Widths:
    """Which widths the layers have, and what others would do to them.

    Args:
        student: what is trained.
        sites: of the layers.
        bitmap: of the layers alone; it says what may be spent.
        choices: of every layer.

    Attributes:
        memory: what the training must remember.

    Raises:
        UsageError: the cheapest of the choices costs more than the map.
    """

    def __init__(self, student: Student, sites: Sequence[Site], bitmap: BitMap, choices: Sequence[Format]) -> None:
        self._student, self._axes, self._map, self._choices = student, [site.axis for site in sites], bitmap, choices
        self._spent = np.array([[_spent(format, site) for format in choices] for site in sites], np.int64)
        own = [_spent(format, site) for format, site in zip(bitmap.values(), sites, strict=True)]
        self._limits = np.array(own, np.int64).reshape(-1, 2).sum(0)
        if len(sites) and (self._spent.min(1).sum(0) > self._limits).any():
            least = min(choices, key=lambda format: format.bits or 0)
            raise UsageError(f"realloc cannot keep to the bytes of the map with {least} or more: add fewer bits")
        self._damage = torch.zeros(len(sites), len(choices), dtype=torch.float64)
        self._weights = {layer: student.unrounded(layer) for layer in bitmap}  # at the last assignment
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
                    self._errors[layer] = self._rounding(layer, self._axes[row])
                moved = self._errors[layer] @ gradient.detach().float().flatten()
                self._damage[row] += (1 - KEPT) * moved.double().square().cpu()

    def _rounding(self, layer: str, axis: int) -> Tensor:
        weight = self._weights[layer]
        rounded = [quantize_weight(weight, format, axis).dequantized() for format in self._choices]
        return torch.stack([(own - weight).flatten() for own in rounded])

    def assign(self) -> list[Tensor]:
        """Give every layer its width anew; returns the parameters that are in other units now."""
        changed = []
        for layer, at in zip(self._map, assigned(self._damage.numpy(), self._spent, self._limits), strict=True):
            format = self._choices[at].with_activations(self._map[layer])
            if format != self._student.formats.get(layer, self._map[layer]):
                changed += self._student.reformat(layer, format)
            self._weights[layer].copy_(self._student.unrounded(layer))
        self._errors.clear()
        return changed


def assigned(damage: Array, spent: Counts, limits: Counts) -> Counts:
    """The choice of every layer that does the least damage in all within the limits.

    Args:
        damage: ``(layers, choices)``.
        spent: ``(layers, choices, costs)``.
        limits: ``(costs,)``, which the cheapest choices meet.
    """
    layers, choices = damage.shape
    x = cp.Variable(damage.size, boolean=True)
    once = cp.Constant(np.kron(np.eye(layers), np.ones(choices))) @ x == 1
    meets = cp.Constant((spent / limits).reshape(damage.size, -1).T) @ x <= 1
    program = cp.Problem(cp.Minimize(damage.ravel() / (damage.max() or 1.0) @ x), [once, meets])
    options = {"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE, "mip_rel_gap": 0.0}
    program.solve(solver=cp.HIGHS, highs_options=options)  # type: ignore[no-untyped-call]
    found: Counts = np.asarray(x.value).reshape(damage.shape).argmax(1)
    cheapest: Counts = spent[:, :, 1].argmin(1)
    within = (spent[np.arange(layers), found].sum(0) <= limits).all()
    return found if within else cheapest  # what the solver's rounding has let pass is not taken


def _spent(format: Format, site: Site) -> tuple[int, int]:
    """(bytes, bits) of a layer."""
    shape = site.weight.shape
    return sum(parts(format, shape, site.axis).values()), site.weight.numel() * (format.bits or 0)
