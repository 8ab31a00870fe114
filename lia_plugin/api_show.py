"""Pictures of any kind for people to look at: sheets that a notebook shows by itself, and videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
import torch

from lia_plugin import api_checks, api_images, sheets, video
from lia_plugin.api_base import Latents
from lia_plugin.images import png_bytes, save_png, to_pil


class Sheet:
    """A picture of pictures. A notebook shows it; `save` writes it, `image` is it."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels  # uint8 [3, H, W]

    @property
    def image(self) -> PIL.Image.Image:
        return to_pil(self.pixels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """As PNG."""
        if not os.fspath(path).lower().endswith('.png'):
            raise ValueError(f'path: sheets are written as .png, got {os.fspath(path)}; sheet.image.save takes others')
        save_png(self.pixels, path)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.pixels)

    def __repr__(self) -> str:
        return f'<Sheet: {self.pixels.shape[2]}x{self.pixels.shape[1]}>'


def show(images: Any, captions: Sequence[str] = (), rows: Sequence[str] = (), side: int | None = None) -> Sheet:
    """Images in a row, or rows of images, of any kind that the API gives out.

    Args:
        images: One image; [N] of them, a row; [R, C] of them, or a list of rows, whose images all have one shape.
            Floats are in [-1, 1], torch [C, H, W], NumPy [H, W, C].
        captions: Above the columns.
        rows: Captions in front of the rows.
        side: Height of an image in the sheet. None = small ones are magnified.

    Raises:
        ValueError: no image, images of several shapes, or another number of captions than of rows.
    """
    if isinstance(images, Latents):
        raise ValueError('images: expected pictures, got Latents; lia.decode(latents) draws them')
    if side is not None:
        api_checks.whole('side', side)
    found = _rows(images)
    if captions and len(captions) != max(len(row) for row in found):
        raise ValueError(f'captions: expected {max(len(row) for row in found)}, got {len(captions)}')
    texts, beside = ([str(text) for text in given] for given in (captions, rows))
    return Sheet(sheets.sheet(found, columns=texts, captions=beside, side=side))


def save_video(path: str | os.PathLike[str], frames: Any, fps: int = video.FPS) -> None:
    """Writes images [N] as .mp4, .gif or .webp.

    Raises:
        UserError (a ValueError): another ending, or what writes it is missing.
        ValueError: no frame, or frames of several sizes.
    """
    api_checks.whole('fps', fps)
    video.save_video(os.fspath(path), (pixels for row in _rows(frames) for pixels in row), fps)


def _rows(images: Any) -> list[list[torch.Tensor]]:
    """uint8 CHW, row by row."""
    depth = _depth(images)
    if depth > 2:
        raise ValueError('images: expected one, a row [N] or rows [R, C] of them')
    if depth == 2:
        return [_row(row) for row in images]
    return [_row(images if depth else [images])]


def _depth(images: Any) -> int:
    """How many axes stand in front of an image's own."""
    if isinstance(images, list | tuple):
        if not len(images):
            raise ValueError('images: expected at least one, got none')
        return 1 + _depth(images[0])
    if not api_images.is_array(images):
        return 0
    own = 2 if images.ndim == 2 else 3
    return int(images.ndim) - own


def _row(images: Any) -> list[torch.Tensor]:
    return list(_pixels(images))


def _pixels(images: Any) -> Iterator[torch.Tensor]:
    for image in images:
        yield api_images.read_full(image, api_images.NATIVE)[0]
