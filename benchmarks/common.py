"""What the benchmarks share: the machine's facts, settings that make a comparison fair, medians, Markdown tables.

Imports no torch: a script that starts workers chooses their OpenMP and allocator settings before anything loads.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.dirname(os.path.abspath(__file__))

# What work on many tensors on a CPU depends on besides the code; the same for all sides. Values that the environment
# already has are left alone.
THREADING = {'OMP_WAIT_POLICY': 'active', 'OMP_PROC_BIND': 'true'}

SIZES = {  # Resolution, channel_base, channel_max, batch, width of z and w.
    'S': (16, 256, 16, 4, 32),  # Only to see that everything runs.
    'A': (32, 4096, 128, 16, 512),
    'B': (64, 8192, 256, 8, 512),
    'C': (64, 32768, 512, 4, 512),
    'D': (128, 16384, 512, 32, 512),  # For GPUs.
    'E': (256, 16384, 512, 32, 512),
    'F': (1024, 32768, 512, 8, 512),
    'G': (64, 16384, 512, 32, 512),
}
DIMENSIONS = ('resolution', 'channel_base', 'channel_max', 'batch', 'latent')


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def environment(keep_memory: bool = False, kernels: bool = True, threads: int | None = None) -> dict[str, str]:
    """Of a process that is timed. The environment's own values win, except for kernels that are to be off."""
    own = dict(THREADING, OMP_NUM_THREADS=str(threads or cores()))
    if keep_memory:
        from lia_plugin import process_options  # Not in the original's processes.

        own.update(process_options.kept_memory_environment())
    return {**own, **os.environ, **({} if kernels else {'LIA_KERNELS': 'off'})}


def settle(keep_memory: bool = False) -> None:
    """Starts this script again, under `environment`, if that differs: libraries read it when they are loaded."""
    wanted = environment(keep_memory)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def pick_device(name: str) -> str:
    if name != 'auto':
        return name
    code = 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")'
    return subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.strip()


def check_host(ctx: Any, param: Any, value: str | None) -> str | None:
    """Click's callback for --host: the checkout's absolute path."""
    if value and not os.path.isfile(os.path.join(value, 'torch_utils', 'custom_ops.py')):
        what = 'no checkout of stylegan2-ada-pytorch (no torch_utils/custom_ops.py)'
        raise click.UsageError(f'--host: {value} is {what}')
    return os.path.abspath(value) if value else None


def host_option(**kwargs: Any) -> Callable[[Any], Any]:
    return click.option('--host', type=click.Path(exists=True, file_okay=False), metavar='DIR', callback=check_host,
                        help='Checkout of stylegan2-ada-pytorch to compare with', **kwargs)


def device_option() -> Callable[[Any], Any]:
    return click.option('--device', default='auto', metavar='NAME', help='cpu, cuda, cuda:1; auto = the best of them')


def stop_on_sigterm() -> None:
    """`timeout` and schedulers send SIGTERM, which would skip clean-ups, and leave workers behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def cpu_name() -> str:
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as f:
        match = re.search(r'^model name\s*:\s*(.+)$', f.read(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of what is measured, `+` if files have changed since; '' outside of a clone."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        def git(*args: str) -> str:
            run = subprocess.run(['git', '-C', PROJECT, *args], capture_output=True, text=True, check=True)
            return run.stdout.strip()

        return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
    return ''


def machine(gpu: str, threads: int, torch_version: str, extra: str = '') -> str:
    """What a table's head says of where and when it was measured."""
    name = gpu or f'{cpu_name()}, {threads} thread{"s" * (threads != 1)}'
    load = f', load average {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
    at = f', commit {hash}' if (hash := commit()) else ''
    return f'{name}, torch {torch_version}{extra}{load}{at}, {datetime.date.today()}.'


def here(device: str = 'cpu', extra: str = '') -> str:
    """`machine`, of this process."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith('cuda') else ''
    return machine(gpu, torch.get_num_threads(), torch.__version__, extra)


def peak_memory() -> float:
    """Most memory that this process has had in use, in MB. Not getrusage's, which begins with the parent's."""
    with contextlib.suppress(OSError), open('/proc/self/status', encoding='utf-8') as f:
        match = re.search(r'^VmHWM:\s*(\d+) kB', f.read(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 1e6


def reset_peak_memory() -> None:
    """From here on `peak_memory` is of what comes, on top of what is in use now. Only Linux can do that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # What is free goes back, or else work that fits into it would look free.
        with open('/proc/self/clear_refs', 'w', encoding='utf-8') as f:
            f.write('5')


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and tables


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


def ratio_cells(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """How many times faster we are: the ratios within each round, their median and quartiles."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return [f'{statistics.median(ratios):.2f}', '{:.2f}–{:.2f}'.format(*quartiles(ratios))]


def number(value: float) -> str:
    """Three digits that count, without powers of ten where a table is read by people."""
    if value == 0 or not 1e-3 <= abs(value) < 1e7:
        return f'{value:.2g}'
    digits = 3 - len(str(int(abs(value)))) if abs(value) >= 1 else (3 if abs(value) >= 0.1 else 4)
    return f'{value:.{max(digits, 0)}f}'


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """k of cost ∝ size^k, by least squares on logarithms; NaN for fewer than two sizes."""
    from math import log

    x, y = [log(s) for s in sizes], [log(c) for c in costs]
    if len(set(x)) < 2:
        return float('nan')
    return statistics.linear_regression(x, y).slope


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    """A table; all columns but the first ones are aligned to the right."""
    lines = [list(head), ['---'] * text_columns + ['---:'] * (len(head) - text_columns), *map(list, rows)]
    return ['| ' + ' | '.join(line) + ' |' for line in lines]
