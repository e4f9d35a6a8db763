"""Every family of generators with 8-bit activations: what 4 and 3 bits a weight cost in pictures.

The runs are those of ``configs/``, fetched weights where they can be fetched; maps are judged on inputs that no search
saw. PSNR and Fréchet distance come with 95 % bootstrap intervals. Where there is no training data the distance is to
other samples of the float generator, and its own row is the noise floor. Seconds are the search's, its table included.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.allocation import at_hand
from mpsearch import solving
from mpsearch.budgets import cost_of
from mpsearch.config import load_config
from mpsearch.run import Run
from mpsearch.types import BitMap, Format, Interval, Layers

OWN = ("sagan", "stylegan2", "cyclegan", "diffusion")
FETCHED = ("dcgan-faces", "srvgg-x4", "upconv7-x2", "terrain-unet")
FORMATS = [f"w{bits}a8" for bits in range(2, 9)]
ONLY = os.environ.get("GENERATORS", " ".join([*OWN, *FETCHED])).split()
KEY = ("generator", "map")
CONFIGS = Path(__file__).parents[1] / "configs"


def measure() -> Iterator[dict[str, str]]:
    return of_each(_family)


def of_each(rows_of: Callable[[Run], Iterable[dict[str, str]]]) -> Iterator[dict[str, str]]:
    """The rows of every generator that is asked for and at hand."""
    for name in ONLY:
        if name in FETCHED and not at_hand(name):
            continue
        config = load_config(CONFIGS / f"{name if name in OWN else f'zoo-{name}'}.yaml", formats=FORMATS)
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(Run(config, Path(folder))):
                yield {"generator": name} | row


def _family(run: Run) -> list[dict[str, str]]:
    maps = {f"uniform {text}": uniform(run.layers, Format.parse(text)) for text in ("w8a8", "w4a8")}
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    table = run.sensitivity
    shared = time.perf_counter() - start
    for bits in (4, 3):
        start = time.perf_counter()
        solvers = solving.with_seed(solving.EFFORTS[run.config.effort], run.config.seed)
        found = solving.search(table, run.layers, [f"bits<={bits}"], solvers, run.subject)
        maps[label := f"searched, {bits} bits"] = found.bitmap
        seconds[label] = shared + time.perf_counter() - start
    whole, full = (cost_of(cost, BitMap({}), run.layers) for cost in ("size", "bops"))
    rows = []
    for label, bitmap in maps.items():
        quality = run.validate(run.subject.with_ranges(bitmap), f"quality-{len(rows)}")
        fd = quality.figures["fd"]
        size, bops = (cost_of(cost, bitmap, run.layers) for cost in ("size", "bops"))
        if not rows:
            rows.append(
                {
                    "map": "float",
                    "bytes": f"{whole:,.0f}",
                    "BOPs": f"{full:.2e}",
                    "FD": text(fd.float),
                }
            )
        rows.append(
            {
                "map": label,
                "bytes": f"{size:,.0f} ({size / whole:.1%})",
                "BOPs": f"{bops:.2e} ({bops / full:.1%})",
                "PSNR, dB": text(quality.psnr_db, 1),
                "FD": text(fd.quantized),
                "FD - float": f"{quality.figures['fd'].quantized.value - quality.figures['fd'].float.value:+.3g}",
                "inside": "yes" if fd.quantized.value <= fd.float.high else "no",
                "s": f"{seconds[label]:.0f}" if label in seconds else "–",
            }
        )
    return rows


def uniform(layers: Layers, format: Format) -> BitMap:
    """One format everywhere; a layer that reads nothing measurable keeps its activations float."""
    return BitMap({layer.name: format if layer.allows(format) else format.weight_only for layer in layers})


def text(found: Interval | None, digits: int = 3) -> str:
    return "–" if found is None else f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
