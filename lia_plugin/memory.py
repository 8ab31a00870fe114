"""How many images at once fit into a device's memory: what is free, and what work on one image takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lia_plugin import host

# Images at once that are enough: a GPU is busy with so many, and a CPU's caches hold no more.
MOST = {'cuda': 64, 'mps': 16, 'cpu': 8}
# Of the free memory: allocators leave gaps, convolutions need workspaces, CUDA graphs have memory of their own.
SHARE = {'cuda': 0.4, 'mps': 0.6, 'cpu': 0.7}
# What those call a lack of it that have no class for it: PyTorch's allocator for the CPU, MPS, cuBLAS and cuDNN.
TOLD = ('DefaultCPUAllocator: ', 'out of memory', 'STATUS_ALLOC_FAILED')


def batch_size(device: torch.device, work: Callable[[], object], most: int | None = None, sharers: int = 1) -> int:
    """How many images at once fit into the free memory, if `work` does with one image what is to be done.

    most: Not more than so many; None = as many as make the device work well.
    sharers: So many processes do the same work in the same memory.
    """
    most = MOST.get(device.type, MOST['cpu']) if most is None else most
    cost = peak_bytes(work, device)
    return max(1, min(most, int(SHARE.get(device.type, 0.5) * free_bytes(device)) // sharers // max(cost, 1)))


def picture_batch(G: Any, device: torch.device) -> int:
    """How many pictures a generator can draw, and its encoder look at, at once. The random state stays as it was."""

    @torch.no_grad()
    def work() -> None:
        G.synthesis(torch.zeros([1, G.num_ws, G.w_dim], device=device))
        if getattr(G, 'encoder', None) is not None:
            c = torch.zeros([1, G.c_dim], device=device) if G.c_dim else None
            G.encode(torch.zeros([1, G.img_channels, G.img_resolution, G.img_resolution], device=device), c)

    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        return batch_size(device, work)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


def lack(error: BaseException, where: str = '') -> str:
    """What to tell people of such an error."""
    return f'not enough memory for this{where} ({host.one_line(error)}); take fewer images at once'


def tell_lack(fn: Callable[..., Any], rank: int, world_size: int, *args: Any) -> Any:
    """`fn` in one of several processes. A lack of memory is no defect, and the others know it by a UserError only."""
    try:
        return fn(rank, world_size, *args)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise host.UserError(lack(error, f' on rank {rank}')) from error


def release(device: torch.device) -> None:
    """Gives back what allocators keep for later."""
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    elif device.type == 'mps':
        torch.mps.empty_cache()


# ---------------------------------------------------------------------------------------------------------------------
# What is free


def free_bytes(device: torch.device) -> int:
    """Bytes that tensors could take on a device now, without those that others use."""
    if device.type == 'cuda':
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == 'mps':
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return host.free_memory()


# ---------------------------------------------------------------------------------------------------------------------
# What work takes


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made by `work` have had at a time."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _Watch() as watch:
        work()
    return watch.most


class _Watch(TorchDispatchMode):
    """Adds up the memory of all tensors that operators return, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and not func.is_view:
                self._take(value.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.living:  # An operator in place.
            return
        self.living.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.living.discard(key)
        self.now -= size
