"""``images``: random crops of real pictures, for generators that read images."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mpsearch.errors import CalibrationError, UsageError
from mpsearch.inputs.regions import PIXEL, Box

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Images:
    """Square crops from a folder of pictures, ``(N, C, crop, crop)`` in ``low … high``.

    Attributes:
        folder: where the pictures are; inside an installed Python package when ``package`` is given.
        crop: height and width of a sample.
        shrink: pictures are reduced by this factor first, so that crops are as sharp as a low-resolution original.
        package: name of an installed package whose files to use.
        mode: three channels or one.
        low: value of black.
        high: value of white.
    """

    folder: str
    crop: int
    shrink: int = 1
    package: str | None = None
    mode: Literal["RGB", "L"] = "RGB"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.crop < 1 or self.shrink < 1:
            raise UsageError(f"images needs crop and shrink of 1 or more, not {self.crop} and {self.shrink}")

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        pictures = self._pictures()
        crops = []
        for _ in range(count):
            picture = pictures[int(torch.randint(len(pictures), (), generator=generator))]
            top = int(torch.randint(picture.shape[1] - self.crop + 1, (), generator=generator))
            left = int(torch.randint(picture.shape[2] - self.crop + 1, (), generator=generator))
            crops.append(picture[:, top : top + self.crop, left : left + self.crop])
        return torch.stack(crops) * (self.high - self.low) + self.low

    @property
    def region(self) -> Box:
        return Box(self.low, self.high, PIXEL * (self.high - self.low))

    def _pictures(self) -> list[Tensor]:
        folder = self._folder()
        found = []
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
            try:
                with Image.open(path) as image:
                    if self.mode == "RGB" and image.mode not in ("RGB", "RGBA", "P", "CMYK"):
                        continue  # a grey picture has no colours to calibrate on
                    small = image.convert(self.mode).reduce(self.shrink)
            except (UnidentifiedImageError, OSError) as error:
                raise CalibrationError(f"{path} is no readable picture: {error}") from None
            pixels = torch.from_numpy(np.array(small, np.float32) / 255)
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            if min(pixels.shape[1:]) >= self.crop:
                found.append(pixels)
        if not found:
            raise CalibrationError(f"{folder} holds no {self.mode} picture of {self.crop}x{self.crop} or more")
        return found

    def _folder(self) -> Path:
        if self.package is None:
            folder = Path(self.folder)
        else:
            spec = importlib.util.find_spec(self.package) if self.package.isidentifier() else None
            if spec is None or spec.origin is None:
                raise CalibrationError(f"the package {self.package!r}, whose pictures are wanted, is not installed")
            folder = Path(spec.origin).parent / self.folder
        if not folder.is_dir():
            raise CalibrationError(f"the folder {folder} does not exist")
        return folder
