"""What the prior N(0, I) says about a code: how likely it is, and whether its length is typical.

All judge p(z), hence p(y), never p(x): an odd image can have a typical code. What is usual for the codes of a set of
real images, which seldom fill the prior, says `lia_plugin.calibration`.
"""

from typing import Any

import torch

from lia_plugin.networks import base_code

# What figures of codes are called in files of results, and what they are in.
UNITS = {
    'z_norm2': 'squared length of z of the base code; its mean under the prior is z_dim',
    'log_prob': 'log p(y) of the base code, in nats',
    'typicality': 'two-sided p-value of z_norm2 under chi-square with z_dim degrees of freedom',
}


def squared_norm(z: torch.Tensor) -> torch.Tensor:
    """‖z‖²: [N, z_dim] -> [N]. Under the prior it follows χ² with z_dim degrees of freedom: mean z_dim."""
    return z.square().sum(dim=1)


def log_prob(G: Any, y: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """log p(y | c) = log N(φ(y); 0, I) + log|det ∂φ/∂y|, in nats: y [N, z_dim], or y+ by its base code -> [N]."""
    return G.mapping.log_prob(base_code(y), c)


def log_prob_per_dim(G: Any, y: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """`log_prob` / z_dim, nats per dimension: comparable between networks whose codes have different lengths -> [N]."""
    return log_prob(G, y, c) / y.shape[-1]


def typicality(z: torch.Tensor) -> torch.Tensor:
    """Two-sided p-value of ‖z‖² under χ² with z_dim degrees of freedom: [N, z_dim] -> [N] on the CPU, float64.

    Uniform on [0, 1] for codes from the prior; near 0 where a code is too long or too short to be one of them.
    """
    half_dim = torch.tensor(z.shape[1] / 2, dtype=torch.float64)
    half_norm = squared_norm(z.detach().cpu().double()) / 2
    # Both tails come from functions of their own: 1 - F would lose a small upper tail to rounding.
    tails = torch.stack([torch.special.gammainc(half_dim, half_norm), torch.special.gammaincc(half_dim, half_norm)])
    return (2 * tails.amin(dim=0)).clamp(max=1)
