"""``Workload``: the generator of a config and every input that it is run on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mpsearch.calibration import Calibration, Progress, silent
from mpsearch.config import ModelConfig, RunConfig
from mpsearch.errors import UsageError
from mpsearch.features import pooled_pixels
from mpsearch.inputs import REFINERS, SOURCES, Batches, Purpose, Refiner, Shares, Source, Stock, draw
from mpsearch.inputs.columns import batched, joined
from mpsearch.model import device_of
from mpsearch.protocols import FeatureNet
from mpsearch.registry import lookup, make
from mpsearch.store import RunFolder, fingerprint
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
NETWORK_ROLES = {"sampler", "mapping"}  # of a float network that an entry of ``inputs`` may name


class Workload:
    """What is loaded and drawn for a config, each when it is first asked for; dear inputs are kept in the folder."""

    def __init__(self, config: RunConfig, folder: RunFolder, progress: Progress = silent, note: Note = unheard) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.note = note  # told origin and licence of what is fetched
        self._refined: dict[tuple[int, int], Batches] = {}  # (count, offset) → inputs that the generator had a say in

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
    def identity(self) -> str:
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
        for source in self.sources:
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
    def sources(self) -> list[Source]:
        sources = []
        for number, entry in enumerate(self.config.inputs):
            options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            if (kind := options.pop("kind", None)) is None:
                raise UsageError(f"inputs.{number} has no kind; it is one of {', '.join(SOURCES)}")
            if isinstance(folder := options.get("folder"), str) and "package" not in options:
                options["folder"] = str(self.config.base / folder)
            if isinstance(file := options.get("file"), str):
                options["file"] = str(self.found(file))
            options |= dict.fromkeys(NETWORK_ROLES & set(entry), self._networks.get(number))
            sources.append(make("kind of input", SOURCES, kind, options))
        return sources

    def found(self, path: str | Path) -> Path:
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
        keep = self.folder.parts("inputs", fingerprint(self.identity))
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
        return draw(self.sources, count, samples.batch, seed + offset, take)

    def lessons(self) -> Batches:
        """What a recovery learns from: inputs of its own; of a fixed stock, the calibration inputs."""
        samples = self.config.samples
        if any(isinstance(source, Stock) for source in self.sources):
            return self.inputs(samples.calibration, 0)
        return self.inputs(samples.recovery, LESSONS)

    def calibration(self, count: int, offset: int) -> Calibration:
        return Calibration.of(self.inputs(count, offset), device_of(self.model))

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
