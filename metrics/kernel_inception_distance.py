"""Kernel Inception Distance: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4."""

from __future__ import annotations

import numpy as np

from dnnlib.util import UserError
from metrics import metric_utils
from metrics.feature_stats import Array


def _cubic_kernel(x: Array, y: Array) -> Array:
    """(x·y / D + 1)³ of all pairs: [M, D], [N, D] -> [M, N]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(x: Array, y: Array) -> float:
    """Squared maximum mean discrepancy of samples [M, D], [N, D]; unbiased, as no item is paired with itself."""

    def among(sample: Array) -> float:
        kernel = _cubic_kernel(sample, sample)
        return float((kernel.sum() - np.trace(kernel)) / (len(sample) * (len(sample) - 1)))

    return among(x) + among(y) - 2 * float(_cubic_kernel(x, y).mean())


def kernel_distance(real: Array, fake: Array, num_subsets: int, max_subset_size: int, seed: int = 0) -> float:
    """Mean squared MMD of random subsets, each drawn without replacement, float64.

    Raises:
        UserError: fewer than two images on a side.
    """
    size = min(len(real), len(fake), max_subset_size)
    if size < 2:
        raise UserError(f'--num: KID needs at least 2 images a side, got {len(real)} real and {len(fake)} generated')
    stream = np.random.default_rng(seed)
    total = 0.0
    for _ in range(num_subsets):
        x, y = (side[stream.choice(len(side), size, replace=False)].astype(np.float64) for side in (fake, real))
        total += squared_mmd(x, y)
    return total / num_subsets


def compute_kid(
    opts: metric_utils.MetricOptions, max_real: int | None, num_gen: int, num_subsets: int, max_subset_size: int
) -> float:
    """KID between the first `max_real` images (None = all) and `num_gen` generated ones. NaN but on rank 0."""
    url = opts.detector_url('inception')
    call = dict(opts=opts, detector_url=url, detector_kwargs=dict(return_features=True))
    real = metric_utils.compute_feature_stats_for_dataset(
        rel_lo=0, rel_hi=0.2, capture_all=True, max_items=max_real, **call)  # type: ignore[arg-type]
    fake = metric_utils.compute_feature_stats_for_generator(
        rel_lo=0.2, rel_hi=1, capture_all=True, max_items=num_gen, **call)  # type: ignore[arg-type]
    metric_utils.note_images(opts, url, num_fake=fake.num_items, num_real=real.num_items)
    if opts.rank != 0:
        return float('nan')
    return kernel_distance(real.get_all(), fake.get_all(), num_subsets, max_subset_size, opts.seed)
