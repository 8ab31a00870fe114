"""Image files of any kind -> upright pictures of eight bits: what is read, and what is refused."""

from __future__ import annotations

import os
import warnings
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps

# What is read, and up to which size, is what `training.image_decode` reads for data sets; it stands here again because
# NVIDIA's hosts have no such module. A test holds both together.
MAX_PIXELS = 2**27
FORMATS = {
    'PNG': ('.png', '.apng'),
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'WEBP': ('.webp',),
    'BMP': ('.bmp', '.dib'),
    'GIF': ('.gif',),
    'TIFF': ('.tif', '.tiff'),
    'PPM': ('.pbm', '.pgm', '.ppm', '.pnm'),
    'TGA': ('.tga',),
    'JPEG2000': ('.jp2', '.j2k', '.jpx'),
    'AVIF': ('.avif',),
}
EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
TOO_LARGE = f'more than {MAX_PIXELS // 1_000_000} million pixels; refused'


def has_image_extension(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


class UnusableImageError(ValueError):
    """A sound file that is refused all the same; the message says why."""


def decode(
    file: str | os.PathLike[str] | BinaryIO | PIL.Image.Image, alpha: bool = False
) -> tuple[PIL.Image.Image, list[str]]:
    """File, or picture that Pillow holds -> upright picture of mode L or RGB, with notes.

    With `alpha` of mode LA or RGBA if anything in it is transparent.

    Raises:
        UnusableImageError: too large, or without defined brightness. Pillow's errors pass through.
    """
    if isinstance(file, PIL.Image.Image):  # The caller's: it stays open.
        return _usable(file, alpha)
    PIL.Image.init()  # Registers all readers, so that the list below is of those that this Pillow has.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # The size is checked here; odd metadata harms nobody.
        try:
            picture = PIL.Image.open(file, formats=[kind for kind in FORMATS if kind in PIL.Image.OPEN])
        except PIL.Image.DecompressionBombError:
            raise UnusableImageError(TOO_LARGE) from None
        with picture:
            return _usable(picture, alpha)


def _usable(picture: PIL.Image.Image, alpha: bool) -> tuple[PIL.Image.Image, list[str]]:
    if picture.width * picture.height > MAX_PIXELS:
        raise UnusableImageError(TOO_LARGE)
    picture.load()
    if picture.mode == 'F' or (picture.mode == 'I' and picture.format not in ('PNG', 'PPM')):
        raise UnusableImageError('32-bit values have no agreed white; save it with 8 or 16 bits')
    return _to_eight_bits(_upright(picture), alpha)


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # Unreadable EXIF data: the picture itself may still be good.
        return picture


def _to_eight_bits(picture: PIL.Image.Image, alpha: bool) -> tuple[PIL.Image.Image, list[str]]:
    """Any mode -> mode L or RGB, with notes; with `alpha` also LA or RGBA."""
    notes: list[str] = []
    if picture.mode.startswith('I'):
        notes.append('16 bits reduced to 8')
        return PIL.Image.fromarray(np.rint(np.asarray(picture) / 257).clip(0, 255).astype(np.uint8)), notes
    if picture.mode in ('RGBA', 'RGBa', 'LA', 'PA') or 'transparency' in picture.info:
        rgba = picture.convert('RGBA')
        grey = picture.mode in ('1', 'L', 'LA')
        if rgba.getchannel('A').getextrema() != (255, 255):
            if alpha:
                return rgba.convert('LA' if grey else 'RGBA'), notes
            notes.append('transparency laid on white')
            rgba = PIL.Image.alpha_composite(PIL.Image.new('RGBA', rgba.size, 'white'), rgba)
        return rgba.convert('L' if grey else 'RGB'), notes
    if picture.mode in ('L', '1'):
        return picture.convert('L'), notes
    return picture.convert('RGB'), notes
