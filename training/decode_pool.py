"""Images decoded ahead by processes of their own.

Processes, not threads: pyspng, the fastest reader of PNG, holds Python's lock while it decodes, so that threads neither
help each other nor let the training loop go on. (Measured on 2 cores, 128² PNG: 2 threads 2100 images/s, 2 processes
4100.) These processes import no torch: they start in a fraction of a second and take a few dozen MB.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any

from dnnlib.util import UserError
from training import decode_worker
from training.decode_worker import Tasks
from training.image_memory import ImageMemory, Rows
from training.image_reader import ImageReader

_START = 'import sys; sys.path[:] = {path!r}; from training.decode_worker import main; main()'
# glibc's: it keeps the few megabytes of a picture for the next one, instead of giving them back to the system, which
# hands them out again page by page. About twice as many JPEGs and stored PNGs of 1024² a second.
_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2**26), 'MALLOC_TRIM_THRESHOLD_': str(2**28)}
_PATIENCE = 2.0  # Seconds that a worker gets to finish its last image.


class DecodePool:
    """Worker processes, each fed by a thread that waits for it. No workers: `submit` decodes at once, in the caller.

    All that is asked for is done in that order, one list of tasks by one worker.
    """

    def __init__(self, reader: ImageReader, memories: list[ImageMemory | Rows], workers: int) -> None:
        self.reader, self.memories, self.workers = reader, memories, workers
        self._queue: queue.SimpleQueue[tuple[Tasks, concurrent.futures.Future[None]] | None] = queue.SimpleQueue()
        looks = [(len(memory.images), list(memory.images.shape[1:]), memory.handle) for memory in memories
                 if isinstance(memory, ImageMemory)]
        first = (reader, looks, all_cpus())
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(workers):
                self._processes.append(_start())
        except OSError as error:
            self.close()
            raise UserError(f'--workers: {workers} processes that read images can\'t be started ({error}); '
                            'try fewer, or --workers=0') from error
        for process in self._processes:
            threading.Thread(target=self._serve, args=(process, first), name='decode', daemon=True).start()

    def submit(self, tasks: Tasks) -> concurrent.futures.Future[None]:
        """Asks for images. The result comes when they are there; UserError if one can't be read."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        if self.workers:
            self._queue.put((tasks, future))
        else:
            _settle(future, decode_worker.decode(self.reader, self.memories, tasks))
        return future

    def close(self) -> None:
        """Ends the processes; what was asked for and isn't done is not done."""
        for _ in self._processes:
            self._queue.put(None)
        for process in self._processes:
            assert process.stdin is not None, 'it is a pipe'
            try:
                process.stdin.close()
            except OSError:
                pass  # It died in the middle of a message.
        for process in self._processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self.workers = [], 0

    def _serve(self, process: subprocess.Popen[bytes], first: Any) -> None:
        assert process.stdin is not None and process.stdout is not None, 'both are pipes'
        failure = None
        try:
            decode_worker.send(process.stdin, first)
        except (OSError, ValueError):
            failure = _death(process)
        while (item := self._queue.get()) is not None:
            tasks, future = item
            answer = failure
            try:
                if failure is None:
                    decode_worker.send(process.stdin, tasks)
                    answer = decode_worker.receive(process.stdout)
            except (EOFError, OSError, ValueError):  # ValueError: closed by `close`, when nobody waits any more.
                answer = failure = _death(process)
            _settle(future, answer)
        process.stdout.close()


def _settle(future: concurrent.futures.Future[None], failure: str | None) -> None:
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(UserError(failure))


def _start() -> subprocess.Popen[bytes]:
    single = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    command = [sys.executable, '-c', _START.format(path=sys.path)]
    # A session of its own: Ctrl-C is for the loop, which ends its workers when it has done with them.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                            env={**_MEMORY, **os.environ, **single})


def _death(process: subprocess.Popen[bytes]) -> str:
    try:
        code: int | None = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        code = None
    how = 'out of reach' if code is None else f'exit code {code}'
    if code is not None and code < 0:
        killed = code == -getattr(signal, 'SIGKILL', 9)
        how = 'killed, perhaps for want of memory' if killed else f'signal {-code}'
    return f'--workers: a process that reads images has died ({how}); try fewer, or --workers=0'


def all_cpus() -> set[int] | None:
    """The CPUs of this process. OpenMP may have bound its main thread to one of them, and new processes with it."""
    if not hasattr(os, 'sched_getaffinity'):
        return None
    cpus = set(os.sched_getaffinity(0))
    try:
        threads = os.listdir('/proc/self/task')
    except OSError:
        return cpus
    for thread in threads:
        try:
            cpus |= os.sched_getaffinity(int(thread))
        except OSError:
            pass  # It has ended meanwhile.
    return cpus
