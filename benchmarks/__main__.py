"""``python -m benchmarks [NAME …]``: print the tables, and write ``docs/results.md`` from the latest of each."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import about
from mpsearch.report.page import markdown

NAMES = ("demo", "one_pass", "memory", "ilp", "solver", "estimators")
LONG = (
    "training",
    "families",
    "recovery",
    "formats",
    "activations",
    "allocation",
    "ceiling",
    "channels",
    "pairs",
    "calibration",
)  # only when named
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def section(name: str, found: dict[str, Any]) -> str:
    heads = list(dict.fromkeys(head for row in found["rows"] for head in row))
    table = markdown(heads, ([row.get(head, "–") for head in heads] for row in found["rows"]))
    about = " ".join((import_module(f"benchmarks.{name}").__doc__ or "").split())
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    return f"## {name.replace('_', '-')}\n\n{about}\n\n{table}\n\n{machine}"


def main(names: list[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    for name in names or NAMES:
        path, rows = RESULTS / f"{name}.json", import_module(f"benchmarks.{name}").measure()
        if "GENERATORS" in os.environ and path.exists():  # only some were asked for: rows of the others stay
            new = {row["generator"] for row in rows}
            rows = [row for row in json.loads(path.read_text())["rows"] if row["generator"] not in new] + rows
        found = {"machine": about(), "rows": rows}
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(section(name, found) + "\n", flush=True)
    stored = [(name, RESULTS / f"{name}.json") for name in NAMES + LONG if (RESULTS / f"{name}.json").exists()]
    parts = ["# Results", "Printed by `make bench`; under each table the machine of the run that printed it."]
    parts += [section(name, json.loads(path.read_text())) for name, path in stored]
    (ROOT / "docs" / "results.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
