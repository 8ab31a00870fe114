"""Pictures of points and lines on plain axes, for pages: small enough to need no plotting library.

Everything is drawn at SCALE times its size and averaged down, so that lines are smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import torch

from lia_plugin import lettering
from lia_plugin.images import from_pil
from lia_plugin.lettering import drawable

Array = npt.NDArray[np.float64]
Colour = str

SCALE = 2
INK, GRID, FAINT = '#222222', '#e4e4e4', '#c3ccd6'
BLUE, RED, GREEN, ORANGE, PURPLE, GREY = '#1f62a8', '#c0392b', '#2e8b57', '#d98200', '#7d3c98', '#8a949e'
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 34, 46  # Margins, of axes with marks.
BARE = 12  # Margins without marks, but for the title's.
LEGEND_LINE = 18  # Height of a name in a legend.
TICKS = 6  # About so many marks.


class Range(NamedTuple):
    """From where to where an axis goes."""

    low: float
    high: float


class Key(NamedTuple):
    """One line of a legend."""

    name: str
    colour: Colour
    is_line: bool = True


def span(values: npt.ArrayLike, room: float = 0.04) -> Range:
    """A range that has all values inside, with some room at both ends.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError('values: expected at least one, and all finite')
    low, high = float(array.min()), float(array.max())
    margin = (high - low) * room or abs(low) * room or 0.5
    return Range(low - margin, high + margin)


def ticks(axis: Range, count: int = TICKS) -> list[float]:
    """Round numbers on an axis: 1, 2 or 5 times a power of ten apart, about `count` of them."""
    raw = (axis.high - axis.low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class Panel:
    """A picture with two linear axes; without `marks` it is a map, whose numbers mean nothing."""

    def __init__(
        self, x: Range, y: Range, title: str, x_label: str = '', y_label: str = '', width: int = 560,
        height: int = 360, marks: bool = True, equal: bool = False,
    ) -> None:
        self.marks = marks
        sides = (LEFT, RIGHT, TOP, BOTTOM) if marks else (BARE, BARE, TOP, BARE)
        self.left, self.top = sides[0], sides[2]
        self.right, self.bottom = width - sides[1], height - sides[3]
        self.x, self.y = self._equal(x, y) if equal else (x, y)
        self.canvas = PIL.Image.new('RGB', (width * SCALE, height * SCALE), 'white')
        self.draw = PIL.ImageDraw.Draw(self.canvas)
        self.small, self.large = lettering.font(12 * SCALE), lettering.font(14 * SCALE)
        if marks:
            self._marks(x_label, y_label)
        self.text(self.left, 9, title, font=self.large)

    def _equal(self, x: Range, y: Range) -> tuple[Range, Range]:
        """Both ranges widened until a unit is as long across as upwards."""
        unit = max((x.high - x.low) / (self.right - self.left), (y.high - y.low) / (self.bottom - self.top))

        def widened(axis: Range, pixels: int) -> Range:
            middle, half = (axis.low + axis.high) / 2, unit * pixels / 2
            return Range(middle - half, middle + half)

        return widened(x, self.right - self.left), widened(y, self.bottom - self.top)

    def pixels(self, points: npt.ArrayLike) -> Array:
        """[N, 2] of the axes' numbers -> [N, 2] of the finished picture's pixels."""
        p = np.asarray(points, np.float64).reshape(-1, 2)
        across = (p[:, 0] - self.x.low) / (self.x.high - self.x.low)
        up = (p[:, 1] - self.y.low) / (self.y.high - self.y.low)
        return np.stack([self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)], 1)

    def _marks(self, x_label: str, y_label: str) -> None:
        for value in ticks(self.x):
            at = self.pixels([value, self.y.low])[0, 0]
            self._segment([(at, self.top), (at, self.bottom)], GRID, 1)
            self.text(at, self.bottom + 5, f'{value:g}', anchor='ma')
        for value in ticks(self.y):
            at = self.pixels([self.x.low, value])[0, 1]
            self._segment([(self.left, at), (self.right, at)], GRID, 1)
            self.text(self.left - 6, at, f'{value:g}', anchor='rm')
        self._segment([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], INK, 1)
        self.text(self.right, self.bottom + 24, x_label, anchor='ra')
        self._upright(y_label)

    def _upright(self, label: str) -> None:
        """The label of the axis that goes upwards, turned to stand beside it."""
        if not label:
            return
        label = drawable(label)
        size = (math.ceil(self.small.getlength(label)) + 4, 18 * SCALE)
        strip = PIL.Image.new('RGB', size, 'white')
        PIL.ImageDraw.Draw(strip).text((2, 0), label, fill=INK, font=self.small)
        self.canvas.paste(strip.rotate(90, expand=True), (2 * SCALE, self.top * SCALE))

    def _segment(self, places: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in places]
        self.draw.line(scaled, fill=colour, width=max(round(width * SCALE), 1), joint='curve')

    def text(
        self, x: float, y: float, text: str, colour: Colour = INK, anchor: str = 'la',
        font: lettering.Font | None = None,
    ) -> None:
        """Writes at a pixel of the finished picture."""
        place = (x * SCALE, y * SCALE)
        self.draw.text(place, drawable(text), fill=colour, font=font or self.small, anchor=anchor)

    def points(self, points: npt.ArrayLike, colour: Colour | Sequence[Colour] = BLUE, radius: float = 1.5) -> None:
        """Discs at [N, 2], all of one colour or each of its own."""
        places = self.pixels(points) * SCALE
        colours = [colour] * len(places) if isinstance(colour, str) else colour
        reach = radius * SCALE
        for (x, y), fill in zip(places.tolist(), colours):
            self.draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)

    def line(self, points: npt.ArrayLike, colour: Colour = BLUE, width: float = 2) -> None:
        """A line through [N, 2]."""
        self._segment([(float(x), float(y)) for x, y in self.pixels(points)], colour, width)

    def legend(self, keys: Sequence[Key], corner: str = 'right') -> None:
        """Names with their colours, in the upper left or right corner, on white."""
        longest = max(self.small.getlength(drawable(key.name)) for key in keys) / SCALE
        width, height = longest + 36, LEGEND_LINE * len(keys) + 8
        left = self.right - width - 6 if corner == 'right' else self.left + 8
        top = self.top + 6
        box = [left * SCALE, top * SCALE, (left + width) * SCALE, (top + height) * SCALE]
        self.draw.rectangle(box, fill='white', outline=GRID)
        for i, key in enumerate(keys):
            self._key(left + 6, top + 13 + LEGEND_LINE * i, key)

    def _key(self, left: float, middle: float, key: Key) -> None:
        """One line of a legend, from `left` on."""
        if key.is_line:
            self._segment([(left, middle), (left + 18, middle)], key.colour, 3)
        else:
            reach = 4
            self.draw.ellipse([(left + 9 - reach) * SCALE, (middle - reach) * SCALE,
                               (left + 9 + reach) * SCALE, (middle + reach) * SCALE], fill=key.colour)  # fmt: skip
        self.text(left + 24, middle, key.name, anchor='lm')

    def legend_below(self, keys: Sequence[Key]) -> None:
        """Names with their colours beneath the axes, where they cover nothing; the picture grows."""
        grown = PIL.Image.new('RGB', (self.canvas.width, self.canvas.height + LEGEND_LINE * SCALE * len(keys)), 'white')
        grown.paste(self.canvas)
        below = self.canvas.height // SCALE
        self.canvas, self.draw = grown, PIL.ImageDraw.Draw(grown)
        for i, key in enumerate(keys):
            self._key(BARE, below + LEGEND_LINE * (i + 0.5), key)

    def picture(self) -> torch.Tensor:
        """uint8 [3, height, width]."""
        size = (self.canvas.width // SCALE, self.canvas.height // SCALE)
        small = self.canvas.resize(size, PIL.Image.Resampling.BOX)
        return from_pil(small)


def beside(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures [3, H, W] of one height in a row."""
    return torch.cat(list(pictures), dim=2)


def rainbow(share: npt.ArrayLike) -> list[Colour]:
    """Shares in [0, 1] -> colours from blue over green to red, all about as dark."""
    u = np.clip(np.asarray(share, np.float64), 0, 1)[:, None]
    stops = np.array([[70, 110, 190], [60, 160, 150], [150, 180, 70], [225, 160, 60], [200, 80, 60]], np.float64)
    place = u[:, 0] * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    mixed = stops[low] + (stops[low + 1] - stops[low]) * (place - low)[:, None]
    return ['#' + ''.join(f'{round(channel):02x}' for channel in row) for row in mixed]
