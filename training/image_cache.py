"""Which images of a data set are kept in memory, decoded, by all processes of a machine together.

Nothing is decoded in advance: who first needs an image decodes it into its place.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, NamedTuple

import numpy as np

from dnnlib import memory
from dnnlib.util import UserError
from torch_utils import distributed
from training.image_memory import ImageMemory, fence
from training.image_reader import ImageReader

SHARE = 0.5  # Of the free memory that 'auto' takes at most; the rest is for networks, other users, and file caches.


class ImageCache:
    """Places in memory for some or all images of a folder or zip.

    Args:
        numbers: Those of the images that have a place.
        reader: Of all images.
        handle: That of another process's memory. None = new, empty memory.

    Attributes:
        memory: Where they are.
        slots: int64 [all images], the place of each; -1 = it has none.
    """

    def __init__(self, numbers: np.ndarray, reader: ImageReader, handle: str | None = None) -> None:
        self.memory = ImageMemory(len(numbers), reader.image_shape, handle)
        self.slots = np.full(len(reader.archive.names), -1, np.int64)
        self.slots[numbers] = np.arange(len(numbers))

    def fetch(self, raw_idx: int, reader: ImageReader) -> np.ndarray:
        """An image, decoded if nobody has done that yet: uint8 [channels, height, width], not to be written to."""
        slot = self.slots[raw_idx]
        if slot < 0:
            return reader.read(raw_idx)
        if not self.memory.present[slot]:
            self.memory.put(slot, reader.read(raw_idx))
        fence()
        return self.memory.images[slot]


# Data sets are opened anew in many places, by their arguments: splits, metrics, grids. All see the same images.
_caches: dict[Any, ImageCache] = {}


def _key(reader: ImageReader) -> Any:
    return os.path.abspath(reader.archive.path), len(reader.archive.names), *reader.image_shape


def recall(reader: ImageReader) -> ImageCache | None:
    """Where images of these files are kept in this process, if they are."""
    return _caches.get(_key(reader)) if _caches else None


def release(dataset: Any) -> None:
    """Gives back what `keep` took, once nothing looks at it any more. Data sets of these files decode again."""
    if getattr(dataset, 'is_plain', False):
        cache = _caches.pop(_key(dataset.reader), None)
        if cache is not None:
            cache.memory.close()


# ---------------------------------------------------------------------------------------------------------------------
# How much


class _Offer(NamedTuple):
    """What one process tells the others of its machine."""

    machine: tuple[str, str]
    handle: str | None = None  # Of the new memory.
    numbers: np.ndarray | None = None  # Of the images that have a place in it.
    line: str = ''


def keep(dataset: Any, limit: str | int, rank: int) -> str:
    """Opens a memory for the images of a data set, one for all processes of a machine. All of them call it together.

    Args:
        dataset: One of our data sets of files; others are left alone.
        limit: 'off'; 'auto' = all images if they take no more than half of what is free; or bytes: as many images as
            they hold.
        rank: Of this process.

    Returns:
        A line that says what is kept.

    Raises:
        UserError: More bytes are wanted than are free.
    """
    if not getattr(dataset, 'is_plain', False):
        return "Images are read by the data set's own code each time"
    here = _machine()
    machines = [offer.machine for offer in distributed.gather_objects(_Offer(here))]
    first = machines.index(here)  # Of the processes that share one memory.
    others = len({machine for machine in machines if machine[0] == here[0]})  # Containers of one machine.
    offers = distributed.gather_objects(_offer(dataset, limit, here, others) if rank == first else None)
    offer: _Offer = offers[first]
    if offer.handle is not None and offer.numbers is not None and rank != first:
        try:
            _caches[_key(dataset.reader)] = ImageCache(offer.numbers, dataset.reader, offer.handle)
        except OSError as error:
            print(f'Rank {rank} decodes images each time they are shown: it has no access to the memory of rank '
                  f'{first} ({error})', file=sys.stderr, flush=True)
    return offer.line


def _machine() -> tuple[str, str]:
    """(this machine, the part of it whose processes see each other): equal where memory can be shared."""
    try:
        with open('/proc/sys/kernel/random/boot_id') as f:
            return f.read().strip(), os.readlink('/proc/self/ns/pid')
    except OSError:
        return socket.gethostname(), ''


def _offer(dataset: Any, limit: str | int, here: tuple[str, str], sharers: int) -> _Offer:
    """The first process's part on its machine."""
    if limit == 'off':
        return _Offer(here, line='Images are decoded each time they are shown (--cache=off)')
    numbers, size = _chosen(dataset, limit, free := memory.free_bytes() // sharers)
    if not len(numbers):
        return _Offer(here, line=f'Images are decoded each time they are shown: they take {describe(size)}, '
                                 f'{describe(free)} are free; --cache=SIZE keeps a part')
    cache = _caches[_key(dataset.reader)] = ImageCache(numbers, dataset.reader)
    taken = cache.memory.images.nbytes
    what = 'Images' if taken >= size else f'{100 * taken / size:.0f} % of the images'
    line = f'{what} kept in memory as they are first shown: {describe(taken)} of {describe(free)} free'
    return _Offer(here, cache.memory.handle, numbers, line)


def _chosen(dataset: Any, limit: str | int, free: int) -> tuple[np.ndarray, int]:
    """Numbers of the images to keep, and the bytes of all that the data set shows. See `keep`."""
    image = int(np.prod(dataset.image_shape))
    everything = np.arange(len(dataset.reader.archive.names))
    shown = np.unique(dataset.places(np.arange(len(dataset)))[0])
    size = image * len(shown)
    if limit == 'auto':
        room = int(SHARE * free) // image
        # Held-out images too, for metrics, where there is room for them.
        return (everything if len(everything) <= room else shown if len(shown) <= room else everything[:0]), size
    if not isinstance(limit, int):
        raise UserError(f"--cache: got {limit!r}, expected 'auto', 'off' or a number of bytes")
    if min(limit, size) > free:
        raise UserError(f'--cache: {describe(min(limit, size))} are to be kept in memory, {describe(free)} are free; '
                        'give less, or --cache=auto')
    room = limit // image
    return (everything if len(everything) <= room and everything.size * image <= free else shown[:room]), size


def describe(size: float) -> str:
    """Bytes as people say them."""
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.0f} MB' if size >= 1e6 else f'{size / 1e3:.0f} kB'
