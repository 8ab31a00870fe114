"""How much of the machine's memory this process can still take. Imports no torch, and nothing of this project: in the
checkouts of NVIDIA, whose dnnlib has no such module, the plugin loads this very file.
"""

import contextlib
import os

import psutil

MOST_CGROUP_BYTES = 1 << 60  # No limit is written as a huge number.


def free_bytes() -> int:
    """Bytes that this process can still take: what the machine has, and what its control groups leave of that."""
    return min([int(psutil.virtual_memory().available), *cgroup_free()])


def cgroup_free() -> list[int]:
    """What each control group of this process leaves that has a limit, of either version, with those above it.

    Containers and schedulers limit memory by them. Cached files that nobody has used for a while count as free.
    """
    found = []
    with contextlib.suppress(OSError), open('/proc/self/cgroup', encoding='utf-8', errors='surrogateescape') as file:
        for line in file:
            _number, controllers, path = line.strip().split(':', 2)
            if controllers == '':
                found += _free_along('/sys/fs/cgroup', path, 'memory.max', 'memory.current', 'inactive_file')
            elif 'memory' in controllers.split(','):
                found += _free_along('/sys/fs/cgroup/memory', path, 'memory.limit_in_bytes', 'memory.usage_in_bytes',
                                     'total_inactive_file')  # fmt: skip
    return found


def _free_along(root: str, path: str, limit_file: str, usage_file: str, cache: str) -> list[int]:
    """Of a group and those above it, as far as they have limits; in a container the path may be its host's."""
    found = []
    parts = [part for part in path.split('/') if part]
    for depth in range(len(parts), -1, -1):
        folder = os.path.join(root, *parts[:depth])
        with contextlib.suppress(OSError, ValueError, KeyError):
            limit = int(_text(folder, limit_file))  # 'max' is no number.
            if limit < MOST_CGROUP_BYTES:
                numbers = dict(line.split() for line in _text(folder, 'memory.stat').splitlines())
                found.append(max(0, limit - int(_text(folder, usage_file)) + int(numbers[cache])))
    return found


def _text(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding='ascii') as file:
        return file.read().strip()
