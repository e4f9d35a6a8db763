"""``latency``: milliseconds that the user has measured, layer by layer."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.cost.fill import fill
from mpsearch.errors import UsageError
from mpsearch.types import FLOAT, Format, Layer, Layers, Table

FIELDS = ("layer", "format", "milliseconds")
REST = ("*", "rest")  # the layer of a constant row


@dataclass(frozen=True)
class Latency:
    """Sum of the measured times of all layers, and of what the rest takes.

    A format that a layer was not measured in is not allowed for it under a budget on latency. A measured layer that is
    not searched counts with its time in ``float``.

    Attributes:
        times: layer → format → milliseconds.
        rest: milliseconds of everything else.
        source: where the numbers are from.
    """

    times: Mapping[str, Mapping[Format, float]]
    rest: float = 0.0
    source: str = "the latency table"

    @classmethod
    def read(cls, path: str | Path) -> Latency:
        """A CSV file with the header ``layer,format,milliseconds``, or a JSON list of objects with these fields.

        The layer ``*`` or ``rest`` is the constant row; its format may be empty.

        Raises:
            UsageError: no such file, or an entry that is unknown, doubled, or no time; it is named.
        """
        path = Path(path)
        try:
            text = path.read_text()
            rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        except OSError as error:
            raise UsageError(f"cannot read the latency table {path}: {error.strerror}") from None
        except (ValueError, csv.Error) as error:
            raise UsageError(f"{path} is no latency table: {error}") from None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise UsageError(f"{path} is no latency table: expected rows of {', '.join(FIELDS)}")
        for number, row in enumerate(rows, 1):
            needed = FIELDS[::2] if row.get("layer") in REST else FIELDS
            if missing := [name for name in needed if row.get(name) in (None, "")]:
                raise UsageError(f"{path}: entry {number} has no {missing[0]}; it needs {', '.join(FIELDS)}")
        return cls.of(((row["layer"], row.get("format") or "", row["milliseconds"]) for row in rows), str(path))

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, Any]], source: str = "the latency table") -> Latency:
        """From (layer, format, milliseconds), checked; the layer ``*`` or ``rest`` is the constant."""
        times: dict[str, dict[Format, float]] = {}
        rest: float | None = None
        for layer, text, given in rows:
            if not isinstance(layer, str):
                raise UsageError(f"{source}: the layer {layer!r} is no name")
            entry = f"{source}: {layer},{text}" if layer not in REST else f"{source}: {layer}"
            try:
                value = math.nan if isinstance(given, bool) else float(given)
            except (TypeError, ValueError):
                value = math.nan
            if not 0 <= value < math.inf:
                raise UsageError(f"{entry} is {given}: expected milliseconds, 0 or more")
            if layer in REST:
                if rest is not None:
                    raise UsageError(f"{entry} is there twice")
                rest = value
                continue
            try:
                format = Format.parse(text)
            except UsageError as error:
                raise UsageError(f"{entry}: {error}") from None
            own = times.setdefault(layer, {})
            if format in own:
                raise UsageError(f"{entry} is there twice")
            own[format] = value
        return cls(times, rest or 0.0, source)

    def __call__(self, layers: Layers, formats: Sequence[Format]) -> Table:
        places = {layer.name: [n for n in (layer.name, *layer.aliases) if n in self.times] for layer in layers}
        for layer in layers:
            if not places[layer.name]:
                close = difflib.get_close_matches(layer.name, self.times, n=1, cutoff=0.0)
                raise UsageError(
                    f"{self.source} lacks the layer {layer.name}{f'; the closest is {close[0]!r}' if close else ''}"
                )
        constant = self.rest
        for name in sorted(self.times.keys() - {name for own in places.values() for name in own}):
            if FLOAT not in self.times[name]:
                raise UsageError(f"{self.source} lacks {name},float, and the layer is not searched")
            constant += self.times[name][FLOAT]

        def measured(layer: Layer, format: Format) -> float:
            return sum(self.times[name].get(format, math.nan) for name in places[layer.name])

        return fill(layers, formats, measured, "ms", constant)
