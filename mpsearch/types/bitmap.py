"""``BitMap``: the answer, an immutable mapping from layer name to format, with the activation ranges it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.types.format import Format
from mpsearch.types.layer import Unit


class Range(NamedTuple):
    """Where the activations that a layer reads lie.

    Attributes:
        low: at most 0.
        high: at least 0.
        channels: how many of the channels it holds for, in their order; 0 = all.
    """

    low: float
    high: float
    channels: int = 0


Ranges = tuple[Range, ...]


class BitMap(Mapping[str, Format]):
    """Layer name → :class:`Format`. Layers that are not named stay float.

    Attributes:
        ranges: layer name → the range of its quantized input activations, or one for each tensor of the concatenation
            that it reads; a map that was written by hand may lack them, and they are then measured when the map is
            applied. Formats that find their ranges as they run have none.
    """

    def __init__(self, formats: Mapping[str, Format | str], ranges: Mapping[str, Ranges] | None = None) -> None:
        parsed = {n: f if isinstance(f, Format) else Format.parse(f) for n, f in formats.items()}
        self._formats: Mapping[str, Format] = MappingProxyType(parsed)
        self.ranges: Mapping[str, Ranges] = MappingProxyType(
            {n: r for n, r in (ranges or {}).items() if n in parsed and parsed[n].ranged}
        )

    @classmethod
    def from_units(cls, choices: Mapping[Unit, Format]) -> BitMap:
        """A map from a solver's units: whole layers, or sets of channels that together make a layer."""
        formats: dict[str, Format] = {}
        parts: dict[str, dict[int, Format]] = {}
        for unit, format in choices.items():
            if unit.channels is None:
                formats.update(dict.fromkeys((unit.layer, *unit.others), format))
            else:
                parts.setdefault(unit.layer, {}).update(dict.fromkeys(unit.channels, format))
        for layer, found in parts.items():
            if set(found) != set(range(len(found))) or layer in formats:
                raise UsageError(f"the units of {layer} do not make up the layer")
            widths, acts = [found[c].bits for c in range(len(found))], {f.act_only for f in found.values()}
            if None in widths or len(acts) > 1:
                raise UsageError(f"the channels of {layer} need integer weights and one activation width")
            formats[layer] = Format.of_channels([bits for bits in widths if bits]).with_activations(*acts)
        return cls(formats)

    def with_ranges(self, ranges: Mapping[str, Ranges]) -> BitMap:
        return BitMap(self._formats, ranges)

    def __getitem__(self, layer: str) -> Format:
        return self._formats[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    def __len__(self) -> int:
        return len(self._formats)

    def __hash__(self) -> int:
        return hash(frozenset(self._formats.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BitMap) and dict(self) == dict(other) and dict(self.ranges) == dict(other.ranges)

    def __repr__(self) -> str:
        return f"BitMap({{{', '.join(f'{n}: {f}' for n, f in self._formats.items())}}})"

    @property
    def key(self) -> str:
        """Canonical text of the formats: equal exactly for maps that quantize alike."""
        return ";".join(f"{n}={f}" for n, f in sorted(self._formats.items()) if str(f) != "float")

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": {
                name: {
                    "format": str(format),
                    "weight_bits": format.weight_bits,
                    "act_bits": format.act_bits,
                    **({"channel_bits": list(format.channel_bits)} if format.channel_bits else {}),
                    **({"act_range": _listed(self.ranges[name])} if name in self.ranges else {}),
                }
                for name, format in self._formats.items()
            }
        }

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> BitMap:
        """Read ``{"layers": {name: {"weight_bits": 4, "act_bits": null}}}``; ``format`` may stand for the two."""
        try:
            entries = dict(payload["layers"])
            formats = {name: Format.parse(_format_text(entry)) for name, entry in entries.items()}
            ranges = {
                name: _ranges(name, entry["act_range"]) for name, entry in entries.items() if "act_range" in entry
            }
        except (KeyError, TypeError, ValueError, IndexError, UsageError) as error:
            raise ArtifactError(f"not a bit map: {error}") from None
        return cls(formats, ranges)


def _listed(ranges: Ranges) -> list[Any]:
    """``[low, high]``, or ``[[low, high, channels], …]`` for the tensors of a concatenation."""
    return [ranges[0].low, ranges[0].high] if len(ranges) == 1 else [list(range) for range in ranges]


def _ranges(name: str, entry: list[Any]) -> Ranges:
    if not isinstance(entry[0], list):
        low, high = map(float, entry)
        return (_range(name, low, high),)
    if any(channels < 1 for *_, channels in entry):
        raise ValueError(f"{name} has an activation range for {min(c for *_, c in entry)} channels")
    return tuple(_range(name, float(low), float(high), int(channels)) for low, high, channels in entry)


def _range(name: str, low: float, high: float, channels: int = 0) -> Range:
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
        raise ValueError(f"{name} has the activation range {low} … {high}: expected low <= 0 <= high")
    return Range(low, high, channels)


def _format_text(entry: Mapping[str, Any]) -> str:
    """The format of a JSON entry: its ``format``, or its widths."""
    if "format" in entry:
        format = Format.parse(entry["format"])
        for field in ("weight_bits", "act_bits", "channel_bits"):
            own = list(format.channel_bits or ()) if field == "channel_bits" else getattr(format, field)
            if entry.get(field, own) != own:
                raise ValueError(f"format {format} contradicts {field} {entry[field]}")
        return str(format)
    if entry.get("channel_bits"):
        return str(Format.of_channels(entry["channel_bits"], entry.get("act_bits")))
    weights = {None: "", 16: "fp16"}.get(entry["weight_bits"], f"w{entry['weight_bits']}")
    act = f"a{entry['act_bits']}" if entry.get("act_bits") else ""
    return weights + act or "float"
