"""Several processes as one: start them, average their gradients, stop them together. Gloo on the CPU, NCCL on CUDA."""

import contextlib
import datetime
import logging
import os
import pickle
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import torch
import tqdm

from dnnlib.util import UserError, atomic_write, usable_cpus

from . import misc, training_stats

GRADIENT_LIMIT = 1e5    # What an infinite gradient becomes, as in the hosts' loop.
BUCKET = 1 << 23    # Elements of a message: while one is on its way the next is packed.
# Who dies is noticed otherwise, within seconds. This only must not end a wait for one who measures or writes.
PATIENCE = datetime.timedelta(hours=6)
STOP_GRACE = 3.0    # Seconds that processes get to end by themselves once one has failed.
ASK_AGAIN = 5.0    # Seconds after an interrupt until processes that still work are told to stop by another signal.


class LostProcess(RuntimeError):
    """A process of several failed or died, and all were stopped. One line; `details` may hold its traceback."""

    def __init__(self, message: str, details: str = '') -> None:
        super().__init__(message)
        self.details = details


def init(
    rank: int, world_size: int, device: torch.device | str, init_file: str | None = None, store: Any = None
) -> None:
    """Joins the group of `world_size` processes that meet at `init_file` (a path that doesn't exist yet) or in `store`.

    Also gives this process its share of the CPU's cores, and tells `training_stats`. Does nothing for one process.
    """
    if world_size == 1:
        return
    device = torch.device(device)
    meeting: dict[str, Any] = {'store': store}
    if init_file is not None:
        meeting = {'init_method': 'file:///' + os.path.abspath(init_file).replace('\\', '/').lstrip('/')}
    if device.type == 'cuda':
        torch.cuda.set_device(device)
        meeting['device_id'] = device  # Else a barrier guesses it from the rank.
    else:
        _share_cores(rank, local_world_size(world_size))
    torch.distributed.init_process_group(
        backend='nccl' if device.type == 'cuda' else 'gloo', rank=rank, world_size=world_size, timeout=PATIENCE,
        **meeting)
    training_stats.init_multiprocessing(rank, device if device.type == 'cuda' else torch.device('cpu'))


def _share_cores(rank: int, here: int) -> None:
    """Gives each of the machine's processes its share of the cores, unless OMP_NUM_THREADS says otherwise; tells so."""
    bound = any(name in os.environ for name in ('OMP_PROC_BIND', 'OMP_PLACES', 'GOMP_CPU_AFFINITY'))
    cores = (os.cpu_count() or 1) if bound else usable_cpus()  # OpenMP has tied this thread to one of them.
    share, said = max(cores // here, 1), _said_threads()
    if said is None:
        torch.set_num_threads(share)
    threads = torch.get_num_threads()
    waits = said is not None and said > share
    if rank != 0 or (here == 1 and not waits):
        return
    each = f'{here} process{"es" * (here > 1)} on {cores} cores, {threads} thread{"s" * (threads != 1)} each'
    if waits:
        each += f' as OMP_NUM_THREADS says: they will wait for each other, {share} would be their share'
    print(each, file=sys.stderr, flush=True)


def _said_threads() -> int | None:
    """OMP_NUM_THREADS, if a person has set it. torchrun sets 1 where it is missing, and its own environment tells."""
    text = os.environ.get('OMP_NUM_THREADS', '')
    if 'TORCHELASTIC_RUN_ID' in os.environ and text == '1':
        try:
            text = psutil.Process(os.getppid()).environ().get('OMP_NUM_THREADS', '')
        except psutil.Error:
            pass
    return int(text) if text.isdecimal() else None


def local_rank(rank: int) -> int:
    """The number on its own machine of the process that is `rank` in the run."""
    return int(os.environ['LOCAL_RANK']) if _is_launched() else rank


def local_world_size(world_size: int) -> int:
    """How many of the run's processes work on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', world_size)) if _is_launched() else world_size


def _is_launched() -> bool:
    # By torchrun, or what sets its variables; processes of `spawn` share a machine.
    return all(name in os.environ for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'))


def own_device(device: torch.device | str, rank: int) -> torch.device:
    """'cuda' → this process's GPU; any other device is itself."""
    device = torch.device(device)
    return torch.device('cuda', local_rank(rank)) if device.type == 'cuda' and device.index is None else device


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
    """Gives every process the mean of all processes' gradients, NaN as 0 and ±inf as ±1e5.

    They travel in buckets of one dtype, one on its way while the next is packed. Parameters without a gradient stay
    without one; which ones must be the same in all processes.
    """
    grads = [param.grad for param in params if param.grad is not None and param.numel() > 0]
    if world_size == 1 and not any(grad.is_cuda for grad in grads):
        for grad in grads:
            misc.nan_to_num(grad, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=grad)
    else:  # A GPU takes longer to launch a hundred small kernels than to copy all gradients twice.
        _average_in_buckets(grads, world_size)


def _average_in_buckets(grads: list[torch.Tensor], world_size: int) -> None:
    sent = []
    for bucket in _buckets(grads):
        flat = torch.cat([grad.flatten() for grad in bucket])
        sent.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True) if world_size > 1 else None))
    for bucket, flat, work in sent:
        if work is not None:
            work.wait()
            flat /= world_size
        misc.nan_to_num(flat, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=flat)
        means = flat.split([grad.numel() for grad in bucket])
        torch._foreach_copy_(bucket, [mean.view(grad.shape) for grad, mean in zip(bucket, means)])


def _buckets(tensors: list[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Tensors of one dtype each, up to BUCKET elements or a single one; the same in all processes."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[torch.Tensor] = []
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            if bucket and sum(item.numel() for item in bucket) + tensor.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


class _MeanOverRanks(torch.autograd.Function):
    """Mean of a tensor over all processes, differentiable twice."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        mean = x.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(mean)
        return mean / world_size()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return _MeanOverRanks.apply(grads[0])    # Each process's loss depends on each one's x, with a share of 1/n.


def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The mean of all processes' `x`, in each of them. Gradients pass, to all: with losses that are averaged over
    processes they are those of one process that has seen everything."""
    return _MeanOverRanks.apply(x) if is_distributed() else x


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
    anything else as LostProcess. On Ctrl-C all get their time to finish (a second one stops them), then
    KeyboardInterrupt goes on; so on SIGTERM and SIGUSR1, which end processes that don't handle them.
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
            raise _first_error(folder, err, context.processes) from None
        with open(os.path.join(folder, 'result.pkl'), 'rb') as file:
            return pickle.load(file)    # Our own child's, out of our own folder.


def _run_rank(
    rank: int, fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], device: Any, folder: str
) -> None:
    # tqdm's own lock is a semaphore, of which Python would complain where a process with a bar is stopped.
    tqdm.tqdm.set_lock(threading.RLock())
    try:
        if device is not None:
            init(rank, world_size, own_device(device, rank), os.path.join(folder, 'group'))
        result = fn(rank, world_size, *args)
        if rank == 0:
            with atomic_write(os.path.join(folder, 'result.pkl')) as file:
                pickle.dump(result, file)
        if is_distributed():
            leave_together(folder, rank, world_size)
            torch.distributed.destroy_process_group()
    except UserError as err:
        told = os.path.join(folder, 'user_error.txt')
        with atomic_write(told, 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.write(str(err))
        raise


def leave_together(folder: str, rank: int, world_size: int) -> None:
    """Waits until all processes of a machine have come here: nobody leaves while another may still talk to it.

    By files: at the end of a collective the one who is through first closes a connection in which the others may still
    be, and gloo takes that for an error.
    """
    with open(os.path.join(folder, f'done{rank}'), 'w'):
        pass
    while not all(os.path.exists(os.path.join(folder, f'done{other}')) for other in range(world_size)):
        time.sleep(0.02)    # Should one die before it comes here, the parent ends us.


def _join(context: Any) -> None:
    """Waits for all processes; through the first Ctrl-C, which they got themselves, but not the second."""
    logging.getLogger('torch.multiprocessing.spawn').setLevel(logging.ERROR)    # We tell of failures ourselves.
    interrupted, until = False, None
    passed: list[int] = []    # What a process leaves with that does not handle a signal passed on so far.
    with _passing_on(context.processes, passed) as pass_on:
        while True:
            try:
                if context.join(None if until is None else max(until - time.monotonic(), 0), grace_period=STOP_GRACE):
                    break
                if until is not None and time.monotonic() >= until:
                    pass_on(signal.SIGTERM)    # Perhaps nobody but this process was interrupted: by a program.
                    until = None
            except KeyboardInterrupt:
                if interrupted:
                    for process in context.processes:
                        process.terminate()
                    raise
                interrupted, until = True, time.monotonic() + ASK_AGAIN if os.name == 'posix' else None
            except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException):
                if not any(process.exitcode in passed for process in context.processes):
                    raise
                raise KeyboardInterrupt from None    # Somebody's wish, and there was nothing to save.
    if interrupted or passed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _passing_on(processes: list[Any], passed: list[int]) -> Iterator[Callable[..., None]]:
    """SIGTERM and SIGUSR1, which reach this process alone, are for those that work. Gives what passes on a signal."""
    def pass_on(signum: int, frame: Any = None) -> None:
        passed.append(-signum)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signum)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):    # Only a main thread may handle signals.
            for number in (getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name)):
                stack.callback(signal.signal, number, signal.signal(number, pass_on))
        yield pass_on


def _first_error(folder: str, err: Any, processes: list[Any]) -> Exception:
    """The cause: where one process stopped with a UserError or was killed, the others merely lost their partner."""
    path = os.path.join(folder, 'user_error.txt')
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            return UserError(file.read())
    ends = {rank: process.exitcode or 0 for rank, process in enumerate(processes)}
    lost = next((rank for rank, code in ends.items() if code < 0 and code != -signal.SIGTERM), None)
    details = str(err).strip()
    told_by_others = re.search('Connection (closed|reset)|Broken pipe|gloo|NCCL', details.splitlines()[-1])
    if isinstance(err, torch.multiprocessing.ProcessExitedException) or (lost is not None and told_by_others):
        rank = err.error_index if lost is None else lost
        what, details = f'died: {_end_of_process(ends[rank])}', ''
    else:
        rank, what = err.error_index, f'failed: {details.splitlines()[-1]}'
    return LostProcess(f'rank {rank} on {socket.gethostname()} (process {processes[rank].pid}) {what}; '
                       f'all {len(processes)} processes were stopped', details)


def _end_of_process(exitcode: int) -> str:
    if exitcode == -getattr(signal, 'SIGKILL', 9):
        return 'killed (kill -9, or out of memory)'
    return f'signal {-exitcode}' if exitcode < 0 else f'it left with exit code {exitcode}'
