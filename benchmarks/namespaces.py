"""Two code bases with modules of the same names in one process: each sees its own while it is active.

    theirs = CodeBase(['../stylegan2-ada-pytorch'])
    with theirs.active():
        from training import networks      # Theirs; functions that import when they are called get theirs, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

NAMES = ('dnnlib', 'torch_utils', 'metrics', 'training', 'lia_plugin', 'legacy', 'projector')


class CodeBase:
    """The packages below some folders, `folders` being in the order of their precedence."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = folders
        self.modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Imports, old and new, are those of this code base; afterwards all is as before."""
        others = _taken_out()
        path = list(sys.path)
        sys.path[:0] = self.folders
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            self.modules = _taken_out()
            sys.modules.update(others)
            sys.path[:] = path


def _taken_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition('.')[0] in NAMES]
    return {name: sys.modules.pop(name) for name in names}
