"""What commands that edit leave behind besides pictures: codes in .npz files that each of them reads again, figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lia_plugin import inversion, results, spaces
from lia_plugin.codes import Codes, stack_noise
from lia_plugin.networks import base_code
from lia_plugin.placement import to_arrays


@torch.no_grad()
def latents(G: Any, codes: Codes) -> dict[str, torch.Tensor]:
    """The arrays of invert.py's files: `w` [N, num_ws, w_dim]; with φ `y` and `z` [N, dim] of the base code, and
    `y_plus` [N, num_ws, dim] where each layer has its own; `c` [N, c_dim]; `noise.BUFFER` [N, 1, R, R]."""
    found = {'w': spaces.code_to_ws(G, codes.code, codes.c)}
    if spaces.has_prior(G):
        found['y'] = base_code(codes.code)
        found['z'] = G.mapping.y_to_z(found['y'], codes.c)
        if codes.code.ndim == 3:
            found['y_plus'] = codes.code
    if codes.c is not None:
        found['c'] = codes.c
    return found | {f'noise.{name}': maps for name, maps in stack_noise(G, codes.noise).items()}


def save_codes(path: str, G: Any, codes: Codes) -> None:
    """Writes codes, their names and placements as an .npz that INPUT arguments take; whole or not at all."""
    placed = to_arrays(codes.placements) if any(place is not None for place in codes.placements) else {}
    results.save_latents(path, latents(G, codes), names=np.array(codes.names), **placed)


@torch.no_grad()
def prior_figures(G: Any, code: torch.Tensor, c: torch.Tensor | None) -> dict[str, list[float]]:
    """z_norm2, log_prob and typicality of base codes, N numbers each; {} for a network without φ."""
    if not spaces.has_prior(G):
        return {}
    y = base_code(code)
    figures = inversion.code_figures(G, y, G.mapping.y_to_z(y, c), c)
    return {name: figures[name] for name in ('z_norm2', 'log_prob', 'typicality')}
