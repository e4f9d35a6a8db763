"""Exporters: a bit map, or the generator under it, as files. One method a file."""

from mpsearch.export.maps import MapText, addressed, read_map
from mpsearch.export.packed import Packed, load_packed, payload_bytes
from mpsearch.export.split import Split, split
from mpsearch.protocols import Exporter

EXPORTERS: dict[str, Exporter] = {
    "json": MapText("json"),
    "yaml": MapText("yaml"),
    "csv": MapText("csv"),
    "packed": Packed(),
    "coded": Packed(coded=True),
}

__all__ = ["EXPORTERS", "MapText", "Packed", "Split", "addressed", "load_packed", "payload_bytes", "read_map", "split"]
