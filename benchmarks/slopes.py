"""Which slope a leaky ReLU takes, pixel by pixel: written down in one run, and prescribed to another.

An input within rounding of 0 gets one slope here and the other one there. Then the gradient jumps by what that pixel
carries, which says nothing of how exactly it was computed. Beside a reference that takes the same slopes, what is left
is rounding.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch

Slopes = list[torch.Tensor]  # One for each call, in order: bool, of the result's shape, whether it is above 0.


@contextlib.contextmanager
def recorded(bias_act: ModuleType) -> Iterator[Slopes]:
    """The slopes of all leaky ReLUs that the code base of this `torch_utils.ops.bias_act` computes meanwhile."""
    found: Slopes = []
    inside = False  # One of the functions may call the other.

    def watched(function: Any) -> Any:
        signature = inspect.signature(function)

        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal inside
            outermost, inside = not inside, True
            try:
                y = function(*args, **kwargs)
            finally:
                inside = not outermost
            if outermost and signature.bind(*args, **kwargs).arguments.get('act') == 'lrelu':
                found.append((y.detach() > 0).cpu().contiguous())
            return y

        return call

    names = [name for name in ('bias_act', 'modulated_bias_act') if hasattr(bias_act, name)]
    with mock.patch.multiple(bias_act, **{name: watched(getattr(bias_act, name)) for name in names}):
        yield found


@contextlib.contextmanager
def prescribed(bias_act: ModuleType, slopes: Slopes) -> Iterator[None]:
    """The leaky ReLUs of `bias_act.bias_act` take these slopes, whatever their inputs. ValueError if they don't fit."""
    function, rest = bias_act.bias_act, iter(slopes)

    def call(x: torch.Tensor, b: torch.Tensor | None = None, dim: int = 1, act: str = 'linear',
             alpha: float | None = None, gain: float | None = None, clamp: float | None = None,
             **kwargs: Any) -> torch.Tensor:
        if act != 'lrelu':
            return function(x, b, dim=dim, act=act, alpha=alpha, gain=gain, clamp=clamp, **kwargs)
        above = next(rest, None)
        if above is None or above.shape != x.shape:
            raise ValueError(f'slopes: got {None if above is None else list(above.shape)}, expected {list(x.shape)}')
        x = x if b is None else x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
        factors = torch.tensor([0.2 if alpha is None else alpha, 1], dtype=x.dtype, device=x.device)
        y = x * factors[above.to(x.device).long()] * (2 ** 0.5 if gain is None else gain)
        return y if clamp is None else y.clamp(-clamp, clamp)

    with mock.patch.object(bias_act, 'bias_act', call):
        yield
    if next(rest, None) is not None:
        raise ValueError('slopes: more than were asked for')


def one_after_the_other(found: Slopes, batch: int, halves: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
                        ) -> Slopes:
    """Those of a network that was shown two batches at once, as if it had been shown `halves(…)[0]` first."""
    both = [halves(above) for above in found if len(above) == 2 * batch]
    alone = [above for above in found if len(above) != 2 * batch]  # Whoever drew the first half did so before.
    return [*alone, *(first for first, _ in both), *(second for _, second in both)]


def apart(first: Slopes, second: Slopes) -> int | None:
    """At how many pixels they differ; None if they aren't of the same calls."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return None
    return sum(int((a != b).sum()) for a, b in zip(first, second))
