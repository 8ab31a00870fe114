"""Moving codes along directions: how far a code is from a boundary, and the code that is further by so much.

A code is y [N, dim] or y+ [N, num_ws, dim] (w, w+ in a stock network). A direction in z moves z = φ(y), of y+ layer by
layer, and comes back by φ⁻¹.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from lia_plugin import paths, spaces
from lia_plugin.directions import Direction, make_direction


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

    Raises:
        ValueError: layers that the network hasn't.
    """
    vector = direction.vector.to(code.device)
    steps = torch.as_tensor(amounts, dtype=code.dtype).to(code.device).expand(len(code))
    chosen = direction.layers if layers is None else tuple(layers)
    if chosen and not 0 <= min(chosen) <= max(chosen) < G.num_ws:
        raise ValueError(f'layers: this network has 0 to {G.num_ws - 1}, got {list(chosen)}')
    if code.ndim == 2 and (direction.per_layer or (chosen is not None and len(set(chosen)) < G.num_ws)):
        code = spaces.fit_code(G, code, plus=True)
    if code.ndim == 2:
        moved = enter_space(G, code, c, direction.space) + steps[:, None] * vector
        return paths.from_space(G, moved, c, direction.space)
    moving = list(range(G.num_ws)) if chosen is None else sorted(set(chosen))
    rows = vector[moving] if direction.per_layer else vector
    moved = enter_space(G, code[:, moving], c, direction.space) + steps[:, None, None] * rows
    result = code.clone()  # What stays, stays to the bit: no way there and back.
    result[:, moving] = paths.from_space(G, moved, c, direction.space)
    return result


def even_steps(start: float, stop: float, count: int) -> torch.Tensor:
    """`count` values from one to the other, both exact, and 0 exact too if it is among them; float64 [count]."""
    if count == 1:
        return torch.tensor([start], dtype=torch.float64)
    steps = torch.linspace(start, stop, count, dtype=torch.float64)
    steps[steps.abs() < 1e-9 * max(abs(start), abs(stop))] = 0  # Rounding: a step at 0 is the image as it is.
    steps[0], steps[-1] = start, stop
    return steps


# ---------------------------------------------------------------------------------------------------------------------
# Conditions


def project_out(
    direction: Direction, conditions: Sequence[Direction], num_ws: int, layers: Sequence[int] | None = None
) -> Direction:
    """The direction along which the conditions' distances stay what they are: Gram-Schmidt, of any number of them.

    As InterFaceGAN's conditional manipulation (arXiv 2005.09635, section 2.3). It has no plane of its own: how far a
    code gets from `direction`'s is told by `pace`. It becomes one vector per layer if any of them is one; `layers` are
    those that will be moved (None = all).

    Raises:
        ValueError: a condition of another space or dimension, or nothing left of the direction.
    """
    for condition in conditions:
        if (condition.space, condition.dim) != (direction.space, direction.dim):
            raise ValueError(f'{condition.name}: of {condition.space} and {condition.dim} dimensions, but '
                             f'{direction.name} is of {direction.space} and {direction.dim}')  # fmt: skip
    if not conditions:
        return direction
    if not any(one.per_layer for one in (direction, *conditions)):
        basis = torch.stack([condition.vector for condition in conditions]).double()
        left = _orthogonal(direction.vector.double(), basis)
    else:
        left = _orthogonal_layers(direction, conditions, num_ws, layers)
    if float(left.norm() / direction.vector.double().norm()) < 1e-4:
        raise ValueError(f'{direction.name}: nothing is left of it without {", ".join(one.name for one in conditions)}')
    names = ', '.join(condition.name for condition in conditions)
    made = make_direction(direction.name, left, direction.space, scale=direction.scale)
    return dataclasses.replace(
        made, layers=direction.layers, meaning=f'{direction.meaning or direction.name}, without {names}',
        network_hash=direction.network_hash, source=direction.source,
    )  # fmt: skip


def _orthogonal(vector: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """[d] without its part in the span of the rows of [k, d]."""
    # By the singular vectors, not one condition after another: nearly parallel ones would leave rounding errors.
    _left, values, rows = torch.linalg.svd(basis, full_matrices=False)
    rows = rows[values > 1e-6 * values[0]]
    once = vector - (vector @ rows.t()) @ rows
    return once - (once @ rows.t()) @ rows


def _orthogonal_layers(
    direction: Direction, conditions: Sequence[Direction], num_ws: int, layers: Sequence[int] | None
) -> torch.Tensor:
    """[num_ws, dim]: orthogonal to one vector in each layer, and to a vector per layer in all that are moved together.

    Rows of layers that stay don't matter, and are 0.
    """
    moved = torch.zeros([num_ws, 1], dtype=torch.float64)
    moved[list(range(num_ws) if layers is None else layers)] = 1
    basis = []
    for condition in conditions:
        vector = condition.vector.double()
        if condition.per_layer:
            basis.append((vector * moved).flatten())
        else:
            basis += [(torch.eye(num_ws, dtype=torch.float64)[k][:, None] * vector).flatten() for k in range(num_ws)]
    vector = direction.vector.double()
    rows = vector if direction.per_layer else vector.repeat([num_ws, 1])
    return _orthogonal((rows * moved).flatten(), torch.stack(basis)).unflatten(0, [num_ws, -1])


def pace(direction: Direction, along: Direction, num_ws: int, layers: Sequence[int] | None = None) -> float:
    """By how much the `distance` to `direction` grows when a code is shifted by 1 along `along`.

    Where a base code has the distance, but is not among the `layers` that are moved, the mean over these is told: the
    pace that it would have, went it with them.
    """
    moving = list(range(num_ws)) if layers is None else sorted(set(layers))
    steps = along.vector.double() if along.per_layer else along.vector.double().repeat([num_ws, 1])
    if direction.per_layer:
        products = (direction.vector.double() * steps).sum(dim=1)
        return float(products[moving].sum() / num_ws)
    products = steps @ direction.vector.double()
    return float(products[0] if 0 in moving else products[moving].mean())


# ---------------------------------------------------------------------------------------------------------------------
# Parts of codes


def enter_space(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """A code [N, dim], or any number of layers of one [N, L, dim], -> the same in `space`: φ of each if that is 'z'."""
    return paths.to_space(G, code, c, 'z') if space == 'z' else code


def _inside(G: Any, code: torch.Tensor, c: torch.Tensor | None, direction: Direction) -> torch.Tensor:
    """The part of a code that has a distance, in the direction's space."""
    part = spaces.fit_code(G, code, plus=direction.per_layer)
    return enter_space(G, part, c, direction.space)


def _project(code: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """[N, dim] · [dim], or the mean over layers of [N, L, dim] · [L, dim] -> [N]."""
    products = (code * vector.to(code.device)).sum(dim=-1)
    return products if products.ndim == 1 else products.mean(dim=1)
