"""Fréchet distances of Gaussians: ‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½). All in float64.

A host may be one that has no such functions to share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sqrt_product_trace(a: Array, b: Array) -> float:
    """tr (A B)^½ of covariances [D, D]."""
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(min=0))
    return float(np.sqrt(np.linalg.eigvalsh(root.T @ b @ root).clip(min=0)).sum())


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Fréchet distance of N(mean_a, cov_a) to N(mean_b, cov_b)."""
    shift = np.square(mean_a - mean_b).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * sqrt_product_trace(cov_a, cov_b))


def frechet_to_standard_normal(mean: Array, cov: Array) -> float:
    """Fréchet distance of N(mean, cov) to N(0, I): ‖μ‖² + Σ (√λᵢ − 1)² over the eigenvalues of cov."""
    roots = np.sqrt(np.linalg.eigvalsh(cov).clip(min=0))
    return float(np.square(mean).sum() + np.square(roots - 1).sum())


def frechet_floor(n: int, dim: int, seed: int = 0) -> float:
    """What n true samples of N(0, I) get: the share of a result that only the small number of images explains."""
    stream = np.random.default_rng(seed)
    moments = Moments(dim)
    for start in range(0, n, 4096):
        moments.add(stream.standard_normal([min(4096, n - start), dim]))
    return frechet_to_standard_normal(*moments.mean_and_cov(n))


class Moments:
    """Sums over vectors [N, dim] that come in parts."""

    def __init__(self, dim: int) -> None:
        self.total: Array = np.zeros(dim)
        self.outer: Array = np.zeros([dim, dim])

    def add(self, rows: Array) -> None:
        self.total += rows.sum(axis=0)
        self.outer += rows.T @ rows

    def mean_and_cov(self, n: int) -> tuple[Array, Array]:
        """Mean [dim] and population covariance [dim, dim] of n vectors."""
        mean = self.total / n
        return mean, self.outer / n - np.outer(mean, mean)
