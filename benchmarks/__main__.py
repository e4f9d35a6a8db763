"""``python -m benchmarks [NAME …]``: print the tables, and after a full run write ``docs/results.md``."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.machine import about
from mpsearch.report.page import markdown

NAMES = ("demo", "one_pass", "memory", "ilp", "estimators", "maps")
ROOT = Path(__file__).parents[1]


def main(names: list[str]) -> None:
    machine = about()
    parts = [
        "# Results",
        "Printed by `make bench`; every figure on this page is from the one run whose machine is stated here.",
        ", ".join(f"{key} {value}" for key, value in machine.items()),
    ]
    for name in names or NAMES:
        module = import_module(f"benchmarks.{name}")
        rows = module.measure()
        (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        heads = list(dict.fromkeys(head for row in rows for head in row))
        table = markdown(heads, ([row.get(head, "–") for head in heads] for row in rows))
        parts.append(f"## {name.replace('_', '-')}\n\n{' '.join((module.__doc__ or '').split())}\n\n{table}")
        print(parts[-1] + "\n", flush=True)
    if not names:
        (ROOT / "docs" / "results.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
