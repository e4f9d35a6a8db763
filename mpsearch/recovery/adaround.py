"""``adaround``: round every weight up or down so that its layer, not the weight, comes out right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration
from mpsearch.errors import UsageError
from mpsearch.model import evaluating, forward, substituted
from mpsearch.quant import Integers, QuantizedWeight, Recovered, WeightBank, applied
from mpsearch.recovery.trial import Trial, order
from mpsearch.types import BitMap, Format

STRETCH = 0.1  # the sigmoid reaches beyond 0 and 1 by so much, so that it gets there
SHARP, SOFT = 2.0, 20.0  # exponents of the regulariser at the end and at the start
WARM = 0.2  # share of the steps before it sets in
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class AdaRound:
    """Learned rounding (Nagel et al., ICML 2020), a layer after the other.

    Each layer reads what the already rounded layers before it give, and is to give what it gives in the float
    generator. A weight lies between two codes; how far it goes to the upper one is learnt, and pushed to 0 or 1. Layers
    whose owner is called as a module, and returns one tensor, take part; scales stay.

    Attributes:
        steps: of Adam, a layer.
        rate: of Adam.
        strength: of the push, relative to the error of nearest rounding.
        batches: of the inputs, at most, that a layer learns from.
        seed: of the order of the batches.
    """

    steps: int = 300
    rate: float = 0.01
    strength: float = 1.0
    batches: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batches < 1 or not (self.rate > 0 and self.strength > 0):
            raise UsageError(
                f"adaround needs steps and batches of 1 or more, rate and strength above 0, "
                f"not {self.steps}, {self.batches}, {self.rate} and {self.strength}"
            )

    def __call__(self, trial: Trial) -> None:
        model, bitmap, bank = trial.model, trial.bitmap, trial.bank
        learning = Calibration(trial.learning.batches[: self.batches], trial.learning.seed)
        chosen = [
            name for name, f in bitmap.items() if f.kind == "int" and not f.rank and len(bank.site(name).owners) == 1
        ]
        weights: dict[str, QuantizedWeight] = {}
        for at, name in enumerate(chosen):
            now = Recovered(weights)
            found = self._round(model, bitmap, bank, now, name, learning)
            if found is not None:
                weights = {**weights, name: found}
            trial.progress("adaround", at + 1, len(chosen))
        trial.show(Recovered(weights))

    def _round(
        self, model: nn.Module, bitmap: BitMap, bank: WeightBank, now: Recovered, name: str, learning: Calibration
    ) -> QuantizedWeight | None:
        owner = bank.site(name).owners[0][0]
        targets: list[Tensor] = [output for _, output in _calls(model, owner, learning)]
        with applied(model, bitmap, bank.recovered(bitmap, now)):
            calls = [call for call, _ in _calls(model, owner, learning)]
        if not calls or not all(isinstance(target, Tensor) for target in targets):
            return None
        rounding = _Rounding(bank, name, bitmap[name])
        place = bank.site(name).places[0]

        def error(weight: Tensor, at: int) -> Tensor:
            args, kwargs = calls[at]
            with evaluating(owner), substituted(model, {place: weight}):
                output: Tensor = owner(*args, **kwargs)
                return (output - targets[at]).square().mean()

        with torch.no_grad():
            nearest = bank.dequantized(name, bitmap[name])
            scale = 1 / (sum(error(nearest, at).item() for at in range(len(calls))) / len(calls) or 1.0)
        optimizer = torch.optim.Adam([rounding.free], lr=self.rate)
        for step, at in enumerate(order(len(calls), self.steps, self.seed)):
            done = step / self.steps
            loss = error(rounding.weight(), at) * scale
            if done >= WARM:
                power = SOFT + (SHARP - SOFT) * (done - WARM) / (1 - WARM)
                loss = loss + self.strength * rounding.undecided(power)
            (rounding.free.grad,) = torch.autograd.grad(loss, [rounding.free])
            optimizer.step()
        return rounding.decided()


class _Rounding:
    """How far every weight of a layer goes to the upper of the two codes around it."""

    def __init__(self, bank: WeightBank, name: str, format: Format) -> None:
        weight, stored = bank.weight(name), bank.quantized(name, format)
        assert isinstance(stored, Integers)
        self._stored, self._scale = stored, stored.spread(stored.scale)
        low, high = stored.limits
        exact = (weight.detach().float() / self._scale + stored.offset).clamp(low, high)
        self._low = exact.floor().clamp(max=high - 1)
        share = ((exact - self._low + STRETCH) / (1 + 2 * STRETCH)).clamp(1e-4, 1 - 1e-4)
        self.free = torch.logit(share).requires_grad_()

    def _share(self) -> Tensor:
        return (torch.sigmoid(self.free) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)

    def weight(self) -> Tensor:
        return ((self._low + self._share() - self._stored.offset) * self._scale).to(self._stored.dtype)

    def undecided(self, power: float) -> Tensor:
        """0 where all are decided, 1 where none is."""
        return (1 - (2 * self._share() - 1).abs().pow(power)).mean()

    def decided(self) -> QuantizedWeight:
        codes = self._low + (self.free.detach() > 0)
        return replace(self._stored, codes=codes.to(torch.int8))


def _calls(model: nn.Module, owner: nn.Module, inputs: Calibration) -> list[tuple[Call, Any]]:
    """(arguments, output) of every call of ``owner``, in order."""
    found: list[tuple[Call, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found.append(((args, kwargs), output))

    handle = owner.register_forward_hook(note, with_kwargs=True)
    try:
        for seed, args in inputs.runs():
            with evaluating(model), torch.no_grad():
                forward(model, args, seed)
    finally:
        handle.remove()
    return found
