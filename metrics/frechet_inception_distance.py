"""Fréchet Inception Distance: Heusel et al. 2017, "GANs trained by a two time-scale update rule …", section 3."""

from __future__ import annotations

import numpy as np

from metrics import metric_utils
from metrics.feature_stats import Array


def sqrt_product_trace(a: Array, b: Array) -> float:
    """tr (A B)^½ of two covariances [D, D]: the sum of the roots of A·B's eigenvalues.

    With A = L Lᵀ these are the eigenvalues of the symmetric Lᵀ B L, which is faster and steadier than a matrix root.
    A Cholesky factor serves where either matrix has full rank, else the symmetric root.
    """
    for inner, outer in ((a, b), (b, a)):
        try:
            factor = np.linalg.cholesky(inner)
        except np.linalg.LinAlgError:
            continue
        return float(np.sqrt(np.linalg.eigvalsh(factor.T @ outer @ factor).clip(min=0)).sum())
    values, vectors = np.linalg.eigh(a)
    factor = vectors * np.sqrt(values.clip(min=0))
    return float(np.sqrt(np.linalg.eigvalsh(factor.T @ b @ factor).clip(min=0)).sum())


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½) of two Gaussians, float64."""
    shift = np.square(mean_a - mean_b).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * sqrt_product_trace(cov_a, cov_b))


def compute_fid(opts: metric_utils.MetricOptions, max_real: int | None, num_gen: int) -> float:
    """FID between the first `max_real` images (None = all) and `num_gen` generated ones. NaN but on rank 0."""
    url = opts.detector_url('inception')
    call = dict(opts=opts, detector_url=url, detector_kwargs=dict(return_features=True))
    real = metric_utils.compute_feature_stats_for_dataset(
        rel_lo=0, rel_hi=0.2, capture_mean_cov=True, max_items=max_real, **call)  # type: ignore[arg-type]
    fake = metric_utils.compute_feature_stats_for_generator(
        rel_lo=0.2, rel_hi=1, capture_mean_cov=True, max_items=num_gen, **call)  # type: ignore[arg-type]
    metric_utils.note_images(opts, url, num_fake=fake.num_items, num_real=real.num_items)
    return frechet_distance(*fake.get_mean_cov(), *real.get_mean_cov()) if opts.rank == 0 else float('nan')
