"""A plot of points with names, both axes logarithmic: small enough to need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw
import torch

from lia_plugin import lettering
from lia_plugin.images import from_pil
from lia_plugin.lettering import drawable

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 44, 60  # Margins.
INK, GRID, POINT = (34, 34, 34), (221, 221, 221), (31, 98, 168)


class Point(NamedTuple):
    """One point, both coordinates above 0, and what stands beside it; points of one group are joined by a line."""

    x: float
    y: float
    name: str
    group: str = ''  # '' = by itself.


class Axis(NamedTuple):
    """A logarithmic axis: the values at its ends, and the pixels where these lie."""

    low: float
    high: float
    start: float
    end: float

    def pixel(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; powers alone if that makes too many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) <= 4 else (1,)
        # Multiplied out in decimals, for 5 · 10⁻³ is not 0.005 in binary.
        values = [float(f'{step}e{power}') for power in decades for step in steps]
        return [value for value in values if self.low <= value <= self.high]


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that has all values inside, with some room. ValueError for values that have no logarithm."""
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f'values: expected at least one, all finite and above 0, got {list(values)}')
    room = max(1.25, (max(values) / min(values)) ** 0.08)
    return Axis(min(values) / room, max(values) * room, start, end)


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> torch.Tensor:
    """The plot, uint8 [3, HEIGHT, WIDTH]. ValueError for no point, or one that a logarithmic axis doesn't have."""
    across = axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    up = axis([point.y for point in points], HEIGHT - BOTTOM, TOP)
    canvas = PIL.Image.new('RGB', (WIDTH, HEIGHT), 'white')
    draw = PIL.ImageDraw.Draw(canvas)
    small, large = lettering.font(13), lettering.font(16)
    for value in across.ticks():
        x = across.pixel(value)
        draw.line([(x, TOP), (x, HEIGHT - BOTTOM)], fill=GRID)
        draw.text((x, HEIGHT - BOTTOM + 6), f'{value:g}', fill=INK, font=small, anchor='ma')
    for value in up.ticks():
        y = up.pixel(value)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        draw.text((LEFT - 6, y), f'{value:g}', fill=INK, font=small, anchor='rm')
    draw.text((LEFT, 12), drawable(title), fill=INK, font=large)
    draw.text((WIDTH - RIGHT, HEIGHT - 24), drawable(x_label), fill=INK, font=small, anchor='ra')
    draw.text((LEFT + 6, TOP + 2), drawable(y_label), fill=INK, font=small)
    places = [(across.pixel(point.x), up.pixel(point.y)) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for group in {point.group for point in points} - {''}:
        joined = sorted(place for place, point in zip(places, points) if point.group == group)
        draw.line([coordinate for place in joined for coordinate in place], fill=POINT)
    for (x, y), point in zip(places, points):
        draw.ellipse([(x - 4, y - 4), (x + 4, y + 4)], fill=POINT)
        _name(draw, small, point.name, x, y, taken)
    return from_pil(canvas)


def _name(
    draw: PIL.ImageDraw.ImageDraw,
    font: lettering.Font,
    name: str,
    x: float,
    y: float,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Writes a point's name where there is room: beside it, or shifted up or down until it covers nothing."""
    name = drawable(name)
    width = draw.textlength(name, font=font)
    sides = [left for left in (x + 8, x - 8 - width) if LEFT <= left < WIDTH - 4 - width] or [x + 8]
    box = (0.0, 0.0, 0.0, 0.0)
    for shift, left in ((shift, left) for shift in (0, -15, 15, -30, 30, -45, 45) for left in sides):
        box = (left, y - 8 + shift, left + width, y + 7 + shift)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            break
    taken.append(box)
    draw.text((box[0], box[1]), name, fill=INK, font=font)
