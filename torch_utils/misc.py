"""The host's odds and ends around torch: cached constants, shape checks, endless sampling, copies of weights."""

import contextlib
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import numpy as np
import torch

nan_to_num = torch.nan_to_num
symbolic_assert = torch._assert     # Becomes part of the graph when traced.

_F = TypeVar('_F', bound=Callable[..., Any])


# Constants.

@functools.lru_cache(maxsize=1024)
def _cached_constant(
    content: bytes,
    np_dtype: str,
    np_shape: tuple[int, ...],
    shape: tuple[int, ...] | None,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    value = np.frombuffer(content, dtype=np_dtype).reshape(np_shape).copy()
    with torch.inference_mode(False):   # A constant outlives the mode it is first asked for in.
        tensor = torch.as_tensor(value).to(dtype=dtype).to(device=device)   # In this order: MPS has no float64.
        if shape is not None:
            tensor = tensor.expand(torch.broadcast_shapes(tensor.shape, shape))
        return tensor.contiguous(memory_format=memory_format)


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """A tensor of `value`, broadcast to `shape`; the same one for the same arguments, so it is copied up only once.

    The key is the value's bytes, dtype and shape with everything else that shapes the result. Never write into it.
    """
    array = np.ascontiguousarray(value)
    return _cached_constant(
        array.tobytes(), array.dtype.str, np.shape(value), None if shape is None else tuple(shape),
        dtype if dtype is not None else torch.get_default_dtype(), torch.device('cpu' if device is None else device),
        memory_format if memory_format is not None else torch.contiguous_format,
    )


# Tracing and profiling.

@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Silences torch.jit's TracerWarning inside the block.

    Not by `warnings.catch_warnings`, which would empty the once-per-line registries of every other warning each time.
    """
    entry = ('ignore', None, torch.jit.TracerWarning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):   # Somebody inside may have reset the filters.
            filters.remove(entry)


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | torch.Tensor | None]) -> None:
    """Raises AssertionError unless the shape is `ref_shape`, where None fits any size; also inside a trace."""
    if len(ref_shape) != tensor.ndim:
        raise AssertionError(f'Wrong number of dimensions: got {tensor.ndim}, expected {len(ref_shape)}')
    for axis, wanted in enumerate(ref_shape):
        size: Any = tensor.shape[axis]
        if wanted is None:
            continue
        if isinstance(size, torch.Tensor) or isinstance(wanted, torch.Tensor):     # Sizes are tensors in a trace.
            with suppress_tracer_warnings():
                same = torch.equal(torch.as_tensor(size), torch.as_tensor(wanted))
                symbolic_assert(same, f'Wrong size for dimension {axis}')
        elif size != wanted:
            raise AssertionError(f'Wrong size for dimension {axis}: got {size}, expected {wanted}')


def profiled_function(fn: _F) -> _F:
    """Decorator: the function shows up under its name in torch's profiler."""
    @functools.wraps(fn)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)
    return timed    # type: ignore[return-value]


# Sampling.

class InfiniteSampler(torch.utils.data.Sampler):
    """Endless indices into a data set, spread over replicas and shuffled on the go, in the hosts' exact order.

    After each index, its place is swapped with one drawn from the `window_size` share of the set just behind it.
    `start` skips that many samples of this replica's stream: a resumed run goes on where the old one stopped.
    """

    def __init__(
        self,
        dataset: Sized,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        window_size: float = 0.5,
        start: int = 0,
    ) -> None:
        super().__init__()
        if len(dataset) == 0:
            raise ValueError('dataset: expected at least one item, got none')
        if not 0 <= rank < num_replicas:
            raise ValueError(f'rank: expected 0 ≤ rank < {num_replicas} (num_replicas), got {rank}')
        if not 0 <= window_size <= 1 or start < 0:
            raise ValueError(f'expected window_size in [0, 1] and start ≥ 0, got {window_size} and {start}')
        self.dataset = dataset
        self.rank, self.num_replicas = rank, num_replicas
        self.shuffle, self.seed, self.window_size = shuffle, seed, window_size
        self.start = start

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        order = list(range(count))
        random = np.random.RandomState(self.seed)
        window = 0
        if self.shuffle:
            shuffled = np.arange(count)
            random.shuffle(shuffled)
            order = shuffled.tolist()
            window = int(np.rint(count * self.window_size))
        first = self.rank + self.start * self.num_replicas
        steps = _random_steps(random, window)
        for position in itertools.count():
            here = position % count
            if position >= first and (position - first) % self.num_replicas == 0:
                yield order[here]
            if window >= 2:
                there = (here - next(steps)) % count
                order[here], order[there] = order[there], order[here]


def _random_steps(random: np.random.RandomState, window: int) -> Iterator[int]:
    """Endless draws from range(window): by the block, which is the same stream as one by one and ten times as fast."""
    while True:
        yield from random.randint(window, size=4096).tolist()


# Parameters and buffers.

def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All parameters, then all buffers, with their names; each tensor once."""
    return [*module.named_parameters(), *module.named_buffers()]


def params_and_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    """All parameters, then all buffers; each tensor once."""
    return [tensor for _, tensor in named_params_and_buffers(module)]


@torch.no_grad()
def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copies values by name from `src_module`, and leaves alone what it doesn't have.

    Raises ValueError, before anything is copied, for a shape that differs and, with `require_all`, a missing name.
    """
    have = dict(named_params_and_buffers(src_module))
    want = dict(named_params_and_buffers(dst_module))
    missing = [name for name in want if name not in have]
    if require_all and missing:
        raise ValueError(f'src_module: has no {some_names(missing)}, which {type(dst_module).__name__} needs')
    for name in want.keys() & have.keys():
        if have[name].shape != want[name].shape:
            raise ValueError(f'{name}: got shape {list(have[name].shape)}, expected {list(want[name].shape)}')
    for name in want.keys() & have.keys():
        want[name].copy_(have[name])


def some_names(names: Iterable[str], limit: int = 3) -> str:
    """A few names and how many more: `a, b, c and 7 more`."""
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


# Several processes.

@contextlib.contextmanager
def ddp_sync(module: torch.nn.Module, sync: bool) -> Iterator[None]:
    """Inside the block, a DistributedDataParallel module averages its gradients only if `sync`. Others don't care."""
    if isinstance(module, torch.nn.parallel.DistributedDataParallel) and not sync:
        with module.no_sync():
            yield
    else:
        yield


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Raises AssertionError, naming the tensors, if this process's weights are not those of rank 0."""
    different = []  # Told at the end: leaving early would put this process's later broadcasts out of step.
    for name, tensor in named_params_and_buffers(module):
        full_name = f'{type(module).__name__}.{name}'
        if ignore_regex is not None and re.fullmatch(ignore_regex, full_name):
            continue
        mine = tensor.detach()
        theirs = mine.clone()
        torch.distributed.broadcast(theirs, src=0)
        if mine.is_floating_point():    # NaN on both sides is consistent.
            mine, theirs = nan_to_num(mine), nan_to_num(theirs)
        if not torch.equal(mine, theirs):
            different.append(full_name)
    if different:
        raise AssertionError(f'differs between processes: {some_names(different)}')


# Summary.

def print_module_summary(
    module: torch.nn.Module, inputs: Sequence[Any], max_nesting: int = 3, skip_redundant: bool = True
) -> Any:
    """Runs the module, prints a table of its parts (parameters, buffers, output shapes), and returns the outputs.

    With `skip_redundant`, a part stands there only for tensors that none of its own parts has shown already.
    """
    names = {part: name or '<top-level>' for name, part in module.named_modules()}
    calls: list[tuple[torch.nn.Module, list[torch.Tensor]]] = []
    depth = 0

    def enter(_part: torch.nn.Module, _inputs: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(part: torch.nn.Module, _inputs: Any, result: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth <= max_nesting:
            several = result if isinstance(result, (tuple, list)) else [result]
            calls.append((part, [item for item in several if isinstance(item, torch.Tensor)]))

    with contextlib.ExitStack() as hooks:
        for part in module.modules():
            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave).remove)
        outputs = module(*inputs)
    header = [type(module).__name__, 'Parameters', 'Buffers', 'Output shape', 'Datatype']
    _print_table(header, *_summary_rows(names, calls, skip_redundant))
    return outputs


def _summary_rows(
    names: dict[torch.nn.Module, str], calls: list[tuple[torch.nn.Module, list[torch.Tensor]]], skip_redundant: bool
) -> tuple[list[list[str]], list[str]]:
    """The table's body, a line for each output of each part, and its last line: the totals."""
    shown: set[int] = set()
    rows, totals = [], [0, 0]

    def count_new(tensors: Iterable[torch.Tensor]) -> int:
        return sum(tensor.numel() for tensor in tensors if id(tensor) not in shown)

    for part, outputs in calls:
        sizes = [count_new(part.parameters()), count_new(part.buffers())]
        redundant = not any(sizes) and all(id(item) in shown for item in outputs)
        shown.update(id(item) for item in [*part.parameters(), *part.buffers(), *outputs])
        if redundant and skip_redundant:
            continue
        totals = [total + size for total, size in zip(totals, sizes)]
        shapes = [[str(list(item.shape)), str(item.dtype).removeprefix('torch.')] for item in outputs] or [['-', '-']]
        for index, shape in enumerate(shapes):
            label = names[part] + (f':{index}' if len(shapes) > 1 else '')
            rows.append([label, *(str(size) if size and not index else '-' for size in sizes), *shape])
    return rows, ['Total', str(totals[0]), str(totals[1]), '-', '-']


def _print_table(header: list[str], rows: list[list[str]], totals: list[str]) -> None:
    rule = ['---'] * len(header)
    lines = [header, rule, *rows, rule, totals]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print()
    for line in lines:
        print('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print()
