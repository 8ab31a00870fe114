"""What several machines must have in common: the folder that is written to, and the files that are read.

All processes of a group call these together. On one machine there is nothing to look at.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lia_plugin import host

PATIENCE = 20.0  # Seconds: network file systems show a new file to other machines late.
ENDS = 1 << 20  # Bytes of either end of a file that are compared.


class Content(NamedTuple):
    """What a file or folder is known by."""

    size: int  # Bytes, or names.
    hashed: str
    unit: str = 'bytes'


def several() -> bool:
    """Whether the processes of this group work on more than one machine."""
    return host.processes_here(host.world_size()) < host.world_size()


def fetch_here(urls: Iterable[str | None]) -> None:
    """Downloads, once on each machine, what is a URL. UserError if it can't be had."""
    if several():
        with host.first_on_machine():
            for url in urls:
                if url is not None and '://' in url:
                    host.fetch(url)


def check_folder(flag: str, folder: str) -> None:
    """UserError unless all machines see the same folder, which is there, by this path."""
    if not several():
        return
    name = f'.seen-{secrets.token_hex(8)}' if host.rank() == 0 else ''
    if name:
        with open(os.path.join(folder, name), 'w'):
            pass
    name = host.gather_objects(name)[0]
    try:
        views = host.gather_objects((socket.gethostname(), _appears(folder, name)))
    finally:
        if host.rank() == 0:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))
    blind = next((machine for machine, sees in views if not sees), None)
    if blind is not None:
        raise host.UserError(f'{flag}: {folder} on {blind} is not that of {views[0][0]}: several machines need a '
                             'shared file system, with the same path on all')


def _appears(folder: str, name: str) -> bool:
    until = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            if name in os.listdir(folder):
                return True
        if time.monotonic() > until or not os.path.isdir(folder):
            return False
        time.sleep(0.2)


def check_files(paths: Mapping[str, str | None]) -> None:
    """UserError unless all machines have the same files and folders (flag -> path, None = none) by these paths."""
    if not several():
        return
    mine = {flag: (path, content(path)) for flag, path in paths.items() if path is not None}
    views = host.gather_objects((socket.gethostname(), mine))
    first, right = views[0]
    for machine, found in views[1:]:
        for flag, (path, there) in right.items():
            other = found[flag][1]
            if other is None:
                raise host.UserError(f'{flag}: {path} is not there on {machine}, but on {first}; put it where all '
                                     'machines have it')
            if there is not None and other != there:
                how = f': {other.size} {other.unit}, not {there.size}' if other.size != there.size else ''
                raise host.UserError(f'{flag}: {path} on {machine} is not that of {first}{how}')


def content(path: str) -> Content | None:
    """Of a file its size and both ends, of a folder the names in it and below it; None if it is not there."""
    if os.path.isdir(path):
        names = sorted(os.path.relpath(os.path.join(root, name), path)
                       for root, _folders, names in os.walk(path) for name in names)  # fmt: skip
        text = '\n'.join(names).encode('utf-8', errors='surrogateescape')
        return Content(len(names), hashlib.sha256(text).hexdigest(), 'files')
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(ENDS)
            file.seek(max(size - ENDS, 0))
            return Content(size, hashlib.sha256(head + file.read()).hexdigest())
    except OSError:
        return None
