"""What commands that edit leave behind besides pictures: codes in .npz files that each of them reads again, figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lia_plugin import prior, results, spaces
from lia_plugin.code_files import HASH, NOISE
from lia_plugin.codes import Codes, stack_noise
from lia_plugin.network_hash import generator_hash
from lia_plugin.networks import base_code
from lia_plugin.placement import to_arrays

FIGURES = ('z_norm2', 'log_prob', 'typicality')
AT_ONCE = 4096  # Codes whose figures are computed together.


@torch.no_grad()
def latents(
    G: Any,
    code: torch.Tensor | None,
    c: torch.Tensor | None,
    noise: Sequence[dict[str, torch.Tensor]] = (),
    ws: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The arrays of invert.py's files: `w` [N, num_ws, w_dim]; with φ `y` and `z` [N, dim] of the base code, and
    `y_plus` [N, num_ws, dim] where each layer has its own; `c` [N, c_dim]; `noise.BUFFER` [N, 1, R, R].

    `ws` are those of the code, if they are at hand; without a code, of w that come from no known y, they stand alone.
    """
    if ws is None:
        assert code is not None, 'one of both is given'
        ws = spaces.code_to_ws(G, code, c)
    found = {'w': ws}
    if code is not None and spaces.has_prior(G):
        found['y'] = base_code(code)
        found['z'] = G.mapping.y_to_z(found['y'], c)
        found |= {'y_plus': code} if code.ndim == 3 else {}
    if c is not None:
        found['c'] = c
    return found | {f'{NOISE}{name}': maps for name, maps in stack_noise(G, noise).items()}


def save_codes(path: str, G: Any, codes: Codes) -> None:
    """Writes codes, their names and placements as an .npz that INPUT arguments take; whole or not at all."""
    placed = to_arrays(codes.placements) if any(place is not None for place in codes.placements) else {}
    results.save_latents(path, latents(G, codes.code, codes.c, codes.noise), names=np.array(codes.names),
                         **{HASH: np.array(generator_hash(G))}, **placed)


@torch.no_grad()
def prior_figures(G: Any, code: torch.Tensor, c: torch.Tensor | None) -> dict[str, list[float]]:
    """z_norm2, log_prob and typicality of base codes, N numbers each; {} for a network without φ."""
    if not spaces.has_prior(G):
        return {}
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for start in range(0, len(code), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        y, labels = base_code(code[rows]), None if c is None else c[rows]
        z = G.mapping.y_to_z(y, labels)
        found = prior.squared_norm(z), prior.log_prob(G, y, labels), prior.typicality(z)
        for name, values in zip(FIGURES, found, strict=True):
            figures[name] += values.tolist()
    return figures
