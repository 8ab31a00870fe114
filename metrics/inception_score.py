"""Inception score: Salimans et al. 2016, "Improved techniques for training GANs", section 4."""

from __future__ import annotations

import numpy as np
from scipy import special

from dnnlib.util import UserError
from metrics import metric_utils
from metrics.feature_stats import Array


def inception_score(probabilities: Array, num_splits: int) -> tuple[float, float]:
    """exp(mean KL(p(y|x) ‖ p(y))) of each split of the rows [N, classes]: mean and population deviation over splits.

    Raises:
        ValueError: fewer rows than splits.
    """
    n = len(probabilities)
    if n < num_splits:
        raise ValueError(f'probabilities: {num_splits} splits need at least as many rows, got {n}')
    bounds = [split * n // num_splits for split in range(num_splits + 1)]
    scores = []
    for start, stop in zip(bounds, bounds[1:]):
        part = probabilities[start:stop].astype(np.float64)
        scores.append(np.exp(special.rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def to_probabilities(outputs: Array) -> tuple[Array, str]:
    """Class probabilities of a classifier's outputs [N, classes], and how they came about: as they are if every row
    is a distribution, as Inception's are, else the softmax of what must be logits.
    """
    if outputs.min() >= 0 and np.abs(outputs.sum(axis=1, dtype=np.float64) - 1).max() < 1e-3:
        return outputs, "the detector's own"
    return special.softmax(outputs.astype(np.float64), axis=1), "softmax of the detector's outputs"


def compute_is(opts: metric_utils.MetricOptions, num_gen: int, num_splits: int) -> tuple[float, float]:
    """Score of `num_gen` generated images, mean and deviation over the splits. NaN but on rank 0.

    Raises:
        UserError: fewer images than splits.
    """
    if num_gen < num_splits:
        raise UserError(f'--num: the Inception score takes {num_splits} splits, so at least as many images; '
                        f'got {num_gen}')
    url = opts.detector_url('inception')
    # NVIDIA's Inception without the bias of its last layer is the TensorFlow network that published scores come from.
    outputs = metric_utils.compute_feature_stats_for_generator(
        opts=opts, detector_url=url, detector_kwargs=dict(no_output_bias=True), capture_all=True, max_items=num_gen)
    probabilities, origin = to_probabilities(outputs.get_all())
    metric_utils.note_images(opts, url, num_fake=outputs.num_items)
    opts.notes.update(data='generated images', splits=num_splits, probabilities=origin)
    return inception_score(probabilities, num_splits) if opts.rank == 0 else (float('nan'), float('nan'))
