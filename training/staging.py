"""Batches from the thread that puts them together to the device on which the loop works."""

from __future__ import annotations

import collections
import queue
from collections.abc import Sequence

import torch

Batch = tuple[torch.Tensor, torch.Tensor]  # uint8 [N, channels, height, width], float32 [N, label_dim]
Ready = queue.Queue[Batch | BaseException]  # What the thread hands over, in order; an error is the last.


class Stopped(Exception):
    """In the thread: nobody wants any more."""


class Staging:
    """Through ordinary memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def buffer(self, image_shape: Sequence[int], label_shape: Sequence[int]) -> Batch:
        """Memory for a batch. Called by the thread."""
        return torch.empty(tuple(image_shape), dtype=torch.uint8), torch.empty(tuple(label_shape))

    def next(self, ready: Ready) -> Batch:
        """The next batch, on the device. Called by the loop. Raises what the thread hands over as an error."""
        batch = ready.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch[0].to(self.device), batch[1].to(self.device)

    def release(self) -> None:
        """Lets a thread go on that waits for a buffer; it gets Stopped."""


class CudaStaging(Staging):
    """Through a ring of pinned buffers, by a stream of its own: one batch travels while the loop works on the one
    before.

    A buffer's way: free → the thread writes into it → ready → being copied → (its event has passed) → free.
    The thread calls nothing of CUDA: a graph that the loop is capturing meanwhile would not bear it.

    Args:
        device: Of CUDA.
        image_shape: Of the largest batch.
        label_shape: Likewise.
        waiting: Batches that may lie ready.
    """

    def __init__(
        self, device: torch.device, image_shape: Sequence[int], label_shape: Sequence[int], waiting: int
    ) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)
        self.free: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        for _ in range(waiting + 3):  # Those that are ready, one that is put together, two that are being copied.
            self.free.put((
                torch.empty(tuple(image_shape), dtype=torch.uint8, pin_memory=True),
                torch.empty(tuple(label_shape), pin_memory=True),
            ))  # fmt: skip
        self.copying: collections.deque[tuple[torch.cuda.Event, Batch]] = collections.deque()
        self.staged: tuple[Batch, torch.cuda.Event] | BaseException | None = None

    def buffer(self, image_shape: Sequence[int], label_shape: Sequence[int]) -> Batch:
        pinned = self.free.get()
        if pinned is None:
            raise Stopped
        return pinned[0][: image_shape[0]], pinned[1][: label_shape[0]]  # Only the last batch of all may be smaller.

    def next(self, ready: Ready) -> Batch:
        self._give_back()
        staged = self.staged if self.staged is not None else self._copy(ready.get())
        self.staged = None
        if isinstance(staged, BaseException):
            raise staged
        (images, labels), arrived = staged
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        for tensor in (images, labels):
            tensor.record_stream(current)  # Their memory is the other stream's, which must not reuse it too early.
        try:
            self.staged = self._copy(ready.get_nowait())
        except queue.Empty:
            pass  # The next call waits for it.
        return images, labels

    def release(self) -> None:
        self.free.put(None)

    def _give_back(self) -> None:
        """Buffers whose copies have ended are free; at most one stays on its way."""
        while self.copying and (len(self.copying) > 1 or self.copying[0][0].query()):
            event, pinned = self.copying.popleft()
            event.synchronize()
            self.free.put(pinned)

    def _copy(self, batch: Batch | BaseException) -> tuple[Batch, torch.cuda.Event] | BaseException:
        if isinstance(batch, BaseException):
            return batch
        with torch.cuda.stream(self.stream):
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            event = self.stream.record_event()
        self.copying.append((event, batch))
        return (images, labels), event
