"""A function of batches as CUDA graphs: recorded once for a batch's size, then replayed with one launch.

Small networks, and small batches, keep a GPU waiting for Python to say what comes next. Inputs are copied into the
memory that was recorded with, batches that fill most of it are replayed, too, and results are copied out.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import click
import torch

MOST_GRAPHS = 4  # Of one function: each keeps memory of its own.
MOST_FILLED_UP = 2  # Times its rows that a batch is computed with: in a larger graph it costs more than it saves.
CLOSE = 1e-2  # Of the largest value: what a replay may differ from the recorded call. float16 may choose other kernels.

Function = Callable[..., torch.Tensor]


class Replay:
    """Called as the function is, with tensors [N, …] on one device; N may change, one row must not depend on others.

    The first call of a size is done as it is, the second one recorded; a graph serves batches of half its size on. If a
    recording fails the function is called as it is from then on, and that is said once.
    """

    def __init__(
        self, function: Function, name: str, random: bool = False, recorder: Callable[..., Recorded] | None = None
    ) -> None:
        self.function, self.name = function, name
        self.random = random  # Whether it draws numbers: a batch that is filled up would get others.
        self.recorder = recorder or Recorded
        self.seen: Counter[Any] = Counter()
        self.graphs: dict[Any, dict[int, Recorded]] = {}  # What rows are like -> size -> graph.
        self.works = True

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        rows = tensors[0].shape[0]
        like = tuple((tuple(t.shape[1:]), t.dtype, t.device) for t in tensors)
        graphs = self.graphs.setdefault(like, {})
        most = rows if self.random else MOST_FILLED_UP * rows
        size = min((size for size in graphs if rows <= size <= most), default=None)
        if size is not None:
            return graphs[size](*tensors)
        self.seen[like, rows] += 1
        result = self.function(*tensors)
        if self.works and self.seen[like, rows] == 2 and len(graphs) < MOST_GRAPHS:
            self._record(graphs, tensors, result)
        return result

    def _record(self, graphs: dict[int, Recorded], tensors: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        reason = 'its results differ'
        try:
            with torch.random.fork_rng(devices=[result.device] if result.is_cuda else []):
                graph = self.recorder(self.function, tensors)
                fits = self.random or _close(graph(*tensors), result)
            if fits:
                graphs[len(result)] = graph
                return
        except RuntimeError as error:
            first = error.__context__ or error  # A capture that has failed only says so in the end.
            reason = ' '.join(str(first).split())[:200]
        self.works = False
        click.echo(f'{self.name}: no CUDA graph ({reason}); going on without', err=True)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max().clamp(min=1e-6))


def _forget_capture(pool: Any) -> None:
    """As in training.cuda_graphs, which not every host has: torch's allocator and generator of the current device still
    think that the capture is going on."""
    with contextlib.suppress(AttributeError, RuntimeError):  # It has ended it after all.
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    if hasattr(generator, 'graphsafe_set_state'):
        generator.graphsafe_set_state(generator.clone_state())


class Recorded:
    """One graph: `tensors` are examples of full size."""

    def __init__(self, function: Function, tensors: tuple[torch.Tensor, ...]) -> None:
        with torch.inference_mode(False):  # What was made in it could not be written to outside of it.
            self.inputs = [t.detach().clone() for t in tensors]
        device = self.inputs[0].device
        # Libraries set themselves up in a stream that is not recorded; graphs demand that it is none of the default.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            function(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Only this thread's calls: others, which read images ahead and pin memory, must not spoil it. The outer stream
        # is for a recording that fails: torch would leave the inner one the current one.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            pool = torch.cuda.graph_pool_handle()
            try:
                with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode='thread_local'):
                    self.output = function(*self.inputs)
            except RuntimeError:
                _forget_capture(pool)
                raise

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The rows given; those beyond keep what they had, and nobody looks at what becomes of them."""
        rows = tensors[0].shape[0]
        for place, given in zip(self.inputs, tensors, strict=True):
            place[:rows].copy_(given)
        self.graph.replay()
        return self.output[:rows].clone()
