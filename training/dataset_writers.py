"""Writes a data set, as zip or folder, that is there as a whole or not at all, byte for byte the same each time."""

import contextlib
import json
import os
import shutil
import struct
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from dnnlib.util import UserError, atomic_write
from training.image_archive import Label
from training.image_decode import one_line

WriteFile = Callable[[str, bytes], None]

_STORED_BLOCK = 0xFFFF  # Largest stored block of DEFLATE (RFC 1951, 3.2.4).


def image_name(index: int) -> str:
    """Name of image number `index` in a data set, in folders of a thousand."""
    digits = f'{index:08d}'
    return f'{digits[:5]}/img{digits}.png'


def label_json(labels: list[Label] | None) -> bytes:
    """Content of dataset.json for labels in the order of the images."""
    table = None if labels is None else [[image_name(index), label] for index, label in enumerate(labels)]
    return json.dumps({'labels': table}).encode()


def encode_png(pixels: np.ndarray) -> bytes:
    """Uncompressed PNG of uint8 [height, width, 1 or 3].

    Reads fastest, and unlike an image library's output its bytes depend on no library version (PNG: RFC 2083).
    """
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # Each row begins with its filter type: 0, none.
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack('>IIBBBBB', width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', _zlib_stored(rows.tobytes())), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )


def _zlib_stored(data: bytes) -> bytes:
    """A zlib stream without compression."""
    parts = [b'\x78\x01']
    for start in range(0, len(data), _STORED_BLOCK):
        block = data[start:start + _STORED_BLOCK]
        is_last = start + _STORED_BLOCK >= len(data)
        parts += [struct.pack('<BHH', is_last, len(block), len(block) ^ 0xFFFF), block]
    return b''.join([*parts, struct.pack('>I', zlib.adler32(data))])


def check_dest(dest: str, source: str) -> None:
    """UserError if the data set can't be written to `dest`."""
    shown = one_line(dest)
    if not dest:
        raise UserError('--dest: must not be empty; give a .zip or a folder')
    here, there = os.path.realpath(dest), os.path.realpath(source)
    if here == there:
        raise UserError(f'{shown}: --dest and --source are the same')
    if _is_zip(dest):
        if os.path.isdir(dest):
            raise UserError(f'{shown}: is a folder; give another name for the zip')
    elif os.path.lexists(dest) and not os.path.isdir(dest):
        raise UserError(f'{shown}: is a file; give a .zip or a folder')
    elif os.path.isdir(dest) and os.listdir(dest):
        raise UserError(f'{shown}: is not empty; empty it or give another folder')
    elif here.startswith(there + os.sep):
        raise UserError(f'{shown}: lies inside --source, and would be read as part of it next time')


def _is_zip(path: str) -> bool:
    return path.lower().endswith('.zip')


@contextlib.contextmanager
def open_dest(dest: str) -> Iterator[WriteFile]:
    """Yields `write(name, data)`. What was written appears at `dest` when the block ends without an error, else not."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(dest)), exist_ok=True)
        with _zip_dest(dest) if _is_zip(dest) else _folder_dest(dest) as write:
            yield write
    except OSError as error:
        raise UserError(f'{one_line(dest)}: can\'t be written ({one_line(error.strerror or error)})') from error


@contextlib.contextmanager
def _zip_dest(dest: str) -> Iterator[WriteFile]:
    with atomic_write(dest) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(name)  # Dated 1980, so that equal images give equal zips.
            entry.create_system = 3  # Unix, on Windows too.
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)

        yield write


@contextlib.contextmanager
def _folder_dest(dest: str) -> Iterator[WriteFile]:
    folder, base = os.path.split(os.path.abspath(dest))
    temp = os.path.join(folder, f'.{base[:100]}.{uuid.uuid4().hex[:12]}.tmp')
    os.mkdir(temp)

    def write(name: str, data: bytes) -> None:
        path = os.path.join(temp, *name.split('/'))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            file.write(data)

    try:
        yield write
        if os.path.isdir(dest):
            os.rmdir(dest)  # It is empty: `check_dest` saw to it, and rmdir makes sure.
        os.rename(temp, dest)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
