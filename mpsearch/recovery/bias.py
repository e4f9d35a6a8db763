"""``bias``: correct the mean of what every layer gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.calibration import Calibration
from mpsearch.model import evaluating, forward, input_axis
from mpsearch.quant import Recovered, applied
from mpsearch.recovery.trial import Trial

Visit = Callable[[str, Tensor], Tensor]  # (layer, its output) → what it gives instead


@dataclass(frozen=True)
class BiasCorrection:
    """The biases that give every channel the mean it has in the float generator (Nagel et al., ICCV 2019).

    Layers are corrected in the order in which they run, so that each sees what those before it already correct, and
    every call makes the mean a better one. Linear layers and convolutions with a bias take part.
    """

    def __call__(self, trial: Trial) -> None:
        model, bitmap, bank = trial.model, trial.bitmap, trial.bank
        owners = {name: bank.site(name).owners[0][0] for name in bitmap if len(bank.site(name).owners) == 1}
        owners = {n: m for n, m in owners.items() if input_axis(m) is not None and isinstance(m.bias, nn.Parameter)}
        names = {layer: layer.rpartition(".")[0] + ".bias" for layer in owners}
        own = {layer: bank.tensors.get(name, model.get_parameter(name)).detach() for layer, name in names.items()}
        shifts = {layer: torch.zeros_like(bias) for layer, bias in own.items()}

        def found() -> Recovered:
            return Recovered(tensors={names[layer]: own[layer] + shifts[layer] for layer in own})

        seen = dict.fromkeys(owners, 0)
        for batch in range(len(trial.learning)):
            targets: dict[str, list[Tensor]] = {layer: [] for layer in owners}

            def note(layer: str, output: Tensor, targets: dict[str, list[Tensor]] = targets) -> Tensor:
                targets[layer].append(_mean(output, owners[layer]))
                return output

            def correct(
                layer: str,
                output: Tensor,
                targets: dict[str, list[Tensor]] = targets,
                before: Mapping[str, Tensor] = dict(shifts),
            ) -> Tensor:
                seen[layer] += 1
                off = targets[layer].pop(0) - _mean(output, owners[layer]) - (shifts[layer] - before[layer])
                shifts[layer] = shifts[layer] + off / seen[layer]
                return output + _along(shifts[layer] - before[layer], output, owners[layer])

            _run(model, owners, trial.learning, batch, note)
            with applied(model, bitmap, bank.recovered(bitmap, found())):
                _run(model, owners, trial.learning, batch, correct)
            trial.progress("bias correction", batch + 1, len(trial.learning))
        trial.show(found())


def _run(model: nn.Module, owners: Mapping[str, nn.Module], inputs: Calibration, batch: int, visit: Visit) -> None:
    """One forward pass that asks ``visit`` what every layer gives."""

    def hook(layer: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return visit(layer, output)

    seed, args = inputs.run(batch)
    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for layer, module in owners.items():
            stack.callback(module.register_forward_hook(partial(hook, layer)).remove)
        forward(model, args, seed)


def _mean(output: Tensor, module: nn.Module) -> Tensor:
    """Of every channel."""
    axis = (input_axis(module) or 0) % output.ndim
    return output.mean([dim for dim in range(output.ndim) if dim != axis])


def _along(values: Tensor, output: Tensor, module: nn.Module) -> Tensor:
    shape = [1] * output.ndim
    shape[input_axis(module) or 0] = -1
    return values.view(shape)
