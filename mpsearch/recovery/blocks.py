"""``blocks``: round the weights of several layers together, so that their block comes out right."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mpsearch.model.calls import closest, modules_called
from mpsearch.recovery.reconstruction import Reconstruction, roundable
from mpsearch.recovery.trial import Trial


@dataclass(frozen=True)
class Blocks(Reconstruction):
    """Block reconstruction (BRECQ, Li et al., ICLR 2021; Q-Diffusion, Li et al., ICCV 2023).

    A block is a smallest module that holds several layers, but not all of them; layers outside any block are parts of
    their own, see :class:`mpsearch.recovery.reconstruction.Reconstruction`.
    """

    def __call__(self, trial: Trial) -> None:
        seed, args = trial.learning.run(0)
        places, called = roundable(trial), modules_called(trial.model, args, seed)
        blocks = blocks_of(places.values(), called)
        parts: dict[str, list[str]] = {}
        for layer, place in places.items():
            owner = closest(place.rpartition(".")[0], called)
            around = [path for path in blocks if owner == path or owner.startswith(f"{path}.")]
            parts.setdefault(around[0] if around else owner, []).append(layer)
        self.learn(trial, parts)


def blocks_of(places: Collection[str], called: Iterable[str]) -> list[str]:
    """Of the modules that are called, the smallest ones with two or more of the places in them, but not all."""
    counts = {path: sum(place.startswith(f"{path}.") for place in places) for path in called if path}
    several = [path for path, count in counts.items() if 2 <= count < len(places)]
    return [path for path in several if not any(other.startswith(f"{path}.") for other in several)]
