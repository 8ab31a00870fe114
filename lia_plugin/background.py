"""Work that goes on beside the work that makes more of it: files and videos are written while a GPU draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


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
            while error is None and self.waiting:
                self.waiting.popleft().result()
        finally:
            self.threads.shutdown(cancel_futures=True)

    def do(self, call: Callable[..., Any], *args: Any) -> None:
        """Takes one call. Raises the error of an earlier one."""
        while len(self.waiting) >= self.most_waiting:
            self.waiting.popleft().result()
        self.waiting.append(self.threads.submit(call, *args))
