"""What the metrics of one command hand on to each other: generated images, and features of images.

Hand the same dict as `shared` to `calc_metric` for each of them. Under 'metrics' it may hold the names of all, in
their order: then nothing is kept that none of them asks for, and the file goes when the last has had it. A batch is
a pure function of network, seed and items, so a metric gives the same numbers, bit for bit, whether it makes its
batches itself or finds them here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Hashable, Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

import dnnlib
from metrics.feature_stats import Array

MAX_BYTES = 32 * 2**30  # 50,000 images of 256 pixels are 10 GB, their VGG16 features 0.8 GB.
_STORE, _LATER = ('metrics.shared_pass', 'store'), ('metrics.shared_pass', 'later')


@dataclasses.dataclass(frozen=True)
class _Place:
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def metrics_folder() -> str:
    """The cache of the metrics, created if need be."""
    folder = dnnlib.make_cache_dir_path('gan-metrics')
    os.makedirs(folder, exist_ok=True)
    return folder


def temporary_file(folder: str | None = None) -> IO[bytes]:
    """A file without a name, in the metrics' cache (not /tmp, which may be memory) unless a folder is given. The system
    removes it with the process, however that ends.
    """
    return tempfile.TemporaryFile(dir=folder or metrics_folder())


def read_array(file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array that stands in the file as it does in memory."""
    file.seek(offset)
    return np.frombuffer(bytearray(file.read(math.prod(shape) * np.dtype(dtype).itemsize)), dtype).reshape(shape)


class BatchStore:
    """Arrays by key in a temporary file.

    Args:
        max_bytes: What doesn't fit any more is not kept, and its owner makes it again. None = MAX_BYTES, but at most
            half of the free space.
        folder: Where the file lies: see `temporary_file`.
        shares: Number of processes that divide `max_bytes` among themselves.
    """

    def __init__(self, max_bytes: int | None = None, folder: str | None = None, shares: int = 1) -> None:
        self._file = temporary_file(folder)
        if max_bytes is None:
            max_bytes = min(MAX_BYTES, shutil.disk_usage(folder or metrics_folder()).free // 2)
        self.max_bytes = max_bytes // shares
        self.keeps = True  # False = nobody will ask for what comes now.
        self.owners: dict[int, Any] = {}  # Objects whose id stands in keys: held, so that their ids stay theirs.
        self._size = 0
        self._places: dict[Hashable, _Place] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def get(self, key: Hashable) -> Array | None:
        place = self._places.get(key)
        if place is None:
            return None
        return read_array(self._file, place.offset, place.shape, place.dtype)

    def put(self, key: Hashable, array: Array) -> None:
        """Keeps a copy if there is room for it. A full disk is no error: it only means that nothing more is kept."""
        if not self.keeps or key in self._places or self._size + array.nbytes > self.max_bytes:
            return
        try:
            self._file.seek(self._size)
            self._file.write(np.ascontiguousarray(array).tobytes())
            self._file.flush()
        except OSError:
            self.keeps = False
            return
        self._places[key] = _Place(self._size, array.shape, array.dtype)
        self._size += array.nbytes

    def close(self) -> None:
        self._file.close()
        self._places.clear()


def store_of(shared: dict[Any, Any] | None) -> BatchStore | None:
    """What is kept for the metrics of this command; None where nothing is."""
    return None if shared is None else shared.get(_STORE)


@contextlib.contextmanager
def taking_part(
    shared: dict[Any, Any] | None, metric: str, sharing: set[str], num_gpus: int
) -> Iterator[None]:
    """Round a metric: keeps what it makes if a later one will take it, and drops all when there is none.

    Args:
        shared: The dict of the command.
        metric: Name of the one that runs.
        sharing: Names of all metrics that look at generated images.
        num_gpus: Number of processes.
    """
    later = None if shared is None else shared.get(_LATER, shared.get('metrics'))
    if shared is not None and later is not None and metric in later:
        later = shared[_LATER] = later[later.index(metric) + 1 :]
    wanted = shared is not None and (later is None or not sharing.isdisjoint(later))
    store = store_of(shared)
    if shared is not None and store is None and wanted and metric in sharing:
        store = shared[_STORE] = BatchStore(shares=num_gpus)
    if store is not None:
        store.keeps = wanted
    yield
    if shared is not None and store is not None and not wanted:
        store.close()
        del shared[_STORE]
