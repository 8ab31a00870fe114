"""Sums over feature vectors, and what is computed from them: means, covariances, or all vectors."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import dnnlib

Array = npt.NDArray[Any]


def gather_interleaved(x: torch.Tensor, num_gpus: int, rank: int) -> torch.Tensor:
    """Rows of all processes in turn: row k of rank r before row k of rank r + 1. Ranks may hold unequal numbers.

    Every process gets all of them. [n_r, D] -> [Σ n_r, D], same device.
    """
    if num_gpus == 1:
        return x
    counts = torch.zeros([num_gpus], dtype=torch.int64, device=x.device)
    counts[rank] = x.shape[0]
    torch.distributed.all_reduce(counts)
    canvas = torch.zeros([int(counts.max()), num_gpus, x.shape[1]], dtype=x.dtype, device=x.device)
    canvas[: x.shape[0], rank] = x
    torch.distributed.all_reduce(canvas)
    taken = torch.arange(canvas.shape[0], device=x.device)[:, None] < counts
    return canvas[taken]


class FeatureStats:
    """Accumulates feature vectors [N, D].

    Args:
        capture_all: Keep every vector, float32.
        capture_mean_cov: Keep sums for mean and covariance, float64.
        max_items: Ignore what comes after this many. None = no limit.
    """

    def __init__(
        self, capture_all: bool = False, capture_mean_cov: bool = False, max_items: int | None = None
    ) -> None:
        self.capture_all = capture_all
        self.capture_mean_cov = capture_mean_cov
        self.max_items = max_items
        self.num_items = 0
        self.num_features: int | None = None
        self.all_features: list[Array] = []
        self.raw_mean: Array = np.zeros([0])  # Σ x
        self.raw_cov: Array = np.zeros([0, 0])  # Σ x xᵀ

    def set_num_features(self, num_features: int) -> None:
        if self.num_features is None:
            self.num_features = num_features
            self.raw_mean = np.zeros([num_features])
            self.raw_cov = np.zeros([num_features, num_features])
        elif self.num_features != num_features:
            raise ValueError(f'features: got {num_features} dimensions, expected {self.num_features}')

    def is_full(self) -> bool:
        return self.max_items is not None and self.num_items >= self.max_items

    def append(self, x: npt.ArrayLike) -> None:
        """Adds vectors [N, D]."""
        rows = np.asarray(x, dtype=np.float32)
        if rows.ndim != 2:
            raise ValueError(f'features: got shape {list(rows.shape)}, expected [N, D]')
        if self.max_items is not None:
            rows = rows[: max(self.max_items - self.num_items, 0)]
        self.set_num_features(rows.shape[1])
        self.num_items += len(rows)
        if self.capture_all:
            self.all_features.append(rows)
        if self.capture_mean_cov:
            wide = rows.astype(np.float64)
            self.raw_mean += wide.sum(axis=0)
            # Not NumPy's product: threads of its BLAS go on spinning for a while, in the way of the network's.
            columns = torch.from_numpy(wide)
            torch.from_numpy(self.raw_cov).addmm_(columns.T, columns)

    def append_torch(self, x: torch.Tensor, num_gpus: int = 1, rank: int = 0) -> None:
        """Adds the vectors of all processes, interleaved. Each must call it the same number of times."""
        self.append(gather_interleaved(x.to(torch.float32), num_gpus, rank).cpu().numpy())

    def merge_processes(self, num_gpus: int, rank: int, device: torch.device) -> None:
        """Turns the statistics of one process's share (items rank, rank + num_gpus, …) into those of all of them."""
        if num_gpus == 1:
            return
        shape = torch.tensor([self.num_features or 0], device=device)
        torch.distributed.all_reduce(shape, op=torch.distributed.ReduceOp.MAX)
        self.set_num_features(int(shape))
        if self.capture_all:
            mine = torch.as_tensor(self.get_all(), device=device)
            self.all_features = [gather_interleaved(mine, num_gpus, rank).cpu().numpy()]
        sums = [np.array([self.num_items], np.float64), self.raw_mean, self.raw_cov.ravel()]
        flat = torch.as_tensor(np.concatenate(sums), device=device)
        torch.distributed.all_reduce(flat)
        count, mean, cov = np.split(flat.cpu().numpy(), [1, 1 + self.raw_mean.size])
        self.num_items, self.raw_mean, self.raw_cov = round(count[0]), mean, cov.reshape(self.raw_cov.shape)

    def get_all(self) -> Array:
        """All vectors, float32 [N, D]."""
        if not self.capture_all:
            raise ValueError('features were not kept: construct with capture_all=True')
        return np.concatenate([np.zeros([0, self.num_features or 0], np.float32), *self.all_features])

    def get_all_torch(self) -> torch.Tensor:
        return torch.from_numpy(self.get_all())

    def get_mean_cov(self) -> tuple[Array, Array]:
        """Mean [D] and population covariance [D, D], float64."""
        if not self.capture_mean_cov or self.num_items == 0:
            raise ValueError('no mean and covariance: construct with capture_mean_cov=True and append something')
        mean = self.raw_mean / self.num_items
        return mean, self.raw_cov / self.num_items - np.outer(mean, mean)

    def save(self, path: str) -> None:
        """Writes plain arrays (.npz): unlike a pickle, reading a cache file of someone else's can't run anything."""
        limit = -1 if self.max_items is None else self.max_items
        header = np.array([self.capture_all, self.capture_mean_cov, limit, self.num_items], np.int64)
        features = self.get_all() if self.capture_all else np.zeros([0, self.num_features or 0], np.float32)
        with dnnlib.util.atomic_write(path) as f:
            np.savez(f, header=header, raw_mean=self.raw_mean, raw_cov=self.raw_cov, features=features)

    @staticmethod
    def load(path: str) -> FeatureStats:
        """Reads what `save` wrote. Raises ValueError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as data:
                everything, mean_cov, limit, num_items = (int(value) for value in data['header'])
                stats = FeatureStats(bool(everything), bool(mean_cov), None if limit < 0 else limit)
                stats.set_num_features(data['features'].shape[1])
                stats.num_items = num_items
                stats.raw_mean, stats.raw_cov = data['raw_mean'], data['raw_cov']
                stats.all_features = [data['features']] if everything else []
        except (OSError, KeyError, ValueError, EOFError, AttributeError, IndexError, zipfile.BadZipFile) as err:
            raise ValueError(f'{path}: not feature statistics ({err})') from err
        return stats
