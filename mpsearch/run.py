"""``Run``: a configured search from generator to report, each stage one file in a folder, each made at most once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpsearch import api, solving, targets, validation
from mpsearch.artifact import write_bytes, write_json
from mpsearch.budgets import check_budgets, cost_of, parse_budgets
from mpsearch.calibration import Calibration, Progress, outputs, silent
from mpsearch.config import MethodConfig, RunConfig
from mpsearch.cost import cost_models
from mpsearch.errors import ArtifactError
from mpsearch.export import addressed
from mpsearch.features import moments
from mpsearch.inputs import Batches, regions_of
from mpsearch.layers import find_layers
from mpsearch.protocols import CostModel, Estimator, Solver
from mpsearch.quality import Reference
from mpsearch.quant import WeightBank, applied
from mpsearch.registry import lookup, make
from mpsearch.report import describe, page, save_grid, save_scatter
from mpsearch.search import SOLVERS
from mpsearch.sensitivity import ESTIMATORS, by_stratum
from mpsearch.sensitivity.fid_proxy import digest
from mpsearch.store import RunFolder, fingerprint
from mpsearch.subject import Subject
from mpsearch.types import (
    BitMap,
    Budget,
    Layers,
    QualityReport,
    Solution,
    Table,
    Target,
    decibels,
    gap_db,
    parse_formats,
)
from mpsearch.workload import DISTANCES, HELDBACK, REFERENCE, Workload
from mpsearch.zoo import Note, unheard

LAYERS_SCHEMA = "mpsearch-layers/1"
AXES = {"bits": "average weight bits", "size": "bytes", "bops": "BOPs"}


class Run:
    """Stages as properties: asking for one computes what it needs and is not in the folder yet."""

    def __init__(self, config: RunConfig, out: Path, progress: Progress = silent, note: Note = unheard) -> None:
        self.config = config
        self.progress = progress
        about = {"config": config.model_dump(mode="json", exclude={"base"}), "base": str(config.base)}
        self.folder = RunFolder(out, about)
        self.workload = Workload(config, self.folder, progress, note)

    @property
    def model(self) -> nn.Module:
        return self.workload.model

    def inputs(self, count: int, offset: int) -> Batches:
        return self.workload.inputs(count, offset)

    @property
    def _layers_key(self) -> str:
        return fingerprint(self.workload.identity, self.config.layers.model_dump(mode="json"))

    def check_unchanged(self) -> None:
        """An ``ArtifactError`` where the folder's map was made for other weights, code or inputs."""
        made, now = self.folder.key("layers", LAYERS_SCHEMA), self._layers_key
        if made not in (None, now):
            raise ArtifactError(
                f"the weights, code or inputs of {self.config.model.name} have changed since the map in "
                f"{self.folder.path} was made (hash {made}, now {now}): make a new one with mpsearch run"
            )

    @cached_property
    def layers(self) -> Layers:
        """``layers.json``."""
        first = self.workload.calibration(self.config.samples.calibration, 0)
        return self.folder.stage(
            "layers",
            LAYERS_SCHEMA,
            self._layers_key,
            lambda: find_layers(self.model, first.batches[0], **dict(self.config.layers)),
            Layers.to_json,
            Layers.from_json,
        )

    @cached_property
    def costs(self) -> dict[str, CostModel]:
        return self.costs_with()

    def costs_with(self, bank: WeightBank | None = None) -> dict[str, CostModel]:
        """The cost models; ``latency`` among them where the config names a table of it.

        Args:
            bank: the weights that are coded for ``coded``; by default the nearest ones.
        """
        path = self.config.latency
        table = None if path is None else self.config.base / path
        return cost_models(table, lambda layer, format: (bank or self.subject.bank).saved(layer, format))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is exported; ``coded`` where its bytes are a budget or the cost."""
        named = {Budget.parse(text).cost for text in self.config.budgets}
        named |= {self.config.cost} if self.config.target else set()
        return (*api.KINDS, "coded") if "coded" in named else api.KINDS

    @cached_property
    def subject(self) -> Subject:
        batches = self.inputs(self.config.samples.calibration, 0)
        chosen = self.config.layers  # a map with other ranges is another map
        memo = self.folder.journal(fingerprint(self.workload.identity, chosen.channel_ranges, chosen.activation_ranges))
        return api.make_subject(self.model, batches, self.layers, self.config.seed, memo=memo, progress=self.progress)

    @cached_property
    def reference(self) -> Reference:
        """Real features; without a file of them, those of the float generator on other inputs."""
        path = self.config.judge.reference
        if path is not None:
            return Reference.load(self.workload.found(path))
        samples = self.config.samples
        key = fingerprint(self.workload.identity, samples.distances, self.config.judge.model_dump(mode="json"))
        found = validation.featurise(
            self.model,
            self.workload.calibration(samples.distances, REFERENCE),
            self.workload.features,
            self.progress,
            "reference images",
            self.folder.parts("reference", key),
        )
        return Reference(found, "other samples of the float generator", own=True)

    @property
    def _real(self) -> list[str]:
        """What identifies the features of a file; none where the reference follows from the generator."""
        if self.config.judge.reference is None:
            return []
        halves = (self.reference.features, self.reference.train)
        return [digest(moments(features)) for features in halves if features is not None]

    def table(self, name: str) -> Table:
        """``sensitivity.json`` for the configured estimator, ``sensitivity-NAME.json`` for any other."""
        estimator, key = self._estimator(name)
        configured = name == self.config.estimator.name
        return self.folder.stage(
            "sensitivity" if configured else f"sensitivity-{name}",
            "mpsearch-table/1",
            fingerprint(key),
            lambda: self._tables[0] if configured else estimator(self.subject, parse_formats(self.config.formats)),
            Table.to_json,
            Table.from_json,
        )

    @cached_property
    def strata(self) -> dict[str, Table]:
        """``sensitivity-strata.json``: the configured estimator in every class or timestep."""
        estimator, key = self._estimator(self.config.estimator.name)

        def read(payload: dict[str, Any]) -> dict[str, Table]:
            return {name: Table.from_json(table) for name, table in payload.items()}

        return self.folder.stage(
            "sensitivity-strata",
            "mpsearch-strata/1",
            fingerprint(key),
            lambda: by_stratum(estimator, self.subject, parse_formats(self.config.formats)),
            lambda tables: {name: table.to_json() for name, table in tables.items()},
            read,
        )

    def _estimator(self, name: str) -> tuple[Estimator, list[Any]]:
        """(the method with its options, what its table depends on)."""
        options = dict(self.config.estimator.options) if name == self.config.estimator.name else {}
        key = [self.workload.identity, self.layers.to_json(), name, options, self.config.formats]
        if name == "fid-proxy":
            target = moments(self.reference.features)
            options |= {"features": self.workload.features, "reference": target}
            key += [self.config.judge.model_dump(mode="json"), digest(target)]
        estimator: Estimator = make("estimator", ESTIMATORS, name, options)
        if "seed" not in options:
            (estimator,) = solving.with_seed([estimator], self.config.seed)
        return estimator, key

    @cached_property
    def _tables(self) -> tuple[Table, Table | None]:
        """The tables of the layers and of their channels; both from the same passes where the estimator can."""
        estimator, _ = self._estimator(self.config.estimator.name)
        formats = parse_formats(self.config.formats)
        return api.tables(estimator, self.subject, formats, self.config.groups, self.config.seed)

    def _channel_table(self) -> Table:
        table = self._tables[1]
        assert table is not None, "a layer has one width"
        return table

    @cached_property
    def channels(self) -> Table | None:
        """``channels.json``: damage of every output channel, where a layer may have several widths."""
        if self.config.groups == 1:
            return None
        _, key = self._estimator(self.config.estimator.name)
        return self.folder.stage(
            "channels", "mpsearch-table/1", fingerprint(key), self._channel_table, Table.to_json, Table.from_json
        )

    @cached_property
    def sensitivity(self) -> Table:
        return self.table(self.config.estimator.name)

    @cached_property
    def solution(self) -> Solution:
        """``bitmap.json``."""
        config = self.config
        solvers: tuple[Solver, ...] = solving.EFFORTS[config.effort]
        if config.solver is not None:
            solvers = (make("solver", SOLVERS, config.solver.name, self._options(config.solver)),)
        solvers = solving.with_seed(solvers, config.seed)
        goal = config.target and Target.parse(config.target)
        budgets = () if goal and not config.budgets else parse_budgets(config.budgets, self.costs)
        check_budgets(self.layers, parse_formats(config.formats), budgets, self.costs)
        asked: list[Any] = [config.budgets, config.effort, str(solvers), config.groups, str(self.costs.get("latency"))]
        if goal:
            targets.check_cost(config.cost, self.costs)
            asked += [str(goal), config.cost]
            if goal.measure == "fd":
                asked += [config.judge.model_dump(mode="json"), config.samples.distances]

        def search() -> Solution:
            table, layers, subject = self.sensitivity, self.layers, self.subject
            more = (config.groups, self.channels, self.costs)
            if not goal:
                return solving.search(table, layers, budgets, solvers, subject, *more)
            reference = self.reference if goal.measure == "fd" else None
            judge = targets.judge_of(goal, subject, self.workload.features, reference)
            return targets.meet(goal, config.cost, table, layers, budgets, solvers, subject, judge, *more)

        return self.folder.stage(
            "bitmap",
            "mpsearch-bitmap/1",
            fingerprint(self.sensitivity.to_json(), *asked),
            search,
            Solution.to_json,
            Solution.from_json,
        )

    def _options(self, solver: MethodConfig) -> dict[str, Any]:
        """A file that a search is kept in lies where the config does."""
        options = dict(solver.options)
        if isinstance(storage := options.get("storage"), str) and "://" not in storage:
            options["storage"] = str(self.config.base / storage)
        return options

    def validate(self, bitmap: BitMap, name: str = "quality", found: Solution | None = None) -> QualityReport:
        """``quality.json`` of a map; of the found one with its baselines on both sets of inputs."""
        samples = self.config.samples
        key = [
            self.workload.identity,
            bitmap.to_json(),
            samples.heldback,
            samples.distances,
            self.config.judge.model_dump(mode="json"),
            *self._real,
        ]
        if found is not None:
            key += [found.error and found.error.value, found.peak]
            key += [[name, entry.to_json()] for name, entry in found.baselines.items()]
        if samples.adversarial:
            key += [samples.adversarial]
        held = self.inputs(samples.heldback, HELDBACK)
        parts = self.folder.parts(name, fingerprint(key))

        def measure() -> QualityReport:
            many, seed = self.inputs(samples.distances, DISTANCES), self.config.seed
            quality = validation.validate(
                self.model, bitmap, held, self.workload.features, self.reference, many, seed, self.progress, parts
            )
            if samples.adversarial:
                regions = regions_of(self.workload.sources)
                quality = validation.with_worst(quality, self.model, bitmap, held, samples.adversarial, regions, seed)
            if found is None:
                return quality
            others = {name: self.subject.with_ranges(entry.bitmap) for name, entry in found.baselines.items()}
            maps = validation.beside(self.model, found, others, quality, held, seed, parts)
            error = found.error and gap_db(found.error.value, found.error.stderr, quality.mse)
            return replace(quality, maps=maps, gap={"error_db": error, **quality.gap} if error else quality.gap)

        report = self.folder.stage(
            name, "mpsearch-quality/2", fingerprint(key), measure, QualityReport.to_json, QualityReport.from_json
        )
        parts.clear()
        return report

    @cached_property
    def quality(self) -> QualityReport:
        return self.validate(self.solution.bitmap, found=self.solution)

    def addressed(self, given: BitMap, label: str) -> BitMap:
        """A foreign map under the names of the layers, with the calibrated ranges where it has none of its own."""
        bitmap = addressed(given, self.layers, label)
        fitted = self.subject.with_ranges(bitmap)
        return fitted.with_ranges({**fitted.ranges, **bitmap.ranges})

    def compare(self, maps: Mapping[str, BitMap]) -> dict[str, dict[str, Any]]:
        """``comparison.json`` and ``comparison.png``: costs and held-back quality of several maps, one quantizer."""
        rows: dict[str, dict[str, Any]] = {}
        for name, given in maps.items():
            bitmap = self.addressed(given, name)
            quality = self.validate(bitmap, f"quality-{name}")
            costs = {cost: cost_of(cost, bitmap, self.layers, self.costs) for cost in self.costs}
            rows[name] = {"costs": costs, "quality": quality.to_json()}
        for cost in self.costs:
            if any(math.isnan(row["costs"][cost]) for row in rows.values()):  # nobody measured a format of some map
                for row in rows.values():
                    del row["costs"][cost]
        write_json(self.folder.path / "comparison.json", "mpsearch-comparison/2", {"maps": rows})
        points = {
            name: (row["costs"]["bits"], row["quality"]["psnr_db"]["value"])
            for name, row in rows.items()
            if row["quality"]["psnr_db"]
        }
        save_scatter(self.folder.path / "comparison.png", points, "average weight bits", "held-back PSNR, dB")
        return rows

    def frontier(
        self, cost: Sequence[str] = ("size",), points: int = 40, budgets: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """``frontier.json`` and ``frontier.png``: the best maps from the least cost to the least predicted damage.

        The damage is in the table's measure; a mean squared error in dB too, of the range of the float images.
        """
        for name in cost:
            lookup("cost", self.costs, name)
        if budgets:
            asked = parse_budgets(budgets, self.costs)
            check_budgets(self.layers, parse_formats(self.config.formats), asked, self.costs)
        table = self.sensitivity
        found = solving.frontier(table, self.layers, cost, points, budgets, self.costs)
        peak = self.subject.peak if table.measure == "mse" else 0.0
        rows = [{**point.to_json(), "predicted_db": decibels(point.predicted, peak)} for point in found]
        about = {"cost": list(cost), "budgets": list(budgets), "measure": table.measure, "peak": peak or None}
        write_json(self.folder.path / "frontier.json", "mpsearch-frontier/1", {**about, "points": rows})
        up = "predicted PSNR, dB" if peak else f"log10 of the predicted damage, {table.measure}"
        dots = {}
        for at, row in enumerate(rows):
            if row["predicted"] > 0:
                height = row["predicted_db"] if peak else math.log10(row["predicted"])
                dots["knee" if row["knee"] else str(at)] = (row["costs"][cost[0]], height)
        save_scatter(self.folder.path / "frontier.png", dots, AXES.get(cost[0], cost[0]), up, named=("knee",))
        return rows

    def export(self, bitmap: BitMap | None = None, coded: bool = False) -> dict[str, Path]:
        """``export/``: the map as JSON, YAML and CSV, the packed generator, and the entropy-coded one where asked."""
        kinds = dict.fromkeys([*self.kinds, "coded"] if coded else self.kinds)
        chosen = self.solution.bitmap if bitmap is None else bitmap
        first = self.subject.calibration.batches[:1]
        return api.export(self.model, chosen, self.folder.path / "export", first, kinds, self.layers)

    def report(self, recovered: tuple[str, QualityReport, nn.Module] | None = None) -> Path:
        """``samples.png`` and ``report.md``; ``recovered`` are a method, its quality and its generator."""
        held = self.workload.calibration(self.config.samples.heldback, HELDBACK)
        few = Calibration(held.batches[: -(-16 // self.config.samples.batch)], self.config.seed)
        blocks = {"full precision": torch.cat(outputs(self.model, few))}
        shown = {f"{self.solution.method}: {describe(self.solution.bitmap, self.layers)}": self.solution.bitmap}
        if uniform := self.solution.baselines.get("uniform"):
            shown |= {f"best uniform map: {describe(uniform.bitmap, self.layers)}": uniform.bitmap}
        for label, bitmap in shown.items():
            with applied(self.model, self.subject.with_ranges(bitmap), self.subject.bank):
                blocks[label] = torch.cat(outputs(self.model, few))
        if recovered:
            blocks[f"the same map after {recovered[0]}"] = torch.cat(outputs(recovered[2], few))
        save_grid(self.folder.path / "samples.png", blocks)
        config = self.config
        asked = ([f"least {config.cost} with {config.target}"] if config.target else []) + list(config.budgets)
        title = f"{config.model.name} under {', '.join(asked)}"
        text = page(title, self.layers, self.sensitivity, self.solution, self.quality, recovered and recovered[:2])
        path = self.folder.path / "report.md"
        write_bytes(path, text.encode())
        return path
