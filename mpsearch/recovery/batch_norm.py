"""``batch_norm``: estimate the running statistics of batch norms again, under the map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.quant import Recovered, WeightBank
from mpsearch.recovery.channels import Seen, correct_calls
from mpsearch.recovery.trial import Trial

KIND = nn.modules.batchnorm._BatchNorm
STILL = 1e-9  # of the mean square: a channel whose variance is less does not vary
MOST = 4.0  # times that a deviation may grow or shrink


@dataclass(frozen=True)
class BatchNorm:
    """Running means and variances with which batch norms give what they give in the float generator.

    Estimated on the quantized generator alone (Sun et al., NeurIPS 2019), they would give every normalised channel mean
    0 and variance 1, which those of a trained generator seldom have; here they give it the mean and the deviation that
    it has in the float generator on the same inputs. Norms are corrected in the order in which they run, so that each
    sees what those before it already correct. The trial is shown two kinds of moments: of all values alike, and weighed
    by what the picture depends on. A generator without batch norms stays as it is.

    Attributes:
        lessons: batches of the inputs, at most, that moments are taken over.
        seed: of the projections that tell what the picture depends on.
    """

    lessons: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lessons < 1:
            raise UsageError(f"batch_norm needs lessons of 1 or more, not {self.lessons}")

    def __call__(self, trial: Trial) -> None:
        modules = trial.model.named_modules()
        norms = {path: norm for path, norm in modules if isinstance(norm, KIND) and norm.running_var is not None}
        count = min(self.lessons, len(trial.learning)) if norms else 0
        for done, generator in enumerate((None, torch.Generator().manual_seed(self.seed))):
            moments = _Moments(norms)
            for batch in range(count):
                correct_calls(trial, norms, batch, generator, moments.correct)
                trial.progress("batch norms", done * count + batch + 1, 2 * count)
            trial.show(Recovered(tensors=moments.statistics(trial.bank)))


class _Moments:
    """Mean and deviation of every channel of every norm in both generators, better from call to call."""

    def __init__(self, norms: Mapping[str, KIND]) -> None:
        self._norms = norms
        self._sums: dict[str, Tensor] = {}  # of weights, outputs, wanted ones, and squares of both, (5, channels)

    def correct(self, path: str, seen: Seen) -> Tensor:
        output, wanted, weights = seen
        terms = (torch.ones_like(output), output, wanted, output.square(), wanted.square())
        self._sums[path] = self._sums.get(path, 0) + torch.stack([(weights * term).sum(1) for term in terms])
        mean, wanted_mean, growth = self._change(path)
        return (output - mean[:, None]) * growth[:, None] + wanted_mean[:, None]

    def _change(self, path: str) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, mean that is wanted, how much the deviation is to grow)."""
        weight, *sums = self._sums[path]
        mean, wanted_mean, square, wanted_square = (own / weight.where(weight > 0, 1.0) for own in sums)
        variance, wanted_variance = square - mean.square(), wanted_square - wanted_mean.square()
        varies = (variance > STILL * square) & (wanted_variance > STILL * wanted_square)
        growth = (wanted_variance.where(varies, 1.0) / variance.where(varies, 1.0)).sqrt()
        return mean, wanted_mean, growth.clamp(1 / MOST, MOST)

    def statistics(self, bank: WeightBank) -> dict[str, Tensor]:
        """The running statistics that change what the norms give as :meth:`correct` does."""
        found = {}
        for path in self._sums:
            norm = self._norms[path]
            names = {own: f"{path}.{own}".lstrip(".") for own in ("running_mean", "running_var", "weight", "bias")}
            own = {key: bank.tensors.get(name, getattr(norm, key)) for key, name in names.items()}
            scale, bias = (own["weight"].detach(), own["bias"].detach()) if norm.affine else (torch.ones(()), 0.0)
            mean, wanted_mean, growth = self._change(path)
            before = (own["running_var"] + norm.eps).double().sqrt()
            variance = ((before / growth).square() - norm.eps).clamp_min(0)
            after = (variance + norm.eps).sqrt()
            shift = ((mean - bias) * before - (wanted_mean - bias) * after) / scale.where(scale != 0, 1.0)
            found[names["running_mean"]] = (own["running_mean"] + shift).to(own["running_mean"])
            found[names["running_var"]] = variance.to(own["running_var"])
        return found
