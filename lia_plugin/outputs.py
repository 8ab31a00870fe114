"""What is true of all that commands write: a place that will do, and numbers that JSON has words for."""

from __future__ import annotations

import math
import os
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


def check_output(option: str, path: str, folder: bool) -> None:
    """Raises UserError, which names the option, unless a file or folder can be made at `path`.

    To be asked before long work. What is there already may be written again; nothing is made here.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path) and os.path.isdir(path) != folder:
        raise UserError(f'{option}: {path}: is {"no" if folder else "a"} folder; give another place')
    place = path if folder else os.path.dirname(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f'{option}: {path}: {place} is no folder; give another place')
    if not folder and place != os.path.dirname(path):
        raise UserError(f'{option}: {path}: there is no folder {os.path.dirname(path)}; make it first')
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f'{option}: {path}: nothing may be written to {place}; give another place')
