"""How close the layers of a quantized generator are to those of the float one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from mpsearch.calibration import Calibration, output
from mpsearch.model import substituted
from mpsearch.model.calls import closest, modules_called, outputs_visited
from mpsearch.quant.bank import WeightBank


class Closeness:
    """Squared distance of every layer's output to that in the float generator, relative to its energy.

    A layer's output is that of the module that owns its weight, or of the closest one around it that is called; where
    it is called many times, each call counts alike. A bank whose float values are not those of the model (channels
    scaled against each other) stands for a float generator of its own.

    Args:
        model: the float generator.
        bank: knows where the layers are.
        layers: their names.
        inputs: any.
    """

    def __init__(self, model: nn.Module, bank: WeightBank, layers: Iterable[str], inputs: Calibration) -> None:
        self._model, self._inputs = model, inputs
        sites = {layer: bank.site(layer) for layer in layers}
        self._floats = bank.floats
        seed, args = inputs.run(0)
        called = modules_called(model, args, seed)
        self._users: defaultdict[str, list[str]] = defaultdict(list)  # path → layers whose output it makes
        for layer, site in sites.items():
            for path in {closest(place.rpartition(".")[0], called): None for place in site.places}:
                self._users[path].append(layer)

    @contextmanager
    def measured(self, batch: int) -> Iterator[dict[str, Tensor]]:
        """Within the context the caller runs the generator once on a batch, with whatever in place of its weights.

        Yields:
            The distances, which are there after that run: layer → ``(samples,)``, differentiable.
        """
        expected, samples = self._outputs(batch)
        found: dict[str, Tensor] = {}

        def compare(path: str, output: Tensor) -> None:
            own = left[path].pop(0)
            distance = _by_sample((output - own).float().square(), samples) / (
                own.double().square().mean().item() or 1.0
            )
            for layer in self._users[path]:
                found[layer] = found.get(layer, 0) + distance / calls[layer]

        calls = Counter(layer for path, layers in self._users.items() for layer in layers * len(expected[path]))
        left = {path: list(calls) for path, calls in expected.items()}
        with outputs_visited(self._model, {path: partial(compare, path) for path in expected}):
            yield found

    def _outputs(self, batch: int) -> tuple[dict[str, list[Tensor]], int]:
        """(path → what every call of the module gives in the float generator, samples of the batch)."""
        calls: dict[str, list[Tensor]] = {path: [] for path in self._users}

        def note(path: str, output: Tensor) -> None:
            calls[path].append(output.clone())

        visitors = {path: partial(note, path) for path in calls}
        with substituted(self._model, self._floats), outputs_visited(self._model, visitors):
            images = output(self._model, self._inputs, batch)
        return calls, len(images)


def _by_sample(values: Tensor, samples: int) -> Tensor:
    """``(samples,)`` means; a tensor whose first axis does not count samples has one mean for all."""
    whole = values.ndim > 0 and len(values) % samples == 0
    return values.reshape(samples, -1).mean(1) if whole else values.mean().expand(samples)
