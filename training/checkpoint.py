"""Crash-safe checkpoints: written beside the target, then renamed over it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    torch.save(state, fresh)
    os.replace(fresh, path)


def load(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.is_file() else None


def keep(path: Path, parts: Mapping[str, Any], **facts: Any) -> None:
    """Save the parts of a training, the random state, and whatever else it goes on from."""
    state = {name: part.state_dict() for name, part in parts.items()}
    save(path, state | {"random": torch.get_rng_state()} | facts)


def resume(path: Path, parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Put back what :func:`keep` saved; returns all of it, None where nothing was."""
    if (state := load(path)) is None:
        return None
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    return state
