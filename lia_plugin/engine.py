"""A network that only draws and encodes, as fast as its device can: the same calls and, to rounding, the same numbers.

    engine = Engine(G)                       # in G's place: engine(z, c), engine.synthesis(ws), engine.mapping …
    y, z = engine.invert(img)                # as G.invert
    recon = engine.decode(y)                 # as G.decode

On a CPU what kernels make of weights is kept from call to call. On CUDA small batches are replayed as graphs. Where
gradients are wanted the network itself is called. Changes of weights in place are noticed, but not what is written
past PyTorch's own record of them: through `.data`, or by NumPy into the same memory. A new engine is right.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch

from lia_plugin import host
from lia_plugin.cuda_replay import Replay
from lia_plugin.networks import Inversion, base_code

MODES = ('auto', 'eager', 'graph', 'compile')
MODE_VARIABLE = 'LIA_INFERENCE'
MOST_PIXELS = 2**20  # Of a batch's images that a graph is made for: with more a GPU is busy anyway.


def of(network: Any) -> Any:
    """The engine of a network, made at its first use; what is no module, or one without weights, is given back."""
    if not isinstance(network, torch.nn.Module) or _device(network) is None:
        return network
    found = _engines.get(network)
    if found is None or found.places != _places(network):
        found = _engines[network] = Engine(weakref.proxy(network))  # Or a network would never be forgotten.
    return found


_engines: weakref.WeakKeyDictionary[torch.nn.Module, Engine] = weakref.WeakKeyDictionary()


class Engine:
    """Stands in for a generator at inference; what it hasn't is the network's.

    mode: 'eager', the network itself; 'graph', CUDA graphs; 'compile', torch.compile for each size of a batch (a first
    call takes minutes, and on a CPU it loses to this project's kernels). 'auto' = graphs on CUDA, else eager; or what
    the environment's LIA_INFERENCE says.
    """

    def __init__(self, G: Any, mode: str = 'auto') -> None:
        mode = os.environ.get(MODE_VARIABLE, 'auto') if mode == 'auto' else mode
        if mode not in MODES:
            raise host.UserError(f'{MODE_VARIABLE}: expected one of {", ".join(MODES)}, got {mode!r}')
        self.G = G
        self.places = _places(G)
        device = _device(G)
        if device is None:
            raise ValueError('G: a network without weights has no device')
        self.mode = ('graph' if device.type == 'cuda' else 'eager') if mode == 'auto' else mode
        if self.mode == 'graph' and device.type != 'cuda':
            raise host.UserError(f'{MODE_VARIABLE}=graph: needs a CUDA device, not {device}')
        self.keeping = host.weight_keeper(G)
        self.synthesis = Synthesis(self)
        self._encoder = self._fast(lambda img: self.G.encode(img), 'encoder')
        self._encoder_with_labels = self._fast(lambda img, c: self.G.encode(img, c), 'encoder')

    def __getattr__(self, name: str) -> Any:
        if name == 'G':  # While it is being copied.
            raise AttributeError(name)
        return getattr(self.G, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return Engine(copy.deepcopy(self.G, memo), self.mode)

    def __call__(
        self, z: torch.Tensor, c: torch.Tensor | None = None, truncation_psi: float = 1,
        truncation_cutoff: int | None = None, **synthesis_kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """As the generator's own call."""
        ws = self.G.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)

    def encode(self, img: torch.Tensor, c: torch.Tensor | None = None, space: str | None = None) -> torch.Tensor:
        """As G.encode."""
        answers = getattr(self.G.encoder, 'iters', 1)  # A later one takes gradients.
        if space is not None or answers > 1 or not _plain(img, c):
            with self.keeping():
                return self.G.encode(img, c) if space is None else self.G.encode(img, c, space=space)
        with self.keeping():
            return self._encoder(img) if c is None else self._encoder_with_labels(img, c)

    def invert(self, img: torch.Tensor, c: torch.Tensor | None = None, space: str | None = None) -> Inversion:
        """As G.invert."""
        y = self.encode(img, c, space)
        return Inversion(y, self.G.mapping.y_to_z(base_code(y), c))

    def decode(
        self, y: torch.Tensor, c: torch.Tensor | None = None, truncation_psi: float = 1, **synthesis_kwargs: Any
    ) -> torch.Tensor:
        """As G.decode."""
        return self.synthesis(self.G.mapping.y_to_ws(y, c, truncation_psi), **synthesis_kwargs)

    def eval(self) -> Engine:
        self.G.eval()
        return self

    def requires_grad_(self, wanted: bool = True) -> Engine:
        self.G.requires_grad_(wanted)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Engine:
        """A new one if the network's memory moves."""
        self.G.to(*args, **kwargs)
        return self if self.places == _places(self.G) else Engine(self.G, self.mode if self.mode != 'graph' else 'auto')

    def _fast(
        self, function: Callable[..., torch.Tensor], name: str, random: bool = False
    ) -> Callable[..., torch.Tensor]:
        if self.mode == 'graph':
            replay = Replay(function, name, random)
            return lambda *tensors: (replay if self._is_small(tensors[0].shape[0]) else function)(*tensors)
        return torch.compile(function, dynamic=False) if self.mode == 'compile' else function

    def _is_small(self, images: int) -> bool:
        return images * int(self.G.img_resolution) ** 2 <= MOST_PIXELS


class Synthesis:
    """Stands in for an engine's synthesis network."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fast: dict[Any, Callable[..., torch.Tensor]] = {}  # By the keywords of the call.

    def __getattr__(self, name: str) -> Any:
        if name == 'engine':
            raise AttributeError(name)
        return getattr(self.engine.G.synthesis, name)

    def __call__(self, ws: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        network = self.engine.G.synthesis
        with self.engine.keeping():
            if not _plain(ws):
                return network(ws, **kwargs)
            key = tuple(sorted(kwargs.items()))
            if key not in self.fast:
                engine = self.engine
                random = kwargs.get('noise_mode', 'random') == 'random'  # Which is the networks' own default.
                self.fast[key] = engine._fast(lambda ws: engine.G.synthesis(ws, **kwargs), 'synthesis network', random)
            return self.fast[key](ws)


def _plain(*tensors: torch.Tensor | None) -> bool:
    """Whether nobody wants gradients, and none of what is given is to be replaced by something else."""
    return not torch.is_grad_enabled() and all(t is None or len(t) > 0 for t in tensors)


def _device(network: Any) -> torch.device | None:
    return next((tensor.device for tensors in (network.parameters(), network.buffers()) for tensor in tensors), None)


def _places(network: Any) -> int:
    """Changes when a network's weights move in memory."""
    return hash(tuple(tensor.data_ptr() for tensor in [*network.parameters(), *network.buffers()]))
