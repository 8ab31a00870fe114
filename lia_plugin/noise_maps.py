"""The noise inputs of a synthesis network as something to optimise, one set for each image of a batch.

A network has one `noise_const` [R, R] for each layer and all images. Here they are replaced for the time of a call by
maps [N, 1, R, R], which the layers broadcast as they would any other. StyleGAN3 has no noise inputs.
Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958, appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

SMALLEST = 8  # The pyramid that correlations are looked for in ends at this size.


def initial_noise(synthesis: Any, count: int) -> dict[str, torch.Tensor]:
    """The network's own noise, `count` times: buffer name -> [count, 1, R, R]. Empty for networks without noise."""
    found = {name: value for name, value in synthesis.named_buffers() if name.split('.')[-1] == 'noise_const'}
    return {name: value.detach()[None, None].repeat([count, 1, 1, 1]) for name, value in found.items()}


def draw_noise(synthesis: Any, seeds: Sequence[int]) -> dict[str, torch.Tensor]:
    """N(0, 1) for each seed, whatever stands beside it: buffer name -> [N, 1, R, R]. Empty for networks without noise.

    The numbers are the CPU's, so that they are the same on every device.
    """
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = {}
    for name, value in initial_noise(synthesis, 1).items():
        rows = [torch.randn(value.shape, generator=stream) for stream in streams]
        drawn[name] = torch.cat(rows).to(value)
    return drawn


def synthesize(
    synthesis: Any, ws: torch.Tensor, noise: Mapping[str, torch.Tensor] | None = None, noise_mode: str = 'const',
    force_fp32: bool = True,
) -> torch.Tensor:
    """ws [N, num_ws, w_dim] -> images NCHW, in float32; with noise maps of the images' own if there are any.

    `force_fp32` computes in float32 what the network has for float16.
    """
    kwargs = dict(noise_mode=noise_mode, force_fp32=force_fp32)
    if not noise:
        return synthesis(ws, **kwargs).to(torch.float32)
    return torch.func.functional_call(synthesis, dict(noise), (ws,), kwargs).to(torch.float32)


def correlation(noise: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The regulariser Σ L of appendix D, one number per image [N]; 0 for maps in which neighbours tell nothing.

    L is, for each map and each halving of it down to 8x8, the squared mean product of neighbours (with wrap-around),
    across plus down. Without it the noise would take up the image.
    """
    total: list[torch.Tensor] = []
    for level in noise.values():
        while True:
            for dim in (2, 3):
                total.append((level * level.roll(1, dim)).mean(dim=[1, 2, 3]).square())
            if level.shape[2] <= SMALLEST:
                break
            level = F.avg_pool2d(level, 2) * 2  # The factor keeps unit variance.
    return torch.stack(total).sum(dim=0)


@torch.no_grad()
def normalize(noise: Mapping[str, torch.Tensor]) -> None:
    """Brings each map of each image to zero mean and unit variance, in place."""
    for value in noise.values():
        value -= value.mean(dim=[2, 3], keepdim=True)
        value *= (value.square().mean(dim=[2, 3], keepdim=True) + 1e-12).rsqrt()
