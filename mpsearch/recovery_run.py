"""``recover`` a run: its found map with weights that learnt from the float generator, before beside after."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch import api, solving, validation
from mpsearch.artifact import read_json
from mpsearch.budgets import cost_of
from mpsearch.config import MethodConfig, RunConfig
from mpsearch.errors import ArtifactError, UsageError
from mpsearch.export import load_packed
from mpsearch.protocols import Recoverer
from mpsearch.quant import WeightBank
from mpsearch.recovery import RECOVERERS
from mpsearch.registry import make
from mpsearch.run import Run
from mpsearch.store import MARKS, RUN_SCHEMA, fingerprint
from mpsearch.types import BitMap, Budget, QualityReport, within
from mpsearch.workload import DISTANCES, HELDBACK

FOLDER = "recovered"  # in the run folder: the map and the packed generator
SCHEMA = "mpsearch-recovery/1"


@dataclass(frozen=True)
class Recovery:
    """``recovery.json``.

    Attributes:
        method: its name and options.
        before: the map with the nearest weights, on held-back inputs.
        after: the map with the recovered ones, on the same inputs.
        seconds: that the method took.
        asked: the methods as they were asked for.
    """

    method: str
    before: QualityReport
    after: QualityReport
    seconds: float
    asked: tuple[MethodConfig, ...]

    def to_json(self) -> dict[str, Any]:
        asked = [one.model_dump(mode="json") for one in self.asked]
        about = {"method": self.method, "seconds": self.seconds, "asked": asked}
        return about | {"before": _entry(self.before), "after": _entry(self.after)}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Recovery:
        try:
            before, after = (QualityReport.from_json(payload[side]["quality"]) for side in ("before", "after"))
            return cls(str(payload["method"]), before, after, float(payload["seconds"]), _asked(payload))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"not a recovery: {error}") from None


def recover(run: Run, asked: Sequence[MethodConfig] = ()) -> Recovery:
    """``recovery.json``, ``recovered/`` and the report with both; ``asked`` replaces ``recover:`` of the config.

    Several methods work one after the other, each on what the one before left.

    Raises:
        UsageError: what was learnt costs more than a budget allows; nothing is written.
    """
    chosen = tuple(asked or run.config.recover or (MethodConfig(name="distil"),))
    methods = [_method(run, one) for one in chosen]
    run.check_unchanged()
    bitmap, samples, seed = run.solution.bitmap, run.config.samples, run.config.seed
    about, key = ", then ".join(map(repr, methods)), _key(run, methods)
    packed = run.folder.path / FOLDER / "generator.safetensors"

    def compute() -> Recovery:
        start = time.perf_counter()
        parts = run.folder.parts("recovery", key)
        bank, lessons = None, run.workload.lessons()
        with _heard() as said:
            for at, method in enumerate(methods):
                snapshot = run.folder.snapshot(f"recovery-{at}", _key(run, methods[: at + 1]))
                bank = api.recover(run.model, bitmap, lessons, method, seed, run.progress, bank, snapshot, run.layers)
        seconds = time.perf_counter() - start
        if bank:
            _check_budgets(run, bank)
        held, many = run.inputs(samples.heldback, HELDBACK), run.inputs(samples.distances, DISTANCES)
        after = validation.validate(
            run.model, bitmap, held, run.workload.features, run.reference, many, seed, run.progress, parts, bank
        )
        after = replace(after, warnings=(*said, *after.warnings))
        api.export(run.model, bitmap, packed.parent, held[:1], run.kinds, run.layers, bank)
        parts.clear()
        return Recovery(about, run.quality, after, seconds, chosen)

    found = run.folder.stage("recovery", SCHEMA, key, compute, Recovery.to_json, Recovery.from_json)
    run.report((" and ".join(one.name for one in chosen), found.after, load_packed(packed, run.model)))
    return found


def check(run: Run) -> None:
    """A ``UsageError`` where the recovery that the config asks for cannot be done: sooner than after the search."""
    samples = run.config.samples
    for asked in run.config.recover:
        _method(run, asked)
        if samples.recovery <= samples.batch:
            raise UsageError(
                f"samples: recovery {samples.recovery} are one batch of {samples.batch}, and a recovery keeps one "
                f"back: ask for {2 * samples.batch} or more"
            )


def made(run: Run) -> tuple[MethodConfig, ...]:
    """The methods of the recovery in the folder; none where it is not one of the map as it is now."""
    path = run.folder.path / "recovery.json"
    payload = read_json(path, SCHEMA) if path.is_file() else {}
    asked = _asked(payload)
    current = asked and payload.get("key") == _key(run, [_method(run, one) for one in asked])
    return asked if current else ()


def _asked(payload: Mapping[str, Any]) -> tuple[MethodConfig, ...]:
    try:
        return tuple(MethodConfig.model_validate(entry) for entry in payload.get("asked", ()))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"not a recovery: {str(error).splitlines()[0]}") from None


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Fills the list with the warnings that are given meanwhile, such as of a loss that is not finite."""
    said: list[str] = []
    show = warnings.showwarning

    def hear(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        said.append(str(message))
        show(message, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.showwarning = hear
        yield said


def _key(run: Run, methods: Sequence[Recoverer]) -> str:
    about = ", then ".join(map(repr, methods))
    return fingerprint(run.quality.to_json(), run.solution.bitmap.to_json(), about, run.config.samples.recovery)


def _check_budgets(run: Run, bank: WeightBank) -> None:
    """New codes have other coded bytes, and ``realloc`` changes widths."""
    bitmap, costs = bank.normalised(run.solution.bitmap), run.costs_with(bank)
    for text in run.config.budgets:
        budget = Budget.parse(text)
        spent, full = (cost_of(budget.cost, found, run.layers, costs) for found in (bitmap, BitMap({})))
        if not within(spent, limit := budget.absolute(full)):
            raise UsageError(
                f"what the recovery has learnt takes {spent:,.0f} of {budget.cost}, {spent / limit - 1:.2%} more than "
                f"{budget} allows; search again with a budget so much smaller"
            )


def _method(run: Run, asked: MethodConfig) -> Recoverer:
    options = dict(asked.options)
    if asked.name == "realloc" and any(Budget.parse(text).cost == "bops" for text in run.config.budgets):
        options = {"bops": True} | options
    method = make("recovery", RECOVERERS, asked.name, options)
    return method if "seed" in options else solving.with_seed([method], run.config.seed)[0]


def resumed(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        ArtifactError: the folder holds no run, or one of before configs were kept whole.
    """
    if not (folder / MARKS[0]).is_file():
        raise ArtifactError(
            f"{folder} is no run folder: it has no {MARKS[0]}; make one with mpsearch run --out {folder}"
        )
    payload = read_json(folder / MARKS[0], RUN_SCHEMA)
    try:
        return RunConfig.model_validate({**payload["config"], "base": payload["base"]})
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ArtifactError(
            f"{folder / MARKS[0]} holds no config that can be read: {str(error).splitlines()[0]}"
        ) from None


def _entry(quality: QualityReport) -> dict[str, Any]:
    """The two figures that people ask for, and everything behind them."""
    psnr = None if quality.psnr_db is None else quality.psnr_db.value
    return {"psnr_db": psnr, "fd": quality.figures["fd"].quantized.value, "quality": quality.to_json()}
