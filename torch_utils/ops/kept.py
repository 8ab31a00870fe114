"""What kernels make of weights, kept for as long as somebody says that the weights stay: packed tiles, sums of squares.

Training makes them anew for each call, for weights change with each step. A network at inference keeps them:

    store = kept.Store(G.parameters())
    with kept.using(store):
        G(z, c)
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch

from torch_utils.ops.asked import is_recorded


class Store:
    """Results by the weights' memory. A weight that is changed in place, or views of it, are told apart.

    Of weights on a CPU: a CUDA graph that was recorded with a result would never hear of a change.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        # Alive, so that nobody else gets their memory.
        self.weights = [weight for weight in weights if weight.device.type == 'cpu']
        self.places = {weight.data_ptr() for weight in self.weights if weight.numel() > 0}
        self.results: dict[Hashable, tuple[int, Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        return Store([])  # Other weights, other memory: who copies a network makes a store for the copy.

    def get(self, weight: torch.Tensor, what: Hashable, make: Callable[[], Any]) -> Any:
        key = (what, weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype)
        version = weight._version
        found = self.results.get(key)
        if found is None or found[0] != version:
            found = self.results[key] = (version, make())
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
