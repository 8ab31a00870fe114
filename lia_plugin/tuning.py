"""Pivotal tuning: the generator's weights moved a little so that it draws given images at given codes.

Roich, Mokady, Bermano, Cohen-Or 2021, "Pivotal Tuning for Latent-based Editing of Real Images", arXiv 2106.05744:

    pixel · mean (x − x̃)²  +  percep · ε(x, x̃)        with x̃ = g(w_p) and w_p the pivots, which stay
    + locality · (pixel · mean (g(w_r) − g₀(w_r))²  +  percep · ε)        w_r = w_p + α · (w_z − w_p)/‖w_z − w_p‖

The second row keeps the generator g₀ that it was near the pivots (their section 3.2): w_z are codes of the prior, and
α, 30 in the paper, is here a share of the mean distance between two of them, so that it fits any network.
All images are tuned for together, in batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lia_plugin import noise_maps
from lia_plugin.perceptual import Perceptual
from lia_plugin.similarity import mse


@dataclass(frozen=True)
class TuneSettings:
    """How a generator is tuned. Raises ValueError for what can't be."""

    steps: int = 350
    lr: float = 3e-4  # Of Adam. Weights have unit variance, so this is relative.
    pixel_weight: float = 1.0
    percep_weight: float = 0.1  # Counts where an extractor is given.
    locality_weight: float = 0.1
    radius: float = 0.5  # α, in mean distances of two codes.
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or self.batch < 1:
            got = f'{self.steps}, {self.lr} and {self.batch}'
            raise ValueError(f'steps, lr, batch: expected at least 1, more than 0 and at least 1, got {got}')


def tune(
    G: Any,
    img: torch.Tensor,
    ws: torch.Tensor,
    c: torch.Tensor | None = None,
    noise: Mapping[str, torch.Tensor] | None = None,
    *,
    settings: TuneSettings = TuneSettings(),
    percep: Perceptual | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Any:
    """A copy of G whose synthesis network draws `img` at `ws`. G itself, mapping, φ and encoder stay as they are.

    Args:
        G: Any StyleGAN2 or 3 generator, in eval mode; one of stage 2 holds its weights as buffers, and keeps them so.
        img: NCHW in [-1, 1]; on any device.
        ws: The pivots [N, num_ws, w_dim].
        c: Labels [N, c_dim], for the codes near the pivots; None for a network without.
        noise: Noise maps of the images' own, as `Refined.noise`.
        callback: Called as callback(step, loss) after each step from 1 on.

    Each tuned weight is exactly weight + (a float32 difference): what `lia_plugin.delta` stores.
    """
    if len(img) != len(ws) or len(img) == 0:
        raise ValueError(f'img, ws: expected as many pivots as images, and one at least, got {len(img)} and {len(ws)}')
    tuned = copy.deepcopy(G).requires_grad_(False)
    weights = synthesis_weights(tuned.synthesis)
    objective = _Objective(G, tuned.synthesis, settings, percep)
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in weights.values()], lr=settings.lr)
    with torch.enable_grad():
        for step, index in enumerate(_batches(len(img), settings), start=1):
            part = {name: value[index] for name, value in (noise or {}).items()}
            loss = objective(img[index], ws[index], None if c is None else c[index], part)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if callback is not None:
                callback(step, float(loss.detach()))
    original = synthesis_weights(G.synthesis)
    for name, weight in weights.items():
        weight.requires_grad_(False)
        weight.grad = None
        weight.copy_(_as_sum(original[name], weight))
    return tuned


def _as_sum(original: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weight rounded so that original + (weight − original) gives it exactly."""
    for _ in range(10):  # Once is enough but where a weight changed more than its own size.
        again = original + (weight - original)
        if torch.equal(again, weight):
            break
        weight = again
    return weight


def synthesis_weights(synthesis: Any) -> dict[str, torch.Tensor]:
    """What training moves in a synthesis network, by name: its parameters, or in stage 2 the buffers they became."""
    names = [name for name, _ in synthesis.named_parameters()]
    if not names:
        with torch.random.fork_rng(devices=[]):  # A new one says which those are; its random weights are not used.
            twin = type(synthesis)(*synthesis.init_args, **synthesis.init_kwargs)
        names = [name for name, _ in twin.named_parameters()]
    tensors = {**dict(synthesis.named_parameters()), **dict(synthesis.named_buffers())}
    return {name: tensors[name] for name in names}


def _batches(count: int, settings: TuneSettings) -> Iterator[torch.Tensor]:
    """Indices of the images of each step: all of them in turn, shuffled anew each round."""
    generator = torch.Generator().manual_seed(settings.seed)
    queue = torch.empty([0], dtype=torch.int64)
    size = min(settings.batch, count)
    for _ in range(settings.steps):
        if len(queue) < size:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[:size]
        queue = queue[size:]


class _Objective:
    """The loss of one batch."""

    def __init__(self, G: Any, synthesis: Any, settings: TuneSettings, percep: Perceptual | None) -> None:
        self.G, self.synthesis, self.settings = G, synthesis, settings
        self.percep = percep if settings.percep_weight else None
        self.device = G.mapping.w_avg.device
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.distance = mean_distance(self._codes(1000, None), self._codes(1000, None))

    def __call__(
        self, img: torch.Tensor, ws: torch.Tensor, c: torch.Tensor | None, noise: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        ws, img = ws.to(self.device), img.to(self.device)
        noise = {name: value.to(self.device) for name, value in noise.items()}
        loss = self._difference(img, noise_maps.synthesize(self.synthesis, ws, noise))
        if self.settings.locality_weight:
            near = nearby(ws, self._codes(len(ws), c), self.settings.radius * self.distance)
            with torch.no_grad():
                wanted = noise_maps.synthesize(self.G.synthesis, near)
            seen = noise_maps.synthesize(self.synthesis, near)
            loss = loss + self.settings.locality_weight * self._difference(wanted, seen)
        return loss

    def _difference(self, wanted: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        loss = self.settings.pixel_weight * mse(wanted, seen).mean()
        if self.percep is not None:
            loss = loss + self.settings.percep_weight * self.percep.distance(wanted, seen).mean()
        return loss

    @torch.no_grad()
    def _codes(self, count: int, c: torch.Tensor | None) -> torch.Tensor:
        """ws [count, num_ws, w_dim] of the prior; of random classes if none are given."""
        z = torch.randn([count, self.G.z_dim], generator=self.generator).to(self.device)
        if c is None and self.G.c_dim:
            c = torch.eye(self.G.c_dim)[torch.randint(self.G.c_dim, [count], generator=self.generator)]
        return self.G.mapping(z, None if c is None else c.to(self.device))


def mean_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over layers and pairs of ‖a − b‖: ws [N, num_ws, w_dim] twice -> a number."""
    return (a - b).norm(dim=2).mean()


def nearby(ws: torch.Tensor, others: torch.Tensor, distance: torch.Tensor | float) -> torch.Tensor:
    """Codes at a distance from `ws` in the direction of `others`, layer by layer: [N, num_ws, w_dim]."""
    direction = others - ws
    return ws + distance * direction / direction.norm(dim=2, keepdim=True).clamp(min=1e-12)
