"""Decoded images in memory that all processes of a machine share: those that decode ahead, and ranks. Imports no torch.

The memory is of the system's shared kind without a name, so that it is gone with the last process that looks at it,
however that ends. (Where the system has none, it is a temporary file, or Windows' tagged memory.)
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
import threading
import uuid

import numpy as np

_lock = threading.Lock()


def fence() -> None:
    """What was read or written before comes before what is read or written after, as other processes see it.

    x86 keeps that order by itself, ARM doesn't. A lock's release and its next acquisition are a full barrier there.
    """
    for _ in range(2):
        with _lock:
            pass


class ImageMemory:
    """Room for `count` images of one shape, and for each a mark that says whether it is there.

    Args:
        count: How many images. Room that is never written takes no memory.
        image_shape: [channels, height, width]
        handle: That of another process's memory, on the same machine, to look at. None = new, empty memory.

    Attributes:
        images: uint8 [count, channels, height, width]
        present: uint8 [count], 1 where the image is there. Set it by `put`; call `fence` between it and the pixels.
        handle: By which others find it, as long as this process lives and hasn't closed it.

    Raises:
        OSError: No such memory, or no access to it.
    """

    def __init__(self, count: int, image_shape: list[int], handle: str | None = None) -> None:
        self._fd: int | None = None
        self._file: str | None = None
        self._owner = os.getpid()  # A forked process must not tidy up for this one.
        size = int(np.prod(image_shape, dtype=np.int64))
        marks = -(-max(count, 1) // 64) * 64  # Images begin at a cache line's start.
        total = marks + count * size
        self._map = self._create(total) if handle is None else _attach(handle, total)
        if handle is not None:
            self.handle = handle
        self.present = np.frombuffer(self._map, np.uint8, count)
        self.images = np.frombuffer(self._map, np.uint8, count * size, marks).reshape(count, *image_shape)

    def put(self, place: int, pixels: np.ndarray) -> None:
        """Writes one image. Two processes may do this at once if they write the same."""
        self.images[place] = pixels
        fence()
        self.present[place] = 1

    def close(self) -> None:
        """No one else can attach from now on. What still looks at the memory stays valid."""
        fd, file, self._fd, self._file = self._fd, self._file, None, None
        if fd is not None:
            os.close(fd)
        if file is not None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                os.remove(file)

    def __del__(self) -> None:
        if '_owner' in self.__dict__:
            self.close()

    def _create(self, size: int) -> mmap.mmap:
        name = f'images-{uuid.uuid4().hex}'
        if sys.platform == 'win32':
            self.handle = name
            return mmap.mmap(-1, size, tagname=name)
        if hasattr(os, 'memfd_create'):  # Unlike files in /dev/shm, these know no limit but the machine's memory.
            self._fd = os.memfd_create(name)
            path = f'/proc/{os.getpid()}/fd/{self._fd}'
        else:
            self._fd, self._file = tempfile.mkstemp(prefix=name)
            path = self._file
        self.handle = f'{name}:{path}'
        os.ftruncate(self._fd, size)
        return mmap.mmap(self._fd, size)


class Rows:
    """An array of images in the place of an `ImageMemory`, of this process alone."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images  # uint8 [count, channels, height, width]

    def put(self, place: int, pixels: np.ndarray) -> None:
        """Writes one image."""
        self.images[place] = pixels


def _attach(handle: str, size: int) -> mmap.mmap:
    if sys.platform == 'win32':
        return mmap.mmap(-1, size, tagname=handle)
    name, path = handle.split(':', 1)
    fd = os.open(path, os.O_RDWR)
    try:
        # Elsewhere, in another container say, the same process number is somebody else, and so is the file.
        if name not in os.path.basename(os.path.realpath(path) if not path.startswith('/proc/') else os.readlink(path)):
            raise FileNotFoundError(f'{path} is not {name}')
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
