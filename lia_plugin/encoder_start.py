"""How a new encoder begins: it looks as the discriminator looks, and its head is fitted to generated images.

Generated images have known codes, so the last, linear layer has a closed form. It takes seconds, and the codes of
real images begin near the prior, where a random start leads them far from it (benchmarks/results).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tqdm import tqdm

from lia_plugin.networks import Encoder, Generator

START_IMAGES = 4096  # Generated images that the head is fitted to at least …
IMAGES_PER_FEATURE = 4  # … and for each feature that it sees.
RIDGE = 1e-2  # Penalty on the head's weights, in units of the features' mean variance.


@torch.no_grad()
def start_encoder(G: Generator, D: Any, device: torch.device | str = 'cpu', seed: int = 0) -> str:
    """Starts the encoder of a network that has just got one. Gives a line that says what was done.

    An encoder of arch='paper' is left at random: nothing in the discriminator is like it.
    """
    encoder = G.encoder
    if encoder is None:
        raise ValueError('start_encoder: the network has no encoder')
    if encoder.arch != 'resnet':
        return 'Encoder: begins at random'
    copied = copy_trunk(encoder, D) if D is not None else 0
    home = next(encoder.parameters()).device
    explained = fit_head(G.to(device), device, seed)
    G.to(home)
    eyes = f'{copied} convolutions from the discriminator' if copied else 'convolutions at random'
    return f'Encoder: {eyes}; its linear head explains {explained:.0%} of the variance of generated codes'


def copy_trunk(encoder: Encoder, D: Any) -> int:
    """Copies the discriminator's convolutions to those of the encoder that have their shape; gives their number."""
    resolution = encoder.img_resolution
    block = _block(D, resolution)
    pairs = [(encoder.stem, getattr(block, 'fromrgb', None))]
    for i in range(encoder.num_stages):
        stage, block = getattr(encoder, f'stage{i}'), _block(D, resolution >> i)
        pairs += [(getattr(stage, name), getattr(block, name, None)) for name in ('conv0', 'conv1', 'skip')]
    pairs.append((encoder.conv, getattr(_block(D, 4), 'conv', None)))
    return sum(_copy_convolution(conv, source) for conv, source in pairs)


def _block(D: Any, resolution: int) -> Any:
    return getattr(D, f'b{resolution}', None)


def _copy_convolution(conv: Any, source: Any) -> bool:
    """Whether there was one to copy. Inputs that one of both hasn't are left out: of the minibatch's deviation, or an
    image that an encoder sees beside the first."""
    if source is None or source.weight.shape[0] != conv.weight.shape[0] or source.weight.ndim != 4:
        return False
    ours, theirs = conv.weight.shape[1], source.weight.shape[1]
    if source.weight.shape[2:] != conv.weight.shape[2:] or abs(ours - theirs) > max(1, ours // 2):
        return False
    common = min(ours, theirs)
    conv.weight.zero_()
    # Stored weights are scaled by 1/√inputs when they are used, and both sides count their own.
    conv.weight[:, :common].copy_(source.weight[:, :common] * math.sqrt(ours / theirs))
    if conv.bias is not None and getattr(source, 'bias', None) is not None:
        conv.bias.copy_(source.bias)
    return True


def fit_head(G: Generator, device: torch.device | str, seed: int = 0) -> float:
    """Ridge regression of codes on what the head sees, on generated images; gives the share of variance explained.

    With a conditional network classes are drawn evenly. Raises ValueError for an encoder whose head is not linear.
    """
    encoder: Any = G.encoder
    if encoder is None or encoder.arch != 'resnet':
        raise ValueError("fit_head: needs an encoder of arch='resnet'")
    total = max(START_IMAGES, IMAGES_PER_FEATURE * encoder.head.weight.shape[1])
    step = max(min(64, 64 * 256**2 // G.img_resolution**2), 4)
    moments = _Moments()
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, total, step), desc='Starting the encoder', unit='batch', leave=False, disable=None):
        code, img = _draw(G, min(step, total - start), generator, device)
        moments.add(encoder.head_input(img), (code - encoder.output_mean) / encoder.output_std)
    weight, bias, explained = moments.solve()
    encoder.head.weight.copy_(weight / encoder.head.weight_gain)
    encoder.head.bias.copy_(bias / encoder.head.bias_gain)
    return explained


def _draw(
    G: Generator, count: int, generator: torch.Generator, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes as the encoder should give them, and their images."""
    z = torch.randn([count, G.z_dim], generator=generator).to(device)
    c = None
    if G.c_dim:
        c = torch.eye(G.c_dim)[torch.randint(G.c_dim, [count], generator=generator)].to(device)
    y = G.mapping.z_to_y(z, c)
    img = G.decode(y, c, noise_mode='const').to(torch.float32).clamp(-1, 1)
    return (z if G.encoder is not None and G.encoder.space == 'z' else y), img


class _Moments:
    """Sums for a linear regression with a constant, float64 on the CPU: as much memory for a million items as for one.

    The features and the targets are float tensors [N, F] and [N, D].
    """

    def __init__(self) -> None:
        self.count = 0
        self.xx: Any = 0.0
        self.xt: Any = 0.0
        self.tt: Any = 0.0

    def add(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        x, t = features.cpu().double(), targets.cpu().double()
        x = torch.cat([x, x.new_ones([len(x), 1])], dim=1)
        self.count += len(x)
        self.xx, self.xt, self.tt = self.xx + x.t() @ x, self.xt + x.t() @ t, self.tt + t.t() @ t

    def solve(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Weights [D, F], bias [D], and the share of the targets' variance that they explain."""
        n = self.count
        mean = self.xx[-1] / n
        variance = (self.xx.diagonal() / n - mean.square())[:-1].mean()
        penalty = torch.full([len(self.xx)], float(RIDGE * n * variance), dtype=torch.float64)
        penalty[-1] = 0  # The constant is free.
        solution = torch.linalg.solve(self.xx + torch.diag(penalty), self.xt)
        residual = self.tt - 2 * solution.t() @ self.xt + solution.t() @ self.xx @ solution
        target_mean = self.xt[-1] / n
        total = self.tt.diagonal().sum() - n * target_mean.square().sum()
        explained = float(1 - residual.diagonal().sum() / total)
        return solution[:-1].t().float(), solution[-1].float(), explained
