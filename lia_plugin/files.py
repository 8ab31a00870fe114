"""Files that are never half written."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import dnnlib


@contextmanager
def _write_then_rename(path: str, mode: str = 'wb') -> Iterator[IO[Any]]:
    """Gives a temporary file beside `path` that takes its place when the block ends well and vanishes when not."""
    folder, name = os.path.split(os.path.abspath(path))
    # No mkstemp: its files are closed to everybody else, whatever the umask says.
    draft = os.path.join(folder, f'.{name[:100]}.{uuid.uuid4().hex}.tmp')
    file = open(draft, mode.replace('w', 'x'))
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


# NVIDIA's checkouts have no such function; there the plugin brings its own.
atomic_write = getattr(dnnlib.util, 'atomic_write', _write_then_rename)
