"""φ for a mapping network that is there already: a density fitted to its w by maximum likelihood.

    w --undo lrelu--> u --standardise--> h --couplings--> z          log p(w) = log N(z; 0, I) + log|det ∂z/∂w|

Samples of w are free and without end, so every step sees fresh ones and the figures are of ones that no step has seen.
A little noise is added to u: W of a normalised z has at most z_dim − 1 dimensions and some of the others are nearly
flat, where a density would go to infinity and φ⁻¹ to pieces.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from typing import Any

import torch
import tqdm

from lia_plugin.host import UserError
from lia_plugin.networks import LRELU_GAIN, LRELU_SLOPE, Phi

STATISTICS_SAMPLES = 65536
VALIDATION_SAMPLES = 4096
CHUNK = 4096
EVALUATIONS = 10  # Times that a fit is judged on the way; the best state is kept.
WARM_UP = 50  # Steps.
EMA_DECAY = 0.99
MIN_SPREAD = 0.01  # Dimensions that (nearly) stand still get the noise of one with this share of the mean spread.


@dataclasses.dataclass(frozen=True)
class Fit:
    """How φ is fitted. The defaults take two minutes on one CPU core for 512 dimensions."""

    steps: int = 1000
    batch: int = 256
    couplings: int = 6
    hidden: int | None = None  # Width of the coupling networks. None = that of w.
    noise: float = 0.03  # Standard deviation in units of each dimension's own.
    lr: float = 2e-3
    seed: int = 0


class Labels:
    """Draws the labels of generated images: none, classes evenly, or rows of a data set's label vectors."""

    def __init__(self, c_dim: int, vectors: torch.Tensor | None = None) -> None:
        if vectors is not None and vectors.shape[1:] != (c_dim,):
            raise ValueError(f'vectors: expected [N, {c_dim}], got {list(vectors.shape)}')
        self.c_dim = c_dim
        self.vectors = vectors

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor | None:
        """[count, c_dim] on the CPU, or None."""
        if self.c_dim == 0:
            return None
        table = torch.eye(self.c_dim) if self.vectors is None else self.vectors
        return table[torch.randint(len(table), [count], generator=generator)]


class OldMapping:
    """Samples w of a host's mapping network, each call fresh ones from a stream of its own."""

    def __init__(self, mapping: Any, labels: Labels, device: torch.device | str, seed: int = 0) -> None:
        self.mapping = copy.deepcopy(mapping).eval().requires_grad_(False).to(device)
        self.labels = labels
        self.device = device
        self.stream = torch.Generator().manual_seed(seed)

    def draw_inputs(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """z ~ N(0, I) [count, z_dim] and labels [count, c_dim] or None, on the device."""
        z = torch.randn([count, self.mapping.z_dim], generator=self.stream).to(self.device)
        c = self.labels.draw(count, self.stream)
        return z, None if c is None else c.to(self.device)

    @torch.no_grad()
    def w(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """[N, w_dim], not truncated."""
        w = self.mapping(z, c).to(torch.float32)
        return w if w.ndim == 2 else w[:, 0]

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """w [count, w_dim] and the labels they belong to."""
        z, c = self.draw_inputs(count)
        return self.w(z, c), c


# ---------------------------------------------------------------------------------------------------------------------
# Gaussians


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean + c·label_mean, cov), float64: [D], [C, D] (C is 0 without labels), [D, D]."""

    mean: torch.Tensor
    label_mean: torch.Tensor
    cov: torch.Tensor

    def log_prob(self, x: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """Nats, [N]."""
        center = self.mean if c is None else self.mean + c.cpu().double() @ self.label_mean
        factor = torch.linalg.cholesky(self.cov)
        z = torch.linalg.solve_triangular(factor, (x.cpu().double() - center).t(), upper=False)
        return -0.5 * (z.square().sum(0) + len(z) * math.log(2 * math.pi)) - factor.diagonal().log().sum()


class Moments:
    """Sums of [x, c] from which the Gaussian follows whose mean is linear in c: exact for classes."""

    def __init__(self, dim: int, c_dim: int) -> None:
        self.dim = dim
        self.count = 0
        self.total = torch.zeros([dim + c_dim], dtype=torch.float64)
        self.outer = torch.zeros([dim + c_dim] * 2, dtype=torch.float64)

    def add(self, x: torch.Tensor, c: torch.Tensor | None) -> None:
        """[N, D] and [N, C] or None."""
        both = (x if c is None else torch.cat([x, c], dim=1)).cpu().double()
        self.count += len(both)
        self.total += both.sum(0)
        self.outer += both.t() @ both

    def gaussian(self) -> Gaussian:
        mean = self.total / self.count
        cov = self.outer / self.count - torch.outer(mean, mean)
        d = self.dim
        label_mean = torch.linalg.pinv(cov[d:, d:], hermitian=True) @ cov[d:, :d]
        within = cov[:d, :d] - label_mean.t() @ cov[d:, d:] @ label_mean
        return Gaussian(mean[:d] - mean[d:] @ label_mean, label_mean, (within + within.t()) / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Noise


def undo(w: torch.Tensor, activation: str) -> torch.Tensor:
    """w → what its mapping network's last activation was given, where that can be undone."""
    return torch.where(w < 0, w / LRELU_SLOPE, w) / LRELU_GAIN if activation == 'lrelu' else w


def redo(u: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.where(u < 0, u * LRELU_SLOPE, u) * LRELU_GAIN if activation == 'lrelu' else u


class NoisyW:
    """w of the old mapping with noise in u: what φ is fitted to."""

    def __init__(self, old: OldMapping, spread: torch.Tensor, noise: float, activation: str) -> None:
        self.old = old
        self.scale = (noise * spread).to(old.device, torch.float32)  # [D]
        self.activation = activation

    def add_noise(self, w: torch.Tensor) -> torch.Tensor:
        grain = torch.randn(w.shape, generator=self.old.stream).to(w.device)
        return redo(undo(w, self.activation) + self.scale * grain, self.activation)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        w, c = self.old.draw(count)
        return self.add_noise(w), c


# ---------------------------------------------------------------------------------------------------------------------
# The fit


@dataclasses.dataclass(frozen=True)
class Fitted:
    """φ and what it was fitted to. Likelihoods are means of held-out noisy samples, in nats per dimension."""

    phi: Phi
    samples: NoisyW
    gaussian: float  # A Gaussian of full covariance in w.
    start: float  # One in u: φ before its couplings learn.
    learned: float  # φ.


def fit_phi(phi: Phi, old: OldMapping, fit: Fit) -> Fitted:
    """Fits φ (with `standardize`) to the w of a mapping network, in place.

    Raises UserError if w doesn't vary, or only in some dimensions while there is no noise.
    """
    activation = phi.y_activation
    in_u, in_w, samples = _measure(old, phi.features, activation, fit.noise)
    assert phi.standardize is not None, 'attach makes every φ with this step'
    spread2 = samples.scale.cpu().double().square()
    try:
        phi.standardize.set_gaussian(in_u.mean, in_u.cov + torch.diag(spread2), in_u.label_mean)
    except ValueError as error:
        raise UserError('--noise: w of this network has fewer dimensions than numbers; give more, like 0.03') from error
    phi.to(old.device)
    validation, held_out = samples.draw(VALIDATION_SAMPLES), samples.draw(VALIDATION_SAMPLES)
    start = log_likelihood(phi, *held_out)
    _maximise(phi, samples, validation, fit)
    gaussian = float(in_w.log_prob(*held_out).mean()) / phi.features
    return Fitted(phi, samples, gaussian, start, log_likelihood(phi, *held_out))


def _measure(old: OldMapping, dim: int, activation: str, noise: float) -> tuple[Gaussian, Gaussian, NoisyW]:
    """Gaussians of clean u and of noisy w, and the noise."""
    clean, noisy = Moments(dim, old.labels.c_dim), Moments(dim, old.labels.c_dim)
    chunks = max(STATISTICS_SAMPLES // CHUNK, 1)
    for _ in range(chunks):
        w, c = old.draw(CHUNK)
        clean.add(undo(w, activation), c)
    in_u = clean.gaussian()
    spread = in_u.cov.diagonal().clamp(min=0).sqrt()
    if not torch.isfinite(spread).all() or spread.mean() == 0:
        raise UserError('--network: its mapping network gives the same w for every z')
    samples = NoisyW(old, spread.clamp(min=MIN_SPREAD * float(spread.mean())), noise, activation)
    for _ in range(chunks):
        noisy.add(*samples.draw(CHUNK))
    return in_u, noisy.gaussian(), samples


@torch.no_grad()
def log_likelihood(phi: Phi, w: torch.Tensor, c: torch.Tensor | None) -> float:
    """Mean log p(w) in nats per dimension."""
    return float(log_prob(phi, w, c).cpu().double().mean()) / phi.features


def log_prob(phi: Phi, w: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """log p(w | c) = log N(φ(w); 0, I) + log|det ∂φ/∂w|, in nats: [N, dim] -> [N], with a gradient."""
    z, log_det = phi(w, c)
    return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)


def _maximise(
    phi: Phi, samples: NoisyW, validation: tuple[torch.Tensor, torch.Tensor | None], fit: Fit
) -> None:
    """Adam with a cosine schedule; leaves the best of the averaged states, which may be the first."""
    phi.requires_grad_(True)
    # Weights are stored enlarged by 1 / lr_multiplier, so the steps must be, too.
    lr = fit.lr / phi.lr_multiplier
    opt = torch.optim.Adam(phi.parameters(), lr=lr, betas=(0.9, 0.99))
    average: Any = torch.optim.swa_utils.AveragedModel(
        phi, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    first = best = log_likelihood(phi, *validation)
    best_state = copy.deepcopy(phi.state_dict())
    every = max(fit.steps // EVALUATIONS, 1)
    bar = tqdm.tqdm(total=fit.steps, desc='fitting φ', unit='step', file=sys.stderr, leave=False)
    for step in range(fit.steps):
        opt.param_groups[0]['lr'] = lr * schedule(step, fit.steps)
        loss = -log_prob(phi, *samples.draw(fit.batch)).mean() / phi.features
        opt.zero_grad()
        loss.backward()
        opt.step()
        average.update_parameters(phi)
        bar.update()
        if (step + 1) % every == 0 or step + 1 == fit.steps:
            reached = log_likelihood(average.module, *validation)
            bar.set_postfix_str(f'{reached - first:+.4f} nats per dimension')
            if reached > best:
                best, best_state = reached, copy.deepcopy(average.module.state_dict())
    bar.close()
    phi.load_state_dict(best_state)
    phi.requires_grad_(False)


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: a short rise, then half a cosine down to 0."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
