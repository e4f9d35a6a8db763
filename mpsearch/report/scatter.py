"""A plot of named points, such as quality over size."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mpsearch.artifact import write_bytes

WIDTH, HEIGHT, MARGIN, DOT, TICKS = 720, 440, 56, 4, 5


def save_scatter(
    path: Path,
    points: Mapping[str, tuple[float, float]],
    across: str,
    up: str,
    named: Collection[str] | None = None,
) -> None:
    """Write a PNG.

    Args:
        path: the file.
        points: label → (x, y), finite.
        across: what x is.
        up: what y is.
        named: labels that are written, their dots red; all, and black, by default.
    """
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default()
    left, right, top, bottom = MARGIN, WIDTH - MARGIN, MARGIN // 2, HEIGHT - MARGIN
    pen.rectangle((left, top, right, bottom), outline="grey")
    pen.text(((left + right) / 2, HEIGHT - 8), across, fill="black", font=font, anchor="ms")
    pen.text((left, top - 4), up, fill="black", font=font, anchor="ls")
    if points:
        columns, rows = _span([x for x, _ in points.values()]), _span([y for _, y in points.values()])
        for step in range(TICKS + 1):
            share = step / TICKS
            x, y = left + share * (right - left), bottom - share * (bottom - top)
            pen.line((x, bottom, x, bottom + 4), fill="grey")
            pen.line((left - 4, y, left, y), fill="grey")
            label_x, label_y = (low + share * (high - low) for low, high in (columns, rows))
            pen.text((x, bottom + 16), f"{label_x:.3g}", fill="black", font=font, anchor="ms")
            pen.text((left - 6, y), f"{label_y:.3g}", fill="black", font=font, anchor="rm")
        for label, (x, y) in points.items():
            at_x = left + (x - columns[0]) / (columns[1] - columns[0]) * (right - left)
            at_y = bottom - (y - rows[0]) / (rows[1] - rows[0]) * (bottom - top)
            shown = named is None or label in named
            fill = "red" if shown and named is not None else "black"
            pen.ellipse((at_x - DOT, at_y - DOT, at_x + DOT, at_y + DOT), fill=fill)
            if not shown:
                continue
            side = "rm" if at_x > (left + right) / 2 else "lm"
            pen.text((at_x + (-8 if side == "rm" else 8), at_y), label, fill="black", font=font, anchor=side)
    stream = io.BytesIO()
    page.save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def _span(values: list[float]) -> tuple[float, float]:
    """An axis around the values, never of length zero."""
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05 * abs(low) or math.ulp(1.0) ** 0.25
    return low - pad, high + pad
