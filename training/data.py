"""Fashion-MNIST as float images: gzipped IDX files (Debian package ``dataset-fashion-mnist``).

Xiao, Rasul, Vollgraf, "Fashion-MNIST" (2017), MIT licence. ``FASHION_MNIST`` names another folder.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def _idx(path: Path, header: int) -> np.ndarray:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: install dataset-fashion-mnist or set FASHION_MNIST")
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header)


def fashion_mnist(split: Literal["train", "t10k"]) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, 32, 32)`` float32 in [-1, 1], zero-padded from 28x28, and labels ``(N,)``."""
    pixels = _idx(FOLDER / f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = _idx(FOLDER / f"{split}-labels-idx1-ubyte.gz", 8)
    images = torch.from_numpy(np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2))))
    return images.float().div_(127.5).sub_(1.0), torch.from_numpy(labels.astype(np.int64))
