"""Histograms as pictures, for pages: no plotting library needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from lia_plugin.images import from_pil

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 12, 12, 26, 24  # Margins.
BAR, CURVE, TEXT = '#4a7fb0', '#c0392b', '#222222'
BEYOND = 4.0  # Quartile ranges from the quartiles at which the axis ends; what lies beyond is in the outermost bars.


def axis_range(values: npt.NDArray[np.float64], include: tuple[float, float] | None = None) -> tuple[float, float]:
    """Where a histogram's axis begins and ends."""
    low, high = np.quantile(values, [0.25, 0.75])
    reach = BEYOND * (high - low)
    start, stop = max(values.min(), low - reach), min(values.max(), high + reach)
    if include is not None:
        start, stop = min(start, include[0]), max(stop, include[1])
    return (float(start), float(stop)) if stop > start else (float(start) - 0.5, float(start) + 0.5)


def histogram(
    values: npt.NDArray[np.float64],
    title: str,
    density: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None,
    density_range: tuple[float, float] | None = None,
    bins: int = 60,
) -> torch.Tensor:
    """Bars of the values [n], finite, and a line of what a density predicts for them -> uint8 [3, HEIGHT, WIDTH]."""
    start, stop = axis_range(values, density_range)
    counts, edges = np.histogram(values.clip(start, stop), bins=bins, range=(start, stop))
    middles = (edges[:-1] + edges[1:]) / 2
    expected = None if density is None else density(middles) * len(values) * (edges[1] - edges[0])
    top = max(counts.max(), 1 if expected is None else expected.max())
    picture = PIL.Image.new('RGB', (WIDTH, HEIGHT), 'white')
    draw = PIL.ImageDraw.Draw(picture)
    x = LEFT + (WIDTH - LEFT - RIGHT) * np.arange(bins + 1) / bins
    base, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    for i, count in enumerate(counts):
        if count:
            draw.rectangle([x[i], base - max(room * count / top, 1), x[i + 1] - 1, base], fill=BAR)
    if expected is not None:
        line = [(float(x[i] + x[i + 1]) / 2, float(base - room * expected[i] / top)) for i in range(bins)]
        draw.line(line, fill=CURVE, width=2)
    draw.line([LEFT, base, WIDTH - RIGHT, base], fill=TEXT)
    _labels(draw, title, start, stop)
    return from_pil(picture)


def _labels(draw: PIL.ImageDraw.ImageDraw, title: str, start: float, stop: float) -> None:
    font = PIL.ImageFont.load_default(12)
    draw.text((LEFT, 6), title, fill=TEXT, font=font)
    middle = (WIDTH / 2, 'ma', (start + stop) / 2)
    for place, anchor, value in ((LEFT, 'la', start), middle, (WIDTH - RIGHT, 'ra', stop)):
        draw.text((place, HEIGHT - BOTTOM + 4), format(value, '.3g'), fill=TEXT, font=font, anchor=anchor)
