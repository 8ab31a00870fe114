"""Where pictures of one class differ from those of another: the region that an edit may change.

It is found in real pictures, before any edit and for all edits alike, from the difference between the classes' means
at each pixel. A pixel belongs to it if that difference is no small effect beside the spread inside the classes (Cohen's
d) and stands out of the noise, and if it is one of the strong ones that make up nearly all of the difference: d alone
takes in pixels where drawn pictures differ always but hardly, and the difference alone those where photographs differ
by chance. Attributes go together in real pictures (firefighters wear hats), so differences are those of a linear model
with all attributes in it, each pixel's least squares: what the others explain is not the class's. With a single
attribute of two classes this is Cohen's d as everybody computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

LEAST = 0.3  # |d| of a pixel of the region; 0.2 is called a small effect, 0.5 a medium one.
SURE = 4.0  # And so many standard errors of d, that none of many thousand pixels is there by chance.
SHARE = 0.9  # Of the squared difference between the classes, that the strongest pixels make up together.
MIN_STD = 2 / 255  # One level of 256, in [-1, 1]: pixels that are the same in all pictures have no spread to divide by.
SPREAD_SIDE = 32  # Regions grow by one pixel in this many, for edges of a thing move with it.


class Effect(NamedTuple):
    """How pictures of a class differ from the others."""

    difference: Array  # [C, H, W], of means, in units of the pixels; positive = brighter in the class.
    d: Array  # [C, H, W], the same in standard deviations inside the classes.
    error: float  # Standard error of d where it is 0.

    def region(self) -> Array:
        """bool [H, W], a little widened; nothing where the classes don't differ."""
        strong = np.abs(self.d).max(axis=0) >= max(LEAST, SURE * self.error)
        strong &= strongest(np.square(self.difference).sum(axis=0), SHARE)
        return widen(strong, max(1, round(strong.shape[0] / SPREAD_SIDE)))


def strongest(weights: Array, share: float) -> Array:
    """The fewest places of [H, W] that hold this share of all the weight, bool [H, W]; none if there is no weight."""
    order = np.argsort(-weights, axis=None, kind='stable')
    sums = np.cumsum(weights.ravel()[order])
    chosen = np.zeros(weights.size, bool)
    if sums[-1] > 0:
        chosen[order[: np.searchsorted(sums, share * sums[-1]) + 1]] = True
    return chosen.reshape(weights.shape)


def widen(region: Array, by: int) -> Array:
    """All pixels of [H, W] that are within `by` of the region, in a square neighbourhood."""
    grown = torch.nn.functional.max_pool2d(torch.from_numpy(region[None].astype(np.float32)), 2 * by + 1, 1, by)
    return grown[0].numpy() > 0


class Moments:
    """Sums over pictures, out of which the effect of any class follows; pictures pass by once, in batches."""

    def __init__(self, classes: Sequence[int]) -> None:
        """classes: how many each attribute has."""
        self.classes = list(classes)
        width = sum(self.classes) + len(self.classes)  # Each attribute has a class more: not known.
        self.starts = np.cumsum([0] + [k + 1 for k in self.classes])[:-1]
        self.gram = np.zeros([width, width])
        self.cross: Array | None = None  # [width, pixels]
        self.square: Array | None = None  # [pixels]
        self.shape: tuple[int, ...] = ()
        self.n = 0

    def add(self, labels: Array, img: torch.Tensor) -> None:
        """labels: int [n, attributes], −1 = not known; img: NCHW in [-1, 1]."""
        design = np.zeros([len(labels), len(self.gram)])
        for start, count, column in zip(self.starts, self.classes, labels.T):
            design[np.arange(len(labels)), start + np.where(column < 0, count, column)] = 1
        pixels = img.detach().cpu().flatten(1).double().numpy()
        if self.cross is None or self.square is None:
            self.shape = tuple(img.shape[1:])
            self.cross = np.zeros([len(self.gram), pixels.shape[1]])
            self.square = np.zeros(pixels.shape[1])
        self.gram += design.T @ design
        self.cross += design.T @ pixels
        self.square += np.square(pixels).sum(axis=0)
        self.n += len(labels)

    def effect(self, attribute: int, positive: int, negative: int | None = None) -> Effect:
        """Of class `positive` of an attribute against class `negative`, or against all its other known classes.

        Raises:
            ValueError: no picture was added, or none of one of the two kinds.
        """
        if self.cross is None or self.square is None:
            raise ValueError('effect: no picture was added')
        contrast = self._contrast(attribute, positive, negative)
        inverse = np.linalg.pinv(self.gram, rcond=1e-9, hermitian=True)
        coefficients = inverse @ self.cross
        rest = np.maximum(self.square - (coefficients * self.cross).sum(axis=0), 0)
        freedom = max(self.n - np.linalg.matrix_rank(self.gram, hermitian=True), 1)
        spread = np.maximum(np.sqrt(rest / freedom), MIN_STD)
        difference = contrast @ coefficients
        error = float(np.sqrt(max(contrast @ inverse @ contrast, 0)))
        return Effect(difference.reshape(self.shape), (difference / spread).reshape(self.shape), error)

    def _contrast(self, attribute: int, positive: int, negative: int | None) -> Array:
        """Weights [width] that make a difference of class means out of coefficients."""
        start, count = self.starts[attribute], self.classes[attribute]
        numbers = np.diag(self.gram)[start : start + count].copy()
        others = numbers.copy() if negative is None else np.where(np.arange(count) == negative, numbers, 0)
        others[positive] = 0
        if numbers[positive] == 0 or others.sum() == 0:
            raise ValueError(f'effect: expected pictures of both kinds, got {numbers.astype(int).tolist()} per class')
        contrast = np.zeros(len(self.gram))
        contrast[start : start + count] = -others / others.sum()
        contrast[start + positive] = 1
        return contrast
