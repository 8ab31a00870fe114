"""An edit learned on one image, the difference of its code before and after, applied to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lia_plugin import paths, spaces


class Edit(NamedTuple):
    """The difference of two codes in a space."""

    space: str  # 'y', 'y+' or 'z'
    change: torch.Tensor  # [dim], or [num_ws, dim] with one for each layer

    @property
    def length(self) -> float:
        """Of [num_ws, dim] the root mean square of its rows' lengths."""
        return float(self.change.cpu().double().square().sum(dim=-1).mean().sqrt())


@torch.no_grad()
def learn_edit(
    G: Any,
    before: torch.Tensor,
    after: torch.Tensor,
    c_before: torch.Tensor | None,
    c_after: torch.Tensor | None,
    space: str,
) -> Edit:
    """The edit that leads from one code to another, [1, dim] or [1, num_ws, dim] each.

    In 'y' it is that of the base codes; in 'z' it has one row for each layer if either code has.

    Raises:
        ValueError: another space, or 'z' of a network without φ.
    """
    if space == 'z' and (before.ndim == 3 or after.ndim == 3):
        before, after = (spaces.fit_code(G, code, plus=True) for code in (before, after))
    ends = [paths.to_space(G, code, c, space) for code, c in ((before, c_before), (after, c_after))]
    return Edit(space, ends[1][0] - ends[0][0])


@torch.no_grad()
def apply_edit(
    G: Any,
    code: torch.Tensor,
    c: torch.Tensor | None,
    edit: Edit,
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """Codes [N, dim] or [N, num_ws, dim] with so much of the edit added, in the layers named (None = all).

    A code [N, dim] stays one if all its layers go the same way, and becomes y+ if not.
    """
    inside = 'z' if edit.space == 'z' else 'y+'
    moving = list(range(G.num_ws)) if layers is None else sorted(set(layers))
    if code.ndim == 2 and edit.change.ndim == 1 and len(moving) == G.num_ws:
        flat = 'z' if edit.space == 'z' else 'y'
        return paths.from_space(G, paths.to_space(G, code, c, flat) + strength * edit.change, c, flat)
    result = spaces.fit_code(G, code, plus=True).clone()
    part = result[:, moving] if inside == 'y+' else paths.to_space(G, result[:, moving], c, inside)
    rows = edit.change if edit.change.ndim == 1 else edit.change[moving]
    result[:, moving] = paths.from_space(G, part + strength * rows, c, inside)
    return result
