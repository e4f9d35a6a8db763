"""The command line of the training scripts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml


def read(description: str | None) -> dict[str, Any]:
    """The named config; ``--seed`` repeats the training with another seed in a folder of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seed", type=int, help="another seed than the config's; the work folder gets it as a suffix")
    given = parser.parse_args()
    config: dict[str, Any] = yaml.safe_load(given.config.read_text())
    if given.seed is not None:
        config |= {"seed": given.seed, "work": f"{config['work']}-seed{given.seed}"}
    return config
