"""A Swiss roll whose geometry is known in closed form, and φ fitted to it by maximum likelihood.

The roll is (t, h) → (a·t·cos t, h, a·t·sin t): an Archimedean spiral, drawn out sideways. Unrolled it is a flat
rectangle with the sides s(t) = a/2·(t√(1 + t²) + asinh t) and h, so the shortest way on it between two points is
straight there, √(Δs² + Δh²). Points are float64 [N, 3]; (s, h) with s from 0 are called flat, [N, 2].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import special

from lia_plugin import phi_fit
from lia_plugin.networks import Phi

Array = npt.NDArray[np.float64]
BLOCK = 4096  # Points at once, each against a grid along the spiral.
GRID = 1024


@dataclasses.dataclass(frozen=True)
class Roll:
    """A turn and a quarter of a spiral, and noise around it, so that there is a density."""

    start: float = 1.5 * math.pi  # Angles t.
    stop: float = 4.0 * math.pi
    radius: float = 2.0  # At `stop`.
    height: float = 3.0
    noise: float = 0.05  # Standard deviation, in each of the three dimensions.

    @property
    def pitch(self) -> float:
        """a above."""
        return self.radius / self.stop

    @property
    def length(self) -> float:
        """Of the spiral."""
        return float(self.arc_length(np.array(self.stop)))

    def arc_length(self, t: Array) -> Array:
        """s(t), from the start of the spiral; any shape."""

        def whole(t: Array | float) -> Array:
            return self.pitch / 2 * (t * np.sqrt(1 + np.square(t)) + np.arcsinh(t))

        return whole(t) - whole(self.start)

    def angle(self, s: Array) -> Array:
        """t of an arc length: undoes `arc_length`, by Newton's method from a table."""
        table = np.linspace(self.start, self.stop, GRID)
        t = np.interp(s, self.arc_length(table), table)
        for _ in range(3):
            t = t - (self.arc_length(t) - s) / (self.pitch * np.sqrt(1 + np.square(t)))
        return t

    def spiral(self, t: Array) -> Array:
        """Angles [...] -> places in the plane [..., 2]."""
        return self.pitch * t[..., None] * np.stack([np.cos(t), np.sin(t)], axis=-1)

    def embed(self, flat: Array) -> Array:
        """(s, h) [N, 2] -> points [N, 3]: around the height's middle, and the height is the second of them."""
        plane = self.spiral(self.angle(flat[:, 0]))
        return np.stack([plane[:, 0], flat[:, 1] - self.height / 2, plane[:, 1]], axis=1)

    def draw(self, count: int, stream: np.random.Generator) -> Array:
        """Evenly over the roll's area: flat [count, 2]."""
        return stream.random([count, 2]) * [self.length, self.height]

    def geodesic(self, a: Array, b: Array) -> Array:
        """Length of the shortest way on the roll between flat points [N, 2] -> [N]."""
        return np.linalg.norm(b - a, axis=1)

    def distance(self, points: Array) -> Array:
        """From points [N, 3] to the nearest point of the roll, [N]."""
        plane = np.concatenate([self._plane_distance(block) for block in _blocks(points[:, [0, 2]])])
        beyond = np.maximum(np.abs(points[:, 1]) - self.height / 2, 0)
        return np.hypot(plane, beyond)

    def _plane_distance(self, p: Array) -> Array:
        """To the spiral: the nearest of a grid, then Newton's method for (p − m(t))·m′(t) = 0."""
        table = np.linspace(self.start, self.stop, GRID)
        t = table[np.square(p[:, None] - self.spiral(table)).sum(axis=2).argmin(axis=1)]
        low, high = t - (table[1] - table[0]), t + (table[1] - table[0])
        for _ in range(4):
            cos, sin = np.cos(t), np.sin(t)
            slope = self.pitch * (p[:, 0] * (cos - t * sin) + p[:, 1] * (sin + t * cos)) - self.pitch**2 * t
            bend = self.pitch * (p[:, 1] * (2 * cos - t * sin) - p[:, 0] * (2 * sin + t * cos)) - self.pitch**2
            step = np.divide(slope, bend, out=np.zeros_like(t), where=np.abs(bend) > 1e-12)
            t = (t - step).clip(low, high).clip(self.start, self.stop)
        return np.linalg.norm(p - self.spiral(t), axis=1)

    def log_density(self, points: Array) -> Array:
        """log p of the noisy roll at points [N, 3], in nats: an integral along the spiral, Φ across -> [N]."""
        s = (np.arange(GRID) + 0.5) / GRID * self.length
        curve = self.spiral(self.angle(s))
        parts = []
        for p in _blocks(points):
            square = np.square(p[:, None, [0, 2]] - curve).sum(axis=2) / self.noise**2
            parts.append(special.logsumexp(-0.5 * square, axis=1) - math.log(len(s) * 2 * math.pi * self.noise**2))
        h = points[:, 1]
        below, above = (special.log_ndtr((self.height / 2 + sign * h) / self.noise) for sign in (1, -1))
        # Φ(u) − Φ(v) = 1 − Φ(−u) − Φ(v): both tails are small where the roll is, and one is 1 far beside it.
        inside = np.abs(h) < self.height / 2
        across = np.where(inside, np.log1p(np.where(inside, np.exp(below) + np.exp(above) - 2, 0)),
                          np.minimum(below, above))  # fmt: skip
        return np.concatenate(parts) + across - math.log(self.height)


def _blocks(points: Array) -> list[Array]:
    return [points[start : start + BLOCK] for start in range(0, len(points), BLOCK)]


# ---------------------------------------------------------------------------------------------------------------------
# φ of the roll


@dataclasses.dataclass(frozen=True)
class RollFit:
    """How φ is fitted: a minute of one CPU core."""

    steps: int = 2500
    batch: int = 512
    couplings: int = 16
    hidden: int = 64
    lr: float = 5e-3
    blur: float = 8.0  # The noise begins as many times as wide: from a thin roll alone φ learns to cut, not to unroll …
    blurred: float = 0.6  # … and comes down to its own within this share of the steps.
    seed: int = 0


def noise_at(roll: Roll, settings: RollFit, step: int) -> float:
    """Standard deviation of the noise in a step."""
    left = 1 - step / (settings.steps * settings.blurred)
    return roll.noise * settings.blur ** max(left, 0)


def make_phi(settings: RollFit) -> Phi:
    """A φ of three dimensions that starts as the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        phi = Phi(
            3, num_couplings=settings.couplings, hidden_features=settings.hidden, coupling='affine', lr_multiplier=1,
            shift_activation='linear', zero_init=True,
        )  # fmt: skip
        for step in phi.couplings:
            # With one input, leaky ReLUs without a bias all bend at 0, and a coupling knows nothing but |x|.
            torch.nn.init.uniform_(step.hidden.bias, -2, 2)
    return phi


def fit(roll: Roll, settings: RollFit, callback: Callable[[int], None] | None = None) -> Phi:
    """φ with the likelihood of fresh noisy points of the roll maximised; on the CPU, where small things are quick."""
    phi = make_phi(settings)
    stream = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(phi.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    for step in range(settings.steps):
        optimizer.param_groups[0]['lr'] = settings.lr * phi_fit.schedule(step, settings.steps)
        x = noisy(roll, settings.batch, stream, noise_at(roll, settings, step))
        loss = -phi_fit.log_prob(phi, torch.from_numpy(x).float(), None).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(phi.parameters(), 5.0)
        optimizer.step()
        if callback is not None:
            callback(step + 1)
    return phi.requires_grad_(False)


def noisy(roll: Roll, count: int, stream: np.random.Generator, noise: float | None = None) -> Array:
    """Points of the roll with noise, by default its own: [count, 3]."""
    points = roll.embed(roll.draw(count, stream))
    return points + (roll.noise if noise is None else noise) * stream.standard_normal(points.shape)
