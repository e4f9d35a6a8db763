"""Make parts of a generator give what they give in the float one, by how their weights are rounded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, paired_errors
from mpsearch.errors import NotFinite, UsageError
from mpsearch.model import evaluating, first_tensor, substituted
from mpsearch.model.calls import Call, calls_of, modules_called, with_outputs
from mpsearch.quant import Integers, QuantizedWeight, Recovered, applied
from mpsearch.recovery.trial import Trial, order

STRETCH = 0.1  # the sigmoid reaches beyond 0 and 1 by so much, so that it gets there
SHARP, SOFT = 2.0, 20.0  # exponents of the push at the end and at the start
WARM = 0.2  # share of the steps before it sets in
VALUES = 1 << 23  # outputs of a part that are kept to learn from, at most
STEP = 1 << 18  # outputs that one step compares, at most, where samples can be told apart
CHECKS = 4  # batches at most that tell whether a part has helped


@dataclass(frozen=True)
class Reconstruction:
    """Learned rounding (Nagel et al., ICML 2020), a part of the generator after the other.

    A part is a module, and what else reads its weights. It reads what the parts before it give with their new weights,
    and is to give what it gives in the float generator. What an error of its output does to the images decides how much
    it counts: the square of the gradient of the images, in random directions, is that to second order (BRECQ, Li et
    al., ICLR 2021). A weight lies between two codes; how far it goes to the upper one is learnt, and pushed to 0 or 1.
    Scales stay. A part whose new weights do not bring the images of a few batches, kept back from what it learns from,
    closer to the float ones stays as it was.

    Attributes:
        steps: of Adam, a part.
        rate: of Adam.
        strength: of the push, relative to the error of the start.
        probes: random directions of the images.
        lessons: batches of the inputs that a part learns from, at most.
        seed: of the order of the batches and of the directions.
    """

    steps: int = 200
    rate: float = 0.2
    strength: float = 10.0
    probes: int = 1
    lessons: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.probes, self.lessons) < 1 or not (0 < self.rate < inf and 0 < self.strength < inf):
            raise UsageError(
                f"{self._name} needs steps, probes and lessons of 1 or more, rate and strength above 0, "
                f"not {self.steps}, {self.probes}, {self.lessons}, {self.rate} and {self.strength}"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def learn(self, trial: Trial, parts: Mapping[str, Sequence[str]]) -> None:
        """Reconstruct the parts in the order in which they run, and show the whole to the trial.

        Args:
            trial: what to learn from and to be judged by.
            parts: path of a module → the layers in it.
        """
        back = min(max(len(trial.learning) // 4, 1), CHECKS)
        checks = range(len(trial.learning) - back, len(trial.learning))
        learning = Calibration(trial.learning.batches[: max(checks.start, 1)][: self.lessons], trial.learning.seed)
        seed, args = learning.run(0)
        ordered = [path for path in modules_called(trial.model, args, seed) if path in parts]
        best, least = Recovered(), image_error(trial, Recovered(), checks)
        for at, path in enumerate(ordered):
            weights = self._part(trial, best, path, parts[path], learning)
            found = Recovered({**best.weights, **weights})
            if weights and (error := image_error(trial, found, checks)) < least:
                best, least = found, error
            trial.progress(self._name, at + 1, len(ordered))
        trial.show(best)

    def _part(
        self, trial: Trial, now: Recovered, path: str, layers: Sequence[str], learning: Calibration
    ) -> dict[str, QuantizedWeight]:
        """New weights of the layers of one part; none where it returns no single tensor."""
        bank = trial.with_found(now)
        lessons = self._lessons(trial, now, _modules(trial, path, layers), learning)
        if not lessons:
            return {}
        roundings = {}
        for layer in layers:
            stored = bank.quantized(layer, trial.bitmap[layer])
            assert isinstance(stored, Integers)
            roundings[layer] = Rounding(stored, bank.weight(layer))
        free = [own.free for own in roundings.values()]
        size = sum(own.numel() for own in free)
        optimizer = torch.optim.Adam(free, lr=self.rate, fused=True)
        with applied(trial.model, trial.bitmap, bank), evaluating(trial.model):
            with torch.no_grad():
                some = lessons[:: -(-len(lessons) // 16)]
                unit = 1 / (sum(lesson.error().item() for lesson in some) / len(some) or 1.0)
            for step, at in enumerate(order(len(lessons), self.steps, self.seed)):
                shares = {layer: own.share() for layer, own in roundings.items()}
                weights = {layer: own.weight(shares[layer]) for layer, own in roundings.items()}
                with substituted(trial.model, {p: own for n, own in weights.items() for p in bank.site(n).places}):
                    loss = lessons[at].error() * unit
                if (done := step / self.steps) >= WARM:
                    power = SOFT + (SHARP - SOFT) * (done - WARM) / (1 - WARM)
                    loss = loss + self.strength / size * sum(undecided(share, power) for share in shares.values())
                # A layer that is never called has no gradient, and keeps its weights.
                for parameter, gradient in zip(free, torch.autograd.grad(loss, free, allow_unused=True), strict=True):
                    parameter.grad = gradient if gradient is None else gradient * size  # Adam can tell it from nothing
                optimizer.step()
        if not all(bool(own.isfinite().all()) for own in free):
            warnings.warn(f"{self._name} diverged in {path or 'the generator'}, which stays as it was", stacklevel=2)
            return {}
        return {layer: own.decided() for layer, own in roundings.items()}

    def _lessons(
        self, trial: Trial, now: Recovered, modules: Sequence[nn.Module], learning: Calibration
    ) -> list[Lesson]:
        """What modules are to give and for what, as many batches of it as may be kept; none where nothing counts."""
        generator = torch.Generator().manual_seed(self.seed)
        found: list[Lesson] = []
        for batch in range(len(learning)):
            if found and sum(lesson.target.numel() for lesson in found) >= VALUES:
                break
            for module in modules:
                found += self._calls(trial, now, module, learning, batch, generator)
        whole = sum(lesson.weight.sum().item() for lesson in found)
        unit = whole / max(sum(lesson.target.numel() for lesson in found), 1)
        return [lesson._replace(weight=lesson.weight / unit) for lesson in found] if whole > 0 else []

    def _calls(
        self,
        trial: Trial,
        now: Recovered,
        module: nn.Module,
        learning: Calibration,
        batch: int,
        generator: torch.Generator,
    ) -> list[Lesson]:
        seed, args = learning.run(batch)
        with trial.teacher():
            images, targets = with_outputs(trial.model, module, args, seed)
            weights = _importance(images, targets, self.probes, generator)
        with applied(trial.model, trial.bitmap, trial.with_found(now)):
            calls = calls_of(trial.model, module, args, seed, len(targets))
        own = zip(calls, targets, weights, strict=True)
        lessons = [Lesson(module, call, target.detach().float(), weight) for call, target, weight in own]
        return [part for lesson in lessons for part in lesson.cut(len(images))]


def _modules(trial: Trial, path: str, layers: Sequence[str]) -> list[nn.Module]:
    """The module of a part, and others that read its weights."""
    places = [own for layer in layers for own in trial.bank.site(layer).places]
    others = [own.rpartition(".")[0] for own in places if path and not own.startswith(f"{path}.")]
    return list(dict.fromkeys(trial.model.get_submodule(own) for own in (path, *others)))


def roundable(trial: Trial) -> dict[str, str]:
    """Layer → its place, the first of several, of the layers of integers."""
    return {name: trial.bank.site(name).places[0] for name, f in trial.bitmap.items() if f.kind == "int" and not f.rank}


class Lesson(NamedTuple):
    """A call of a module, what it is to give, and how much an error counts there."""

    module: nn.Module
    call: Call
    target: Tensor
    weight: Tensor

    def error(self) -> Tensor:
        output = first_tensor(self.call.again(self.module))
        assert output is not None
        return ((output.float() - self.target).square() * self.weight).mean()

    def cut(self, samples: int) -> list[Lesson]:
        parts = min(-(-self.target.numel() // STEP), samples)
        if parts == 1 or len(self.target) != samples or self.call.draws(self.module):
            return [self]
        pieces = zip(
            self.call.cut(samples, parts), self.target.tensor_split(parts), self.weight.tensor_split(parts), strict=True
        )
        return [Lesson(self.module, *piece) for piece in pieces]


class Rounding:
    """How far every weight of a layer goes to the upper of the two codes around it."""

    def __init__(self, stored: Integers, weight: Tensor) -> None:
        self._stored, self._scale, self._offset = stored, stored.spread(stored.scale), stored.offset
        low, high = stored.limits
        exact = stored.exact(weight).clamp(low, high)
        self._low = torch.minimum(exact.floor(), high - 1)
        share = ((exact - self._low + STRETCH) / (1 + 2 * STRETCH)).clamp(1e-4, 1 - 1e-4)
        self.free = torch.logit(share).requires_grad_()

    def share(self) -> Tensor:
        """0 is the lower code, 1 the upper one."""
        return (torch.sigmoid(self.free) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)

    def weight(self, share: Tensor) -> Tensor:
        return ((self._low + share - self._offset) * self._scale).to(self._stored.dtype)

    def decided(self) -> QuantizedWeight:
        codes = self._low + (self.free.detach() > 0)
        return replace(self._stored, codes=codes.to(torch.int8))


def undecided(share: Tensor, power: float) -> Tensor:
    """How many of the weights are between their codes, softly."""
    return (1 - (2 * share - 1).abs().pow(power)).sum()


def _importance(images: Tensor, outputs: Sequence[Tensor], probes: int, generator: torch.Generator) -> list[Tensor]:
    """Mean squared gradient of the images in random directions; even where they have none."""
    if not images.requires_grad or not outputs:
        return [torch.ones_like(output, dtype=torch.float32) for output in outputs]
    found = [torch.zeros_like(output, dtype=torch.float32) for output in outputs]
    for probe in range(probes):
        signs = torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1
        gradients = torch.autograd.grad(images, outputs, signs, retain_graph=probe + 1 < probes, allow_unused=True)
        for own, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                own += gradient.float().square() / probes
    return found


def image_error(trial: Trial, found: Recovered, batches: Sequence[int]) -> float:
    """Mean squared error of the images of some batches to learn from; infinite where images are not finite."""
    try:
        with applied(trial.model, trial.bitmap, trial.with_found(found)):
            errors = [paired_errors(trial.model, trial.learning, at, trial.expected[at]) for at in batches]
        return float(torch.cat(errors).mean())
    except NotFinite:
        return inf
