"""Contact sheets: pictures in rows and columns with captions above and beside them, large enough to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import click
import PIL.Image
import PIL.ImageDraw
import torch
import torch.nn.functional as F

from lia_plugin.images import MAX_PIXELS, WHITE, enlarge, from_pil, legible_factor, to_uint8, with_channels
from lia_plugin.lettering import drawable, font

GAP = 4
SIDE = 256  # Larger pictures are shown at about this size …
SMALL_SIDE = 128  # … and small ones, by whole factors, at about this.
FONT_SIZE = 13
LINE = 20  # Height of a caption.
MARGIN = 6
MAX_CAPTION = 200  # Width in front of a row.
ELLIPSIS = '…'

Cell = torch.Tensor | None


class Layout(NamedTuple):
    """Places in a sheet, in pixels."""

    left: int
    top: int
    height: int  # Of a picture.
    width: int

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """(y, x) of a picture."""
        return self.top + row * (self.height + GAP), self.left + column * (self.width + GAP)


def sheet(
    rows: Sequence[Sequence[Cell]],
    columns: Sequence[str] = (),
    captions: Sequence[str] = (),
    below: Sequence[str] = (),
    side: int | None = None,
) -> torch.Tensor:
    """Rows of CHW images of one shape, floats in [-1, 1] or pixels, grey or RGB -> uint8 [3, H, W].

    None leaves a place empty, and so do rows that are shorter than others. `columns` stand above the first row and
    `below` beneath the last, `captions` in front of each; what is too long for its place is cut. `side` is the height
    of an image in the sheet; None = small ones are magnified without new colours, ones larger than SIDE reduced.

    Raises:
        ValueError: no image at all, images of different shapes, or another number of captions than of rows.
    """
    tiles = [[None if cell is None else _tile(cell) for cell in row] for row in rows]
    shapes = {tuple(tile.shape) for row in tiles for tile in row if tile is not None}
    if len(shapes) != 1:
        raise ValueError(f'rows: expected images of one shape, got {sorted(shapes) or "none"}')
    if captions and len(captions) != len(rows):
        raise ValueError(f'captions: expected {len(rows)}, got {len(captions)}')
    captions = [_fitting(text, MAX_CAPTION) for text in captions]
    left = max(_text_width(text) for text in captions) + 2 * MARGIN if any(captions) else 0
    _channels, height, width = shapes.pop()
    place = Layout(left, LINE if any(columns) else 0, *_shown_size(height, width, side))
    bottom, right = place.corner(len(rows), max(len(row) for row in rows))
    size = (right - GAP, bottom - GAP + (LINE if any(below) else 0))
    made = _captioned(size, place, columns, captions, below)
    for i, row in enumerate(tiles):
        for k, tile in enumerate(row):
            if tile is not None:
                y, x = place.corner(i, k)
                made[:, y : y + place.height, x : x + place.width] = _resized(tile, place.height, place.width)
    return made


def led_by(
    first: Sequence[Cell], heading: str, rows: Sequence[Sequence[Cell]], columns: Sequence[str]
) -> tuple[list[list[Cell]], list[str]]:
    """Rows, and what stands above their columns, with a further picture in front of each; as they are if there is none.

    For what the rows begin with: the originals of real images, which seeds have not.
    """
    if all(cell is None for cell in first):
        return [list(row) for row in rows], list(columns)
    return [[cell, *row] for cell, row in zip(first, rows, strict=True)], [heading, *columns]


def shrunk(pixels: torch.Tensor, side: int | None = None) -> torch.Tensor:
    """uint8 (N)CHW as small as `sheet` shows them, for sheets of many; what it would magnify stays as it is."""
    height, width = _shown_size(pixels.shape[-2], pixels.shape[-1], side)
    if height >= pixels.shape[-2]:
        return pixels
    if pixels.ndim == 3:
        return _resized(pixels, height, width)
    return torch.stack([_resized(img, height, width) for img in pixels])


def shrunk_cells(images: Sequence[Cell], side: int | None = None) -> list[Cell]:
    """The same of images that may be missing."""
    return [None if img is None else shrunk(img, side) for img in images]


def most_rows(columns: int, resolution: int, side: int | None = None) -> int:
    """How many rows of so many square pictures a sheet may have: a picture of more than MAX_PIXELS is none to look at.

    A row has room for captions above and in front of it.
    """
    shown, _width = _shown_size(resolution, resolution, side)
    return MAX_PIXELS // ((columns * (shown + GAP) + MAX_CAPTION + 2 * MARGIN) * (shown + LINE + 3 * GAP))


def most_shown(name: str, count: int, columns: int, resolution: int, side: int | None = None) -> int:
    """How many of `count` rows a sheet called `name` has; told on stderr if it has not room for all."""
    most = min(count, max(1, most_rows(columns, resolution, side)))
    if most < count:
        click.echo(f'{name}: has room for the first {most} of {count}', err=True)
    return most


def stack(parts: Sequence[torch.Tensor], gap: int = 3 * GAP) -> torch.Tensor:
    """Sheets beneath each other, [3, H, W] each, narrow ones filled up with white -> uint8 [3, H, W]."""
    width = max(part.shape[2] for part in parts)
    bands = []
    for part in parts:
        bands += [F.pad(part, [0, width - part.shape[2]], value=WHITE), torch.full([3, gap, width], WHITE)]
    return torch.cat([band.to(torch.uint8) for band in bands[:-1]], dim=1)


def _captioned(
    size: tuple[int, int], place: Layout, columns: Sequence[str], captions: Sequence[str], below: Sequence[str]
) -> torch.Tensor:
    """The empty sheet with its words."""
    picture = PIL.Image.new('RGB', size, (WHITE,) * 3)
    draw = PIL.ImageDraw.Draw(picture)
    for texts, y in ((columns, LINE / 2), (below, size[1] - LINE / 2)):
        for i, text in enumerate(texts):
            x = place.corner(0, i)[1] + place.width / 2
            draw.text((x, y), _fitting(text, place.width), fill='black', font=font(FONT_SIZE), anchor='mm')
    for i, text in enumerate(captions):
        y = place.corner(i, 0)[0] + place.height / 2
        draw.text((place.left - MARGIN, y), text, fill='black', font=font(FONT_SIZE), anchor='rm')
    return from_pil(picture)


def _tile(img: torch.Tensor) -> torch.Tensor:
    img = img.detach().cpu()
    return with_channels(img if img.dtype == torch.uint8 else to_uint8(img), 3)


def _shown_size(height: int, width: int, side: int | None) -> tuple[int, int]:
    if side is None:
        side = min(height, SIDE) * legible_factor(height, SMALL_SIDE)
    return side, max(1, round(width * side / height))


def _resized(tile: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """By whole factors where that will do; else averaged over areas, or interpolated if it grows."""
    if height % tile.shape[1] == 0 and width == tile.shape[2] * (height // tile.shape[1]):
        return enlarge(tile, height // tile.shape[1])
    levels = tile[None].to(torch.float32)
    if height < tile.shape[1]:
        made = F.interpolate(levels, size=[height, width], mode='area')
    else:
        made = F.interpolate(levels, size=[height, width], mode='bicubic', align_corners=False)
    return made[0].round().clamp(0, WHITE).to(torch.uint8)


def _text_width(text: str) -> int:
    return math.ceil(font(FONT_SIZE).getlength(text))


def _fitting(text: str, width: int) -> str:
    """The text as it can be drawn, cut until it fits."""
    text = drawable(text)
    if _text_width(text) <= width:
        return text
    while text and _text_width(text + ELLIPSIS) > width:
        text = text[:-1]
    return text + ELLIPSIS if text else ''
