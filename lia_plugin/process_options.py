"""Options of commands about the process that does the work: what it computes in, and what it keeps of freed memory.

Imports no torch, so that --help is instant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

Command = TypeVar('Command', bound=Callable[..., Any])

# glibc's settings: the environment's name, by which processes to come take it, mallopt's number, and the value. Nothing
# is mapped for itself, the heap grows by much at a time and is not cut off again, and all threads share it.
MALLOC = {'MALLOC_MMAP_MAX_': (-4, 0), 'MALLOC_TRIM_THRESHOLD_': (-1, 2**31 - 1), 'MALLOC_TOP_PAD_': (-2, 2**27),
          'MALLOC_ARENA_MAX': (-8, 1)}

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')  # As torch_utils.precision has them; not every host has that.


def precision_option(command: Command) -> Command:
    """`--precision` of a command that uses a trained network."""
    option = click.option(
        '--precision', type=click.Choice(PRECISIONS),
        help='What layers compute in: fp32; bf16, half of the time on CPUs with AMX, for differences of one '
             'percent; fp16, on GPUs; auto, the fastest. Codes (φ) and optimisations stay float32  '
             '[default: fp16 on CUDA where the network was made so, else fp32]')  # fmt: skip
    return option(command)


def use_precision(choice: str | None, device: torch.device) -> None:
    """Computes in that until the command has ended. UserError for what the device can't."""
    from lia_plugin import host

    region = host.using_precision(choice, device)
    context = click.get_current_context(silent=True)
    if context is None:
        contextlib.ExitStack().enter_context(region)
    else:
        context.with_resource(region)


KEEP_MEMORY_HELP = ('Keep freed memory instead of giving it back to the system, which on a CPU is paid for in page '
                    'faults when it is wanted again; Linux (glibc) alone')


def keep_memory_option(command: Command) -> Command:
    """`--keep-memory` of a command that works on a CPU for long."""
    return click.option('--keep-memory', is_flag=True, help=KEEP_MEMORY_HELP)(command)


def keep_memory() -> None:
    """Lets glibc's allocator keep what is freed, in this process from now on and in those that it starts.

    What the environment says already is left alone. UserError where there is another allocator.
    """
    from lia_plugin.host import UserError

    if platform.libc_ver()[0] != 'glibc':
        raise UserError("--keep-memory: is a setting of glibc's allocator, which this system hasn't; leave it out")
    mallopt = ctypes.CDLL(None).mallopt
    for name, (number, value) in MALLOC.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            mallopt(number, value)
