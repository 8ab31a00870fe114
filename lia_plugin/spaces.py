"""The codes that an optimisation moves: how they become ws, their mean and spread, and what the prior says of them.

With φ a code is y [N, z_dim] or y+ [N, num_ws, z_dim]. A stock StyleGAN2 or 3 has no y: there w [N, w_dim] and
w+ [N, num_ws, w_dim] stand in its place, under the names 'y' and 'y+', and nothing is known of their prior.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lia_plugin import stages

SPACES = ('y', 'y+', 'z')


class Statistics(NamedTuple):
    """Mean and standard deviation of each dimension of y (of w in a stock network), [dim] each."""

    mean: torch.Tensor
    std: torch.Tensor


def has_prior(G: Any) -> bool:
    """Whether the generator has φ, hence z and log p(y)."""
    return getattr(getattr(G, 'mapping', None), 'phi', None) is not None


def code_dim(G: Any) -> int:
    """Length of a code: of y, or of w in a stock network."""
    return int(G.z_dim if has_prior(G) else G.w_dim)


@torch.no_grad()
def code_statistics(G: Any, seed: int = 0) -> Statistics:
    """Measured over codes of the prior, on G's device; with a conditional network over all classes evenly."""
    if has_prior(G):
        mean, std = stages.code_statistics(G.mapping, 'y', seed)
    else:
        mean, std = _stock_statistics(G, seed)
    # A dimension that hardly varies would hardly be moved: give it a little of the others' freedom.
    return Statistics(mean, std.clamp(min=1e-3 * float(std.mean())))


def _stock_statistics(G: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of w."""
    w, _c = sample_codes(G, stages.STATISTICS_SAMPLES, seed)
    return w.mean(dim=0), w.std(dim=0)


@torch.no_grad()
def sample_codes(G: Any, num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes of the prior, y or w [num, dim], on G's device, and their labels [num, c_dim], drawn evenly over classes.

    The same whatever the device, but for rounding.
    """
    device = G.mapping.w_avg.device
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn([num, G.z_dim], generator=generator).to(device)
    c = None
    if G.c_dim:
        c = torch.eye(G.c_dim)[torch.randint(G.c_dim, [num], generator=generator)].to(device)
    return z_to_code(G, z, c), c


@torch.no_grad()
def z_to_code(G: Any, z: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """z [N, z_dim] -> y [N, z_dim], in a stock network w [N, w_dim]; not truncated."""
    return G.mapping.z_to_y(z, c) if has_prior(G) else G.mapping(z, c)[:, 0]


def code_to_ws(G: Any, code: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """y or y+ (w or w+ in a stock network) -> ws [N, num_ws, w_dim]."""
    if has_prior(G):
        return G.mapping.y_to_ws(code, c)
    return code if code.ndim == 3 else code.unsqueeze(1).repeat([1, G.num_ws, 1])


def fit_code(G: Any, code: torch.Tensor, plus: bool) -> torch.Tensor:
    """A code of either shape -> y+ if `plus` (copies of y), else the base code.

    Raises:
        ValueError: it has neither shape.
    """
    dim, layers = code_dim(G), G.num_ws
    if code.ndim not in (2, 3) or code.shape[-1] != dim or (code.ndim == 3 and code.shape[1] != layers):
        raise ValueError(f'code: expected [N, {dim}] or [N, {layers}, {dim}], got {list(code.shape)}')
    if plus:
        return code if code.ndim == 3 else code.unsqueeze(1).repeat([1, layers, 1])
    return code if code.ndim == 2 else code[:, 0]


def surprise(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """How unlikely a code is under the prior, in nats per dimension, [N].

    -log p(y | c) in y, its mean over the layers in y+; in z it is ‖z‖²/2, which is -log p(z) but for a constant.
    The density of y is not that of z = φ(y): they differ by log|det ∂φ/∂y|, which moves the optimum.
    """
    if space == 'z':
        return 0.5 * code.square().mean(dim=1)
    nats = -each_layer(G.mapping.log_prob, code, c) / code.shape[-1]
    return nats if code.ndim == 2 else nats.mean(dim=1)


def each_layer(of_base: Any, code: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """`of_base(code, c)`, which takes base codes [N, dim], for those; of y+ [N, num_ws, dim] for each layer's code."""
    if code.ndim == 2:
        return of_base(code, c)
    per_layer = None if c is None else c.repeat_interleave(code.shape[1], dim=0)
    return of_base(code.flatten(0, 1), per_layer).unflatten(0, [len(code), -1])


def y_is_w(G: Any) -> bool:
    """Whether nothing stands between y and w, as in the paper."""
    return has_prior(G) and G.mapping.num_layers == 0 and G.mapping.base is None
