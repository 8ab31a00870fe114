"""Pictures of an evaluation's figures: lines on linear axes, and a matrix in shades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from lia_plugin.images import from_pil

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40  # Margins.
COLOURS = ('#1f62a8', '#c0392b', '#6fa8dc', '#e6a79f', '#2e8b57', '#8e6bbf', '#b8860b', '#555555')
TEXT, FRAME = '#222222', '#dddddd'
CELL_WIDTH, CELL_HEIGHT, LABEL_WIDTH = 92, 24, 300
SHADE = (192, 57, 43)  # Of the largest value; 0 is white.

Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont


class Line(NamedTuple):
    """A line through points [n]; what is not finite is left out."""

    name: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]


def lines(curves: Sequence[Line], title: str, x_label: str) -> torch.Tensor:
    """Lines on axes that begin at 0, a legend beneath -> uint8 [3, H, WIDTH]."""
    finite = [np.isfinite(line.x) & np.isfinite(line.y) for line in curves]
    right = max([float(line.x[ok].max()) for line, ok in zip(curves, finite) if ok.any()], default=1.0) or 1.0
    top = max([float(line.y[ok].max()) for line, ok in zip(curves, finite) if ok.any()], default=1.0) or 1.0
    picture = PIL.Image.new('RGB', (WIDTH, HEIGHT + 16 * len(curves)), 'white')
    draw = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(12)
    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    _frame(draw, title, x_label, right, top, font)
    for i, (line, ok) in enumerate(zip(curves, finite)):
        colour = COLOURS[i % len(COLOURS)]
        across, up = LEFT + line.x[ok] / right * (end - LEFT), base - line.y[ok] / top * (base - TOP)
        if ok.sum() > 1:
            draw.line(list(zip(across.tolist(), up.tolist())), fill=colour, width=2)
        draw.rectangle([LEFT, HEIGHT + 16 * i, LEFT + 10, HEIGHT + 16 * i + 10], fill=colour)
        draw.text((LEFT + 16, HEIGHT + 16 * i - 2), line.name, fill=TEXT, font=font)
    return from_pil(picture)


def _frame(draw: PIL.ImageDraw.ImageDraw, title: str, x_label: str, right: float, top: float, font: Font) -> None:
    """Axes from 0 to `right` and `top`."""
    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    draw.rectangle([LEFT, TOP, end, base], outline=FRAME)
    draw.text((LEFT, 6), title, fill=TEXT, font=font)
    draw.text(((LEFT + end) / 2, base + 20), x_label, fill=TEXT, font=font, anchor='ma')
    for share, anchor in ((0, 'ma'), (0.5, 'ma'), (1, 'ra')):
        across, up = LEFT + share * (end - LEFT), base - share * (base - TOP)
        draw.text((across, base + 4), format(share * right, '.3g'), fill=TEXT, font=font, anchor=anchor)
        draw.text((LEFT - 4, up), format(share * top, '.3g'), fill=TEXT, font=font, anchor='rm')


def heat_map(values: npt.NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> torch.Tensor:
    """Numbers [rows, columns], at least 0, NaN = none, in cells the darker the larger -> uint8 [3, H, W]."""
    size = (LABEL_WIDTH + CELL_WIDTH * len(columns), CELL_HEIGHT * (len(rows) + 1))
    picture = PIL.Image.new('RGB', size, 'white')
    draw = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(12)
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    for k, name in enumerate(columns):
        draw.text((LABEL_WIDTH + CELL_WIDTH * (k + 0.5), CELL_HEIGHT / 2), name[:14], fill=TEXT, font=font, anchor='mm')
    for i, name in enumerate(rows):
        above = CELL_HEIGHT * (i + 1)
        draw.text((2, above + CELL_HEIGHT / 2), name[:48], fill=TEXT, font=font, anchor='lm')
        for k, value in enumerate(values[i]):
            if np.isfinite(value):
                _cell(draw, LABEL_WIDTH + CELL_WIDTH * k, above, float(value), float(value) / top, font)
    return from_pil(picture)


def _cell(
    draw: PIL.ImageDraw.ImageDraw, left: int, above: int, value: float, share: float, font: Font
) -> None:
    colour = tuple(round(255 + (part - 255) * share) for part in SHADE)
    draw.rectangle([left, above, left + CELL_WIDTH - 2, above + CELL_HEIGHT - 2], fill=colour)
    ink = 'white' if share > 0.6 else TEXT
    place = (left + CELL_WIDTH / 2, above + CELL_HEIGHT / 2)
    draw.text(place, format(value, '.3f'), fill=ink, font=font, anchor='mm')
