"""From codes to pictures as StyleGAN's tools go there: truncation towards a mean, in w or y, and a batch of ws drawn.

Nothing here depends on what else is in a batch, but for the rounding of the device's arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lia_plugin import engine, noise_maps, spaces
from lia_plugin.host import UserError
from lia_plugin.images import to_uint8

# ---------------------------------------------------------------------------------------------------------------------
# Truncation


@dataclass(frozen=True)
class Truncation:
    """How far codes are pulled towards a mean (Karras et al. 2019, arXiv 1812.04948, appendix B).

    `center` is made by `truncation`: the tracked mean of w, or that of y.
    """

    psi: float  # 1 = not at all, 0 = all the way; below 0 to the other side.
    cutoff: int | None  # Only the first so many layers. None = all.
    in_code: bool  # Whether it is the code that is pulled: y, or a stock network's w. Else ws.
    center: torch.Tensor  # [dim] of what is pulled.

    def pull(self, code: torch.Tensor, num_ws: int) -> torch.Tensor:
        """[N, dim] or [N, num_ws, dim] -> the same shape; with a cutoff always [N, num_ws, dim]."""
        if self.psi == 1:
            return code
        if self.cutoff is None:
            return self.center.lerp(code, self.psi)
        layers = code if code.ndim == 3 else code.unsqueeze(1).repeat([1, num_ws, 1])
        return torch.cat([self.center.lerp(layers[:, : self.cutoff], self.psi), layers[:, self.cutoff :]], dim=1)


def truncation(G: Any, psi: float = 1, cutoff: int | None = None, space: str = 'w') -> Truncation:
    """Truncation in 'w', as StyleGAN has it, or in 'y', towards the mean of y. Where y is w both are one.

    Raises:
        UserError: one line, for a space or cutoff that the network hasn't.
    """
    if cutoff is not None and not 0 <= cutoff <= G.num_ws:
        raise UserError(f'--trunc-cutoff: this network has {G.num_ws} layers; got {cutoff}')
    w_is_code = not spaces.has_prior(G) or spaces.y_is_w(G)
    if space == 'w' or w_is_code:
        if space == 'y' and not spaces.has_prior(G):
            raise UserError('--trunc-space=y: this network has no φ, hence no y; w is what it has')
        return Truncation(psi, cutoff, w_is_code, G.mapping.w_avg)
    if G.mapping.base is not None:
        raise UserError('--trunc-space=y: this network scales y to one length, so that none is nearer to the mean; '
                        'take --trunc-space=w')
    center = G.mapping.w_avg if psi == 1 else mean_code(G)  # Without truncation it is of no use.
    return Truncation(psi, cutoff, True, center)


def mean_code(G: Any) -> torch.Tensor:
    """What truncation pulls to, [dim]: the tracked mean of w where the code is w, else the mean of y over the prior.

    Raises:
        UserError: the network scales y to one length, so that no y is nearer to the mean than another.
    """
    if not spaces.has_prior(G) or spaces.y_is_w(G):
        return G.mapping.w_avg
    if G.mapping.base is not None:
        raise UserError('--trunc: this network scales y to one length, so that none is nearer to the mean; leave it '
                        'out, or take generate with --trunc-space=w')  # fmt: skip
    return spaces.code_statistics(G).mean


@torch.no_grad()
def to_ws(
    G: Any, code: torch.Tensor, c: torch.Tensor | None, trunc: Truncation
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes [N, dim] or [N, num_ws, dim] -> truncated ws [N, num_ws, w_dim], and the code that they are of.

    The code is None where w was truncated and y is something else: such a w comes from no known y.
    """
    if trunc.in_code:
        code = trunc.pull(code, G.num_ws)
        return spaces.code_to_ws(G, code, c), code
    ws = trunc.pull(spaces.code_to_ws(G, code, c), G.num_ws)
    return ws, code if trunc.psi == 1 else None


@torch.no_grad()
def pull_ws(G: Any, w: torch.Tensor, trunc: Truncation) -> torch.Tensor:
    """w [N, w_dim] or w+ [N, num_ws, w_dim] of no known code -> truncated ws [N, num_ws, w_dim]."""
    assert trunc.psi == 1 or not trunc.in_code, 'FilePart.check has said so'
    ws = w if w.ndim == 3 else w.unsqueeze(1).repeat([1, G.num_ws, 1])
    return trunc.pull(ws, G.num_ws)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@torch.no_grad()
def render(
    G: Any, ws: torch.Tensor, noise: Mapping[str, torch.Tensor] | None = None, noise_mode: str = 'const',
    noise_seeds: Sequence[int] = (),
) -> torch.Tensor:
    """ws [N, num_ws, w_dim] -> pixels uint8 NCHW on the CPU, in the network's own precision.

    `noise` holds maps of the images' own, which count with noise_mode='const'. For 'random' there is a seed of each
    image: its noise is the same in every call and batch.
    """
    if noise_mode == 'random':
        assert len(noise_seeds) == len(ws), 'one for each'
        noise, noise_mode = noise_maps.draw_noise(G.synthesis, noise_seeds), 'const'
    synthesis = G.synthesis if noise else engine.of(G).synthesis
    return to_uint8(noise_maps.synthesize(synthesis, ws, noise, noise_mode, force_fp32=False)).cpu()
