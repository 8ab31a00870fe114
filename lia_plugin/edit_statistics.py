"""Statistics of edits over images: equal success, and the bootstrap over images.

A curve is what a mean over images does as an edit grows: [A] at A amounts, of per-image values [A, n]. Edits of two
kinds are compared where both have the same success, not where both have the same length, for lengths in two spaces
mean nothing to each other; and on the same images, for those differ more than edits do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

RESAMPLES = 1000
COVERED = 0.95  # What intervals are meant to cover.


def balanced_accuracy(labels: Array, found: Array) -> float:
    """Mean over the classes that occur of the share of their items that are found: [n], [n] ints; NaN for no items."""
    if len(labels) == 0:
        return float('nan')
    return float(np.mean([(found[labels == kind] == kind).mean() for kind in np.unique(labels)]))


# ---------------------------------------------------------------------------------------------------------------------
# Bootstrap


def resample_weights(n: int, seed: int, resamples: int = RESAMPLES) -> Array:
    """Weights of n images in each bootstrap sample: [resamples, n], each row sums to 1.

    The same for the same n and seed, so that edits of the same images are resampled together.
    """
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return draws / n


class Estimate(NamedTuple):
    """A figure of all images, and the interval of its bootstrap samples."""

    value: float  # NaN where it does not exist, as at a success that is not reached.
    low: float
    high: float
    found: float = 1.0  # Share of the samples in which it exists.


def interval(value: float, samples: Array) -> Estimate:
    """The percentile interval of bootstrap samples [resamples], those that are NaN left out and counted."""
    exists = np.isfinite(samples)
    if not exists.any():
        return Estimate(value, float('nan'), float('nan'), 0.0)
    tail = (1 - COVERED) / 2
    low, high = np.quantile(samples[exists], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), float(exists.mean()))


# ---------------------------------------------------------------------------------------------------------------------
# Equal success


def crossing(success: Array, level: float) -> Array:
    """Where curves [..., A] first reach a level: fractional places 0 … A − 1, linear in between; NaN if nowhere."""
    reached = success >= level
    first = reached.argmax(axis=-1)
    before = np.maximum(first - 1, 0)
    top = np.take_along_axis(success, first[..., None], axis=-1)[..., 0]
    bottom = np.take_along_axis(success, before[..., None], axis=-1)[..., 0]
    rise = np.where(first > 0, top - bottom, 1)
    place = np.where(first > 0, before + (level - bottom) / rise, 0.0)
    return np.where(reached.any(axis=-1), place, np.nan)


def at_place(curve: Array, place: Array) -> Array:
    """Curves [..., A] at fractional places [...], linear in between; NaN where the place is."""
    known = np.nan_to_num(place)
    below = np.minimum(np.floor(known).astype(np.int64), curve.shape[-1] - 1)
    above = np.minimum(below + 1, curve.shape[-1] - 1)
    left = np.take_along_axis(curve, below[..., None], axis=-1)[..., 0]
    right = np.take_along_axis(curve, above[..., None], axis=-1)[..., 0]
    share = known - below
    # Written so that an infinite or missing neighbour that has no weight does no harm.
    mixed = np.where(share > 0, left * (1 - share) + np.where(share > 0, right, 0) * share, left)
    return np.where(np.isnan(place), np.nan, mixed)


class Samples(NamedTuple):
    """One figure at equal success: of all images, and of each bootstrap sample, [resamples]."""

    value: float
    resampled: Array

    def estimate(self) -> Estimate:
        return interval(self.value, self.resampled)

    def minus(self, other: Samples) -> Estimate:
        """The difference to an edit of the same images, resampled together."""
        return interval(self.value - other.value, self.resampled - other.resampled)


def at_equal_success(success: Array, values: dict[str, Array], level: float, weights: Array) -> dict[str, Samples]:
    """Figures where the mean success first reaches a level.

    Args:
        success: [A, n], 0 … 1: of each of n images at each of A growing amounts, the first of which is no edit.
        values: Further per-image figures, [A, n] each, or [A] where all images have one.
        level: The mean success to reach.
        weights: `resample_weights(n, …)`.
    """
    place = crossing(success.mean(axis=1), level)
    places = crossing(weights @ success.T, level)
    found = {}
    for name, value in values.items():
        if value.ndim == 1:
            curve, curves = value, np.broadcast_to(value, [len(weights), len(value)])
        else:
            curve, curves = value.mean(axis=1), weights @ value.T
        found[name] = Samples(float(at_place(curve, place)), at_place(curves, places))
    return found
