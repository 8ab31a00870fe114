"""How a path of images looks from outside: its length in a feature space, how straight it is, how far from real images.

Distances are Euclidean ones of features: the root of what `lia_plugin.perceptual` gives, or of the mean squared
difference of pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin.perceptual import DiscriminatorFeatures, Perceptual
from lia_plugin.similarity import mse

Array = npt.NDArray[np.float64]

SKETCH = 4096  # Longer features are summed up to so many numbers.


class FeatureSpace:
    """Distances of images NCHW in [-1, 1] on the CPU, and a row of numbers for each that keeps them."""

    def __init__(
        self, percep: Perceptual | None, device: torch.device | str = 'cpu', batch: int = 8, seed: int = 0
    ) -> None:
        self.percep, self.device, self.batch, self.seed = percep, device, batch, seed
        self._sketch: Sketch | None = None

    @torch.no_grad()
    def distance(self, a: torch.Tensor, b: torch.Tensor) -> Array:
        """Of N pairs of images -> [N], exactly."""
        compare = mse if self.percep is None else self.percep.distance
        parts = [compare(a[rows].to(self.device), b[rows].to(self.device)) for rows in self._slices(len(a))]
        return torch.cat(parts).clamp(min=0).sqrt().cpu().double().numpy()

    @torch.no_grad()
    def embed(self, img: torch.Tensor) -> npt.NDArray[np.float32]:
        """-> [N, D], at most SKETCH numbers each, whose Euclidean distances are those above, if sketched to some %."""
        parts = []
        for rows in self._slices(len(img)):
            flat = self._flat(img[rows].to(self.device))
            if flat.shape[1] > SKETCH:
                self._sketch = self._sketch or Sketch(flat.shape[1], SKETCH, self.seed, self.device)
                flat = self._sketch(flat)
            parts.append(flat.to(torch.float32).cpu())
        return torch.cat(parts).numpy()

    def _flat(self, img: torch.Tensor) -> torch.Tensor:
        """Features in one row, each scaled by the root of its weight in the distance."""
        if self.percep is None:
            return img.flatten(1) / img[0].numel() ** 0.5
        maps = self.percep.features(img)
        weights = self.percep.weights if isinstance(self.percep, DiscriminatorFeatures) else [1.0] * len(maps)
        # Of maps the mean over positions counts, of LPIPS's vectors the sum: see Perceptual.compare.
        counts = [x.shape[2] * x.shape[3] if x.ndim == 4 else 1 for x in maps]
        return torch.cat([(x * (w / n) ** 0.5).flatten(1) for x, w, n in zip(maps, weights, counts)], dim=1)

    def _slices(self, count: int) -> list[slice]:
        return [slice(start, start + self.batch) for start in range(0, count, self.batch)]


class Sketch:
    """[N, D] -> [N, size]: each number is added to one of `size` sums, with a sign, both at random but always the same.

    Squared distances keep their mean and get a relative error of about √(2/size) (count sketch; Weinberger et al. 2009,
    arXiv 0902.2206), and it needs D numbers of memory where a random projection needs D·size.
    """

    def __init__(self, dim: int, size: int, seed: int, device: torch.device | str) -> None:
        stream = torch.Generator().manual_seed(seed)
        self.size = size
        self.place = torch.randint(size, [dim], generator=stream).to(device)
        self.sign = (torch.randint(2, [dim], generator=stream) * 2 - 1).to(device, torch.float32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros([len(x), self.size]).index_add_(1, self.place, x * self.sign)


class PathMeasures(NamedTuple):
    """Of P paths, [P] each, in units of the feature space."""

    length: Array  # Sum of the distances of neighbours.
    straightness: Array  # Distance of the ends / length: 1 for a straight line, 0 for a closed one.
    evenness: Array  # Mean step / largest step: 1 where all are as long.


def measure_steps(steps: Array, ends: Array) -> PathMeasures:
    """From the distances of neighbours [T − 1, P] and of the ends [P]."""
    length, largest = steps.sum(axis=0), steps.max(axis=0)
    tiny = np.finfo(np.float64).tiny
    return PathMeasures(length, ends / np.maximum(length, tiny), steps.mean(axis=0) / np.maximum(largest, tiny))


def nearest(
    points: npt.NDArray[np.float32], reals: npt.NDArray[np.float32], leave_out: npt.NDArray[np.bool_] | None = None
) -> Array:
    """Distance of each point [N, D] to the nearest of the real images [M, D] -> [N].

    `leave_out` [N, M]: real images that don't count for a point, such as the ends of its own path.
    """
    # |a|² + |b|² − 2ab: the differences themselves would be N times as large.
    a, b = points.astype(np.float64), reals.astype(np.float64)
    square = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    if leave_out is not None:
        square = np.where(leave_out, np.inf, square)
    return np.sqrt(np.maximum(square.min(axis=1), 0))
