"""JSON artefacts: one ``schema`` field each, written whole or not at all, refused when foreign."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpsearch.errors import ArtifactError


def write_bytes(path: Path, data: bytes) -> None:
    """Write through a temporary file in the same folder, so that a crash never leaves half a file."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(data)
        os.replace(fresh, path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, schema: str, payload: dict[str, Any]) -> None:
    """Write ``payload`` with its ``schema`` (``<noun>/<version>``) first. NaN is spelled null by the nouns."""
    text = json.dumps({"schema": schema, **payload}, indent=1, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """Read an artefact of one schema.

    Raises:
        ArtifactError: the file is missing, is not JSON (truncated?), or carries another schema.
    """
    try:
        payload = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ArtifactError(f"{path} is not valid JSON ({error}): truncated or foreign") from None
    found = payload.get("schema") if isinstance(payload, dict) else None
    if found != schema:
        raise ArtifactError(f"{path} has schema {found!r}, expected {schema!r}")
    return dict(payload)
