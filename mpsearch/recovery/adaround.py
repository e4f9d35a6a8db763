"""``adaround``: round every weight up or down so that its layer, not the weight, comes out right."""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.model.calls import closest, modules_called
from mpsearch.recovery.reconstruction import Reconstruction, roundable
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class AdaRound(Reconstruction):
    """:class:`mpsearch.recovery.reconstruction.Reconstruction`, every layer a part of its own."""

    def __call__(self, trial: Trial) -> None:
        seed, args = trial.learning.run(0)
        called = modules_called(trial.model, args, seed)
        parts: dict[str, list[str]] = {}
        for layer, place in roundable(trial).items():
            parts.setdefault(closest(place.rpartition(".")[0], called), []).append(layer)
        self.learn(trial, parts)
