"""``tensors``: a stored set of samples, for generators that read images and users that have some."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpsearch.errors import CalibrationError, UsageError
from mpsearch.inputs.regions import PIXEL, Box

SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True)
class Tensors:
    """Rows of one tensor ``(N, …)`` of a file, each at most once.

    Bytes are pixels and become float32 in ``low … high``; integers and booleans stay, floating values become float32.

    Attributes:
        file: a safetensors or npz file.
        key: the tensor's name; may be left out where the file has one only.
        low: value of byte 0.
        high: value of byte 255.
    """

    file: str
    key: str | None = None
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if Path(self.file).suffix not in SUFFIXES:
            raise UsageError(f"tensors reads {' and '.join(SUFFIXES)} files, not {self.file}")

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        if count > len(self):
            raise CalibrationError(f"{self} holds {len(self):,} samples, {count:,} are wanted")
        return self.rows(torch.randperm(len(self), generator=generator)[:count])

    def __len__(self) -> int:
        return len(self._stored)

    def __str__(self) -> str:
        return self.file if self.key is None else f"{self.key!r} of {self.file}"

    def rows(self, chosen: Tensor) -> Tensor:
        """Those samples, in this order."""
        found = self._stored[chosen]
        if found.dtype is torch.uint8:
            return found.float().div_(255).mul_(self.high - self.low).add_(self.low)
        return found.float() if found.is_floating_point() else found

    @property
    def region(self) -> Box | None:
        """Of pictures, that is bytes; nobody knows the range of other values."""
        return Box(self.low, self.high, PIXEL * (self.high - self.low)) if self._stored.dtype is torch.uint8 else None

    @cached_property
    def _stored(self) -> Tensor:
        read = _read_npz if self.file.endswith(".npz") else _read_safetensors
        try:
            found = read(Path(self.file), self.key)
        except FileNotFoundError:
            raise CalibrationError(f"the file of inputs {self.file} does not exist") from None
        except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, SafetensorError) as error:
            raise CalibrationError(f"{self.file} is no readable file of tensors: {error}") from None
        if not found.ndim or not len(found):
            raise CalibrationError(f"{self} is {tuple(found.shape)}: expected a row for every sample")
        return found


def _read_safetensors(path: Path, key: str | None) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(_chosen(path, key, list(file.keys())))
    return tensor


def _read_npz(path: Path, key: str | None) -> Tensor:
    with path.open("rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is no npz file")
        return torch.from_numpy(file[_chosen(path, key, list(file))])


def _chosen(path: Path, key: str | None, names: list[str]) -> str:
    if key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    wanted = "needs a key" if key is None else f"has no {key!r}"
    raise UsageError(f"{path} {wanted}; it holds {', '.join(names) or 'nothing'}")
