"""``adaround``: round every weight up or down so that its layer, not the weight, comes out right."""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.recovery.reconstruction import Reconstruction, roundable
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class AdaRound(Reconstruction):
    """:class:`mpsearch.recovery.reconstruction.Reconstruction`, every layer a part of its own."""

    def __call__(self, trial: Trial) -> None:
        parts: dict[str, list[str]] = {}
        for layer, place in roundable(trial).items():
            parts.setdefault(place.rpartition(".")[0], []).append(layer)
        self.learn(trial, parts)
