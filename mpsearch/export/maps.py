"""``json``, ``yaml`` and ``csv``: the bit map as text."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from mpsearch.artifact import write_bytes
from mpsearch.errors import ArtifactError, UsageError
from mpsearch.quant import WeightBank
from mpsearch.types import FLOAT, FLOAT_BITS, BitMap, Layer, Layers

SCHEMA = "mpsearch-bitmap/1"
FOREIGN = (OSError, ValueError, LookupError, TypeError, AttributeError)
WIDTHS = ("weight_bits", "bits", "num_bits", "nbits", "bitwidth", "bw")
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


def read_map(path: Path) -> BitMap:
    """Read a map by its ending: JSON, YAML or CSV; ``ArtifactError`` when it is none.

    Besides our own schema, a plain mapping of layer (or module) names to widths is read: ``4``, ``"w4"``, or an object
    with one of ``weight_bits``, ``bits``, ``num_bits``, ``nbits``, ``bitwidth`` or ``bw``, and perhaps ``act_bits``. So
    look the layer configs of auto-round and what is quickly printed from MCT. A mapping may stand under
    ``layer_config`` or ``quantized_layers``. ModelOpt's ``quant_cfg`` (``<module>.weight_quantizer``) and AIMET's
    encodings (``param_encodings``, as a mapping or a list) are read as those tools write them; of activations they
    say ranges that are not ours, so that only widths of weights are taken.
    """
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
    elif "quant_cfg" in payload:
        inner = _modelopt(payload["quant_cfg"])
    else:
        inner = next((payload[key] for key in ("layer_config", "quantized_layers") if key in payload), payload)
    return {"layers": {str(name): _foreign_entry(str(name), entry) for name, entry in inner.items()}}


def _aimet(encodings: Any) -> dict[str, Any]:
    """Tensor → its first channel's encoding; biases are no layers."""
    if isinstance(encodings, list):
        encodings = {entry["name"]: entry for entry in encodings}
    first = {name: entry[0] if isinstance(entry, list) else entry for name, entry in encodings.items()}
    return {name: entry for name, entry in first.items() if not name.endswith("bias")}


def _modelopt(quantizers: Any) -> dict[str, Any]:
    """Module → its weight quantizer, of the flat list or the older mapping; what is disabled is float."""
    if isinstance(quantizers, dict):
        quantizers = [{"quantizer_name": name, "cfg": entry} for name, entry in quantizers.items()]
    found = {}
    for entry in quantizers:
        name, cfg = entry["quantizer_name"], entry.get("cfg") or {}
        enabled = bool(cfg) and entry.get("enable", True) and cfg.get("enable", True)
        if "*" in name and enabled and "weight_quantizer" in name:
            raise ValueError(f"{name!r} is a pattern: one weight_quantizer a module is needed")
        if "*" not in name and name.endswith(".weight_quantizer"):
            found[name.removesuffix(".weight_quantizer")] = cfg if enabled else None
    return found


def _foreign_entry(name: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"format": entry}
    act = None
    if isinstance(entry, dict):
        act = entry.get("act_bits")
        found = [entry[key] for key in WIDTHS if key in entry]
        if not found:
            raise ValueError(f"{name} has none of {', '.join(WIDTHS)}")
        entry = found[0]
    bits = None if entry is None or float(entry) >= FLOAT_BITS else int(entry)
    return {"weight_bits": bits, "act_bits": None if act is None or float(act) >= 16 else int(act)}


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
    """The map under our layer names: other tools name modules, some in lower case; what it lacks is float."""
    known: dict[str, Layer] = {}
    for layer in layers:
        for own in (layer.name, *layer.aliases):
            module = own.rpartition(".")[0]
            for spelling in (own, module, own.lower(), module.lower()):
                known.setdefault(spelling, layer)
    formats = {layer.name: FLOAT for layer in layers}
    for given, format in bitmap.items():
        if given not in known:
            close = difflib.get_close_matches(given, known, n=1, cutoff=0.0)
            raise UsageError(f"{name}: the generator has no layer {given!r}; the closest is {close[0]!r}")
        formats[known[given].name] = format
        if not known[given].allows(format):
            raise UsageError(f"{name}: {given} cannot take {format.short}")
    spans = {known[given].name: span for given, span in bitmap.ranges.items()}
    return BitMap(formats, spans)
