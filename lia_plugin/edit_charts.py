"""Pictures of an evaluation's figures: lines on linear axes, and a matrix in shades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import torch

from lia_plugin import lettering
from lia_plugin.canvas import BLUE, GREEN, INK, RED, Key, Panel, Range
from lia_plugin.images import from_pil
from lia_plugin.lettering import drawable

WIDTH, HEIGHT = 420, 260
COLOURS = (BLUE, RED, '#6fa8dc', '#e6a79f', GREEN, '#8e6bbf', '#b8860b', '#555555')
CELL_WIDTH, CELL_HEIGHT, LABEL_WIDTH = 92, 24, 300
SHADE = (192, 57, 43)  # Of the largest value; 0 is white.


class Line(NamedTuple):
    """A line through points [n]; what is not finite is left out."""

    name: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]


def lines(curves: Sequence[Line], title: str, x_label: str) -> torch.Tensor:
    """Lines on axes that begin at 0, a legend beneath -> uint8 [3, H, WIDTH]."""
    finite = [np.stack([line.x, line.y], axis=1) for line in curves]
    finite = [points[np.isfinite(points).all(axis=1)] for points in finite]
    right, top = np.concatenate([*finite, np.zeros([1, 2])]).max(axis=0).tolist()
    panel = Panel(Range(0, right or 1.0), Range(0, top or 1.0), title, x_label, width=WIDTH, height=HEIGHT)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(curves))]
    for points, colour in zip(finite, colours):
        if len(points) > 1:
            panel.line(points, colour)
    panel.legend_below([Key(line.name, colour) for line, colour in zip(curves, colours)])
    return panel.picture()


def heat_map(values: npt.NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> torch.Tensor:
    """Numbers [rows, columns], at least 0, NaN = none, in cells the darker the larger -> uint8 [3, H, W]."""
    size = (LABEL_WIDTH + CELL_WIDTH * len(columns), CELL_HEIGHT * (len(rows) + 1))
    picture = PIL.Image.new('RGB', size, 'white')
    draw = PIL.ImageDraw.Draw(picture)
    font = lettering.font(12)
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    for k, name in enumerate(columns):
        place = (LABEL_WIDTH + CELL_WIDTH * (k + 0.5), CELL_HEIGHT / 2)
        draw.text(place, drawable(name)[:14], fill=INK, font=font, anchor='mm')
    for i, name in enumerate(rows):
        above = CELL_HEIGHT * (i + 1)
        draw.text((2, above + CELL_HEIGHT / 2), drawable(name)[:48], fill=INK, font=font, anchor='lm')
        for k, value in enumerate(values[i]):
            if np.isfinite(value):
                _cell(draw, LABEL_WIDTH + CELL_WIDTH * k, above, float(value), float(value) / top, font)
    return from_pil(picture)


def _cell(
    draw: PIL.ImageDraw.ImageDraw, left: int, above: int, value: float, share: float, font: lettering.Font
) -> None:
    colour = tuple(round(255 + (part - 255) * share) for part in SHADE)
    draw.rectangle([left, above, left + CELL_WIDTH - 2, above + CELL_HEIGHT - 2], fill=colour)
    ink = 'white' if share > 0.6 else INK
    place = (left + CELL_WIDTH / 2, above + CELL_HEIGHT / 2)
    draw.text(place, format(value, '.3f'), fill=ink, font=font, anchor='mm')
