"""A run folder that survives being killed: stages as whole files, measurements in a journal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpsearch.artifact import read_json, write_bytes, write_json
from mpsearch.errors import ArtifactError
from mpsearch.model import one_line

T = TypeVar("T")
MARKS = ("run.json", "layers.json", "measurements.jsonl")  # any of them makes a folder one of ours
RUN_SCHEMA = "mpsearch-run/1"


def fingerprint(*parts: Any) -> str:
    """Short hash of JSON-able parts: equal exactly when a stored result may be used again."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(payload: Mapping[str, Any]) -> str:
    """Of an artefact but for how long it took: the same answer has the same digest."""
    content = json.loads(json.dumps(payload))  # as it is read back
    return fingerprint({name: value for name, value in content.items() if name != "seconds"})


class RunFolder:
    """One run on disk.

    A stage is one JSON file with the fingerprint of everything that it depends on; it is computed when the file is
    missing or was made for something else.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"{path} is a file, not a run folder")
        found = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")} if path.is_dir() else set()
        if found and not found & set(MARKS):
            raise ArtifactError(f"{path} holds files but no {MARKS[0]}: choose an empty or new folder")
        if (path / MARKS[0]).exists():
            read_json(path / MARKS[0], RUN_SCHEMA)
        write_json(path / MARKS[0], RUN_SCHEMA, about)

    def stage(
        self,
        name: str,
        schema: str,
        key: str,
        compute: Callable[[], T],
        encode: Callable[[T], dict[str, Any]],
        decode: Callable[[dict[str, Any]], T],
    ) -> T:
        """The stored value of a stage, or a new one. A file that cannot be read is refused, never overwritten."""
        path = self.path / f"{name}.json"
        if path.exists():
            try:
                payload = read_json(path, schema)
            except ArtifactError as error:
                raise ArtifactError(f"{error}; delete it to compute it again") from None
            if payload.get("key") == key:
                if payload.pop("digest", None) != _digest(payload):
                    raise ArtifactError(f"{path} was changed after it was written; delete it to compute it again")
                try:
                    return decode(payload)
                except ArtifactError as error:
                    raise ArtifactError(f"{path}: {error}; delete it to compute it again") from None
        value = compute()
        payload = {"key": key, **encode(value)}
        write_json(path, schema, {**payload, "digest": _digest({"schema": schema, **payload})})
        return value

    def key(self, name: str, schema: str) -> str | None:
        """What a stored stage was made for; None where it is not there."""
        path = self.path / f"{name}.json"
        return str(read_json(path, schema).get("key")) if path.exists() else None

    def journal(self, key: str) -> Journal:
        return Journal(self.path / "measurements.jsonl", key)

    def snapshot(self, name: str, key: str) -> Snapshot:
        return Snapshot(self.path / "parts" / name / "snapshot.safetensors", key)

    def parts(self, name: str, key: str) -> Parts:
        return Parts(self.path / "parts" / name, key)


class Parts:
    """Finished tensors of an unfinished stage, a safetensors file each; called with a name and how to compute it."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key

    def __call__(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        path = self._folder / f"{name.replace(' ', '-')}.safetensors"
        if path.exists():
            try:
                with safe_open(path, "pt") as file:
                    if (file.metadata() or {}).get("key") == self._key:
                        kept: Tensor = file.get_tensor("part")
                        return kept
            except (OSError, SafetensorError) as error:
                raise ArtifactError(f"{path} is damaged ({one_line(error)}); delete it to compute it again") from None
        value = compute()
        write_bytes(path, save({"part": value.contiguous()}, {"key": self._key}))
        return value

    def clear(self) -> None:
        """The stage is finished: its parts are not needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Snapshot:
    """The state of an unfinished training, one safetensors file."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    def read(self) -> dict[str, Tensor]:
        """What was written last; nothing where that was made for something else."""
        if not self._path.exists():
            return {}
        try:
            with safe_open(self._path, "pt") as file:
                same = (file.metadata() or {}).get("key") == self._key
                return {name: file.get_tensor(name) for name in file.keys()} if same else {}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{self._path} is damaged ({one_line(error)}); delete it to train again") from None

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self._path, save(state, {"key": self._key}))


class Journal(MutableMapping[str, list[float]]):
    """Measurements by name, each appended to a file the moment it is made.

    The first line names what they were made for; measurements of something else are dropped. A last line that was cut
    off by a kill is dropped too; any other damage is refused.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._values: dict[str, list[float]] = {}
        if not path.exists():
            write_bytes(path, _line("key", key))
        *whole, cut = path.read_bytes().split(b"\n")  # what follows the last newline was never finished
        records = [self._record(number, line) for number, line in enumerate(whole or [cut], 1)]
        if records[0][0] != "key":
            raise ArtifactError(f"{path} is no journal of measurements; move it away")
        if records[0] != ("key", key):
            write_bytes(path, _line("key", key))
            return
        self._values = dict(records[1:])
        if cut:
            os.truncate(path, len(b"\n".join(whole)) + 1)

    def _record(self, number: int, line: bytes) -> tuple[str, Any]:
        try:
            name, value, checksum = json.loads(line)
            if checksum != _checksum(name, value):
                raise ValueError
            if number > 1:
                value = [float(part) for part in value]
            return str(name), value
        except (ValueError, TypeError):
            raise ArtifactError(f"{self._path} is damaged in line {number}; delete it to measure again") from None

    def __getitem__(self, name: str) -> list[float]:
        return self._values[name]

    def __setitem__(self, name: str, value: list[float]) -> None:
        self._values[name] = value
        with self._path.open("ab") as stream:
            stream.write(_line(name, value))

    def __delitem__(self, name: str) -> None:
        raise TypeError("a journal only grows")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _line(name: str, value: Any) -> bytes:
    return json.dumps([name, value, _checksum(name, value)]).encode() + b"\n"


def _checksum(name: str, value: Any) -> int:
    return zlib.crc32(json.dumps([name, value]).encode())
