"""A run in YAML. Without any, the embedded generator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mpsearch.errors import UsageError
from mpsearch.types import Budget, RangeFit, Target, parse_formats

Effort = Literal["fast", "standard", "thorough"]
EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+", re.IGNORECASE)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Strict):
    """Where the generator comes from: a factory, or a folder of diffusers."""

    factory: str = "mpsearch.zoo:sagan"
    weights: Path | None = None
    options: dict[str, Any] = {}
    diffusers: Path | None = None
    component: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        others = sorted(self.model_fields_set & {"factory", "weights", "options"})
        if self.diffusers is not None and others:
            raise UsageError(
                f"model: a diffusers folder brings its own network and weights: leave out {', '.join(others)}"
            )
        if self.diffusers is None and self.component is not None:
            raise UsageError(f"model: the component {self.component!r} needs the diffusers folder that it is in")
        return self

    @property
    def name(self) -> str:
        """For people."""
        if self.diffusers is None:
            return self.factory
        return f"{self.component} of {self.diffusers}" if self.component else str(self.diffusers)


class SamplesConfig(_Strict):
    """How many inputs: to search on, to compare pairs on, for the distances; how many of the pairs start an ascent that
    looks for the worst inputs of the map; and how many a recovery learns from."""

    calibration: int = Field(default=64, ge=2)
    heldback: int = Field(default=256, ge=2)
    distances: int = Field(default=2000, ge=2)
    adversarial: int = Field(default=0, ge=0)
    recovery: int = Field(default=512, ge=2)
    batch: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _some_of_the_pairs(self) -> SamplesConfig:
        if self.adversarial > self.heldback:
            raise UsageError(
                f"samples: adversarial {self.adversarial} start from the heldback {self.heldback}: lower it"
            )
        return self


class LayersConfig(_Strict):
    """Globs of layer names: what to search, what is settled (a format, the fewest bits), what shares one
    format, whose inputs have a range for each channel; and how activation ranges are fitted."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    pin: dict[str, str] = {}
    floor: dict[str, float] = {}
    together: tuple[tuple[str, ...], ...] = ()
    channel_ranges: tuple[str, ...] = ()
    activation_ranges: RangeFit = "mse"


class MethodConfig(_Strict):
    """A method by name, with its options."""

    name: str
    options: dict[str, Any] = {}


class QualityConfig(_Strict):
    """Feature network of the distances, and the real features; by default the float generator's own images."""

    features: str = "pixels"
    options: dict[str, Any] = {}
    reference: Path | None = None


FASHION = QualityConfig(features="fashion", reference=Path("fashion_mnist_test_features.safetensors"))


PARTS: dict[str, type[BaseModel]] = {
    "model": ModelConfig, "samples": SamplesConfig, "layers": LayersConfig, "quality": QualityConfig,
}  # fmt: skip


class RunConfig(_Strict):
    """Everything that ``mpsearch run`` needs; every default is the embedded Self-Attention GAN's."""

    model: ModelConfig = ModelConfig()
    inputs: tuple[dict[str, Any], ...] = ({"kind": "normal", "shape": [64]},)
    refine: MethodConfig | None = None
    samples: SamplesConfig = SamplesConfig()
    layers: LayersConfig = LayersConfig()
    formats: tuple[str, ...] = ("w2", "w3", "w4", "w5", "w6", "w7", "w8")
    budgets: tuple[str, ...] = ("bits<=4",)
    target: str | None = None
    cost: str = "size"
    latency: Path | None = None
    estimator: MethodConfig = MethodConfig(name="one-pass")
    effort: Effort = "standard"
    groups: int = Field(default=1, ge=1)
    solver: MethodConfig | None = None
    quality: QualityConfig | None = None
    recover: tuple[MethodConfig, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str = "auto"
    base: Path = Path()

    @field_validator("recover", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, Mapping) else value or ()

    @field_validator("formats")
    @classmethod
    def _formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(format) for format in parse_formats(value))

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Budget.parse(text)
        return value

    @field_validator("target")
    @classmethod
    def _target(cls, value: str | None) -> str | None:
        return None if value is None else str(Target.parse(value))

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_asked(cls, given: Any) -> Any:
        """With a target, no budget holds that nobody named."""
        return {"budgets": (), **given} if isinstance(given, dict) and given.get("target") else given

    @property
    def judge(self) -> QualityConfig:
        """The configured feature network; the embedded one for the embedded generator."""
        embedded = self.model.name == "mpsearch.zoo:sagan"
        return self.quality or (FASHION if embedded else QualityConfig())


def load_config(path: str | Path | None = None, **overrides: Any) -> RunConfig:
    """Read a YAML run config; ``overrides`` that are not None replace its top-level entries.

    Relative paths in it start from its own folder.

    Raises:
        UsageError: no such file, no mapping, or an entry that is unknown or of the wrong kind; the entry is named.
    """
    payload: Any = {}
    if path is not None:
        try:
            payload = _numbers(yaml.safe_load(Path(path).read_text()) or {})
        except OSError as error:
            raise UsageError(f"cannot read the config {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(payload, dict):
            raise UsageError(f"{path} holds a {type(payload).__name__}, expected a mapping such as 'model: …'")
        if odd := [key for key in payload if not isinstance(key, str)]:
            raise UsageError(f"{path}: the entry {odd[0]!r} is no name")
        payload.setdefault("base", Path(path).resolve().parent)
    given = {name: value for name, value in overrides.items() if value not in (None, [], ())}
    if "effort" in given and "solver" not in given:
        payload.pop("solver", None)  # an effort asked for by name replaces the solver of the file
    payload |= given
    try:
        return RunConfig(**payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        parent = PARTS.get(str(first["loc"][0]), MethodConfig) if len(first["loc"]) > 1 else RunConfig
        known = f"; known entries: {', '.join(parent.model_fields)}" if first["type"] == "extra_forbidden" else ""
        more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        raise UsageError(f"{path or 'the config'}: {where}: {first['msg']}{known}{more}") from None


def options_of(texts: Iterable[str]) -> dict[str, Any]:
    """``["steps=1000"]`` → ``{"steps": 1000}``, values as in YAML."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"the option {text!r} is not of the form name=value, such as steps=1000")
        found[name] = _numbers(yaml.safe_load(value))
    return found


def _numbers(value: Any) -> Any:
    """With numbers such as ``1e-3``, which YAML 1.1 takes for text for want of a point."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
