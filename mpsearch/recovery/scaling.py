"""Which channels of a generator may be scaled without changing its pictures, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration, output
from mpsearch.errors import NotFinite
from mpsearch.model import evaluation_flags, input_axis, input_channels, inputs_mapped, substituted
from mpsearch.quant import Recovered
from mpsearch.recovery.trial import Trial

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FACTORS = torch.tensor([0.25, 0.5, 2.0, 4.0])  # exact in floats, and none of them 1
SAME = 1e-4  # of the peak: what a product and its inverse leave in float32, through a whole generator


class Pair(NamedTuple):
    """What gives channels, and the one layer that reads them: a factor and its inverse cancel.

    Attributes:
        giver: path of a linear layer, a convolution or a norm.
        reader: name of a linear layer or a convolution.
    """

    giver: str
    reader: str


Scales = Mapping[Pair, Tensor]  # the giver's channels are divided by them, and the reader multiplies them back


class Scaling:
    """The float generator of a trial as something whose channels can be scaled.

    Linear layers and convolutions that the map quantizes take part, and norms; tensors that are tied do not.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.readers: dict[str, nn.Module] = {}
        for name, format in trial.bitmap.items():
            (module, tensor), *others = trial.bank.site(name).owners
            if format.kind != "float" and not others and tensor == "weight" and input_axis(module) is not None:
                self.readers[name] = module
        self._givers: dict[str, nn.Module] = {}
        self._names: dict[str, list[str]] = {}  # path of a giver → its tensors
        owners = Counter(id(own) for module in trial.model.modules() for own in module._parameters.values())
        for path, module in trial.model.named_modules():
            with evaluation_flags(module):  # a computed weight steps on where it is read in training
                present = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
            names = [f"{path}.{name}".lstrip(".") for name in present]
            quantized = bool(names) and names[0] in self.readers
            vectors = [module._parameters.get(name) for name in present[quantized:]]
            alone = all(own is not None and own.ndim == 1 and owners[id(own)] == 1 for own in vectors)
            if alone and (quantized or (isinstance(module, NORMS) and names)):
                self._givers[path], self._names[path] = module, names

    def changed(self, scales: Scales) -> Recovered:
        """What the scales make of the float values and of those of the start."""
        bank = self._trial.bank
        floats = self._scaled(scales, self._float)
        now = self._scaled(scales, lambda name: bank.tensors.get(name, self._float(name)))
        return Recovered(tensors={n: own for n, own in now.items() if n not in self.readers}, floats=floats)

    def _float(self, name: str) -> Tensor:
        bank = self._trial.bank
        if name in self.readers:
            return bank.weight(name)
        return bank.floats.get(name, self._trial.model.get_parameter(name)).detach()

    def _scaled(self, scales: Scales, start: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Name → value, of everything that changes; a pair without a reader changes one side only."""
        found: dict[str, Tensor] = {}
        for (giver, reader), scale in scales.items():
            for name in self._names[giver]:
                value = found.get(name, start(name))
                found[name] = value / over_outputs(self._givers[giver], scale, value)
            if reader:
                value = found.get(reader, start(reader))
                found[reader] = value * over_inputs(self.readers[reader], scale, value)
        return found

    def pairs(self, seed: int = 0) -> list[Pair]:
        """Every pair, in the order of the givers.

        They are found by trying. Channels of a giver are multiplied with powers of two, and the images change; the one
        layer whose input is multiplied with just these is divided by them, and the images are the old ones.

        Args:
            seed: of the factors.
        """
        learning, generator = self._trial.learning, torch.Generator().manual_seed(seed)
        samples = len(self._trial.expected[0])
        one = Calibration((learning.cut(0, samples, samples)[0],), learning.seed)
        images, inputs = self._run(one, {})
        found = []
        for giver, module in self._givers.items():
            factors = FACTORS[torch.randint(len(FACTORS), (outputs_of(module),), generator=generator)]
            try:
                other, changed = self._run(one, {Pair(giver, ""): 1 / factors})
                followers = [n for n in inputs if _multiplied(inputs[n], changed[n], factors, self.readers[n])]
                if len(followers) != 1 or _same(images, other):
                    continue
                pair = Pair(giver, followers[0])
                if _same(self._trial.expected[0], self._run(learning, {pair: 1 / factors})[0]):
                    found.append(pair)
            except NotFinite:
                continue  # nothing that may be scaled
        return found

    def _run(self, inputs: Calibration, scales: Scales) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """(float images of the first batch, reader → the inputs of its calls) where the scales are in place."""
        seen: dict[str, list[Tensor]] = {reader: [] for reader in self.readers}

        def note(reader: str, x: Tensor) -> Tensor:
            seen[reader].append(x.detach().clone())
            return x

        values = {**self._trial.bank.floats, **self._scaled(scales, self._float)}
        taps = {reader: partial(note, reader) for reader in self.readers}
        with substituted(self._trial.model, values), inputs_mapped(self._trial.model, taps):
            return output(self._trial.model, inputs, 0), seen


def outputs_of(module: nn.Module) -> int:
    """How many channels a linear layer, a convolution or a norm gives."""
    own = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    return int(own or len(module.weight))  # type: ignore[arg-type]


def over_outputs(module: nn.Module, values: Tensor, tensor: Tensor) -> Tensor:
    """One value an output channel, shaped to broadcast over a tensor of the module: its weight or its bias."""
    if tensor.ndim == 1:
        return values.to(tensor)
    spread = values[:, None]
    if isinstance(module, TRANSPOSED):
        groups = module.groups
        spread = values.view(groups, -1).repeat_interleave(len(tensor) // groups, 0)
    return spread.reshape(*spread.shape, *[1] * (tensor.ndim - 2)).to(tensor)


def over_inputs(module: nn.Module, values: Tensor, weight: Tensor) -> Tensor:
    """One value an input channel, shaped to broadcast over the weight of a linear layer or a convolution."""
    spread = values[:, None]
    if not isinstance(module, TRANSPOSED):
        groups = int(getattr(module, "groups", 1))
        spread = values.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return spread.reshape(*spread.shape, *[1] * (weight.ndim - 2)).to(weight)


def largest(module: nn.Module, weight: Tensor, axis: int) -> Tensor:
    """The largest weight of every input channel, ``(channels,)``, each beside the largest of its output channel.

    Args:
        module: a linear layer or a convolution.
        weight: its weight.
        axis: of the output channels.
    """
    over = [dim for dim in range(weight.ndim) if dim != axis]
    share = weight.abs() / weight.abs().amax(over, keepdim=True).clamp_min(1e-30)
    if isinstance(module, TRANSPOSED):
        return share.flatten(1).amax(1)
    groups = int(getattr(module, "groups", 1))
    return share.reshape(*share.shape[:2], -1).amax(2).view(groups, -1, share.shape[1]).amax(1).flatten()


def _multiplied(before: list[Tensor], after: list[Tensor], factors: Tensor, module: nn.Module) -> bool:
    """Whether every call reads what it read before, each channel times its factor."""
    if not before or len(before) != len(after) or input_channels(module) != len(factors):
        return False
    spread = [-1, *[1] * (-1 - (input_axis(module) or 0))]
    return all(_same(x * factors.to(x).reshape(spread), y) for x, y in zip(before, after, strict=True))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= SAME * one.abs().max())
