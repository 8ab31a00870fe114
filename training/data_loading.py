"""Batches of a data set, ready when they are needed: decoded ahead, kept in memory where they fit, on the device.

    workers decode ──► shared memory ──► a thread puts batches together ──► queue ──► the loop
    (decode_pool)      (image_cache)     (on CUDA into pinned memory)                 (staging)

Which images come in which order is the caller's choice alone: workers, memory and look-ahead change no batch.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.util import UserError, loader_workers, usable_cpus, without_traceback
from training import image_cache
from training.decode_pool import DecodePool, all_cpus
from training.image_memory import ImageMemory, Rows, fence
from training.staging import Batch, CudaStaging, Ready, Staging, Stopped

AHEAD = 3  # Batches that are being decoded at a time …
READY = 2  # … and that wait, put together.
WORTH_A_START = 2**26  # Bytes of pixels. Decoding them takes about a second, starting processes a quarter of one.
_LOOK_EVERY = 50  # Batches between looks at whether all images are in memory.


def stream(
    dataset: Any, items: Iterable[int], batch_size: int, device: torch.device, num_workers: int | None = 0,
    **loader_kwargs: Any,
) -> Batches:
    """Batches of the items in their order, on the device; the last one is smaller if there is an end.

    Args:
        dataset: Of plain files is read by this module, others by torch's DataLoader.
        items: Numbers of items, also without an end.
        batch_size: Items of a batch.
        device: Where batches are wanted.
        num_workers: Processes that decode. None = as many as are worth their start for so many items.
        loader_kwargs: Further ones of the DataLoader.
    """
    if not getattr(dataset, 'is_plain', False):
        workers = loader_workers(_count(items, dataset)) if num_workers is None else num_workers
        return Foreign(dataset, items, batch_size, device, workers, **loader_kwargs)
    if num_workers is None:
        decoded = _count(items, dataset) * int(np.prod(dataset.image_shape))
        num_workers = min(3, usable_cpus()) if decoded >= WORTH_A_START else 0
    return ReadAhead(dataset, items, batch_size, device, num_workers)


def _count(items: Iterable[int], dataset: Any) -> int:
    return len(items) if isinstance(items, Sequence) else len(dataset)


class Batches(Iterator[Batch]):
    """What both kinds of streams have. Close it when done: threads and processes end then.

    Attributes:
        waited: Seconds spent in `next` since somebody set it to 0.
    """

    waited = 0.0

    def __next__(self) -> Batch:
        began = time.perf_counter()
        try:
            return self._next()
        except UserError as error:
            raise without_traceback(error) from None
        finally:
            self.waited += time.perf_counter() - began

    def _next(self) -> Batch:
        raise NotImplementedError

    @property
    def is_filling(self) -> bool:
        """Whether images are still being decoded into memory, so that waits will end by themselves."""
        return False

    def remedy(self) -> str:
        """What to do if the loop waits."""
        return 'more --workers'

    def close(self) -> None:
        """Ends everything that works ahead."""


class Foreign(Batches):
    """Of a data set that this project knows nothing of, by torch's DataLoader."""

    def __init__(self, dataset: Any, items: Iterable[int], batch_size: int, device: torch.device, workers: int,
                 **kwargs: Any) -> None:
        kwargs.setdefault('pin_memory', device.type == 'cuda')
        if not workers:
            kwargs.pop('prefetch_factor', None)
        if hasattr(dataset, 'close'):
            dataset.close()  # Forked workers must not share one open file.
        # A generator of its own: else it draws a number of the global one's, which others count on.
        loader: Any = torch.utils.data.DataLoader(dataset, batch_size=batch_size, sampler=items, num_workers=workers,
                                                  generator=torch.Generator(), **kwargs)
        self._batches = iter(loader)
        self._device = device

    def _next(self) -> Batch:
        images, labels = next(self._batches)
        return images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def close(self) -> None:
        self._batches = iter(())


class _Asked(NamedTuple):
    """A batch on its way."""

    items: list[int]
    memories: np.ndarray  # int64 [N]: which of the memories, …
    places: np.ndarray  # int64 [N]: … and where in it
    flipped: np.ndarray  # bool [N]
    futures: list[concurrent.futures.Future[None]]
    batch: Batch | None  # Into which images are decoded, where no other process does it.


class ReadAhead(Batches):
    """Of one of our data sets. A thread runs ahead of the caller, by AHEAD + READY batches.

    Images that have a place in the cache of these files are taken from there, and put there the first time. Workers
    write the others into a ring of a few batches; without workers they are decoded into the batch itself.
    """

    def __init__(self, dataset: Any, items: Iterable[int], batch_size: int, device: torch.device, workers: int) -> None:
        self._dataset, self._items, self._batch_size = dataset, items, batch_size
        self._ahead = AHEAD if workers else 1
        self._in_place = not workers
        self._cache = image_cache.recall(dataset.reader)
        self._has_cache, self._has_rest, self._missing = self._shares()
        shapes = [batch_size, *dataset.image_shape], [batch_size, dataset.label_dim]
        self._staging = CudaStaging(device, *shapes, READY) if device.type == 'cuda' else Staging(device)
        room = self._ahead * batch_size if self._has_rest and workers else 0
        ring = ImageMemory(room, dataset.image_shape)
        self._memories: list[ImageMemory | Rows] = [ring] if self._cache is None else [ring, self._cache.memory]
        needs_workers = self._has_rest or len(self._missing) > 0
        self._pool = DecodePool(dataset.reader, self._memories, workers if needs_workers else 0)
        self._ready: Ready = queue.Queue(READY)
        self._stopping = False
        self._cpus = all_cpus()
        self._thread = threading.Thread(target=self._run, name='batches', daemon=True)
        self._thread.start()

    def _shares(self) -> tuple[bool, bool, np.ndarray]:
        """Whether some images have a place in the cache, whether some have none, and the places still empty."""
        if self._cache is None:
            return False, True, np.zeros(0, np.int64)
        items = self._items if isinstance(self._items, Sequence) else range(len(self._dataset))
        slots = self._cache.slots[np.unique(self._dataset.places(items)[0])]
        kept = slots[slots >= 0]
        return len(kept) > 0, len(kept) < len(slots), self._empty(kept)

    def _empty(self, slots: np.ndarray) -> np.ndarray:
        assert self._cache is not None, 'slots are its'
        return slots[self._cache.memory.present[slots] == 0]

    def _next(self) -> Batch:
        if self._stopping:
            raise StopIteration
        try:
            return self._staging.next(self._ready)
        except BaseException as error:
            self._stopping = not isinstance(error, KeyboardInterrupt)  # Nothing comes after it.
            raise

    @property
    def is_filling(self) -> bool:
        return len(self._missing) > 0

    def remedy(self) -> str:
        if self._has_cache and not self._has_rest:
            return 'a faster machine; all images are in memory'
        return 'more --workers, a larger --cache, or a data set of images stored as JPEG'

    def close(self) -> None:
        self._stopping = True
        while self._thread.is_alive():  # It may be waiting for room, or for a buffer.
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._staging.release()
            self._thread.join(0.01)
        self._pool.close()
        self._memories.clear()

    # -----------------------------------------------------------------------------------------------------------------
    # In the thread

    def _run(self) -> None:
        if self._cpus and hasattr(os, 'sched_setaffinity'):
            os.sched_setaffinity(0, self._cpus)  # Of this thread: OpenMP binds the one that started it to a core.
        end: BaseException = StopIteration()
        try:
            for batch in self._put_together():
                self._ready.put(batch)
                if self._stopping:
                    return
        except Stopped:
            return
        except BaseException as error:  # Whatever it is, the loop must hear of it.
            end = error
        self._ready.put(end)

    def _put_together(self) -> Iterator[Batch]:
        asked: collections.deque[_Asked] = collections.deque()
        groups = _groups(self._items, self._batch_size)
        rows = itertools.cycle(range(self._ahead))
        for count in itertools.count():
            while len(asked) < self._ahead and (group := next(groups, None)) is not None:
                asked.append(self._ask(group, next(rows)))
            if not asked or self._stopping:
                return
            yield self._collect(asked.popleft())
            if count % _LOOK_EVERY == 0 and len(self._missing):
                self._missing = self._empty(self._missing)
                if not (self._has_rest or len(self._missing) or any(batch.futures for batch in asked)):
                    self._pool.close()  # Processes that will have nothing to do.

    def _ask(self, items: list[int], row: int) -> _Asked:
        raw, flipped = self._dataset.places(items)
        places = row * self._batch_size + np.arange(len(raw))
        memories = np.zeros(len(raw), np.int64)
        wanted = np.ones(len(raw), bool)
        if self._cache is not None:
            slots = self._cache.slots[raw]
            memories[slots >= 0] = 1
            places = np.where(slots >= 0, slots, places)
            wanted[slots >= 0] = self._cache.memory.present[slots[slots >= 0]] == 0
        batch = None
        if self._in_place:
            batch = self._buffer(len(items))
            self._memories[0] = Rows(batch[0].numpy())  # The pool looks into this list.
        every = zip(*(array[wanted].tolist() for array in (raw, memories, places)), strict=True)
        tasks = list(dict.fromkeys(every))  # An image may come twice, mirrored.
        step = max(-(-len(tasks) // max(2 * self._pool.workers, 1)), 1)
        futures = [self._pool.submit(tasks[i : i + step]) for i in range(0, len(tasks), step)]
        return _Asked(items, memories, places, flipped, futures, batch)

    def _collect(self, asked: _Asked) -> Batch:
        for future in asked.futures:
            future.result()
        fence()  # Others may have written images, too.
        batch = self._buffer(len(asked.items)) if asked.batch is None else asked.batch
        images = batch[0].numpy()
        one = asked.memories[0]
        if not asked.flipped.any() and (asked.memories == one).all():
            if one or not self._in_place:
                # Other modes than clip copy everything once more.
                np.take(self._memories[one].images, asked.places, axis=0, out=images, mode='clip')
        else:
            self._take_singly(asked, images)
        if self._dataset.label_dim:
            batch[1].numpy()[:] = np.stack([self._dataset.get_label(item) for item in asked.items])
        return batch

    def _take_singly(self, asked: _Asked, images: np.ndarray) -> None:
        for row, (memory, place, flip) in enumerate(zip(asked.memories, asked.places, asked.flipped, strict=True)):
            image = self._memories[memory].images[place]
            if flip:
                images[row] = image[:, :, ::-1]  # Also where this is the row itself: numpy sees that.
            elif memory or not self._in_place:
                images[row] = image

    def _buffer(self, count: int) -> Batch:
        return self._staging.buffer([count, *self._dataset.image_shape], [count, self._dataset.label_dim])


def _groups(items: Iterable[int], size: int) -> Iterator[list[int]]:
    source = iter(items)
    while group := list(itertools.islice(source, size)):
        yield group
