"""Free memory: what a machine has, within the limits of containers and schedulers."""

import builtins
import io
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dnnlib import memory


@pytest.mark.parametrize('groups, files, expected', [
    ('0::/\n', {'': ('memory', 'max', 30, 0)}, []),
    ('0::/a/b\n', {'/a': ('memory', '100', 30, 5), '/a/b': ('memory', 'max', 20, 5)}, [75]),
    # A job of Slurm's, as the job, its step and its task have it: the group at the root has no limit.
    ('0::/slurm/job_7/step_0/task_0\n', {'': ('memory', 'max', 900, 0), '/slurm/job_7': ('memory', '400', 300, 20),
                                          '/slurm/job_7/step_0/task_0': ('memory', 'max', 300, 20)}, [120]),
    ('9:cpu,memory:/slurm/uid_1/job_7\n', {'/memory': ('v1', str(2**63 - 4096), 900, 0),
                                           '/memory/slurm/uid_1': ('v1', '500', 100, 0),
                                           '/memory/slurm/uid_1/job_7': ('v1', '200', 100, 40)}, [140, 400]),
    # In a container the path is its host's, the files are its own.
    ('0::/host/only\n', {'': ('memory', '100', 90, 0)}, [10]),
    ('3:cpu:/x\n2:memory:/c\n', {'/memory/c': ('v1', '90', 50, 10)}, [50]),
])  # fmt: skip
def test_containers_limits_are_read(
    monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, Any], expected: list[int]
) -> None:
    there = {'/proc/self/cgroup': groups}
    for folder, (kind, limit, usage, cache) in files.items():
        names = ('memory.max', 'memory.current', 'inactive_file')
        if kind == 'v1':
            names = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
        place = f'/sys/fs/cgroup{folder}'
        there |= {f'{place}/{names[0]}': limit, f'{place}/{names[1]}': str(usage),
                  f'{place}/memory.stat': f'anon 1\n{names[2]} {cache}\n'}  # fmt: skip

    def fake_open(path: str, *args: Any, **kwargs: Any) -> Any:
        if path not in there:
            raise FileNotFoundError(path)
        return io.StringIO(there[path])

    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(builtins, 'open', fake_open)
    found = memory.cgroup_free()
    least = memory.free_bytes()
    monkeypatch.undo()
    assert found == expected and least == min([1000, *expected])


def test_it_needs_nothing_of_this_project_and_no_torch() -> None:
    code = 'import sys; sys.path[:0] = [sys.argv[1]]; import memory; assert memory.free_bytes() > 2**20; ' \
           'assert not {"torch", "dnnlib", "numpy"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code, memory.__file__.removesuffix('/memory.py')], check=True, cwd='/')
