"""How well a crop fits what a network was trained on, told by its own reconstruction: no landmarks, any domain.

A network draws what it knows: of an aligned crop it explains more than of one that is shifted, turned or zoomed. What
it leaves unexplained is measured against what there is, or else the smoothest crop would always win.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from lia_plugin import engine
from lia_plugin.images import read_image, to_pil
from lia_plugin.networks import base_code
from lia_plugin.placement import Array, Placement, apply_affine, compose_affine, place
from lia_plugin.resample import warp
from lia_plugin.spaces import surprise

# Weights of `misfit`, found on held-out faces: of an aligned crop and a moved one of the same picture, the aligned one
# has less misfit in 95 to 97 % of all pairs; by the error alone in 87 to 89 %. Without weight on what there is to draw
# a search ends at smooth crops, and without the last at mirrored borders, which look symmetric as faces do.
EDGES_WEIGHT = 2.0
CONTENT_WEIGHT = 1.0
PRIOR_WEIGHT = 1.0
FARTHEST = 2.0  # ‖z‖²/2 per dimension, of which the prior expects 0.5; beyond, how much farther says nothing any more.
OUTSIDE_WEIGHT = 2.0
FINEST_SCALE = 2.0  # Pixels of the picture to one of its centre crop that are enough for crops half as large.
FLAT = 1e-3  # Variance, images in [-1, 1], of a picture without contrast: a flat crop is no good fit.


class Motion(NamedTuple):
    """From one crop to another of the same picture, in units of the first."""

    scale: float = 1.0  # Of the side: below 1 zooms in.
    angle: float = 0.0  # Radians.
    x: float = 0.0  # Of the centre, as a share of the side.
    y: float = 0.0


def moved(placement: Placement, motion: Motion) -> Placement:
    """The crop after a motion about its centre."""
    R = placement.resolution
    cosine, sine = motion.scale * math.cos(motion.angle), motion.scale * math.sin(motion.angle)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    centre = np.array([0.5 + motion.x, 0.5 + motion.y]) * R
    inner = np.column_stack([linear, centre - linear @ np.full(2, R / 2)])
    return place(compose_affine(placement.array, inner), placement.size, R, placement.source, placement.member)


def crops(full: torch.Tensor, base: Placement, motions: Sequence[Motion]) -> torch.Tensor:
    """Crops of a picture uint8 [C, H, W] after each motion from `base` -> floats [K, C, R, R], about [-1, 1]."""
    R = base.resolution
    drawn = [warp(full, moved(base, motion).array, (R, R)) for motion in motions]
    return torch.stack(drawn).clamp(-1, 1)


def outside_share(placement: Placement, points: int = 16) -> float:
    """Share of a crop that lies beyond the picture's border, where it goes on mirrored; on a grid of points."""
    ticks = (np.arange(points) + 0.5) * placement.resolution / points
    there = apply_affine(placement.array, np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2))
    return float(((there < 0) | (there > np.array(placement.size))).any(axis=1).mean())


@torch.no_grad()
def misfit(G: Any, img: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """How badly a network with an encoder draws images NCHW in [-1, 1] -> [N]; comparable between crops of a picture.

    The log of the unexplained share of the variance, twice that of the squared differences between neighbours, less the
    log of these differences themselves, plus -log p(y) per dimension. Of a z that is absurdly far out, as a φ that was
    fitted to another mapping gives for real images, only so much counts as `FARTHEST` says: pictures decide then.
    """
    G = engine.of(G)
    y = G.encode(img, c)
    error = G.decode(y, c, noise_mode='const').to(torch.float32).clamp(-1, 1) - img
    variance = img.var(dim=(1, 2, 3), unbiased=False)
    unexplained = error.square().mean(dim=(1, 2, 3)) / (variance + FLAT)
    content = _edges(img) + FLAT
    edges = _edges(error) / content
    fit = (unexplained + 1e-6).log() + EDGES_WEIGHT * (edges + 1e-6).log() - CONTENT_WEIGHT * content.log()
    return fit + PRIOR_WEIGHT * _unlikely(G, base_code(y), c)


def _unlikely(G: Any, y: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """-log p(y) in nats per dimension, [N], with an end to what ‖z‖² adds."""
    distance = surprise(G, G.mapping.y_to_z(y, c), c, 'z')
    return surprise(G, y, c, 'y') - (distance - FARTHEST).clamp(min=0)


def _edges(img: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbours, [N]."""
    return img.diff(dim=3).square().mean(dim=(1, 2, 3)) + img.diff(dim=2).square().mean(dim=(1, 2, 3))


def working_copy(full: torch.Tensor, base: Placement) -> tuple[torch.Tensor, Placement]:
    """A picture uint8 [C, H, W] no finer than crops need of half the side of `base`, and `base` in it.

    Hundreds of crops of a photograph of twelve megapixels would take minutes.
    """
    shrink = min(1.0, FINEST_SCALE / base.scale)
    size = [max(1, round(length * shrink)) for length in base.size]
    if shrink == 1:
        return full, base
    small = read_image(to_pil(full).resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC, reducing_gap=3)).pixels
    matrix = base.array * (np.array(size) / np.array(base.size))[:, None]
    return small, place(matrix, size, base.resolution, base.source, base.member)


class Judge:
    """The misfit of one picture's crops, batch by batch, on the network's device; `told` hears of each batch's size."""

    def __init__(
        self, G: Any, full: torch.Tensor, base: Placement, c: torch.Tensor | None, batch: int,
        told: Callable[[int], object] | None = None,
    ) -> None:
        self.full, self.base = working_copy(full, base)
        self.G, self.c, self.batch, self.told = G, c, batch, told

    def __call__(self, motions: Sequence[Motion]) -> Array:
        """float64 [K]."""
        parts = []
        for start in range(0, len(motions), self.batch):
            img = crops(self.full, self.base, motions[start : start + self.batch])
            labels = None if self.c is None else self.c.expand(len(img), -1)
            parts.append(misfit(self.G, img.to(self.G.mapping.w_avg.device), labels).cpu())
            if self.told is not None:
                self.told(len(img))
        outside = np.array([outside_share(moved(self.base, motion)) for motion in motions])
        return torch.cat(parts).double().numpy() + OUTSIDE_WEIGHT * outside


# ---------------------------------------------------------------------------------------------------------------------
# Search

SCALES = (1.3, 1.0, 0.77, 0.59, 0.5)
ANGLES = (-0.25, 0.0, 0.25)
SHIFT_STEP = 0.25  # Of the moved crop's side.
ROUNDS = ((8, 1.0), (4, 0.7), (2, 0.5), (1, 0.35), (1, 0.2), (1, 0.1))  # So many of the best, so much of SPREAD.
PER_ROUND = 48
SPREAD = Motion(0.12, 0.12, 0.08, 0.08)  # Standard deviations of the first round; of the log of the scale.
LOWEST = Motion(0.45, -0.6, -0.36, -0.36)
HIGHEST = Motion(1.6, 0.6, 0.36, 0.36)


def coarse_motions() -> list[Motion]:
    """Every scale and angle, with shifts a quarter of the crop apart."""
    found = []
    for scale in SCALES:
        steps = math.floor(HIGHEST.x / (SHIFT_STEP * scale))
        places = [i * SHIFT_STEP * scale for i in range(-steps, steps + 1)]
        found += [Motion(scale, angle, x, y) for angle in ANGLES for x in places for y in places]
    return found


def search(judge: Callable[[Sequence[Motion]], Array], seed: int = 0) -> tuple[Motion, float]:
    """The motion of the least misfit, and by how much it beats staying where the crop is (0 = nothing is better).

    Coarse to fine, without gradients: a grid of scales, angles and shifts, then rounds of random motions about the best
    ones, fewer and closer each time.
    """
    rng = np.random.default_rng(seed)
    motions = [Motion(), *coarse_motions()]
    values = judge(motions)
    start = float(values[0])
    for kept, width in ROUNDS:
        order = np.argsort(values, kind='stable')[:kept]
        motions, values = [motions[i] for i in order], values[order]
        new = _around(motions, width, rng)
        motions, values = motions + new, np.concatenate([values, judge(new)])
    best = int(np.argmin(values))
    return motions[best], start - float(values[best])


def _around(motions: Sequence[Motion], width: float, rng: np.random.Generator) -> list[Motion]:
    """PER_ROUND random motions near these."""
    found = []
    for i in range(PER_ROUND):
        near = motions[i % len(motions)]
        step = rng.normal(size=4) * width * np.array(SPREAD)
        new = np.array(near) * [math.exp(step[0]), 1, 1, 1] + [0, step[1], step[2] * near.scale, step[3] * near.scale]
        found.append(Motion(*np.clip(new, LOWEST, HIGHEST).tolist()))
    return found


def find(
    G: Any, full: torch.Tensor, base: Placement, c: torch.Tensor | None = None, batch: int = 64
) -> tuple[Placement, float]:
    """The best crop of a picture uint8 [C, H, W] of the network's channels, and how much less its misfit is.

    `base` is where to start, c [1, c_dim] its label.
    """
    from tqdm import tqdm

    total = 1 + len(coarse_motions()) + len(ROUNDS) * PER_ROUND
    with tqdm(total=total, desc='Searching', unit='crop', leave=False, disable=None) as bar:
        motion, gain = search(Judge(G, full, base, c, batch, bar.update))
    return moved(base, motion), gain


# ---------------------------------------------------------------------------------------------------------------------
# Check

# Shifted, zoomed and turned by about as much as tells; those that zoom in are for photographs from farther away.
NEARBY = (
    *(Motion(x=x, y=y) for x, y in ((0.15, 0.0), (-0.15, 0.0), (0.0, 0.15), (0.0, -0.15))),
    Motion(scale=0.75), Motion(scale=1.33), Motion(angle=0.3), Motion(angle=-0.3),
    *(Motion(0.6, 0.0, x, y) for x, y in ((0.0, 0.0), (0.18, 0.0), (-0.18, 0.0), (0.0, 0.18), (0.0, -0.18))),
    Motion(0.6, 0.3), Motion(0.6, -0.3),
    *(Motion(0.5, 0.0, x, y) for x, y in ((0.0, 0.0), (0.12, 0.0), (-0.12, 0.0), (0.0, 0.12), (0.0, -0.12))),
)  # fmt: skip
FAR_GAIN = 0.35  # Of held-out faces that are aligned 1 to 3 % gain more, of emoji people 0 to 5 %.


def moved_gain(judge: Callable[[Sequence[Motion]], Array]) -> float:
    """By how much the best of a few moved crops has less misfit than the crop itself; below 0 if none has."""
    values = judge([Motion(), *NEARBY])
    return float(values[0] - values[1:].min())
