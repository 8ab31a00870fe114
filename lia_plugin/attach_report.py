"""Whether φ stands well where the old mapping network stood: figures, a picture, and both in files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import stats

from lia_plugin import frechet, images, prior
from lia_plugin.networks import Generator
from lia_plugin.phi_fit import Fitted, OldMapping

SHOWN_COLUMNS, SHOWN_ROWS = 8, 3
PSI = 0.7  # Truncation at which identical pictures are checked.


def batches(G: Any, count: int) -> Iterator[int]:
    """Sizes of batches, fewer images above 256 pixels, that make `count` in all."""
    step = max(min(32, 32 * 256**2 // G.img_resolution**2), 2)
    for start in range(0, count, step):
        yield min(step, count - start)


@torch.no_grad()
def pictures(G: Any, w: torch.Tensor) -> torch.Tensor:
    """w [N, w_dim] → uint8 NCHW with constant noise."""
    return images.to_uint8(G.synthesis(w.unsqueeze(1).repeat([1, G.num_ws, 1]), noise_mode='const'))


class Features:
    """Mean and covariance of a detector's features of images as they come; float64."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.rows: list[np.ndarray] = []

    @torch.no_grad()
    def add(self, pixels: torch.Tensor) -> None:
        """uint8 NCHW."""
        features = self.detector(images.with_channels(pixels, 3), return_features=True)
        self.rows.append(features.cpu().numpy().astype(np.float64))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.concatenate(self.rows)
        return rows.mean(axis=0), np.cov(rows, rowvar=False)


def frechet_distance(a: Features, b: Features) -> float:
    """‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½)."""
    return frechet.frechet_distance(*a.moments(), *b.moments())


@torch.no_grad()
def distances(G: Generator, old: OldMapping, detector: Any, count: int) -> dict[str, float]:
    """Fréchet distance of φ's pictures to the old mapping's, and of two draws of the old mapping: the floor."""
    first, second, ours = (Features(detector) for _ in range(3))
    for size in batches(G, count):
        for features in (first, second):
            features.add(pictures(G, old.draw(size)[0]))
        z, c = draw_z(G, old, size)
        ours.add(pictures(G, G.mapping.z_to_y(z, c)))
    return dict(frechet=frechet_distance(first, ours), frechet_floor=frechet_distance(first, second), frechet_n=count)


def draw_z(G: Generator, old: OldMapping, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """z for φ, which may be of another width than the old mapping network's, and labels."""
    z = torch.randn([count, G.z_dim], generator=old.stream).to(old.device)
    c = old.labels.draw(count, old.stream)
    return z, None if c is None else c.to(old.device)


@torch.no_grad()
def latents(G: Generator, fitted: Fitted, count: int) -> dict[str, float]:
    """Round trip of z, and how typical the codes of the old mapping's w are under N(0, I)."""
    old = fitted.samples.old
    z, c = draw_z(G, old, count)
    error = float((G.mapping.y_to_z(G.mapping.z_to_y(z, c), c) - z).abs().max())
    w, c = old.draw(count)
    figures = dict(z_round_trip=error)
    for name, y in (('', w), ('noisy_', fitted.samples.add_noise(w))):
        norms = prior.squared_norm(G.mapping.y_to_z(y, c)).cpu().double().numpy()
        p = stats.kstest(norms, 'chi2', args=(G.z_dim,)).pvalue
        figures |= {f'{name}norm2_per_dim': float(norms.mean() / G.z_dim), f'{name}norm2_ks_p': float(p)}
        figures[f'{name}norm2_std'] = float(norms.std() / math.sqrt(2 * G.z_dim))  # In units of χ²'s.
    return figures


@torch.no_grad()
def check_front(G: Generator, before: Any, old: OldMapping, count: int) -> dict[str, Any]:
    """Whether φ before the old mapping network changes no bit, with truncation and without, and the round trip of z."""
    difference = error = 0.0
    same = True
    for size in batches(G, count):
        z, c = old.draw_inputs(size)
        for psi in (1.0, PSI):
            ours, theirs = (net(z, c, truncation_psi=psi, noise_mode='const') for net in (G, before))
            same = same and torch.equal(ours, theirs)
            difference = max(difference, float((ours - theirs).abs().max()))
        error = max(error, float((G.mapping.y_to_z(G.mapping.z_to_y(z, c), c) - z).abs().max()))
    return dict(identical_pictures=same, largest_difference=difference, identical_n=count, z_round_trip=error)


@torch.no_grad()
def sheet(G: Generator, old: OldMapping, count: int = SHOWN_COLUMNS * SHOWN_ROWS) -> torch.Tensor:
    """Pictures of the old mapping network above those of φ, uint8 [3, H, W]."""
    w, _ = old.draw(count)
    z, c = draw_z(G, old, count)
    rows: list[torch.Tensor] = []
    for codes in (w, G.mapping.y_to_w(G.mapping.z_to_y(z, c), c)):
        made = torch.cat([pictures(G, part).cpu() for part in codes.split(8)])
        rows += made.split(SHOWN_COLUMNS)
    captions = [f'{name} {i + 1}' for name in ('old mapping', 'phi') for i in range(len(rows) // 2)]
    return images.interpolation_strips(rows, captions)


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    told = []
    if report['mode'] == 'replace':
        told.append(
            f'held-out log p(w), nats per dimension: {report["log_p"]:.4f}  '
            f'(a Gaussian {report["log_p_gaussian"]:.4f}, one before the activation {report["log_p_start"]:.4f})'
        )
        if 'frechet' in report:
            kind = f'{report["detector"]}, n={report["frechet_n"]} each'
            told.append(
                f'Fréchet distance of pictures, old mapping to φ: {report["frechet"]:.4g}  '
                f'(two draws of the old mapping {report["frechet_floor"]:.4g}; {kind})'
            )
        told.append(
            f'φ of the old w: |z|²/d {report["norm2_per_dim"]:.3f}, its spread {report["norm2_std"]:.2f} times that of '
            f'N(0, I), KS p {report["norm2_ks_p"]:.2g}'
        )
    else:
        told.append(
            f'{report["identical_n"]} pictures, each with and without truncation: '
            + ('identical bit for bit' if report['identical_pictures'] else
               f'equal up to {report["largest_difference"]:.1e}; the code in the file rounds otherwise than that here')
        )
    return [*told, f'z → y → z, largest error: {report["z_round_trip"]:.1e}']
