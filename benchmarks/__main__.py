"""``python -m benchmarks [NAME …]``: print the tables, and write ``docs/results.md`` from the latest of each.

``GENERATORS="sagan dcgan-faces" python -m benchmarks allocation`` measures some rows anew and leaves the others.
Several processes may share a table out so.
"""

from __future__ import annotations

import fcntl
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
CHOICES = (
    "GENERATORS",
    "BUDGETS",
    "EFFORTS",
    "MAPS",
    "METHODS",
)  # variables that ask for some of the rows, apart by spaces
Row = dict[str, str]
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def section(name: str, found: dict[str, Any]) -> str:
    heads = list(dict.fromkeys(head for row in found["rows"] for head in row))
    table = markdown(heads, ([row.get(head, "–") for head in heads] for row in found["rows"]))
    about = " ".join((import_module(f"benchmarks.{name}").__doc__ or "").split())
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    return f"## {name.replace('_', '-')}\n\n{about}\n\n{table}\n\n{machine}"


def merged(rows: list[Row], new: Row, key: Sequence[str]) -> list[Row]:
    """The rows with a new one, in the place of that with the same entries under ``key``, or after its generator's."""
    same = [at for at, row in enumerate(rows) if all(row.get(head) == new.get(head) for head in key)]
    kin = [at for at, row in enumerate(rows) if row.get("generator") == new.get("generator")]
    at = same[0] if same else (kin or [len(rows) - 1])[-1] + 1
    return [*rows[:at], new, *rows[at + len(same) :]]


@contextmanager
def alone() -> Iterator[None]:
    """Others that write results wait: long tables are shared out to several processes, a thread each."""
    folder = os.open(RESULTS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def mean_of(rows: list[Row], key: Sequence[str], heads: Sequence[str]) -> list[Row]:
    """The row of means, none without heads; how many rows have a number is said where some have none."""
    if heads == "all":
        heads = [head for head in dict.fromkeys(head for row in rows for head in row) if head not in key]
    found = {}
    for head in heads:
        values = [float(row[head]) for row in rows if head in row]
        found[head] = f"{statistics.mean(values):.2f}" + ("" if len(values) == len(rows) else f" (of {len(values)})")
    return [{"generator": "mean"} | found] if found else []


def main(names: list[str]) -> None:
    """Rows are written as they come. Where only some are asked for, those of before stay beside them.

    A module may say under which heads a row is named (``KEY``), and of which others, or ``all``, a mean is taken
    (``MEAN``).
    """
    RESULTS.mkdir(exist_ok=True)
    for name in names or NAMES:
        module, path = import_module(f"benchmarks.{name}"), RESULTS / f"{name}.json"
        some = any(choice in os.environ for choice in CHOICES)
        for row in module.measure():  # a list, or as they come
            print(row, flush=True)
            key = getattr(module, "KEY", tuple(row))
            with alone():
                rows: list[Row] = json.loads(path.read_text())["rows"] if some and path.exists() else []
                rows = merged([row for row in rows if row.get("generator") != "mean"], row, key)
                found = {"machine": about(), "rows": [*rows, *mean_of(rows, key, getattr(module, "MEAN", ()))]}
                path.write_text(json.dumps(found, indent=1) + "\n")
            some = True  # what a whole table takes the place of is there until its first row
        print(section(name, json.loads(path.read_text())) + "\n", flush=True)
    stored = [(name, RESULTS / f"{name}.json") for name in NAMES + LONG if (RESULTS / f"{name}.json").exists()]
    parts = ["# Results", "Printed by `make bench`; under each table the machine of the run that printed it."]
    parts += [section(name, json.loads(path.read_text())) for name, path in stored]
    (ROOT / "docs" / "results.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
