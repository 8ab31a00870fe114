"""NVIDIA's own checkouts, for tests that run inside them; without clones these tests are skipped.

`LIA_HOSTS` names the folder that holds the clones, `stylegan2-ada-pytorch` and `stylegan3`.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHIM = ROOT / 'tests' / 'host_shim'
NAMES = ('stylegan2-ada-pytorch', 'stylegan3')


def find(name: str) -> pathlib.Path:
    """The clone of that name; skips the test if it isn't there."""
    folder = os.environ.get('LIA_HOSTS')
    path = None if folder is None else pathlib.Path(folder).resolve() / name
    if path is None or not (path / 'torch_utils' / 'persistence.py').is_file():
        pytest.skip(f'LIA_HOSTS names no folder with a clone of {name}')
    return path


def run(
    name: str, *args: str, plugin: bool = False, timeout: float = 280, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script of the clone (`generate.py …`), `-m module …` or `-c code` in it, on the CPU (see host_shim).

    Without `plugin`, `import lia_plugin` fails there. stdout and stderr are kept apart, as text.
    """
    path = find(name)
    own = {'PYTHONPATH': str(SHIM), 'LIA_PLUGIN': str(ROOT) if plugin else ''}
    own |= {'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, *args], cwd=path, env={**os.environ, **own, **(env or {})}, timeout=timeout,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


def check(done: subprocess.CompletedProcess[str]) -> str:
    """stdout of a run that ended well; fails the test with the end of stderr if it didn't."""
    assert done.returncode == 0, f'exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done.stdout
