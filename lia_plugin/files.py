"""Files that are never half written, and what a file is: for hosts that have no such functions."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


@contextmanager
def write_then_rename(path: str, mode: str = 'wb', **open_kwargs: Any) -> Iterator[IO[Any]]:
    """Gives a temporary file beside `path` that takes its place when the block ends well and vanishes when not."""
    folder, name = os.path.split(os.path.abspath(path))
    # No mkstemp: its files are closed to everybody else, whatever the umask says.
    draft = os.path.join(folder, f'.{name[:100]}.{uuid.uuid4().hex}.tmp')
    file = open(draft, mode.replace('w', 'x'), **open_kwargs)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def file_hash(path: str) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
