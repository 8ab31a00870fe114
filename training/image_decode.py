"""Bytes of an image file → uint8 pixels: the one place where odd image files are made plain or refused."""

import io
import math
import struct
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps

from dnnlib.util import UserError

try:
    import pyspng
except ImportError:  # An optional accelerator: Pillow reads all that it reads.
    pyspng = None

# Pillow's other readers are left out on purpose: EPS would start Ghostscript, and none of them holds photographs.
IMAGE_FORMATS: dict[str, tuple[str, ...]] = {
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
IMAGE_EXTENSIONS = frozenset(extension for group in IMAGE_FORMATS.values() for extension in group)
MAX_PIXELS = 2**27  # 134 megapixels: more than any camera's, and decoded RGB still fits into half a gigabyte.

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PLAIN_PNG_CHANNELS = {0: 1, 2: 3, 6: 4}  # PNG colour type → channels. pyspng mishandles grey+alpha and 16 bits.
_EXIF_ORIENTATION = 0x0112


def one_line(text: object) -> str:
    """Any message or file name as a single printable line."""
    line = ' '.join(str(text).split())
    return line if line.isprintable() else ascii(line)[1:-1]


def has_image_extension(name: str) -> bool:
    """Does this file name end like one of the formats that are read?"""
    dot = name.rfind('.')
    return dot >= 0 and name[dot:].lower() in IMAGE_EXTENSIONS


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes one image file.

    Palettes, CMYK and other colour spaces become RGB, 16 bits become 8, 1 bit becomes 8, and EXIF rotation is applied.
    An animation gives its first frame.

    Args:
        data: The whole file. Its format is told by its content, not by its name.
        name: How errors call it.

    Returns:
        uint8 array [height, width, channels]; channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    Raises:
        UserError: Not an image, damaged, too large, or of a pixel type without a fixed range.
    """
    pixels = _decode_plain_png(data, name)
    return pixels if pixels is not None else _decode_with_pillow(data, name)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f'{name}: {width}x{height} pixels are declared, more than the {MAX_PIXELS} that are read')


def _png_chunk_names(data: bytes) -> set[bytes] | None:
    """Names of all chunks, None if the chain of chunks is broken."""
    names: set[bytes] = set()
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, chunk = struct.unpack_from('>I4s', data, position)
        names.add(chunk)
        position += length + 12
        if chunk == b'IEND':
            return names
    return None


def _decode_plain_png(data: bytes, name: str) -> np.ndarray | None:
    """The fast path: 8-bit grey, RGB or RGBA without extras. None = leave it to Pillow."""
    if pyspng is None or len(data) < 33 or not data.startswith(_PNG_SIGNATURE) or data[12:16] != b'IHDR':
        return None
    width, height, depth, colour_type = struct.unpack_from('>IIBB', data, 16)
    _check_size(width, height, name)
    chunks = _png_chunk_names(data)
    if depth != 8 or colour_type not in _PLAIN_PNG_CHANNELS or chunks is None or chunks & {b'tRNS', b'eXIf', b'acTL'}:
        return None
    try:
        pixels = pyspng.load(data)
    except (RuntimeError, ValueError):
        return None  # Pillow says better what is wrong with it.
    shape = (height, width, _PLAIN_PNG_CHANNELS[colour_type])
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.size != math.prod(shape):
        return None
    return pixels.reshape(shape)


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    PIL.Image.init()
    formats = [image_format for image_format in IMAGE_FORMATS if image_format in PIL.Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Size is checked below; odd metadata is nobody's concern here.
            with PIL.Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image.width, image.height, name)
                image.load()
                return _to_uint8(_upright(image), image.format or '', name)
    except UserError:
        raise
    except PIL.UnidentifiedImageError:
        raise UserError(f'{name}: not an image of a known format') from None
    except Exception as error:  # Decoders raise whatever a damaged file drives them to; none of it is our caller's bug.
        raise UserError(f'{name}: damaged or unreadable image ({one_line(error) or type(error).__name__})') from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Applies the EXIF orientation. Broken EXIF data count as none."""
    try:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9)
    except Exception:  # EXIF parsing fails in many ways, and the picture itself may still be good.
        return image
    return PIL.ImageOps.exif_transpose(image) if turned else image


def _to_uint8(image: PIL.Image.Image, image_format: str, name: str) -> np.ndarray:
    """Pillow image of any mode → uint8 [height, width, channels]."""
    mode = image.mode
    if mode.startswith('I;16') or (mode == 'I' and image_format in ('PNG', 'PPM')):
        grey = np.asarray(image).astype(np.int64)  # 0 … 65535; 65535 / 255 = 257.
        return ((grey + 128) // 257).astype(np.uint8)[:, :, np.newaxis]
    if mode in ('I', 'F'):
        raise UserError(f'{name}: {mode}-mode pixels (32 bit) have no fixed range; save it with 8 or 16 bits')
    is_grey = mode in ('1', 'L', 'LA', 'La')
    has_alpha = mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info
    target = {(True, False): 'L', (True, True): 'LA', (False, False): 'RGB', (False, True): 'RGBA'}[is_grey, has_alpha]
    pixels = np.array(image if mode == target else image.convert(target))
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
