"""``packed`` and ``coded``: the quantized generator as one safetensors file, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mpsearch.artifact import write_bytes
from mpsearch.errors import ArtifactError
from mpsearch.model import copy_of, input_axis, make_permanent, map_input, one_line, owner
from mpsearch.quant import QuantizedWeight, WeightBank, input_grid
from mpsearch.quant.stored import form_of, stored_widths
from mpsearch.quant.stored.entropy import coded, decoded
from mpsearch.types import BitMap, Format, Layer, Layers, Range, Ranges

SCHEMA = "mpsearch-packed/1"
CODED_SCHEMA = "mpsearch-coded/1"  # no reader of the other one takes coded bytes for codes
METADATA = "mpsearch"
MARK = "#"  # between a layer and a part of it; no key of state_dict has one
RANGE = "range"


@dataclass(frozen=True)
class Packed:
    """``generator.safetensors``: codes, scales and activation ranges of the quantized layers, the rest as it is.

    The payload (the sum of all tensors) is exactly the ``size`` cost of the map, or its ``coded`` cost. The header's
    metadata holds format, shape and channel axis of every layer. :func:`load_packed` reads it back.

    Attributes:
        coded: write ``generator.coded.safetensors``, with the codes of every layer that it makes smaller
            entropy-coded; the header has the checksum of the plain ones then.
    """

    coded: bool = False

    def __call__(
        self, model: nn.Module, layers: Layers, bitmap: BitMap, bank: WeightBank, out: Path
    ) -> Mapping[str, Path]:
        tensors: dict[str, Tensor] = {}
        header = {}
        replaced: set[str] = set()
        for layer in layers:
            format = bitmap.get(layer.name, Format())
            about: dict[str, Any] = {}
            if format.ranged:
                ends = [(low, high) for low, high, _ in bitmap.ranges[layer.name]]
                parts = max(1, len(layer.input_parts)) if len(ends) == 1 else 1  # one for all is one for each
                tensors[layer.name + MARK + RANGE] = torch.tensor(ends * parts, dtype=torch.float32)
            if format.kind != "float":
                stored, about = self._stored(layer, format, bank)
                tensors |= {layer.name + MARK + part: value for part, value in stored.items()}
                replaced |= set(layer.state_keys)
            header[layer.name] = {
                "format": _stem(format),
                "shape": layer.shape,
                "channel_axis": layer.channel_axis,
                "dtype": str(bank.weight(layer.name).dtype).removeprefix("torch."),
                "places": bank.site(layer.name).places,
                "state_keys": layer.state_keys,
                "input_parts": layer.input_parts,
                **about,
            }
        state = _renewed(model.state_dict(), bank.tensors)
        tensors |= _unique({k: v for k, v in state.items() if isinstance(v, Tensor) and k not in replaced})
        kind, name = ("coded", "generator.coded") if self.coded else ("packed", "generator")
        schema = CODED_SCHEMA if self.coded else SCHEMA
        path = out / f"{name}.safetensors"
        # One entry only: safetensors writes several in an order that changes from run to run.
        write_bytes(path, save(tensors, {METADATA: json.dumps({"schema": schema, "layers": header})}))
        _verify(path, layers, bitmap, bank)
        return {kind: path}

    def _stored(self, layer: Layer, format: Format, bank: WeightBank) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(parts of a quantized weight, what the header says of their coding)."""
        parts = bank.quantized(layer.name, format).packed()
        if not (self.coded and bank.saved(layer.name, format)):
            return parts, {}
        plain = parts["codes"].numpy()
        stream = coded(plain, format, layer.shape, layer.channel_axis)
        return parts | {"codes": torch.from_numpy(stream)}, {"coding": "huffman", "crc32": zlib.crc32(plain.tobytes())}


def payload_bytes(path: Path) -> int:
    """Sum of all tensors in the file, header apart."""
    tensors, _ = _read(path)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def load_packed(path: str | Path, model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes what the packed file holds; ``model`` itself is left alone.

    Args:
        path: a file written by :class:`Packed`.
        model: the architecture; its own weights do not matter.

    Raises:
        ArtifactError: the file is truncated, foreign, or made for another architecture.
    """
    path = Path(path)
    tensors, header = _read(path)
    model = copy_of(model)
    try:
        _load_rest(model, {key: value for key, value in tensors.items() if MARK not in key}, header)
        for name, entry in header.items():
            format = _stored_format(tensors, name, entry)
            for place in entry["places"]:
                module, tensor = owner(model, place)
                if format.kind != "float":
                    make_permanent(module, tensor, _stored_weight(tensors, name, entry, format).dequantized())
                if format.act_bits:
                    ranges = _ranges(tensors, name, entry) if format.ranged else ()
                    map_input(module, input_grid(format, ranges, input_axis(module) or 1))
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except Exception as error:  # whatever a foreign header or another architecture makes torch say
        raise ArtifactError(f"{path} does not fit the model: {one_line(error)}") from None
    return model.eval()


def _load_rest(model: nn.Module, rest: dict[str, Tensor], header: Mapping[str, Any]) -> None:
    """Load what stayed float; everything must be there but the packed layers and further names of tied tensors."""
    whole = model.state_dict(keep_vars=True)
    own = {key: value for key, value in whole.items() if isinstance(value, Tensor)}
    extra = {key: value for key, value in whole.items() if key not in own}  # what modules keep beside tensors stays
    packed = {key for entry in header.values() if not _is_float(entry) for key in entry["state_keys"]}
    present = {own[key].data_ptr() for key in rest if key in own}
    filled = {key: own[key] for key in own if key not in rest and (key in packed or own[key].data_ptr() in present)}
    wrong = model.load_state_dict({**filled, **extra, **rest}, strict=False)
    found = [f"{key} is missing" for key in wrong.missing_keys] + [f"{key} is unknown" for key in wrong.unexpected_keys]
    if found:
        raise ValueError("; ".join(found[:3]))


def _is_float(entry: Mapping[str, Any]) -> bool:
    return Format.parse(entry["format"]).kind == "float"


def _stem(format: Format) -> str:
    """The format as the header says it: widths of channels are tensors of the payload, and counted there."""
    return str(replace(format, bits=max(format.channel_bits), channel_bits=None) if format.channel_bits else format)


def _parts(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The parts of one layer."""
    return {key.removeprefix(name + MARK): value for key, value in tensors.items() if key.startswith(name + MARK)}


def _ranges(tensors: Mapping[str, Tensor], name: str, entry: Mapping[str, Any]) -> Ranges:
    ends = zip(tensors[name + MARK + RANGE].tolist(), entry.get("input_parts") or [0], strict=True)
    return tuple(Range(low, high, channels) for (low, high), channels in ends)


def _stored_format(tensors: Mapping[str, Tensor], name: str, entry: Mapping[str, Any]) -> Format:
    format = Format.parse(entry["format"])
    if "widths" not in (parts := _parts(tensors, name)):
        return format
    widths = stored_widths(parts, int(entry["shape"][entry["channel_axis"]]))
    return Format.of_channels(widths).with_activations(format)


def _stored_weight(
    tensors: Mapping[str, Tensor], name: str, entry: Mapping[str, Any], format: Format
) -> QuantizedWeight:
    shape, axis, dtype = list(entry["shape"]), int(entry["channel_axis"]), getattr(torch, entry["dtype"])
    parts = _parts(tensors, name)
    if "coding" in entry:
        try:
            codes = decoded(parts["codes"].numpy(), format, shape, axis)
        except ArtifactError as error:
            raise ArtifactError(f"the codes of {name} are truncated or corrupt: {error}") from None
        if zlib.crc32(codes.tobytes()) != entry["crc32"]:
            raise ArtifactError(f"the codes of {name} are corrupt: they do not have the checksum of the header")
        parts["codes"] = torch.from_numpy(codes)
    return form_of(format).unpacked(parts, format.weight_only, shape, axis, dtype)


def _renewed(state: Mapping[str, Any], new: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state with new tensors, under every name of what they take the place of."""
    places = {_identity(state[name]): tensor for name, tensor in new.items() if name in state}
    tied = {key: places.get(_identity(own), own) for key, own in state.items() if isinstance(own, Tensor)}
    return {**state, **tied, **new}


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _unique(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors once, under their first name."""
    seen: set[tuple[Any, ...]] = set()
    kept = {}
    for key, value in state.items():
        identity = _identity(value)
        if value.numel() == 0 or identity not in seen:
            kept[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # views may share a storage
        seen.add(identity)
    return kept


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is no safetensors file, or a truncated one: {error}") from None
    try:
        header = json.loads(metadata.get(METADATA, "{}"))
        if (found := header.get("schema")) not in (SCHEMA, CODED_SCHEMA):
            raise ArtifactError(f"{path} has schema {found!r}, expected {SCHEMA!r}")
        return tensors, dict(header["layers"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} has no list of layers: {one_line(error)}") from None


def _verify(path: Path, layers: Layers, bitmap: BitMap, bank: WeightBank) -> None:
    """Read the file back: every layer has the width of the map and dequantizes to the very same weight."""
    tensors, header = _read(path)
    for layer in layers:
        format = bitmap.get(layer.name, Format())
        if (written := _stored_format(tensors, layer.name, header[layer.name])) != format:
            raise ArtifactError(f"{path}: {layer.name} was written as {written}, not {format}")
        if format.kind != "float":
            stored = _stored_weight(tensors, layer.name, header[layer.name], format).dequantized()
            if not torch.equal(stored, bank.dequantized(layer.name, format).cpu()):
                raise ArtifactError(f"{path}: {layer.name} does not read back as it was written")
