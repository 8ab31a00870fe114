"""What kernels make of weights, kept while the weights stay: packed tiles, sums of squares.

In training weights change with each step, and results are made anew for each call. What is asked for again while its
weight has stayed the same is kept from then on, of parameters that nobody differentiates. Who knows that weights stay
says so, and their results are kept at once, without a look at the weights' numbers each time:

    store = kept.Store(G.parameters())
    with kept.using(store):
        G(z, c)
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch

from torch_utils.ops import cpu_kernels
from torch_utils.ops.asked import is_recorded

MOST_BYTES = 1 << 30  # Of what is kept without a store. What doesn't fit is made anew each time.
LONG_AGO = 1000  # Requests: what nobody has asked for in so many makes room.
SWEEP = 100  # Requests between two looks for results of weights that have changed since.


class Result(Protocol):
    @property
    def nbytes(self) -> int: ...


R = TypeVar('R', bound=Result)


def get(weight: torch.Tensor, what: Hashable, nbytes: int, make: Callable[[], R]) -> R | None:
    """What `make` gives, from an earlier call if it was kept; None = it is not to be kept, and not made.

    what: Tells results of one weight apart.
    nbytes: The result's size.
    """
    store = store_of(weight)
    return _seen.get(weight, what, nbytes, make) if store is None else store.get(weight, what, make)


def _made(make: Callable[[], R]) -> R:
    """A result that serves outside of `torch.inference_mode`, too, if it is asked for there first."""
    with torch.inference_mode(False), torch.no_grad():
        return make()


# ---------------------------------------------------------------------------------------------------------------------
# Of weights that are said to stay


class Store:
    """Results by the weights' memory. A weight that is changed in place, or views of it, are told apart; what is
    written through `.data` or by NumPy isn't.

    Of weights on a CPU: a CUDA graph that was recorded with a result would never hear of a change.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        # Their memory stays alive, or others might get it; also if the weights get other memory, as `.to()` gives them.
        self.weights = [weight.detach() for weight in weights if weight.device.type == 'cpu']
        self.places = {weight.data_ptr() for weight in self.weights if weight.numel() > 0}
        self.results: dict[Hashable, tuple[int, Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        return Store([])  # Other weights, other memory: who copies a network makes a store for the copy.

    def get(self, weight: torch.Tensor, what: Hashable, make: Callable[[], Any]) -> Any:
        key = (what, weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype)
        version = weight._version
        found = self.results.get(key)
        if found is None or found[0] != version:
            found = self.results[key] = (version, _made(make))
        return found[1]


_store: contextvars.ContextVar[Store | None] = contextvars.ContextVar('kept', default=None)


@contextlib.contextmanager
def using(store: Store) -> Iterator[None]:
    """Keeps what kernels make of the store's weights, in a region where no gradients of them are wanted."""
    token = _store.set(store)
    try:
        yield
    finally:
        _store.reset(token)


def store_of(weight: torch.Tensor) -> Store | None:
    """The store in use, if it is for this weight and nothing of it is being recorded."""
    store = _store.get()
    if store is None or is_recorded() or torch.is_grad_enabled() or weight.is_inference():
        return None
    return store if weight.data_ptr() in store.places else None


# ---------------------------------------------------------------------------------------------------------------------
# Of weights that are seen to stay


@dataclasses.dataclass
class _Entry:
    owner: weakref.ref[torch.Tensor]
    state: tuple[Any, ...]
    checksum: int | None = None  # None = it has been asked for once, and there is no result yet.
    result: Any = None
    used: int = 0

    @property
    def nbytes(self) -> int:
        return 0 if self.result is None else int(self.result.nbytes)


class Seen:
    """Results of parameters that stay between two requests, until they change or go, MOST_BYTES in all."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, Hashable], _Entry] = {}
        self._clock = itertools.count()

    def get(self, weight: torch.Tensor, what: Hashable, nbytes: int, make: Callable[[], Any]) -> Any:
        if not _may_stay(weight):
            return None
        key, now = (id(weight), what), next(self._clock)
        state = weight._version, weight.data_ptr(), weight.shape, weight.stride()
        entry = self.entries.get(key)
        if entry is None or entry.owner() is not weight or entry.state != state:
            self.entries[key] = _Entry(weakref.ref(weight, lambda _: self.entries.pop(key, None)), state)
            if now % SWEEP == 0:
                self._drop(lambda entry: getattr(entry.owner(), '_version', None) != entry.state[0])
            return None
        # The version doesn't tell of what was written through `.data` or by another library.
        checksum = cpu_kernels.checksum(weight)
        if entry.checksum != checksum:
            if entry.result is None and not self._room(nbytes, now):
                return None
            entry.checksum, entry.result = checksum, _made(make)
        entry.used = now
        return entry.result

    def _room(self, nbytes: int, now: int) -> bool:
        """Whether so many bytes may be kept, perhaps in place of what nobody has used for long."""
        if self.nbytes + nbytes > MOST_BYTES:
            self._drop(lambda entry: now - entry.used > LONG_AGO)
        return self.nbytes + nbytes <= MOST_BYTES

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in list(self.entries.values()))

    def _drop(self, condition: Callable[[_Entry], bool]) -> None:
        for entry in list(self.entries.values()):
            if entry.result is not None and condition(entry):
                entry.checksum, entry.result = None, None


_seen = Seen()


def _may_stay(weight: torch.Tensor) -> bool:
    """Whether this is a parameter in a CPU's memory of which nobody wants gradients, and no tracer looks on."""
    return (type(weight) is torch.nn.Parameter and weight.device.type == 'cpu' and weight.dtype == torch.float32
            and not (weight.requires_grad and torch.is_grad_enabled()) and not weight.is_inference()
            and not is_recorded() and is_dense(weight) and cpu_kernels.library() is not None)


def is_dense(weight: torch.Tensor) -> bool:
    """Whether it fills its memory without gaps, in either format."""
    return weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
