"""``bias``: correct the mean of what every channel gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.model import input_axis
from mpsearch.quant import Recovered
from mpsearch.recovery.channels import Seen, correct_calls
from mpsearch.recovery.trial import Trial

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class BiasCorrection:
    """The biases that give every channel the mean it has in the float generator (Nagel et al., ICCV 2019).

    Linear layers, convolutions and norms with a bias are corrected in the order in which they run, so that each sees
    what those before it already correct; a layer without a bias is corrected by the norm that follows it. The trial is
    shown two kinds of mean: of all values alike, and weighed by what the picture depends on, for the mean of what a
    ReLU or a tanh cuts off is no use to anyone.

    Attributes:
        lessons: batches of the inputs, at most, that means are taken over.
        seed: of the projections that tell what the picture depends on.
    """

    lessons: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lessons < 1:
            raise UsageError(f"bias needs lessons of 1 or more, not {self.lessons}")

    def __call__(self, trial: Trial) -> None:
        modules = _with_bias(trial.model)
        count = min(self.lessons, len(trial.learning))
        for done, generator in enumerate((None, torch.Generator().manual_seed(self.seed))):
            shifts = _Shifts()
            for batch in range(count):
                correct_calls(trial, modules, batch, generator, shifts.correct)
                trial.progress("bias correction", done * count + batch + 1, 2 * count)
            trial.show(Recovered(tensors=shifts.biases(trial)))


class _Shifts:
    """What the mean of every channel lacks, better from call to call."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # of what lacks and of the weights, (2, channels)

    def correct(self, path: str, seen: Seen) -> Tensor:
        lacks = seen.weights * (seen.wanted - seen.output)
        self._sums[path] = self._sums.get(path, 0) + torch.stack([lacks.sum(1), seen.weights.sum(1)])
        return seen.output + self._shift(path)[:, None]

    def _shift(self, path: str) -> Tensor:
        total, weight = self._sums[path]
        mean: Tensor = total / weight.where(weight > 0, 1.0)
        return mean

    def biases(self, trial: Trial) -> dict[str, Tensor]:
        """The biases that change what the modules give as :meth:`correct` does."""
        found = {}
        for path in self._sums:
            name = f"{path}.bias".lstrip(".")
            own = trial.bank.tensors.get(name, trial.model.get_parameter(name)).detach()
            found[name] = (own + self._shift(path)).to(own)
        return found


def _with_bias(model: nn.Module) -> dict[str, nn.Module]:
    """Path → module that corrects its channels with a vector of its own."""
    owners = Counter(id(module._parameters.get("bias")) for module in model.modules())
    found = {}
    for path, module in model.named_modules():
        bias = module._parameters.get("bias")
        takes_part = input_axis(module) is not None or isinstance(module, NORMS)
        if takes_part and bias is not None and bias.ndim == 1 and owners[id(bias)] == 1:
            found[path] = module
    return found
