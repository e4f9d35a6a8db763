"""``samples.png``: the same inputs through several generators, one labelled block each."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mpsearch.artifact import write_bytes

COLUMNS, ROWS, LABEL, GAP, CELL = 8, 2, 18, 2, 96


def save_grid(path: Path, blocks: Mapping[str, Tensor]) -> None:
    """Write a PNG.

    Args:
        path: the file.
        blocks: label → images ``(N, C, H, W)``, all on the scale of the first block; the first 16 are shown.
    """
    low, high = value_range(next(iter(blocks.values())))
    sheets = [_sheet(images, low, high) for images in blocks.values()]
    width = max(sheet.width for sheet in sheets)
    page = Image.new("RGB", (width, sum(sheet.height + LABEL + GAP for sheet in sheets)), "white")
    pen, font, top = ImageDraw.Draw(page), ImageFont.load_default(), 0
    for label, sheet in zip(blocks, sheets, strict=True):
        pen.text((2, top + 3), label, fill="black", font=font)
        page.paste(sheet, (0, top + LABEL))
        top += sheet.height + LABEL + GAP
    stream = io.BytesIO()
    page.save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def value_range(images: Tensor) -> tuple[float, float]:
    """Black and white: -1 … 1 or 0 … 1 where the images fit these, their own extremes otherwise."""
    low, high = images.min().item(), images.max().item()
    if low >= -0.15 and -0.15 <= high <= 1.15:
        return 0.0, 1.0
    if low >= -1.15 and high <= 1.15:
        return -1.0, 1.0
    return low, high


def _sheet(images: Tensor, low: float, high: float) -> Image.Image:
    images = images[: COLUMNS * ROWS].detach().float().cpu()
    if images.ndim != 4:
        images = images.reshape(len(images), 1, 1, -1)
    images = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels = ((images - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    height, width = pixels.shape[2:]
    zoom = max(1, CELL // max(height, width))
    columns = min(COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * (width * zoom + GAP), rows * (height * zoom + GAP)), "white")
    for index, picture in enumerate(pixels):
        tile = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
        tile = tile.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        sheet.paste(tile, (index % columns * (width * zoom + GAP), index // columns * (height * zoom + GAP)))
    return sheet
