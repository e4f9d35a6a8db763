"""Generator inputs, and the paired objective on them: the mean squared change of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import CalibrationError, ModelError
from mpsearch.model import evaluating, forward

Progress = Callable[[str, int, int], None]  # (what, done, total)
Keep = Callable[[str, Callable[[], Tensor]], Tensor]  # (name, how to compute it) -> the tensor, computed or kept


def silent(what: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


def at_once(name: str, compute: Callable[[], Tensor]) -> Tensor:
    """The ``Keep`` that keeps nothing."""
    return compute()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches of positional arguments for the generator.

    Attributes:
        batches: each a tuple; floating tensors are finite, and at least one tensor is there.
        seed: of the noise that a model draws inside its forward pass; batch ``i`` uses ``seed + i``.
    """

    batches: tuple[tuple[Any, ...], ...]
    seed: int = 0

    @classmethod
    def of(cls, batches: Iterable[Any], device: torch.device | str = "cpu", seed: int = 0) -> Calibration:
        """Check the batches and move their tensors to ``device``; a bare tensor is a tuple of one.

        Raises:
            CalibrationError: no batches, a batch without tensors or without samples, NaN or infinite inputs.
        """
        if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
            kind = "one tensor" if isinstance(batches, Tensor) else f"a {type(batches).__name__}"
            raise CalibrationError(f"batches is {kind}: pass a sequence of tuples, such as [(z1,), (z2,)]")
        checked = []
        for index, batch in enumerate(batches):
            args = (batch,) if isinstance(batch, Tensor) else batch
            if not isinstance(args, (tuple, list)):
                raise CalibrationError(f"batch {index} is a {type(batch).__name__}: expected a tuple of arguments")
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            if not tensors or not all(tensor.numel() for tensor in tensors):
                raise CalibrationError(f"batch {index} holds no tensor with samples")
            for tensor in tensors:
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise CalibrationError(f"batch {index} holds NaN or infinite values")
            with torch.inference_mode(False):  # tensors made in inference mode can never be differentiated through
                fresh = [a.clone() if isinstance(a, Tensor) and a.is_inference() else a for a in args]
            checked.append(tuple(a.detach().to(device) if isinstance(a, Tensor) else a for a in fresh))
        if not checked:
            raise CalibrationError("no calibration batches: pass at least one tuple of inputs")
        return cls(tuple(checked), seed)

    def __len__(self) -> int:
        return len(self.batches)

    def cut(self, index: int, samples: int, parts: int) -> list[tuple[Any, ...]]:
        """Arguments of one batch of ``samples`` in parts: tensors with a row a sample are cut, the rest is shared."""
        cuts = [
            arg.tensor_split(parts) if isinstance(arg, Tensor) and arg.ndim and len(arg) == samples else [arg] * parts
            for arg in self.batches[index]
        ]
        return list(zip(*cuts, strict=True))

    def run(self, index: int) -> tuple[int, tuple[Any, ...]]:
        """(noise seed, arguments) of one batch."""
        return self.seed + index, self.batches[index]

    def strata(self) -> dict[str, Tensor]:
        """Rows of every class, timestep or other combination of whole numbers, one a sample, among the arguments."""
        labels = []
        for batch in self.batches:
            shape = (_rows(batch),)
            whole = [a for a in batch if isinstance(a, Tensor) and a.shape == shape and not a.is_floating_point()]
            if not whole:
                return {}
            labels.append(torch.stack([label.long().cpu() for label in whole], 1))
        kinds, owner = torch.unique(torch.cat(labels), dim=0, return_inverse=True)
        names = ["/".join(map(str, kind)) for kind in kinds.tolist()]
        return {name: torch.nonzero(owner == number).flatten() for number, name in enumerate(names)}

    def some(self, rows: Tensor) -> Calibration:
        """The samples ``rows``, in batches no larger than the first.

        Raises:
            CalibrationError: an argument that has no row a sample and differs from batch to batch.
        """
        pieces = torch.split(rows, _rows(self.batches[0]))
        columns = [self._column(place, pieces) for place in range(len(self.batches[0]))]
        return Calibration(tuple(zip(*columns, strict=True)), self.seed)

    def _column(self, place: int, pieces: Sequence[Tensor]) -> list[Any]:
        parts = [batch[place] for batch in self.batches]
        if all(
            isinstance(p, Tensor) and p.ndim and len(p) == _rows(b) for p, b in zip(parts, self.batches, strict=True)
        ):
            whole = torch.cat(parts)
            return [whole[piece.to(whole.device)] for piece in pieces]
        for part in parts:
            same = torch.equal(part, parts[0]) if isinstance(part, Tensor) else part == parts[0]
            if not same:
                raise CalibrationError(f"argument {place} has no row a sample and differs from batch to batch")
        return [parts[0]] * len(pieces)

    def runs(self) -> Iterable[tuple[int, tuple[Any, ...]]]:
        """(noise seed, arguments) of every batch."""
        return map(self.run, range(len(self.batches)))


def _rows(batch: tuple[Any, ...]) -> int:
    """Samples of a batch: rows of its longest tensor."""
    return max((len(arg) for arg in batch if isinstance(arg, Tensor) and arg.ndim), default=0)


def output(model: nn.Module, calibration: Calibration, index: int) -> Tensor:
    """The generator's images for one batch."""
    seed, batch = calibration.run(index)
    with evaluating(model), torch.no_grad():
        return forward(model, batch, seed)


def outputs(model: nn.Module, calibration: Calibration) -> list[Tensor]:
    """The generator's images for every batch."""
    return [output(model, calibration, index) for index in range(len(calibration))]


def paired_errors(model: nn.Module, calibration: Calibration, index: int, expected: Tensor) -> Tensor:
    """Mean squared difference to the images ``expected`` of every sample of one batch, ``(samples,)`` float64."""
    found = output(model, calibration, index)
    if found.shape != expected.shape:
        raise ModelError(f"the output changed shape from {tuple(expected.shape)} to {tuple(found.shape)}")
    return (found - expected).double().square().reshape(len(found), -1).mean(1).cpu()
