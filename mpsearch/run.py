"""``Run``: a configured search from generator to report, each stage one file in a folder, each made at most once."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mpsearch import api, solving, targets, validation
from mpsearch.artifact import write_bytes, write_json
from mpsearch.budgets import check_budgets, cost_of, parse_budgets
from mpsearch.calibration import Calibration, Progress, outputs, silent
from mpsearch.config import ModelConfig, RunConfig
from mpsearch.cost import cost_models
from mpsearch.errors import ArtifactError, UsageError
from mpsearch.features import moments, pooled_pixels
from mpsearch.inputs import REFINERS, SOURCES, Batches, Purpose, Refiner, Shares, Source, Stock, draw, regions_of
from mpsearch.inputs.columns import batched, joined
from mpsearch.layers import find_layers
from mpsearch.model import device_of
from mpsearch.protocols import CostModel, Estimator, FeatureNet, Solver
from mpsearch.quality import Reference
from mpsearch.quant import WeightBank, applied
from mpsearch.registry import lookup, make
from mpsearch.report import page, save_grid, save_scatter
from mpsearch.search import SOLVERS
from mpsearch.sensitivity import ESTIMATORS, by_stratum
from mpsearch.sensitivity.fid_proxy import digest
from mpsearch.store import RunFolder, fingerprint
from mpsearch.subject import Subject
from mpsearch.types import (
    FLOAT,
    BitMap,
    Budget,
    Layer,
    Layers,
    QualityReport,
    Solution,
    Table,
    Target,
    gap_db,
    parse_formats,
)
from mpsearch.zoo import (
    PUBLISHED,
    WEIGHTS,
    EfficientNetFeatures,
    InceptionFeatures,
    Note,
    fashion_features,
    fetch_published,
    is_published,
    load_diffusers,
    load_generator,
    resolve,
    unheard,
)

FEATURES: Mapping[str, FeatureNet] = {"fashion": fashion_features, "pixels": pooled_pixels}
NETWORKS: Mapping[str, type[FeatureNet]] = {"efficientnet-lite0": EfficientNetFeatures, "inception": InceptionFeatures}
# Seeds of the sets of inputs, far apart so that no two runs' sets meet.
HELDBACK, DISTANCES, REFERENCE, LESSONS = 1_000_000, 2_000_000, 3_000_000, 4_000_000
PURPOSES: Mapping[int, Purpose] = {
    0: "calibration",
    HELDBACK: "heldback",
    DISTANCES: "distances",
    REFERENCE: "reference",
}
LAYERS_SCHEMA = "mpsearch-layers/1"
NETWORK_ROLES = {"sampler", "mapping"}  # of a float network that an entry of ``inputs`` may name
AXES = {"bits": "average weight bits", "size": "bytes", "bops": "BOPs"}


class Run:
    """Stages as properties: asking for one computes what it needs and is not in the folder yet."""

    def __init__(self, config: RunConfig, out: Path, progress: Progress = silent, note: Note = unheard) -> None:
        self.config = config
        self.progress = progress
        self.note = note  # told origin and licence of what is fetched
        self._refined: dict[tuple[int, int], Batches] = {}  # (count, offset) → inputs that the generator had a say in
        about = {"config": config.model_dump(mode="json", exclude={"base"}), "base": str(config.base)}
        self.folder = RunFolder(out, about)

    @cached_property
    def model(self) -> nn.Module:
        model, base = self.config.model, self.config.base
        if model.diffusers is not None:
            generator = load_diffusers(base / model.diffusers, model.component)
        else:
            generator = load_generator(model.factory, model.weights, model.options, base, self.note)
        return generator.to(pick_device(self.config.device))

    @cached_property
    def _networks(self) -> dict[int, nn.Module]:
        """Number of an entry of ``inputs`` → the float network that it names, a factory or a mapping like ``model``."""
        found = {}
        for number, entry in enumerate(self.config.inputs):
            for role in NETWORK_ROLES & set(entry):
                named = {"factory": entry[role]} if isinstance(entry[role], str) else entry[role]
                try:
                    given = ModelConfig.model_validate(named)
                except ValidationError as error:
                    raise UsageError(f"inputs.{number}.{role}: {error.errors()[0]['msg']}") from None
                if given.diffusers is not None:
                    raise UsageError(
                        f"inputs.{number}.{role}: a folder is an option of the factory mpsearch.zoo:sampler"
                    )
                found[number] = load_generator(given.factory, given.weights, given.options, self.config.base)
        return found

    @cached_property
    def _identity(self) -> str:
        """Of the generator and the calibration inputs: whatever changes it makes every measurement another one."""
        digest = hashlib.sha256()
        for model in (self.model, *self._networks.values()):
            for key, value in model.state_dict().items():
                if isinstance(value, Tensor):
                    digest.update(
                        key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                    )
        for path in self._code():
            digest.update(path.read_bytes())  # the code of a generator is as much of it as its weights
        for source in self._sources:
            if isinstance(source, Stock):
                digest.update(source.rows(torch.arange(len(source))).numpy().tobytes())
        c = self.config
        samples = (c.samples.calibration, c.samples.batch)
        refined: list[Any] = []
        if c.refine is not None:
            refined += [c.refine.model_dump(mode="json")]
            refined += [c.judge.model_dump(mode="json")] if c.refine.name == "cluster" else []
        return fingerprint(digest.hexdigest(), c.model.options, c.inputs, samples, c.seed, *refined)

    def _code(self) -> list[Path]:
        """Files that hold the factory and the classes of the generator, torch's own left out."""
        model = self.config.model
        modules = [m for net in (self.model, *self._networks.values()) for m in net.modules()]
        functions: list[Any] = [type(module).forward for module in modules]
        if model.diffusers is None and not is_published(model.factory):
            build = resolve(model.factory, self.config.base)
            functions += [build, getattr(build, "__init__", None)]
        names = {code.co_filename for f in functions if (code := getattr(f, "__code__", None))}
        torch_folder = Path(torch.__file__).parent
        return [path for path in map(Path, sorted(names)) if path.is_file() and torch_folder not in path.parents]

    @cached_property
    def _sources(self) -> list[Source]:
        sources = []
        for number, entry in enumerate(self.config.inputs):
            options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            if (kind := options.pop("kind", None)) is None:
                raise UsageError(f"inputs.{number} has no kind; it is one of {', '.join(SOURCES)}")
            if isinstance(folder := options.get("folder"), str) and "package" not in options:
                options["folder"] = str(self.config.base / folder)
            if isinstance(file := options.get("file"), str):
                options["file"] = str(self._found(file))
            options |= dict.fromkeys(NETWORK_ROLES & set(entry), self._networks.get(number))
            sources.append(make("kind of input", SOURCES, kind, options))
        return sources

    def _found(self, path: str | Path) -> Path:
        """A file beside the config, or one that ships with the package."""
        own = self.config.base / path
        return own if own.exists() or not (WEIGHTS / path).exists() else WEIGHTS / path

    @cached_property
    def _refiner(self) -> Refiner | None:
        if (asked := self.config.refine) is None:
            return None
        options = dict(asked.options)
        if asked.name == "cluster":
            options["features"] = self.features
        return make("refiner", REFINERS, asked.name, options)

    def inputs(self, count: int, offset: int) -> Batches:
        """``count`` inputs as batches; ``offset`` keeps calibration, held-back and distance inputs apart."""
        refiner = self._refiner
        if refiner is None or not (refiner.everywhere or offset == 0):
            return self._drawn(count, offset)
        if (count, offset) not in self._refined:
            drawn = self._drawn(count * refiner.pool, offset)
            name, portions = PURPOSES.get(offset, str(offset)), [[batch] for batch in drawn]
            if not refiner.everywhere:
                portions = [drawn]
            found = []
            for number, portion in enumerate(portions):
                seed = self.config.seed + offset + number
                wanted = len(portion[0][0]) if refiner.everywhere else count
                found.append(self._portion(f"{name} {count} {number}", refiner, portion, wanted, seed))
                self.progress(f"{name} inputs", number + 1, len(portions))
            self._refined[count, offset] = batched(joined(found), self.config.samples.batch)
        return self._refined[count, offset]

    def _portion(self, name: str, refiner: Refiner, drawn: Batches, count: int, seed: int) -> tuple[Tensor, ...]:
        """The columns of ``count`` refined samples, made once."""
        keep = self.folder.parts("inputs", fingerprint(self._identity))
        generator = torch.Generator().manual_seed(seed)

        @cache
        def columns() -> list[Tensor]:
            return joined(refiner(self.model, drawn, count, generator))

        return tuple(keep(f"{name} {at}", partial(lambda at: columns()[at], at)) for at in range(len(drawn[0])))

    def _drawn(self, count: int, offset: int) -> Batches:
        """Sources without end are asked with other seeds; a fixed stock of samples is divided."""
        samples, seed = self.config.samples, self.config.seed
        compared = samples.distances if self.config.judge.reference is None else 0
        pool = self._refiner.pool if self._refiner else 1
        shares = Shares(seed, samples.calibration * pool, samples.heldback, samples.distances, compared)
        purpose = PURPOSES.get(offset)
        take = None if purpose is None else lambda stock: shares.of(stock, purpose, count)
        return draw(self._sources, count, samples.batch, seed + offset, take)

    def lessons(self) -> Batches:
        """What a recovery learns from: inputs of its own; of a fixed stock, the calibration inputs."""
        samples = self.config.samples
        if any(isinstance(source, Stock) for source in self._sources):
            return self.inputs(samples.calibration, 0)
        return self.inputs(samples.recovery, LESSONS)

    def _calibration(self, count: int, offset: int) -> Calibration:
        return Calibration.of(self.inputs(count, offset), device_of(self.model))

    @property
    def _layers_key(self) -> str:
        return fingerprint(self._identity, self.config.layers.model_dump(mode="json"))

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
        first = self._calibration(self.config.samples.calibration, 0)
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
        memo = self.folder.journal(fingerprint(self._identity, chosen.channel_ranges, chosen.activation_ranges))
        return api.make_subject(self.model, batches, self.layers, self.config.seed, memo=memo, progress=self.progress)

    @cached_property
    def features(self) -> FeatureNet:
        name, options = self.config.judge.features, self.config.judge.options
        if name in NETWORKS:
            if "weights" in options:
                options = {**options, "weights": str(self.config.base / str(options["weights"]))}
            network = make("feature network", NETWORKS, name, options)
            if name in PUBLISHED:
                fetch_published(name, self.note)
            return network
        if ":" not in name:
            lookup("feature network", {**FEATURES, **NETWORKS}, name)  # says which there are
        if options:
            raise UsageError(f"the features {name!r} take no options; those of {', '.join(NETWORKS)} do")
        return FEATURES[name] if name in FEATURES else resolve(name, self.config.base)

    @cached_property
    def reference(self) -> Reference:
        """Real features; without a file of them, those of the float generator on other inputs."""
        path = self.config.judge.reference
        if path is not None:
            return Reference.load(self._found(path))
        samples = self.config.samples
        key = fingerprint(self._identity, samples.distances, self.config.judge.model_dump(mode="json"))
        found = validation.featurise(
            self.model,
            self._calibration(samples.distances, REFERENCE),
            self.features,
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
        key = [self._identity, self.layers.to_json(), name, options, self.config.formats]
        if name == "fid-proxy":
            target = moments(self.reference.features)
            options |= {"features": self.features, "reference": target}
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
            solvers = (make("solver", SOLVERS, config.solver.name, config.solver.options),)
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
            judge = targets.judge_of(goal, subject, self.features, self.reference if goal.measure == "fd" else None)
            return targets.meet(goal, config.cost, table, layers, budgets, solvers, subject, judge, *more)

        return self.folder.stage(
            "bitmap",
            "mpsearch-bitmap/1",
            fingerprint(self.sensitivity.to_json(), *asked),
            search,
            Solution.to_json,
            Solution.from_json,
        )

    def validate(self, bitmap: BitMap, name: str = "quality", found: Solution | None = None) -> QualityReport:
        """``quality.json`` of a map; of the found one with its baselines on both sets of inputs."""
        samples = self.config.samples
        key = [
            self._identity,
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
                self.model, bitmap, held, self.features, self.reference, many, seed, self.progress, parts
            )
            if samples.adversarial:
                regions = regions_of(self._sources)
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

    def compare(self, maps: Mapping[str, BitMap]) -> dict[str, dict[str, Any]]:
        """``comparison.json`` and ``comparison.png``: costs and held-back quality of several maps, one quantizer."""
        rows: dict[str, dict[str, Any]] = {}
        for name, given in maps.items():
            bitmap = self._addressed(given, name)
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
        peak = span(self.subject.reference) if table.measure == "mse" else 0.0
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

    def _addressed(self, bitmap: BitMap, name: str) -> BitMap:
        """The map under our layer names: other tools name modules, some in lower case; what it lacks is float."""
        known: dict[str, Layer] = {}
        for layer in self.layers:
            for own in (layer.name, *layer.aliases):
                module = own.rpartition(".")[0]
                for spelling in (own, module, own.lower(), module.lower()):
                    known.setdefault(spelling, layer)
        formats = {layer.name: FLOAT for layer in self.layers}
        for given, format in bitmap.items():
            if given not in known:
                close = difflib.get_close_matches(given, known, n=1, cutoff=0.0)
                raise UsageError(f"{name}: the generator has no layer {given!r}; the closest is {close[0]!r}")
            formats[known[given].name] = format
            if not known[given].allows(format):
                raise UsageError(f"{name}: {given} cannot take {format.short}")
        spans = {known[given].name: span for given, span in bitmap.ranges.items()}
        return BitMap(formats, spans)

    def export(self, bitmap: BitMap | None = None, coded: bool = False) -> dict[str, Path]:
        """``export/``: the map as JSON, YAML and CSV, the packed generator, and the entropy-coded one where asked."""
        kinds = dict.fromkeys([*self.kinds, "coded"] if coded else self.kinds)
        chosen = self.solution.bitmap if bitmap is None else bitmap
        first = self.subject.calibration.batches[:1]
        return api.export(self.model, chosen, self.folder.path / "export", first, kinds, self.layers)

    def report(self, recovered: tuple[str, QualityReport, nn.Module] | None = None) -> Path:
        """``samples.png`` and ``report.md``; ``recovered`` are a method, its quality and its generator."""
        held = self._calibration(self.config.samples.heldback, HELDBACK)
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


def span(images: Sequence[Tensor]) -> float:
    """The range of all values: the peak of a PSNR."""
    return max(batch.max().item() for batch in images) - min(batch.min().item() for batch in images)


def decibels(mse: float, peak: float) -> float | None:
    """PSNR of a mean squared error; None where there is none."""
    return 10 * math.log10(peak**2 / mse) if mse > 0 and peak > 0 else None


def describe(bitmap: BitMap, layers: Layers) -> str:
    """Mean widths of a map in words."""
    weights = sum(layer.numel * (bitmap[layer.name].weight_bits or 32) for layer in layers) / layers.numel
    acts = sorted({str(format.act_bits or "float") for format in bitmap.values()})
    return f"{weights:.2f} bits a weight, {'/'.join(acts)} activations"


def pick_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, or the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device {name!r} here: {str(error).splitlines()[0]}") from None
    return device
