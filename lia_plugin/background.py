"""Work that goes on beside the work that makes more of it, or needs it: files are written while a GPU draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar('T')
Result = TypeVar('Result')


class Background:
    """Does calls in threads, with one thread in their order; where too many wait, so does who asks for more.

    A context: at its end all calls are done, or the first error of one is raised. After an error of the block's own
    what waits is dropped.
    """

    def __init__(self, threads: int, most_waiting: int) -> None:
        self.most_waiting = most_waiting
        self.waiting: deque[Future[Any]] = deque()
        self.threads = ThreadPoolExecutor(max_workers=threads)

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self.threads.shutdown(cancel_futures=True)

    def do(self, call: Callable[..., Any], *args: Any) -> None:
        """Takes one call. Raises the error of an earlier one."""
        while len(self.waiting) >= self.most_waiting:
            self.waiting.popleft().result()
        self.waiting.append(self.threads.submit(call, *args))

    def finish(self) -> None:
        """Waits until all calls are done. Raises the first error of one."""
        while self.waiting:
            self.waiting.popleft().result()


def ahead(
    call: Callable[[T], Result], items: Iterable[T], threads: int, most_waiting: int
) -> Iterator[tuple[T, Future[Result]]]:
    """Each item with what `call` makes of it, in order; so many are begun early, in threads.

    The future's `result()` gives it, or raises the call's error. Who stops asking drops what waits.
    """
    pool = ThreadPoolExecutor(max_workers=threads)
    waiting: deque[tuple[T, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) > most_waiting:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
