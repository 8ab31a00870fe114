"""How far a code may be moved and stay typical: up to where ‖z‖² of its base code leaves what the prior makes likely.

Under the prior ‖z‖² follows χ²; its two-sided p-value is at least P between two quantiles. A code that lies outside of
these from the start, as codes of real images often do, may go anywhere but further out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lia_plugin import manipulation, prior, spaces
from lia_plugin.directions import Direction

SCAN_STEPS = 64  # Of the way, in each of which at most one crossing is looked for.
BISECTIONS = 30


class Band(NamedTuple):
    """Least and greatest ‖z‖² that each code may have, float64 [N] on the CPU."""

    low: torch.Tensor
    high: torch.Tensor

    def holds(self, square: torch.Tensor) -> torch.Tensor:
        """Which of [..., N] lie inside, to rounding of float32."""
        return (square >= self.low * (1 - 1e-6)) & (square <= self.high * (1 + 1e-6))


def quantiles(dim: int, p: float) -> tuple[float, float]:
    """‖z‖² between which the two-sided p-value is at least `p`."""
    from scipy.special import gammainccinv, gammaincinv  # Those of χ², without the half second that scipy.stats takes.

    return 2 * float(gammaincinv(dim / 2, p / 2)), 2 * float(gammainccinv(dim / 2, p / 2))


def band_of(square: torch.Tensor, dim: int, p: float) -> Band:
    """The quantiles, widened to what each code has from the start, ‖z‖² [N]."""
    low, high = quantiles(dim, p)
    return Band(square.clamp(max=low), square.clamp(min=high))


@torch.no_grad()
def limits(
    G: Any,
    code: torch.Tensor,
    c: torch.Tensor | None,
    direction: Direction,
    reach: torch.Tensor,
    p: float,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """How much of the way to a shift by `reach` [N] each code may go, with its sign: [N], float64 on the CPU.

    Raises:
        ValueError: the layers that move leave the base code, which is judged, where it is.
    """
    chosen = direction.layers if layers is None else layers
    if chosen is not None and 0 not in chosen:
        raise ValueError('layers: typicality is judged by the base code, layer 0, which is not among those moved')
    reach = reach.detach().cpu().double()
    start = manipulation.enter_space(G, spaces.fit_code(G, code, plus=False), c, direction.space)
    row = (direction.vector[0] if direction.per_layer else direction.vector).to(start.device)

    def square(shares: torch.Tensor) -> torch.Tensor:
        """‖z‖² after these shares [K, N] of the way, [K, N]."""
        moved = start + (reach * shares).to(start.dtype).to(start.device)[..., None] * row
        labels = None if c is None else c.repeat([len(shares), 1])
        z = moved.flatten(0, 1)
        z = z if direction.space == 'z' else G.mapping.y_to_z(z, labels)
        return prior.squared_norm(z.cpu().double()).unflatten(0, shares.shape)

    shares = torch.linspace(0, 1, SCAN_STEPS + 1, dtype=torch.float64)[:, None].expand(-1, len(reach))
    squares = square(shares)
    band = band_of(squares[0], spaces.code_dim(G), p)
    last = band.holds(squares).int().cumprod(dim=0).sum(dim=0) - 1  # The last step before the first one outside.
    inside, outside = last / SCAN_STEPS, ((last + 1) / SCAN_STEPS).clamp(max=1)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        good = band.holds(square(middle[None])[0])
        inside, outside = torch.where(good, middle, inside), torch.where(good, outside, middle)
    return reach * torch.where(last == SCAN_STEPS, 1.0, inside)
