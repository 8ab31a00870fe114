"""From the thread to the device: order, errors, and buffers that are free again only when their copy has ended."""

import contextlib
import queue
import threading
import types
from typing import Any

import pytest
import torch

from training import staging
from training.staging import CudaStaging, Ready, Staging, Stopped

WAITING = 2


class Event:
    """Passes when the test says so, or when somebody waits for it."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


class Buffer:
    """Stands for a pinned tensor."""

    def __init__(self) -> None:
        self.event: Event | None = None
        self.content = -1

    def __getitem__(self, _rows: slice) -> 'Buffer':
        return self

    def to(self, _device: Any, non_blocking: bool) -> 'Copy':
        assert non_blocking
        return Copy(self)


class Copy:
    """Stands for a tensor on the device, whose memory is one stream's and that another one uses."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer, self.content, self.users = buffer, buffer.content, 0

    def record_stream(self, _stream: Any) -> None:
        self.users += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The little of CUDA that staging uses; `events` are all that were recorded, `waited` those that the loop waits for
    on the device."""
    seen = types.SimpleNamespace(events=[], waited=[])

    class Stream:
        def __init__(self, _device: Any = None) -> None:
            pass

        def record_event(self) -> Event:
            seen.events.append(Event())
            return seen.events[-1]

        def wait_event(self, event: Event) -> None:
            seen.waited.append(event)

    loops = Stream()
    fake = types.SimpleNamespace(
        uint8=torch.uint8, Tensor=torch.Tensor, empty=lambda *_args, **_kwargs: Buffer(),
        cuda=types.SimpleNamespace(Stream=Stream, stream=lambda _s: contextlib.nullcontext(),
                                   current_stream=lambda _device: loops, Event=Event))
    monkeypatch.setattr(staging, 'torch', fake)
    return seen


def test_a_buffer_is_free_again_only_when_its_copy_has_ended(cuda: types.SimpleNamespace) -> None:
    stage = CudaStaging(torch.device('cuda', 0), [4, 1, 2, 2], [4, 0], WAITING)
    ready: Ready = queue.Queue(WAITING)
    in_flight: dict[Any, Event] = {}
    given, taken = 0, 0
    for turn in range(60):
        while not ready.full():  # The thread, as fast as it may; it must always find a buffer.
            assert stage.free.qsize() > 0, 'thread and loop would wait for each other'
            images, labels = stage.buffer([4, 1, 2, 2], [4, 0])
            assert images not in in_flight or in_flight[images].passed, 'still being copied'
            images.content, given = given, given + 1
            ready.put((images, labels))
        batch: Any = stage.next(ready)
        assert batch[0].content == taken and batch[0].users == 1
        assert cuda.waited[-1] is cuda.events[taken], 'the loop must see the copy of this batch'
        taken += 1
        for event, pinned in stage.copying:
            in_flight[pinned[0]] = event
        if turn % 3 == 0:
            for event in cuda.events[:taken]:
                event.passed = True


def test_an_error_comes_after_the_batches_before_it(cuda: types.SimpleNamespace) -> None:
    stage = CudaStaging(torch.device('cuda', 0), [4, 1, 2, 2], [4, 0], WAITING)
    ready: Ready = queue.Queue()
    for _ in range(2):
        ready.put(stage.buffer([4, 1, 2, 2], [4, 0]))
    ready.put(ValueError('broken'))
    stage.next(ready), stage.next(ready)
    with pytest.raises(ValueError, match='broken'):
        stage.next(ready)


def test_a_thread_that_waits_for_a_buffer_is_let_go(cuda: types.SimpleNamespace) -> None:
    stage = CudaStaging(torch.device('cuda', 0), [4, 1, 2, 2], [4, 0], WAITING)
    ends: list[str] = []

    def thread() -> None:
        try:
            while True:
                stage.buffer([4, 1, 2, 2], [4, 0])
        except Stopped:
            ends.append('stopped')

    running = threading.Thread(target=thread)
    running.start()
    stage.release()
    running.join(10)
    assert ends == ['stopped']


def test_ordinary_memory_gives_tensors_of_the_device() -> None:
    stage, ready = Staging(torch.device('cpu')), queue.Queue[Any]()
    images, labels = stage.buffer([2, 3, 4, 4], [2, 5])
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, 4, 4))
    assert (labels.dtype, labels.shape) == (torch.float32, (2, 5))
    ready.put((images, labels))
    assert stage.next(ready)[0] is images
