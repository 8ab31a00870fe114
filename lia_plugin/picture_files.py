"""Many pictures into a folder: a file each, or so many to a grid. Files are written beside the work that makes more."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from lia_plugin.host import atomic_write
from lia_plugin.images import captioned_grid, grid, picture_bytes

MAX_WAITING = 32  # Pictures in memory that are not written yet.


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
        self.waiting: deque[Future[None]] = deque()
        self.threads = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
        self.count = 0

    def __enter__(self) -> PictureFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> None:
        try:
            while error is None and self.waiting:
                self.waiting.popleft().result()
        finally:
            self.threads.shutdown(cancel_futures=True)

    def add(self, img: torch.Tensor, name: str) -> None:
        """Takes one picture, uint8 CHW."""
        if not self.count:
            os.makedirs(self.outdir, exist_ok=True)
        while len(self.waiting) >= MAX_WAITING:
            self.waiting.popleft().result()
        self.count += 1
        path = os.path.join(self.outdir, f'{name}.{self.kind}')
        self.waiting.append(self.threads.submit(save_picture, img, path))


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
