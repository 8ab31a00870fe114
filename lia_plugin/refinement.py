"""Codes improved by optimisation: from the encoder's, the mean or any other, a batch of images together.

For each image    pixel · mean (x − x̃)²  +  percep · ε(x, x̃)  +  prior · −log p(y)/dim
                  +  consistency · ‖f(x̃) − y‖²/dim/var y  +  offset · ‖yₗ − y₀‖²/dim/var y (y+ only)

The prior is LIA's own and exact (Zhu et al., arXiv 1906.08090: log p(y) = log N(φ(y); 0, I) + log|det ∂φ/∂y|);
the encoder's consistency is In-Domain inversion's (Zhu et al. 2020, arXiv 2004.00049). Each image has its own loss and
its own L-BFGS (or Adam, which works element by element), so in a batch it goes the way it would go alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lia_plugin import noise_maps, spaces
from lia_plugin.networks import base_code
from lia_plugin.perceptual import Perceptual
from lia_plugin.row_lbfgs import RowLBFGS
from lia_plugin.similarity import mse

ADAM_LR = 0.3
FIRST_STEP_GIVEN = 0.03  # Of L-BFGS, from codes of the images' own: an encoder's, or a file's;
FIRST_STEP_MEAN = 0.3  # from the mean, which is further off, in y and z,
FIRST_STEP_MEAN_PLUS = 0.1  # and in y+.

Callback = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Settings:
    """How codes are refined. Raises ValueError for what can't be."""

    steps: int = 100  # Each is one pass through g and back, whatever the optimiser.
    space: str = 'y'  # What moves: 'y', 'y+' (one code per layer) or 'z' (y = φ⁻¹(z)).
    optimizer: str | None = None  # 'lbfgs' or 'adam'. None = L-BFGS, for noise Adam.
    # Of Adam, or L-BFGS's first step: in standard deviations of each dimension of the code. None = see `resolved`.
    lr: float | None = None
    warmup: float = 0.05  # Of Adam: part of the steps in which the learning rate rises from 0 …
    rampdown: float = 0.25  # … and at the end falls to 0 along a cosine.
    beta2: float = 0.9  # Of Adam; its β₁ is 0.9.
    pixel_weight: float = 1.0
    percep_weight: float = 0.1  # Counts where an extractor is given.
    prior_weight: float = 0.0  # 1e-4 to 1e-3 keep codes likely; without, log p falls to where no sample is.
    consistency_weight: float = 0.0
    offset_weight: float = 0.0
    noise: bool = False  # The layers' noise moves too.
    noise_weight: float = 1e5  # Of the noise's regulariser; α of StyleGAN2, appendix D.

    def __post_init__(self) -> None:
        if self.space not in spaces.SPACES:
            raise ValueError(f"space: expected 'y', 'y+' or 'z', got {self.space!r}")
        if self.optimizer not in (None, 'lbfgs', 'adam') or (self.noise and self.optimizer == 'lbfgs'):
            raise ValueError(f"optimizer: expected 'adam', without noise 'lbfgs', or None, got {self.optimizer!r}")
        if self.steps < 0 or not (self.lr is None or self.lr > 0):
            raise ValueError(f'steps, lr: expected at least 0 and more than 0, got {self.steps} and {self.lr}')
        if self.offset_weight and self.space != 'y+':
            raise ValueError(f'offset_weight: only codes in y+ have offsets, and space is {self.space!r}')

    @property
    def by_adam(self) -> bool:
        # The noise's regulariser is so stiff, and its maps are so large, that L-BFGS would think of nothing else.
        return self.noise or self.optimizer == 'adam'

    def resolved(self, given: bool) -> Settings:
        """The same with a number for `lr`; `given`: codes start from some of the images' own, and not from the mean.

        A first step of L-BFGS that is too long is tried again shorter, and costs one of the steps each time: near a
        good code, and where many layers add up, it has to be short.
        """
        if self.lr is not None:
            return self
        first = FIRST_STEP_GIVEN if given else FIRST_STEP_MEAN_PLUS if self.space == 'y+' else FIRST_STEP_MEAN
        return dataclasses.replace(self, lr=ADAM_LR if self.by_adam else first)


class Refined(NamedTuple):
    """What came out, of each image the best state that was seen: never worse than its start."""

    code: torch.Tensor  # y [N, z_dim], or y+ [N, num_ws, z_dim] if space was 'y+'. In a stock network w and w+.
    ws: torch.Tensor  # [N, num_ws, w_dim]
    recon: torch.Tensor  # NCHW, float32, about [-1, 1]
    noise: dict[str, torch.Tensor] | None  # Buffer name in the synthesis network -> [N, 1, R, R]; None = the network's.
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
    noise: Mapping[str, torch.Tensor] | None = None,
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
        noise: Noise maps of the images' own, as `Refined.noise`; they stay, or with `settings.noise` move on.

    Raises:
        ValueError: shapes that don't fit, or a setting that this network has no part for.
    """
    settings = settings.resolved(given=code is not None)
    task = _Task(G, img, c, settings, percep, statistics or spaces.code_statistics(G))
    maps = noise_maps.initial_noise(G.synthesis, len(img)) if settings.noise else {}
    maps |= {name: value.detach().clone() for name, value in (noise or {}).items()}
    mover = _choose_mover(task.start(code), maps if settings.noise else {}, settings)
    best: _Best | None = None
    history = []
    for step in range(settings.steps + 1):
        units = mover.units
        with torch.set_grad_enabled(step < settings.steps):
            recon, losses = task.evaluate(units, maps)
        best = _Best.better(best, losses, units, maps, recon)
        history.append(losses.detach())
        if callback is not None:
            callback(step, losses.detach(), recon.detach())
        if step < settings.steps:
            mover.move(step, losses)
    assert best is not None, 'the start itself is evaluated'
    return task.finish(best, torch.stack(history).cpu())


class _LBFGSMover:
    """Moves codes by L-BFGS, image by image."""

    def __init__(self, units: torch.Tensor, settings: Settings) -> None:
        self.shape = units.shape
        assert settings.lr is not None, 'resolved'
        flat = units.flatten(1)
        self.rows = RowLBFGS(flat, first_step=settings.lr * math.sqrt(flat.shape[1]))
        self.units = units.requires_grad_()

    def move(self, step: int, losses: torch.Tensor) -> None:
        """Makes `units` the next codes to evaluate, given the losses [N] of these."""
        (grad,) = torch.autograd.grad(_sum(losses), [self.units])
        self.rows.tell(losses.detach(), grad.flatten(1))
        self.units = self.rows.trial.reshape(self.shape).requires_grad_()


class _AdamMover:
    """Moves codes and noise by Adam."""

    def __init__(self, units: torch.Tensor, noise: Mapping[str, torch.Tensor], settings: Settings) -> None:
        assert settings.lr is not None, 'resolved'
        self.lr = settings.lr
        self.units, self.noise, self.settings = units.requires_grad_(), noise, settings
        self.moving = [units, *(value.requires_grad_() for value in noise.values())]
        self.optimizer = torch.optim.Adam(self.moving, betas=(0.9, settings.beta2))

    def move(self, step: int, losses: torch.Tensor) -> None:
        """Moves `units` and the noise in place, given the losses [N] without the noise's regulariser."""
        total = _sum(losses)
        if self.noise:
            with torch.enable_grad():
                total = total + self.settings.noise_weight * noise_maps.correlation(self.noise).sum()
        for value, grad in zip(self.moving, torch.autograd.grad(total, self.moving)):
            value.grad = grad
        self.optimizer.param_groups[0]['lr'] = self.lr * schedule(step, self.settings)
        self.optimizer.step()
        noise_maps.normalize({name: value.detach() for name, value in self.noise.items()})


def _choose_mover(
    units: torch.Tensor, noise: Mapping[str, torch.Tensor], settings: Settings
) -> _LBFGSMover | _AdamMover:
    if settings.by_adam:
        return _AdamMover(units, noise, settings)
    return _LBFGSMover(units, settings)


def _sum(losses: torch.Tensor) -> torch.Tensor:
    """Their sum, differentiable whatever the caller has switched off."""
    with torch.enable_grad():
        return losses.sum()


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
        """Mean squared difference of the code and what the encoder makes of its image, in variances of y: [N].

        What an encoder of several passes is shown of its earlier answers counts as given: no gradient goes there.
        """
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
