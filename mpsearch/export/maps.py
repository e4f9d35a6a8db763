"""``json``, ``yaml`` and ``csv``: the bit map as text."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from mpsearch.artifact import write_bytes
from mpsearch.errors import ArtifactError, UsageError
from mpsearch.quant import WeightBank
from mpsearch.types import FLOAT, FLOAT_BITS, BitMap, Format, Layer, Layers, matching

SCHEMA = "mpsearch-bitmap/1"
FOREIGN = (OSError, ValueError, LookupError, TypeError, AttributeError)
WIDTHS = ("weight_bits", "bits", "num_bits", "nbits", "bitwidth", "bw")
FLOATS: Mapping[Any, str] = {None: "", FLOAT_BITS: ""}
WEIGHTS: Mapping[Any, str] = {**{bits: f"w{bits}" for bits in range(1, 9)}, 16: "fp16", **FLOATS, (4, 3): "fp8"}
ACTIVATIONS: Mapping[Any, str] = {**{bits: f"a{bits}" for bits in (4, 6, 8)}, 16: "", **FLOATS}
DTYPES: Mapping[str, int | str] = {
    "float8e4m3fn": "fp8",
    **{f"{sign}int{bits}": bits for sign in ("", "u") for bits in (*range(1, 9), 16, FLOAT_BITS)},
}
COLUMNS = ("layer", "format", "weight_bits", "act_bits", "act_low", "act_high", "act_channels")


@dataclass(frozen=True)
class MapText:
    """``map.<kind>``, one entry a layer: format, weight bits, activation bits and range (empty or null = float)."""

    kind: str

    def __call__(
        self, model: nn.Module, layers: Layers, bitmap: BitMap, bank: WeightBank, out: Path
    ) -> Mapping[str, Path]:
        path = out / f"map.{self.kind}"
        payload = {"schema": SCHEMA, **bitmap.to_json()}
        texts = {"json": _json, "yaml": _yaml, "csv": _csv}
        write_bytes(path, texts[self.kind](payload).encode())
        if read_map(path) != bitmap:
            raise ArtifactError(f"{path} does not read back as it was written")
        return {self.kind: path}


def read_map(path: str | Path) -> BitMap:
    """Read a map by its ending: JSON, YAML or CSV; ``ArtifactError`` when it is none.

    Besides our own schema, a plain mapping of layer (or module) names to widths is read: ``4``, ``"w4"``, or an object
    with one of ``weight_bits``, ``bits``, ``num_bits``, ``nbits``, ``bitwidth`` or ``bw``, and perhaps ``act_bits``. So
    look the layer configs of auto-round and what is quickly printed from MCT. A mapping may stand under
    ``layer_config`` or ``quantized_layers``. What auto-round exports (``bits`` and an ``extra_config``) holds ``*`` for
    the layers that it does not name. ModelOpt's ``quant_cfg`` (``<module>.weight_quantizer``) and AIMET's encodings
    (``param_encodings``, as a mapping or a list, or ``encodings`` of version 2.0.0) are read as those tools write them;
    of activations they say ranges that are not ours, so that only widths of weights are taken.
    """
    path = Path(path)
    readers = {".csv": _from_csv, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}
    try:
        payload = readers.get(path.suffix, json.loads)(path.read_text())
        if (schema := payload.get("schema", SCHEMA)) != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, expected {SCHEMA!r}")
        if "layers" not in payload:
            payload = _foreign(payload)
        if not (bitmap := BitMap.from_json(payload)):
            raise ValueError("it names no layer")
        return bitmap
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (*FOREIGN, yaml.YAMLError, csv.Error, ArtifactError) as error:
        raise ArtifactError(f"{path} is no bit map: {str(error).splitlines()[0]}") from None


def _foreign(payload: dict[str, Any]) -> dict[str, Any]:
    """Another tool's map as ours."""
    if "param_encodings" in payload:
        inner = _aimet(payload["param_encodings"])
    elif isinstance(payload.get("encodings"), list):  # the names alone tell its weights from its activations
        inner = _aimet([entry for entry in payload["encodings"] if entry["name"].endswith("weight")])
    elif "quant_cfg" in payload:
        inner = _modelopt(payload["quant_cfg"])
    elif "extra_config" in payload or "quant_method" in payload:
        inner = _autoround(payload)
    else:
        inner = next((payload[key] for key in ("layer_config", "quantized_layers") if key in payload), payload)
    return {"layers": {str(name): {"format": _format(str(name), entry)} for name, entry in inner.items()}}


def _aimet(encodings: Any) -> dict[str, Any]:
    """Tensor → its first channel's encoding; biases are no layers."""
    if isinstance(encodings, list):
        encodings = {entry["name"]: entry for entry in encodings}
    first = {name: entry[0] if isinstance(entry, list) else entry for name, entry in encodings.items()}
    return {name: _typed(entry) for name, entry in first.items() if not name.endswith("bias")}


def _typed(entry: Any) -> Any:
    """What an AIMET encoding names a type for, as a width; a type that is none is left, to be refused."""
    if not isinstance(entry, dict) or "output_dtype" not in entry:
        return entry
    return DTYPES.get(entry["output_dtype"], entry["output_dtype"])


def _autoround(config: dict[str, Any]) -> dict[str, Any]:
    """Layer → its entry, which says only where it differs from the common one; patterns stand for the others."""
    common = {key: config[key] for key in ("bits", "act_bits") if key in config}
    blocks = config.get("block_name_to_quantize") or []
    names = [f"{block}.*" for block in (blocks.split(",") if isinstance(blocks, str) else blocks)] or ["*"]
    own = config.get("extra_config") or {}
    return dict.fromkeys(names, common) | {name: common | entry for name, entry in own.items()}


def _modelopt(quantizers: Any) -> dict[str, Any]:
    """Module → its weight quantizer, of the flat list or the older mapping; what is disabled is float."""
    if isinstance(quantizers, dict):
        quantizers = [{"quantizer_name": name, "cfg": entry} for name, entry in quantizers.items()]
    found = {}
    for entry in quantizers:
        name, cfg = entry["quantizer_name"], entry.get("cfg") or {}
        if "weight_quantizer" not in name:
            continue
        if isinstance(cfg, list):
            raise ValueError(f"{name!r} is {len(cfg)} quantizers, one after another: one is needed")
        enabled = bool(cfg) and entry.get("enable", True) and cfg.get("enable", True)
        if "*" in name and enabled:
            raise ValueError(f"{name!r} is a pattern: one weight_quantizer a module is needed")
        if "*" not in name and name.endswith(".weight_quantizer"):
            found[name.removesuffix(".weight_quantizer")] = cfg if enabled else None
    return found


def _format(name: str, entry: Any) -> str:
    """The format of a layer; what is none is refused under its name."""
    if isinstance(entry, str):
        try:
            return str(Format.parse(entry))
        except UsageError as error:
            raise ValueError(f"{name}: {error}") from None
    act = None
    if isinstance(entry, dict):
        act = entry.get("act_bits")
        found = [entry[key] for key in WIDTHS if key in entry]
        if not found:
            raise ValueError(f"{name} has none of {', '.join(WIDTHS)}")
        entry = found[0]
    return _width(name, "weight", entry, WEIGHTS) + _width(name, "activation", act, ACTIVATIONS) or "float"


def _width(name: str, what: str, given: Any, texts: Mapping[Any, str]) -> str:
    key = tuple(given) if isinstance(given, list) else given
    # Compared one by one: what JSON holds need not be hashable, and true equals 1.
    found = [text for width, text in texts.items() if width == key and not isinstance(given, bool)]
    if not found:
        allowed = ", ".join(str(width) for width in texts if width)
        raise ValueError(f"{name} has the {what} width {given!r}: use one of {allowed}")
    return found[0]


def _json(payload: dict[str, Any]) -> str:
    return json.dumps(payload, indent=1) + "\n"


def _yaml(payload: dict[str, Any]) -> str:
    return str(yaml.safe_dump(payload, sort_keys=False))


def _csv(payload: dict[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, entry in payload["layers"].items():
        spans = _columns(entry.get("act_range", []))
        writer.writerow([name, entry["format"], entry["weight_bits"], entry["act_bits"], *spans])
    return stream.getvalue()


def _columns(act_range: list[Any]) -> list[str]:
    """Low ends, high ends and channels, separated by blanks where there are several."""
    if not act_range:
        return ["", "", ""]
    parts = act_range if isinstance(act_range[0], list) else [[*act_range, ""]]
    return [" ".join(map(str, column)) for column in zip(*parts, strict=True)]


def _from_csv(text: str) -> dict[str, Any]:
    layers = {}
    table = csv.DictReader(io.StringIO(text))
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise ValueError(f"the first line is not {','.join(COLUMNS)}")
    for row in table:
        entry: dict[str, Any] = {"format": row["format"]}
        lows, highs, channels = (row[f"act_{column}"].split() for column in ("low", "high", "channels"))
        if channels:
            parts = zip(map(float, lows), map(float, highs), map(int, channels), strict=True)
            entry["act_range"] = [list(part) for part in parts]
        elif lows:
            entry["act_range"] = [float(lows[0]), float(highs[0])]
        layers[row["layer"]] = entry
    return {"layers": layers}


def addressed(bitmap: BitMap, layers: Layers, name: str) -> BitMap:
    """The map under our layer names: other tools name modules, each in its way; what it lacks is float.

    A name with ``*`` is a pattern for layers that are not named; of several that match, the last holds.
    """
    own, foreign = _named(layers)
    first: dict[str, str] = {}
    try:
        formats = {layer.name: FLOAT for layer in layers} | _common(bitmap, own)
        for given, format in bitmap.items():
            if "*" not in given:
                layer = _only(given, own, foreign)
                formats[layer.name] = format
                if bitmap[other := first.setdefault(layer.name, given)] != format:
                    both = f"{format.short} and {bitmap[other].short}"
                    raise UsageError(f"{given} is the same tensor as {other}: it cannot be {both}")
        for layer in layers:
            if not layer.allows(format := formats[layer.name]):
                raise UsageError(f"{first.get(layer.name, layer.name)} cannot take {format.short}")
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    return BitMap(formats, {layer: bitmap.ranges[given] for layer, given in first.items() if given in bitmap.ranges})


def _named(layers: Layers) -> tuple[dict[str, list[Layer]], dict[str, list[Layer]]]:
    """The layers of every name, tensor's or module's, and of every spelling that other tools have for it."""
    own: dict[str, list[Layer]] = {}
    foreign: dict[str, list[Layer]] = {}
    for layer in layers:
        tensors = (layer.name, *layer.aliases)
        names = {*tensors, *(tensor.rpartition(".")[0] for tensor in tensors)} - {""}
        for table, keys in ((own, names), (foreign, set().union(*map(_spellings, names)))):
            for key in keys:
                table.setdefault(key, []).append(layer)
    return own, foreign


def _spellings(name: str) -> set[str]:
    """In lower case, and as an fx graph has it; MCT puts ``_bn`` behind a layer that took up its batch norm."""
    flat = name.replace(".", "_")
    graph = (flat, re.sub("(?<=[a-z])(?=[A-Z])", "_", flat))
    return {_plain(text) for text in (name, *graph, *(f"{text}_bn" for text in graph))}


def _plain(name: str) -> str:
    """Without case, and without the underscore that fx puts before a digit."""
    return name.lower().lstrip("_")


def _only(given: str, own: Mapping[str, list[Layer]], foreign: Mapping[str, list[Layer]]) -> Layer:
    found = own.get(given) or foreign.get(_plain(given))
    if not found:
        close = difflib.get_close_matches(given, own, n=1, cutoff=0.0)
        raise UsageError(f"the generator has no layer {given!r}; the closest is {close[0]!r}")
    if len(found) > 1:
        raise UsageError(f"{given!r} may be {' or '.join(layer.name for layer in found)}: use one of these names")
    return found[0]


def _common(bitmap: BitMap, own: Mapping[str, list[Layer]]) -> dict[str, Format]:
    """What the patterns give to layers; weight-only forms to those that must."""
    hits = [
        (layer, bitmap[key]) for key in bitmap if "*" in key for name in matching(key, [*own]) for layer in own[name]
    ]
    return {layer.name: format if layer.allows(format) else format.weight_only for layer, format in hits}
