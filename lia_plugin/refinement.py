"""Codes improved by optimisation: from the encoder's, the mean or any other, a batch of images together.

For each image    pixel · mean (x − x̃)²  +  percep · ε(x, x̃)  +  prior · −log p(y)/dim
                  +  consistency · ‖f(x̃) − y‖²/dim/var y  +  offset · ‖yₗ − y₀‖²/dim/var y (y+ only)

The prior is LIA's own and exact (Zhu et al., arXiv 1906.08090: log p(y) = log N(φ(y); 0, I) + log|det ∂φ/∂y|);
the encoder's consistency is In-Domain inversion's (Zhu et al. 2020, arXiv 2004.00049). Losses are summed over images
and Adam works element by element, so every image goes the way it would go alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lia_plugin import noise_maps, spaces
from lia_plugin.networks import base_code
from lia_plugin.perceptual import Perceptual
from lia_plugin.similarity import mse

Callback = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Settings:
    """How codes are refined. Raises ValueError for what can't be."""

    steps: int = 100
    space: str = 'y'  # What moves: 'y', 'y+' (one code per layer) or 'z' (y = φ⁻¹(z)).
    lr: float = 0.3  # Of Adam, in standard deviations of each dimension of the code.
    warmup: float = 0.05  # Part of the steps in which the learning rate rises from 0 …
    rampdown: float = 0.25  # … and at the end falls to 0 along a cosine.
    beta2: float = 0.9  # Of Adam; its β₁ is 0.9.
    pixel_weight: float = 1.0
    percep_weight: float = 0.1  # Counts where an extractor is given.
    prior_weight: float = 0.0
    consistency_weight: float = 0.0
    offset_weight: float = 0.0
    noise: bool = False  # The layers' noise moves too.
    noise_weight: float = 1e5  # Of the noise's regulariser; α of StyleGAN2, appendix D.

    def __post_init__(self) -> None:
        if self.space not in spaces.SPACES:
            raise ValueError(f"space: expected 'y', 'y+' or 'z', got {self.space!r}")
        if self.steps < 0 or not self.lr > 0:
            raise ValueError(f'steps, lr: expected at least 0 and more than 0, got {self.steps} and {self.lr}')
        if self.offset_weight and self.space != 'y+':
            raise ValueError(f'offset_weight: only codes in y+ have offsets, and space is {self.space!r}')


class Refined(NamedTuple):
    """What came out, of each image the best state that was seen: never worse than its start."""

    code: torch.Tensor  # y [N, z_dim], or y+ [N, num_ws, z_dim] if space was 'y+'. In a stock network w and w+.
    ws: torch.Tensor  # [N, num_ws, w_dim]
    recon: torch.Tensor  # NCHW, float32, about [-1, 1]
    noise: dict[str, torch.Tensor] | None  # Buffer name of the synthesis network -> [N, 1, R, R]; None if it was kept.
    losses: torch.Tensor  # [steps + 1, N], float32 on the CPU: the sum above at the start and after each step.


def refine(
    G: Any,
    img: torch.Tensor,
    c: torch.Tensor | None = None,
    code: torch.Tensor | None = None,
    *,
    settings: Settings = Settings(),
    percep: Perceptual | None = None,
    callback: Callback | None = None,
    statistics: spaces.Statistics | None = None,
) -> Refined:
    """Refines the codes of a batch of images. Only codes (and noise) move: G and the extractor stay as they are.

    Args:
        G: A LIA generator of either stage, or a stock StyleGAN2 or 3; in eval mode.
        img: NCHW in [-1, 1], on G's device.
        c: Labels [N, c_dim]; None for a network without.
        code: Where to start: y or y+ (w or w+ in a stock network). None = the mean.
        percep: ε. None = pixels alone.
        callback: Called as callback(step, losses [N], recon NCHW) for steps 0 (the start) to `settings.steps`.
        statistics: Of `spaces.code_statistics(G)`, for callers with many batches. None = measured here.

    Raises:
        ValueError: shapes that don't fit, or a setting that this network has no part for.
    """
    task = _Task(G, img, c, settings, percep, statistics or spaces.code_statistics(G))
    units = task.start(code).requires_grad_()
    noise = noise_maps.initial_noise(G.synthesis, len(img)) if settings.noise else {}
    moving = [units, *(value.requires_grad_() for value in noise.values())]
    optimizer = torch.optim.Adam(moving, betas=(0.9, settings.beta2))
    best: _Best | None = None
    history = []
    for step in range(settings.steps + 1):
        with torch.set_grad_enabled(step < settings.steps):
            recon, losses = task.evaluate(units, noise)
        best = _Best.better(best, losses, units, noise, recon)
        history.append(losses.detach())
        if callback is not None:
            callback(step, losses.detach(), recon.detach())
        if step < settings.steps:
            with torch.enable_grad():
                penalty = settings.noise_weight * noise_maps.correlation(noise) if noise else torch.zeros_like(losses)
                total = (losses + penalty).sum()
            for value, grad in zip(moving, torch.autograd.grad(total, moving)):
                value.grad = grad
            optimizer.param_groups[0]['lr'] = settings.lr * schedule(step, settings)
            optimizer.step()
            noise_maps.normalize({name: value.detach() for name, value in noise.items()})
    assert best is not None, 'the start itself is evaluated'
    return task.finish(best, torch.stack(history).cpu())


def schedule(step: int, settings: Settings) -> float:
    """The learning rate's factor in (0, 1] at a step of 0 … steps − 1: a linear rise, then a cosine's fall."""
    t = (step + 0.5) / settings.steps
    rise = min(1.0, t / settings.warmup) if settings.warmup else 1.0
    fall = min(1.0, (1 - t) / settings.rampdown) if settings.rampdown else 1.0
    return rise * (0.5 - 0.5 * math.cos(math.pi * fall))


class _Best(NamedTuple):
    """The best state of each image so far."""

    losses: torch.Tensor
    units: torch.Tensor
    noise: Mapping[str, torch.Tensor]
    recon: torch.Tensor

    @classmethod
    @torch.no_grad()
    def better(
        cls,
        old: _Best | None,
        losses: torch.Tensor,
        units: torch.Tensor,
        noise: Mapping[str, torch.Tensor],
        recon: torch.Tensor,
    ) -> _Best:
        """The old state where an image has not become better, else the new one."""
        noise = {name: value.detach().clone() for name, value in noise.items()}
        new = cls(losses.detach(), units.detach().clone(), noise, recon.detach())
        if old is None:
            return new
        won = new.losses < old.losses

        def pick(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.where(won.reshape([-1] + [1] * (a.ndim - 1)), a, b)

        kept = {name: pick(value, old.noise[name]) for name, value in noise.items()}
        return cls(pick(new.losses, old.losses), pick(new.units, old.units), kept, pick(new.recon, old.recon))


class _Task:
    """One batch's objective. Codes are counted in units: standard deviations from the mean, dimension by dimension."""

    def __init__(
        self,
        G: Any,
        img: torch.Tensor,
        c: torch.Tensor | None,
        settings: Settings,
        percep: Perceptual | None,
        statistics: spaces.Statistics,
    ) -> None:
        _check(G, img, settings)
        self.G, self.img, self.c, self.settings = G, img.to(torch.float32), c, settings
        self.percep = percep if settings.percep_weight else None
        self.mean, self.std = (value.to(img.device, torch.float32) for value in statistics)
        self.variance = self.std.square().mean()
        with torch.no_grad():
            self.features = None if self.percep is None else self.percep.features(self.img)

    @torch.no_grad()
    def start(self, code: torch.Tensor | None) -> torch.Tensor:
        """The first code, y or y+, in units of the space."""
        if code is None:
            code = self.mean.expand(len(self.img), -1)
        if len(code) != len(self.img):
            raise ValueError(f'code: expected one for each of {len(self.img)} images, got {len(code)}')
        y = spaces.fit_code(self.G, code.to(self.mean), plus=self.settings.space == 'y+')
        if self.settings.space == 'z':
            return self.G.mapping.y_to_z(y, self.c).clone()
        return (y - self.mean) / self.std

    def code(self, units: torch.Tensor) -> torch.Tensor:
        """Units -> y or y+."""
        if self.settings.space == 'z':
            return self.G.mapping.z_to_y(units, self.c)
        return self.mean + self.std * units

    def evaluate(self, units: torch.Tensor, noise: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions, and the objective of each image [N], without the noise's regulariser."""
        code = self.code(units)
        recon = noise_maps.synthesize(self.G.synthesis, spaces.code_to_ws(self.G, code, self.c), noise)
        losses = self.settings.pixel_weight * mse(recon, self.img)
        if self.percep is not None and self.features is not None:
            seen = self.percep.compare(self.features, self.percep.features(recon))
            losses = losses + self.settings.percep_weight * seen
        return recon, losses + self._regulariser(units, code, recon)

    def _regulariser(self, units: torch.Tensor, code: torch.Tensor, recon: torch.Tensor) -> torch.Tensor:
        settings, total = self.settings, torch.zeros([len(recon)], device=recon.device)
        if settings.prior_weight:
            point = units if settings.space == 'z' else code
            total = total + settings.prior_weight * spaces.surprise(self.G, point, self.c, settings.space)
        if settings.consistency_weight:
            total = total + settings.consistency_weight * self._inconsistency(code, recon)
        if settings.offset_weight:
            offsets = (code - code[:, :1]).square().mean(dim=[1, 2]) / self.variance
            total = total + settings.offset_weight * offsets
        return total

    def _inconsistency(self, code: torch.Tensor, recon: torch.Tensor) -> torch.Tensor:
        """Mean squared difference of the code and what the encoder makes of its image, in variances of y: [N]."""
        again = self.G.encode(recon, self.c)
        if again.ndim != code.ndim:
            again, code = base_code(again), base_code(code)
        return (again - code).square().flatten(1).mean(dim=1) / self.variance

    @torch.no_grad()
    def finish(self, best: _Best, history: torch.Tensor) -> Refined:
        code = self.code(best.units)
        ws = spaces.code_to_ws(self.G, code, self.c)
        return Refined(code, ws, best.recon, dict(best.noise) or None, history)


def _check(G: Any, img: torch.Tensor, settings: Settings) -> None:
    expected = [G.img_channels, G.img_resolution, G.img_resolution]
    if img.ndim != 4 or list(img.shape[1:]) != expected:
        raise ValueError(f'img: expected [N, {", ".join(map(str, expected))}], got {list(img.shape)}')
    if not spaces.has_prior(G) and (settings.space == 'z' or settings.prior_weight):
        raise ValueError("space, prior_weight: this network has no φ, hence neither z nor a prior; space='y' is its w")
    if settings.consistency_weight and getattr(G, 'encoder', None) is None:
        raise ValueError('consistency_weight: this network has no encoder')
    if settings.noise and not noise_maps.initial_noise(G.synthesis, 1):
        raise ValueError('noise: the synthesis network has no noise inputs')
