"""Directions without labels: what the style weights amplify most (SeFa), and how codes vary most (PCA).

SeFa: Shen and Zhou 2021, "Closed-Form Factorization of Latent Semantics in GANs", arXiv 2007.06600, eq. 4.
PCA: Härkönen et al. 2020, "GANSpace", arXiv 2004.02546, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lia_plugin import spaces
from lia_plugin.host import UserError

JACOBIAN_SAMPLES = 32  # Of the prior, where w is no linear function of the code.


class Factor(NamedTuple):
    """One direction, the strongest first."""

    vector: torch.Tensor  # [dim], float64, length 1
    strength: float  # SeFa: eigenvalue; PCA: variance along it.
    share: float  # Of the sum of all strengths.


def style_weights(G: Any) -> dict[int, list[torch.Tensor]]:
    """Layer of ws -> effective weights [channels, w_dim] of the affine maps from its w to the styles of convolutions.

    StyleGAN2's ToRGB layers, which take the w of the next convolution, and StyleGAN3's input, whose styles are a turn
    and a shift, are left out; a layer that has nothing but a ToRGB has that.
    """
    found: dict[int, list[torch.Tensor]] = {}
    colours: dict[int, list[torch.Tensor]] = {}
    for name, layer, index in _affine_layers(G):
        if name.startswith('input.'):
            continue
        weight = layer.weight.detach().cpu().double() * layer.weight_gain
        (colours if 'torgb' in name.lower() else found).setdefault(index, []).append(weight)
    return {**colours, **found}


@torch.no_grad()
def _affine_layers(G: Any) -> list[tuple[str, Any, int]]:
    """(name, layer, place of its w in ws) of each layer NAME.affine: found by a pass with ws that tell their place."""
    found: list[tuple[str, Any, int]] = []
    handles = []

    def watch(name: str, layer: Any) -> Any:
        return lambda _layer, args: found.append((name, layer, round(float(args[0][0, 0]) * G.num_ws)))

    for name, layer in G.synthesis.named_modules():
        if name.split('.')[-1] == 'affine':
            handles.append(layer.register_forward_pre_hook(watch(name, layer)))
    places = torch.arange(G.num_ws, device=G.mapping.w_avg.device) / G.num_ws
    try:
        G.synthesis(places[None, :, None].repeat([1, 1, G.w_dim]), noise_mode='const')
    finally:
        for handle in handles:
            handle.remove()
    return found


def sefa(
    G: Any, count: int, layers: Sequence[int] | None = None, space: str = 'y', seed: int = 0
) -> list[Factor]:
    """The unit directions n that change the styles of these layers (None = all) most: eigenvectors of AᵀA, ‖An‖² = λ.

    Where w is no copy of the code, but a function of it, A is that of a small change: the mean of (AJ)ᵀ(AJ) over codes
    of the prior, J the Jacobian ∂w/∂code. `space` is 'y' (w in a stock network) or 'z'.

    Raises:
        UserError: layers that the network hasn't, or none with styles.
    """
    by_layer = style_weights(G)
    wanted = sorted(by_layer) if layers is None else [layer for layer in layers if layer in by_layer]
    if not wanted:
        raise UserError(f'--layers: none of them has style weights; this network has them in {sorted(by_layer)}')
    weights = torch.cat([weight for layer in wanted for weight in by_layer[layer]])
    gram = weights.t() @ weights  # [w_dim, w_dim]
    if space == 'z' or (spaces.has_prior(G) and not spaces.y_is_w(G)):
        jacobians = _jacobians(G, space, seed).cpu().double()
        gram = torch.einsum('sij,ik,skl->jl', jacobians, gram, jacobians) / len(jacobians)
    return _eigen(gram, count)


def _jacobians(G: Any, space: str, seed: int) -> torch.Tensor:
    """∂w/∂code [S, w_dim, dim] at codes of the prior."""
    codes, c = spaces.sample_codes(G, JACOBIAN_SAMPLES, seed)
    found = []
    for i, code in enumerate(codes):
        label = None if c is None else c[i : i + 1]

        def to_w(y: torch.Tensor, label: torch.Tensor | None = label) -> torch.Tensor:
            return G.mapping.y_to_w(G.mapping.z_to_y(y[None], label) if space == 'z' else y[None], label)[0]

        start = G.mapping.y_to_z(code[None], label)[0] if space == 'z' else code
        found.append(torch.autograd.functional.jacobian(to_w, start.detach()))
    return torch.stack(found)


def pca(codes: torch.Tensor, count: int) -> list[Factor]:
    """Principal components of codes [n, dim] about their mean; `strength` is the variance, n - 1 in its denominator.

    Raises:
        UserError: fewer than two codes.
    """
    if len(codes) < 2:
        raise UserError(f'PCA needs two codes, got {len(codes)}')
    centred = codes.detach().cpu().double() - codes.detach().cpu().double().mean(dim=0)
    return _eigen(centred.t() @ centred / (len(codes) - 1), min(count, len(codes) - 1))


def _eigen(gram: torch.Tensor, count: int) -> list[Factor]:
    """Largest eigenvalues of a symmetric matrix first; of each vector the largest entry is positive."""
    values, vectors = torch.linalg.eigh(gram)
    total = float(values.clamp(min=0).sum())
    found = []
    for k in range(min(count, len(values))):
        vector = vectors[:, -1 - k]
        vector = vector * vector[vector.abs().argmax()].sign()
        strength = max(float(values[-1 - k]), 0.0)
        found.append(Factor(vector, strength, strength / total if total else 0.0))
    return found
