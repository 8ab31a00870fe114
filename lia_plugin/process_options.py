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

# glibc's settings: the environment's name, by which processes to come take it, mallopt's number, the value. Nothing is
# mapped for itself, the heap grows by much at a time and is not cut off again (-1 = never), and all threads share it.
MALLOC = {'MALLOC_MMAP_MAX_': (-4, 0), 'MALLOC_TRIM_THRESHOLD_': (-1, -1), 'MALLOC_TOP_PAD_': (-2, 2**27),
          'MALLOC_ARENA_MAX': (-8, 1)}
TUNABLES, LARGE_PAGES = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'  # Large pages, from a process's start.
LARGE_PAGE = 1 << 21

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


def kept_memory_environment() -> dict[str, str]:
    """What lets processes to come keep their memory, as `keep_memory` does; what the environment says stays."""
    own = {name: str(value % 2**63) for name, (_number, value) in MALLOC.items()  # Sizes there; -1 is none.
           if name not in os.environ}
    tunables = os.environ.get(TUNABLES, '')
    if LARGE_PAGES.split('=')[0] not in tunables:
        own[TUNABLES] = ':'.join(filter(None, [tunables, LARGE_PAGES]))
    return own


KEEP_MEMORY_HELP = ('Keep freed memory instead of giving it back to the system, and ask for it in large pages: a CPU '
                    'loses less time to page faults and addresses; Linux (glibc) alone')


def keep_memory_option(command: Command) -> Command:
    """`--keep-memory` of a command that works on a CPU for long; it acts by itself, before the command begins."""
    def act(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            keep_memory()

    option = click.option('--keep-memory', is_flag=True, expose_value=False, callback=act, help=KEEP_MEMORY_HELP)
    return option(command)


def keep_memory() -> None:
    """Lets glibc's allocator keep what is freed, in large pages, in this process and in those that it starts.

    What the environment says already is left alone. UserError where there is another allocator.
    """
    from lia_plugin.host import UserError

    if platform.libc_ver()[0] != 'glibc':
        raise UserError("--keep-memory: is a setting of glibc's allocator, which this system hasn't; leave it out")
    mallopt = ctypes.CDLL(None).mallopt
    own = kept_memory_environment()
    os.environ.update(own)
    for name in own.keys() & MALLOC.keys():
        mallopt(*MALLOC[name])
    if TUNABLES in own:
        _grow_in_large_pages()


def _grow_in_large_pages() -> None:
    """What `LARGE_PAGES` does, for a process that has started: its heap is made as large as it can become.

    That takes addresses, not memory, and is left out where somebody counts them.
    """
    import mmap  # Not on every system with all that follows.
    import resource

    from lia_plugin import host

    limits = resource.RLIMIT_AS, resource.RLIMIT_DATA
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits) or _addresses_are_counted():
        return
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = host.free_memory()
    place = libc.malloc(size)
    if place is not None:
        first = -(-place // LARGE_PAGE) * LARGE_PAGE
        libc.madvise(first, max(size - LARGE_PAGE, 0) // LARGE_PAGE * LARGE_PAGE, mmap.MADV_HUGEPAGE)
        libc.free(place)


def _addresses_are_counted() -> bool:
    """Whether the system promises no more memory than it has, and would take addresses for promises."""
    try:
        with open('/proc/sys/vm/overcommit_memory', encoding='ascii') as file:
            return file.read().strip() == '2'
    except OSError:
        return True
