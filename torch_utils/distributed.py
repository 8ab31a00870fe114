"""Several processes as one: start them, average their gradients, stop them together. Gloo on the CPU, NCCL on CUDA."""

import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dnnlib.util import UserError, atomic_write

from . import misc, training_stats

GRADIENT_LIMIT = 1e5    # What an infinite gradient becomes, as in the hosts' loop.


def init(rank: int, world_size: int, device: torch.device | str, init_file: str) -> None:
    """Joins the group of `world_size` processes that meet at `init_file` (a path that doesn't exist yet).

    Also gives this process its share of the CPU's cores, and tells `training_stats`. Does nothing for one process.
    """
    if world_size == 1:
        return
    device = torch.device(device)
    method = 'file:///' + os.path.abspath(init_file).replace('\\', '/').lstrip('/')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    elif 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(max((os.cpu_count() or 1) // world_size, 1))
    torch.distributed.init_process_group(
        backend='nccl' if device.type == 'cuda' else 'gloo', init_method=method, rank=rank, world_size=world_size)
    training_stats.init_multiprocessing(rank, device if device.type == 'cuda' else torch.device('cpu'))


def is_distributed() -> bool:
    """Whether this process has joined a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """This process's number; 0 outside a group."""
    return torch.distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes work together; 1 outside a group."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def print0(*args: Any, **kwargs: Any) -> None:
    """Prints in the first process only."""
    if rank() == 0:
        print(*args, **kwargs)


def barrier() -> None:
    """Waits for all processes. Does nothing outside a group."""
    if is_distributed():
        torch.distributed.barrier()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process: the same answer in all of them."""
    if not is_distributed():
        return flag
    on_gpu = torch.distributed.get_backend() == 'nccl'
    found = torch.tensor([float(flag)], device='cuda' if on_gpu else 'cpu')
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found.item())


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in order of rank, in all of them."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def all_reduce_gradients(params: Iterable[torch.nn.Parameter], world_size: int) -> None:
    """Gives every process the mean of all processes' gradients, NaN as 0 and ±inf as ±1e5; one transfer per dtype.

    Parameters without a gradient stay without one; which ones must be the same in all processes.
    """
    grads = [param.grad for param in params if param.grad is not None and param.numel() > 0]
    if world_size == 1:
        for grad in grads:
            misc.nan_to_num(grad, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=grad)
        return
    for dtype in dict.fromkeys(grad.dtype for grad in grads):   # In order, so that all processes agree on it.
        same = [grad for grad in grads if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in same])
        torch.distributed.all_reduce(flat)
        flat /= world_size
        misc.nan_to_num(flat, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=flat)
        for grad, mean in zip(same, flat.split([grad.numel() for grad in same])):
            grad.copy_(mean.view(grad.shape))


@torch.no_grad()
def broadcast_module(module: torch.nn.Module, src: int = 0) -> None:
    """Gives every process the parameters and buffers of process `src`. Does nothing outside a group."""
    if not is_distributed():
        return
    for tensor in misc.params_and_buffers(module):
        if tensor.numel() > 0:
            dense = tensor.detach().contiguous()    # A copy if the strides are not the plain ones.
            torch.distributed.broadcast(dense, src=src)
            tensor.copy_(dense)


def spawn(
    fn: Callable[..., Any], world_size: int, args: tuple[Any, ...] = (), device: torch.device | str | None = None
) -> Any:
    """Runs `fn(rank, world_size, *args)` in that many processes and returns what rank 0's call returned.

    A single process is this one. With a `device` the processes also join a group ('cuda' is one GPU each) before `fn`
    runs; else `fn` calls `init` itself. If one fails, the others are stopped: a UserError comes through as it is,
    anything else as RuntimeError with that process's traceback. On Ctrl-C all get their time to finish (a second one
    stops them), then KeyboardInterrupt goes on.
    """
    if world_size == 1:
        return fn(0, 1, *args)
    with tempfile.TemporaryDirectory(prefix='spawn-', ignore_cleanup_errors=True) as folder:
        context = torch.multiprocessing.start_processes(
            _run_rank, args=(fn, world_size, args, device, folder), nprocs=world_size, join=False,
            start_method='spawn')
        try:
            _join(context)
        except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as err:
            raise _first_error(folder, err) from None
        with open(os.path.join(folder, 'result.pkl'), 'rb') as file:
            return pickle.load(file)    # Our own child's, out of our own folder.


def _run_rank(
    rank: int, fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], device: Any, folder: str
) -> None:
    try:
        if device is not None:
            own = torch.device(device)
            own = torch.device('cuda', rank) if own.type == 'cuda' else own
            init(rank, world_size, own, os.path.join(folder, 'group'))
        result = fn(rank, world_size, *args)
        if rank == 0:
            with atomic_write(os.path.join(folder, 'result.pkl')) as file:
                pickle.dump(result, file)
        if is_distributed():
            torch.distributed.barrier()     # Nobody leaves while another may still be talking to it.
            torch.distributed.destroy_process_group()
    except UserError as err:
        with atomic_write(os.path.join(folder, 'user_error.txt'), 'w', encoding='utf-8') as file:
            file.write(str(err))
        raise


def _join(context: Any) -> None:
    """Waits for all processes; through the first Ctrl-C, which they got themselves, but not the second."""
    logging.getLogger('torch.multiprocessing.spawn').setLevel(logging.ERROR)    # We tell of failures ourselves.
    interrupted = False
    while True:
        try:
            if context.join():
                break
        except KeyboardInterrupt:
            if interrupted:
                for process in context.processes:
                    process.terminate()
                raise
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt


def _first_error(folder: str, err: Exception) -> Exception:
    """The cause: where one process stopped with a UserError, the others merely lost their partner."""
    path = os.path.join(folder, 'user_error.txt')
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            return UserError(file.read())
    return RuntimeError(str(err))
