"""Phases of training as CUDA graphs: one launch instead of thousands, which is what small resolutions wait for.

A phase's forward and backward passes run as they are a few times, on a stream aside as capture asks for, then they are
recorded with static inputs and static gradients, and from then on replayed. What can't be recorded stays outside: the
loop's own counting, messages between processes, the optimiser. Random numbers go on as they would: torch moves its
generator on by what the graph has drawn.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch

from dnnlib.util import UserError
from torch_utils import training_stats

MODES = ('off', 'auto', 'on')
WARM_UP = 3  # Passes before the capture: libraries choose their algorithms, and constants are made.
ALIGNMENT = 64  # Numbers.
LARGEST = 256  # Pixels at which `auto` captures: above, kernels last longer than their launches.

Inputs = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, dict[str, torch.Tensor]]  # A loss, and moments of what was reported.
Work = Callable[..., torch.Tensor | None]


class Graph(Protocol):
    """Something that records what work does to tensors and does it again."""

    def capture(self, work: Callable[[], Outputs]) -> None:
        """Records `work` without effects."""

    def replay(self) -> Outputs:
        """Does what was recorded; the same tensors each time, with new values."""


class CudaGraph:
    """CUDA's own. All graphs of a `pool` share its memory, since one runs after the other; all record in `stream`."""

    def __init__(self, pool: Any, stream: torch.cuda.Stream) -> None:
        self.pool, self.stream = pool, stream
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Outputs]) -> None:
        device = self.stream.device
        # torch's own way out of a capture that failed leaves its stream the current one. The device's, lest another
        # GPU's stream records nothing.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            try:
                # Only this thread's calls: others, which pin memory or ask for events, must not spoil it.
                with torch.cuda.graph(
                    self.graph, pool=self.pool, stream=self.stream, capture_error_mode='thread_local'
                ):
                    self.outputs = work()
            except RuntimeError:
                _forget_capture(self.pool)
                raise

    def replay(self) -> Outputs:
        self.graph.replay()
        return self.outputs


def _forget_capture(pool: Any) -> None:
    """After a capture that CUDA has broken off the current device's allocator and generator still think that it is
    going on: memory of other streams would never be reused, and no random number could be drawn any more."""
    with contextlib.suppress(AttributeError, RuntimeError):  # It has ended it after all.
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    if hasattr(generator, 'graphsafe_set_state'):
        generator.graphsafe_set_state(generator.clone_state())


def _first_reason(error: BaseException) -> str:
    """In a line. The end of a capture that had failed fails, too, and knows no more than that."""
    while error.__context__ is not None:
        error = error.__context__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class StaticGradients:
    """Gradients of a module that stay where they are in memory, in one buffer."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameters = list(module.parameters())
        sizes = [parameter.numel() for parameter in self.parameters]
        kinds = {(parameter.dtype, parameter.device) for parameter in self.parameters}
        assert len(kinds) == 1, 'networks are float32, on one device'
        # From multiples of 256 bytes on, as an allocator would have it: optimisers read several numbers at once.
        room = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        self.buffer = self.parameters[0].new_zeros(sum(room))
        self.views = [part.as_strided(parameter.shape, _dense_strides(parameter))
                      for part, parameter in zip(self.buffer.split(room), self.parameters)]

    def attach(self) -> None:
        """All zero, and in their places."""
        self.buffer.zero_()
        for parameter, view in zip(self.parameters, self.views):
            parameter.grad = view


def _dense_strides(parameter: torch.Tensor) -> tuple[int, ...]:
    """The parameter's own, or plain ones if those leave gaps."""
    return torch.empty_like(parameter, device='meta').stride()


class Graphs:
    """Runs a training's phases, captured where that is possible. Once a capture has failed, all is done eagerly.

    Args:
        make_graph: makes an empty graph.
        required: raise UserError if a capture fails, instead of going on without, which is said once on stderr.
        stream: where passes run that warm up. None = where all else does.
    """

    def __init__(
        self, make_graph: Callable[[], Graph], required: bool = False, stream: torch.cuda.Stream | None = None
    ) -> None:
        self.make_graph, self.required, self.stream = make_graph, required, stream
        self.failed = False
        self.passes: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, tuple[Graph, Inputs]] = {}
        self.gradients: dict[torch.nn.Module, StaticGradients] = {}
        self.idle: dict[str, list[torch.nn.Parameter]] = {}  # By phase, parameters that it gives no gradient.
        self.is_first = False  # The phase under way has no static gradients yet, which a recording would add to.

    def begin_phase(self, name: str, module: torch.nn.Module) -> None:
        """Gradients are set to none the first time, to see which there are, and to zero from then on."""
        self.is_first = name not in self.idle
        if self.is_first:
            module.zero_grad(set_to_none=True)
            return
        if module not in self.gradients:
            self.gradients[module] = StaticGradients(module)
        self.gradients[module].attach()

    def end_phase(self, name: str, module: torch.nn.Module, losses: bool) -> None:
        """Takes away the gradients that the phase has not given: optimisers leave such parameters alone."""
        if not losses:
            module.zero_grad(set_to_none=True)
            return
        if name not in self.idle:
            self.idle[name] = [parameter for parameter in module.parameters() if parameter.grad is None]
        for parameter in self.idle[name]:
            parameter.grad = None

    def run(self, key: Hashable, work: Work, inputs: Inputs) -> torch.Tensor | None:
        """What `work(**inputs)` gives, a scalar or None; its reports reach the statistics either way.

        key: all that the work depends on besides tensors. Shapes are looked at here.
        """
        shapes = tuple((name, x.shape, x.dtype) for name, x in inputs.items())
        key = (key, shapes)
        eagerly = self.failed or self.is_first or self.passes[key] < WARM_UP
        if key not in self.captured and (eagerly or not self._capture(key, work, inputs)):
            value = self._eagerly(work, inputs)
            self.passes[key] += value is not None  # Nothing to do is nothing to record.
            return value
        graph, static = self.captured[key]
        for name, given in inputs.items():
            static[name].copy_(given, non_blocking=True)
        loss, moments = graph.replay()
        training_stats.add(moments)
        return loss.detach().clone()  # The next replay writes over it.

    def _eagerly(self, work: Work, inputs: Inputs) -> torch.Tensor | None:
        if self.stream is None or self.failed:
            return work(**inputs)
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            value = work(**inputs)
        current.wait_stream(self.stream)
        return value

    def _capture(self, key: Hashable, work: Work, inputs: Inputs) -> bool:
        static = {name: x.detach().clone() for name, x in inputs.items()}

        def recorded() -> Outputs:
            with training_stats.held_back() as moments:
                loss = work(**static)
            assert loss is not None, 'as the passes before'
            return loss.detach(), moments

        graph = self.make_graph()
        try:
            graph.capture(recorded)
        except RuntimeError as error:
            reason = _first_reason(error)
            if self.required:
                raise UserError(f'--cuda-graphs=on: this training can\'t be captured ({reason}); '
                                '--cuda-graphs=off does without') from error
            print(f'CUDA graphs: off, a phase could not be captured ({reason}); training goes on without them',
                  file=sys.stderr, flush=True)
            self.failed = True
            self.captured.clear()
            return False
        self.captured[key] = graph, static
        return True


def make(mode: str, device: torch.device, resolution: int) -> Graphs | None:
    """Graphs for `--cuda-graphs=mode`; None = none. UserError if they are asked for where there can be none."""
    if mode not in MODES:
        raise ValueError(f'cuda_graphs: expected one of {", ".join(MODES)}, got {mode!r}')
    if mode == 'off' or mode == 'auto' and (device.type != 'cuda' or resolution > LARGEST):
        return None
    if device.type != 'cuda':
        raise UserError(f'--cuda-graphs=on: needs a CUDA GPU, and this run is on {device.type}')
    stream = torch.cuda.Stream(device)
    graph = functools.partial(CudaGraph, torch.cuda.graph_pool_handle(), stream)
    return Graphs(graph, required=mode == 'on', stream=stream)
