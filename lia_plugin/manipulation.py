"""Moving codes along directions: how far a code is from a boundary, and the code that is further by so much.

A code is y [N, dim] or y+ [N, num_ws, dim] (w, w+ in a stock network). A direction in z moves z = φ(y), of y+ layer by
layer, and comes back by φ⁻¹.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lia_plugin import spaces
from lia_plugin.directions import Direction


@torch.no_grad()
def distance(G: Any, code: torch.Tensor, c: torch.Tensor | None, direction: Direction) -> torch.Tensor:
    """code · vector + bias, in units of the direction's space, [N]; the bias is 0 where there is no boundary.

    Of y+ it is that of the base code, or, where each layer has a vector of its own, the mean over layers.
    """
    return _project(_inside(G, code, c, direction), direction.vector) + (direction.bias or 0.0)


@torch.no_grad()
def shift(
    G: Any,
    code: torch.Tensor,
    c: torch.Tensor | None,
    direction: Direction,
    amounts: torch.Tensor | float,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """The code whose `distance` is greater by `amounts` [N], in units of the direction's space.

    `layers`: only these of y+ are moved; None = those that the direction names, else all. A code [N, dim] stays one if
    all its layers go the same way, and becomes y+ if not.
    """
    vector = direction.vector.to(code.device)
    steps = torch.as_tensor(amounts, dtype=code.dtype, device=code.device).expand(len(code))
    chosen = direction.layers if layers is None else tuple(layers)
    if code.ndim == 2 and (direction.per_layer or (chosen is not None and len(set(chosen)) < G.num_ws)):
        code = spaces.fit_code(G, code, plus=True)
    if code.ndim == 2:
        return leave_space(G, enter_space(G, code, c, direction.space) + steps[:, None] * vector, c, direction.space)
    moving = list(range(G.num_ws)) if chosen is None else sorted(set(chosen))
    rows = vector[moving] if direction.per_layer else vector
    moved = enter_space(G, code[:, moving], c, direction.space) + steps[:, None, None] * rows
    result = code.clone()  # What stays, stays to the bit: no way there and back.
    result[:, moving] = leave_space(G, moved, c, direction.space)
    return result


def enter_space(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """A code [N, dim], or any number of layers of one [N, L, dim], -> the same in `space`: φ of each if that is 'z'."""
    return _by_layer(G.mapping.y_to_z, code, c) if space == 'z' else code


def leave_space(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """Undoes `enter_space`."""
    return _by_layer(G.mapping.z_to_y, code, c) if space == 'z' else code


def _by_layer(function: Any, code: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    if code.ndim == 2:
        return function(code, c)
    per_layer = None if c is None else c.repeat_interleave(code.shape[1], dim=0)
    return function(code.flatten(0, 1), per_layer).unflatten(0, code.shape[:2])


def _inside(G: Any, code: torch.Tensor, c: torch.Tensor | None, direction: Direction) -> torch.Tensor:
    """The part of a code that has a distance, in the direction's space."""
    part = spaces.fit_code(G, code, plus=direction.per_layer)
    return enter_space(G, part, c, direction.space)


def _project(code: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """[N, dim] · [dim], or the mean over layers of [N, L, dim] · [L, dim] -> [N]."""
    products = (code * vector.to(code.device)).sum(dim=-1)
    return products if products.ndim == 1 else products.mean(dim=1)
