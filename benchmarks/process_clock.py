"""What one process of several spends its time on, by `scaling.py`."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

PARTS = {'add_gradients': 'losses and gradients', 'all_reduce_gradients': 'averaging gradients',
         'step': 'optimisers', 'update_ema': 'moving average'}


class Measured(NamedTuple):
    images: int
    seconds: float
    talking: float  # Of these, in all_reduce of the first process.
    parts: dict[str, float] = {}  # CPU seconds of the first process in some functions, and in 'all'.

    @property
    def rate(self) -> float:
        return self.images / self.seconds


class Clock:
    """The time at each iteration's begin, what all_reduce has taken by then, and CPU time by function."""

    def __init__(self) -> None:
        self.talking = 0.0
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.marks: list[tuple[float, float, dict[str, float]]] = []

    def mark(self) -> bool:
        """As a training loop's abort_fn: asked before each iteration, never stops it."""
        self.marks.append((time.perf_counter(), self.talking, dict(self.parts, all=time.process_time())))
        return False

    def between(self, first: int, last: int, images: int) -> Measured:
        (begin, before, parts), (end, after, more) = self.marks[first], self.marks[last]
        return Measured(images, end - begin, after - before, {name: more[name] - parts[name] for name in more})

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Times torch.distributed.all_reduce."""
        import torch

        plain = torch.distributed.all_reduce

        def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.talking += time.perf_counter() - began

        def all_reduce(*args: Any, **kwargs: Any) -> Any:
            work = timed(plain, *args, **kwargs)
            return None if work is None else SimpleNamespace(wait=lambda *more: timed(work.wait, *more))

        with mock.patch.object(torch.distributed, 'all_reduce', all_reduce):
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Takes the CPU time of PARTS."""
        import torch

        from torch_utils import distributed
        from training import iteration

        places = {'all_reduce_gradients': distributed, 'step': torch.optim.Adam}
        with contextlib.ExitStack() as stack:
            for name in PARTS:
                place = places.get(name, iteration)
                stack.enter_context(mock.patch.object(place, name, self._counted(name, getattr(place, name))))
            yield

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[name] += time.process_time() - began

        return counted
