"""Number of an image in a data set → its pixels, checked. Imports no torch: processes that only read start fast."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnnlib.util import UserError
from training.image_archive import ImageArchive
from training.image_decode import decode_image


class ImageReader:
    """Square images of one size in a folder or zip, by number. Goes to other processes by pickling.

    Args:
        path: Folder or zip.
        resolution: Width and height that the images must have. None = whatever the first one has.

    Attributes:
        archive: Where the images lie; `archive.names` are their names in order.
        image_shape: [channels, height, width] of the first image, which the others must have too.

    Raises:
        UserError: Missing or damaged file, no images, or a first image that is damaged, transparent or not square.
    """

    def __init__(self, path: str, resolution: int | None = None) -> None:
        self.archive = ImageArchive(path)
        name = self.archive.names[0]
        self.image_shape = list(self._decode(name).shape)
        _, height, width = self.image_shape
        first = self.archive.where(name)
        if height != width:
            raise UserError(f'{first}: {width}x{height} is not square; use dataset_tool.py --transform=center-crop')
        if resolution is not None and resolution != height:
            raise UserError(f'{first}: {width}x{height} pixels, but resolution {resolution} is asked for')

    def read(self, raw_idx: int) -> np.ndarray:
        """uint8 [channels, height, width]. UserError, with the file's name, for a damaged or differing image."""
        name = self.archive.names[raw_idx]
        pixels = self._decode(name)
        self._check_shape(name, pixels.shape)
        return pixels

    def check_headers(self) -> None:
        """Compares every image's header with the first image: a second where decoding 10,000 images takes many.

        Raises:
            UserError: An image is empty, transparent, or of another size or number of channels. What headers don't
                tell (palettes, damage) is met when the image is read.
        """
        for name in self.archive.names:
            header = self.archive.header(name)
            if header is None:
                continue
            channels = self.image_shape[0] if header.channels is None else header.channels
            self._check_shape(name, (channels, header.height, header.width))

    def _decode(self, name: str) -> np.ndarray:
        pixels = decode_image(self.archive.read(name), self.archive.where(name))
        self._refuse_alpha(name, pixels.shape[2])
        return pixels.transpose(2, 0, 1)

    def _refuse_alpha(self, name: str, channels: int) -> None:
        if channels in (2, 4):
            raise UserError(f'{self.archive.where(name)}: has an alpha channel; '
                            'flatten the data set with dataset_tool.py --alpha=white|black')

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """UserError unless an image's [channels, height, width] is that of the first."""
        self._refuse_alpha(name, shape[0])
        if list(shape) != self.image_shape:
            option = '--color' if list(shape[1:]) == self.image_shape[1:] else '--resolution'
            raise UserError(f'{self.archive.where(name)}: {_describe(shape)}, but the first image is '
                            f'{_describe(self.image_shape)}; make them alike with dataset_tool.py {option}')


def _describe(shape: Any) -> str:
    channels, height, width = shape
    return f'{width}x{height} with {channels} channel{"s" if channels > 1 else ""}'
