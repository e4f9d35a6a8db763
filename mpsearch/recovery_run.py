"""``recover`` a run: its found map with weights that learnt from the float generator, before beside after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch import api, validation
from mpsearch.artifact import read_json
from mpsearch.config import MethodConfig, RunConfig
from mpsearch.errors import ArtifactError, UsageError
from mpsearch.export import load_packed
from mpsearch.protocols import Recoverer
from mpsearch.recovery import RECOVERERS
from mpsearch.registry import make
from mpsearch.run import DISTANCES, HELDBACK, Run
from mpsearch.store import MARKS, RUN_SCHEMA, fingerprint
from mpsearch.types import QualityReport

FOLDER = "recovered"  # in the run folder: the map and the packed generator


@dataclass(frozen=True)
class Recovery:
    """``recovery.json``.

    Attributes:
        method: its name and options.
        before: the map with the nearest weights, on held-back inputs.
        after: the map with the recovered ones, on the same inputs.
        seconds: that the method took.
    """

    method: str
    before: QualityReport
    after: QualityReport
    seconds: float

    def to_json(self) -> dict[str, Any]:
        about = {"method": self.method, "seconds": self.seconds}
        return about | {"before": _entry(self.before), "after": _entry(self.after)}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Recovery:
        try:
            before, after = (QualityReport.from_json(payload[side]["quality"]) for side in ("before", "after"))
            return cls(str(payload["method"]), before, after, float(payload["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"not a recovery: {error}") from None


def recover(run: Run, asked: Sequence[MethodConfig] = ()) -> Recovery:
    """``recovery.json``, ``recovered/`` and the report with both; ``asked`` replaces ``recover:`` of the config.

    Several methods work one after the other, each on what the one before left.
    """
    chosen = asked or run.config.recover or (MethodConfig(name="distil"),)
    methods = [_method(one, run.config.seed) for one in chosen]
    run.check_unchanged()
    bitmap, samples, seed = run.solution.bitmap, run.config.samples, run.config.seed
    about = ", then ".join(map(repr, methods))
    key = fingerprint(run.quality.to_json(), bitmap.to_json(), about, samples.recovery)
    packed = run.folder.path / FOLDER / "generator.safetensors"

    def compute() -> Recovery:
        start = time.perf_counter()
        parts = run.folder.parts("recovery", key)
        bank = None
        for at, method in enumerate(methods):
            snapshot = run.folder.snapshot(f"recovery-{at}", key)
            bank = api.recover(run.model, bitmap, run.lessons(), method, seed, run.progress, bank, snapshot)
        seconds = time.perf_counter() - start
        held, many = run.inputs(samples.heldback, HELDBACK), run.inputs(samples.distances, DISTANCES)
        after = validation.validate(
            run.model, bitmap, held, run.features, run.reference, many, seed, run.progress, parts, bank
        )
        api.export(run.model, bitmap, packed.parent, held[:1], run.kinds, run.layers, bank)
        parts.clear()
        return Recovery(about, run.quality, after, seconds)

    found = run.folder.stage("recovery", "mpsearch-recovery/1", key, compute, Recovery.to_json, Recovery.from_json)
    run.report((" and ".join(one.name for one in chosen), found.after, load_packed(packed, run.model)))
    return found


def _method(asked: MethodConfig, seed: int) -> Recoverer:
    method = make("recovery", RECOVERERS, asked.name, asked.options)
    return method if "seed" in asked.options else api.with_seed([method], seed)[0]


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
