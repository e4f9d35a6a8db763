"""The verbs. A method is a frozen dataclass with one ``__call__``; its fields are its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mpsearch.types import Answer, Format, Layers, Problem, Table

if TYPE_CHECKING:  # solvers and cost models must not load torch
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from mpsearch.quant import WeightBank
    from mpsearch.recovery.trial import Trial
    from mpsearch.subject import Subject
    from mpsearch.types import BitMap


class Estimator(Protocol):
    """Damage of every layer in every format, in mean squared error of the output (``Table.measure`` says so)."""

    def __call__(self, subject: Subject, formats: Sequence[Format]) -> Table: ...


class CostModel(Protocol):
    """What every layer costs in every format; the sum over layers plus ``Table.constant`` is the whole."""

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table: ...


class Solver(Protocol):
    """One feasible choice a unit. Raises ``InfeasibleBudget`` with the smallest feasible value."""

    def __call__(self, problem: Problem) -> Answer: ...


@runtime_checkable
class FeatureNet(Protocol):
    """Images ``(N, C, H, W)`` to features ``(N, D)`` for a Fréchet or kernel distance."""

    def __call__(self, images: Tensor) -> Tensor: ...


class Recoverer(Protocol):
    """What makes the pictures of a map better at no more bytes, learnt from the float generator.

    It shows what it finds to the trial, which keeps the best; where that is the start, nothing was found.
    """

    def __call__(self, trial: Trial) -> None: ...


class Exporter(Protocol):
    """Write a bit map, or the generator under it; returns the files, read back and verified."""

    def __call__(
        self, model: nn.Module, layers: Layers, bitmap: BitMap, bank: WeightBank, out: Path
    ) -> Mapping[str, Path]: ...
