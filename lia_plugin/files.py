"""Files that are never half written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import dnnlib


@contextmanager
def _write_then_rename(path: str, mode: str = 'wb') -> Iterator[IO[Any]]:
    """Gives a temporary file beside `path` that takes its place when the block ends well and vanishes when not."""
    folder, name = os.path.split(os.path.abspath(path))
    handle, draft = tempfile.mkstemp(prefix=f'.{name}.', dir=folder)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


# NVIDIA's checkouts have no such function; there the plugin brings its own.
atomic_write = getattr(dnnlib.util, 'atomic_write', _write_then_rename)
