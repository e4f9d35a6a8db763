"""Wall time of the main job on the embedded generator (``mpsearch run``), start of the interpreter included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3


def measure() -> list[dict[str, str]]:
    times = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "mpsearch", "run", "--out", str(Path(folder) / "run")]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
    low, middle, high = sorted(times)
    return [{"command": "mpsearch run", "seconds, median (range)": f"{middle:.1f} ({low:.1f} … {high:.1f})"}]
