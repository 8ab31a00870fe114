"""What is true of all that commands write: a place that will do, and numbers that JSON has words for."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

from lia_plugin.host import UserError


def finite(value: Any) -> Any:
    """The same value with null in place of numbers that are infinite or none, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def check_new_folder(option: str, path: str) -> None:
    """Raises UserError, which names the option, unless a folder that is new or empty can be filled at `path`."""
    check_output(option, path, folder=True)
    place = os.path.abspath(path)
    if os.path.isdir(place) and os.listdir(place):
        raise UserError(f'{option}: {place}: exists already; name a new folder')


def check_output(option: str, path: str, folder: bool, makes_folders: bool = False) -> None:
    """Raises UserError, which names the option, unless a file or folder can be made at `path`.

    To be asked before long work. What is there already may be written again; nothing that is made here stays.

    makes_folders: The command makes the folder of a file, too.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path) and os.path.isdir(path) != folder:
        raise UserError(f'{option}: {path}: is {"no" if folder else "a"} folder; give another place')
    if not folder and os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f'{option}: {path}: is no file; give another place')
    place = path if folder else os.path.dirname(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f'{option}: {path}: {place} is no folder; give another place')
    if not folder and not makes_folders and place != os.path.dirname(path):
        raise UserError(f'{option}: {path}: there is no folder {os.path.dirname(path)}; make it first')
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f'{option}: {path}: nothing may be written to {place}; give another place')
    try:
        _try_out(path, place)
    except OSError as error:
        raise UserError(f'{option}: {path}: cannot be made ({error.strerror}); give another place') from None


def _try_out(path: str, place: str) -> None:
    """OSError if nothing can be made in a folder although that has no permission missing, or no such name."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # A name may be too long, for one.
    draft = os.path.join(place, f'.{uuid.uuid4().hex}.tmp')
    os.mkdir(draft)  # /proc, for one, lets its owner write and makes nothing.
    os.rmdir(draft)
