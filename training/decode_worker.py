"""A process that decodes images into shared memory, as `decode_pool` asks it to. Imports no torch.

It ends when its input does: however the process that started it ends, this one follows.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from typing import IO, Any

from dnnlib.util import UserError
from training.image_memory import ImageMemory, Rows
from training.image_reader import ImageReader

Tasks = list[tuple[int, int, int]]  # (number of an image, number of a memory, place in it)

_LENGTH = struct.Struct('<Q')


def send(stream: IO[bytes], message: Any) -> None:
    """Writes one message."""
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Reads one message, of a process of one's own. EOFError if the other end is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def decode(reader: ImageReader, memories: list[ImageMemory | Rows], tasks: Tasks) -> str | None:
    """Images to their places in the memories. Gives None, or in one line why an image can't be read."""
    try:
        for raw_idx, memory, place in tasks:
            memories[memory].put(place, reader.read(raw_idx))
    except UserError as error:
        return str(error)
    return None


def main() -> None:
    """First message: reader; each memory's size, shape, handle; CPUs to run on. Further ones: tasks, answered each."""
    for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'):  # For the process that trains, which ends this one in its own time.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # Whatever a library prints must not get between the answers.
    try:
        reader, looks, cpus = receive(requests)
        if cpus and hasattr(os, 'sched_setaffinity'):
            os.sched_setaffinity(0, cpus)
        memories: list[ImageMemory | Rows] = [ImageMemory(*look) for look in looks]
        while True:
            send(answers, decode(reader, memories, receive(requests)))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # Nothing to tidy up, and nobody to tell.


if __name__ == '__main__':
    main()
