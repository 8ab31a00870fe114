"""Many pictures into a folder: a file each, or so many to a grid. Files are written beside the work that makes more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

import torch

from lia_plugin.background import Background
from lia_plugin.host import UserError, atomic_write
from lia_plugin.images import MAX_PIXELS, captioned_grid, grid, picture_bytes
from lia_plugin.video import MAX_WEBP_SIDE

MAX_WAITING = 32  # Pictures in memory that are not written yet.
WRITERS = 8  # Threads; they wait for the disk as much as they compress, so that few cores are no reason for fewer.
# What the formats can hold.
MAX_SIDE = {'png': 2**31 - 1, 'jpg': 65_500, 'webp': MAX_WEBP_SIDE, 'gif': 65_535, 'mp4': 16_384}


def check_grid(size: tuple[int, int], resolution: int, kind: str) -> None:
    """UserError, about --grid, for columns x rows of pictures that are too large for one of such a kind."""
    width, height = (count * resolution for count in size)
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE[kind]:
        raise UserError(f'--grid={size[0]}x{size[1]}: of {resolution}x{resolution} pictures that is {width}x{height}, '
                        f'too large for {kind}; take fewer')  # fmt: skip


def save_picture(img: torch.Tensor, path: str) -> None:
    """One CHW image, floats in [-1, 1] or pixels, whole or not at all; its ending is one of images.WRITTEN."""
    data = picture_bytes(img, path.rsplit('.', 1)[-1])
    with atomic_write(path) as file:
        file.write(data)


class PictureFolder:
    """Writes NAME.KIND for each picture, in threads: compression takes longer than a GPU for the picture.

    A context: at its end all files are there, or the first error of a file is raised.
    """

    def __init__(self, outdir: str, kind: str) -> None:
        self.outdir, self.kind = outdir, kind
        self.background = Background(WRITERS, MAX_WAITING)
        self.count = 0

    def __enter__(self) -> PictureFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.background.__exit__(kind, error, where)

    def add(self, img: torch.Tensor, name: str) -> None:
        """Takes one picture, uint8 CHW."""
        if not self.count:
            os.makedirs(self.outdir, exist_ok=True)
        self.count += 1
        self.background.do(save_picture, img, os.path.join(self.outdir, f'{name}.{self.kind}'))


class GridFolder:
    """Gathers pictures to grids of columns x rows, and hands these on as grid00, grid01 …"""

    def __init__(self, folder: PictureFolder, columns: int, rows: int, captions: bool = False) -> None:
        self.folder, self.columns, self.cells, self.captions = folder, columns, columns * rows, captions
        self.pictures: list[torch.Tensor] = []
        self.texts: list[str] = []

    def add(self, pixels: torch.Tensor, texts: Sequence[str]) -> None:
        """Takes pictures, uint8 NCHW, and what stands above each."""
        for img, text in zip(pixels, texts, strict=True):
            self.pictures.append(img)
            self.texts.append(text)
            if len(self.pictures) == self.cells:
                self.flush()

    def flush(self) -> None:
        """Writes what has been gathered, even if it fills no grid."""
        if not self.pictures:
            return
        pixels = torch.stack(self.pictures)
        sheet = captioned_grid(pixels, self.columns, self.texts) if self.captions else grid(pixels, self.columns)
        self.folder.add(sheet, f'grid{self.folder.count:02d}')
        self.pictures, self.texts = [], []
