"""Sliced Wasserstein distance of image sets: Karras et al. 2018, "Progressive growing of GANs", section 5.

Each image becomes a Laplacian pyramid down to 16 pixels; of each level, random patches of 7x7 pixels are taken,
standardised per channel over the whole set, and compared along random directions, where the Wasserstein distance is the
mean difference of the sorted projections. `PatchSet` collects the patches of a set, `sliced_distances` compares two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from dnnlib.util import UserError
from metrics.feature_stats import Array, gather_interleaved
from metrics.shared_pass import read_array, temporary_file

NUM_IMAGES = 16384
MIN_SIDE = 16
PATCH_SIDE = 7
PATCHES = 128  # From each level of each image.
DIRECTIONS = 512  # The paper's four times 128.
SCALE = 1e3  # Reported distances are this many times larger.
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)

_CHUNK = 16  # Directions at a time: 134 MB of projections at the paper's numbers.
_ROWS = 2**16  # Patches at a time on their way to the device.
_GATHERED = 512  # Images at a time between processes.


# ---------------------------------------------------------------------------------------------------------------------
# Pyramid and patches


def _blur(x: torch.Tensor) -> torch.Tensor:
    """5x5 binomial filter, mirrored at the borders without repeating them: NCHW -> NCHW."""
    channels = x.shape[1]
    taps = torch.tensor(BINOMIAL, dtype=x.dtype, device=x.device)
    column = taps[None, None, :, None].expand(channels, 1, -1, 1)
    padded = F.pad(x, [2, 2, 2, 2], mode='reflect')
    return F.conv2d(F.conv2d(padded, column, groups=channels), column.transpose(2, 3), groups=channels)


def _double(x: torch.Tensor) -> torch.Tensor:
    """Twice the size: pixels set apart by zeros, then filtered."""
    n, channels, height, width = x.shape
    apart = x.new_zeros([n, channels, height, 2, width, 2])
    apart[:, :, :, 0, :, 0] = x
    return 4 * _blur(apart.reshape(n, channels, 2 * height, 2 * width))


def level_sides(resolution: int) -> list[int]:
    """Sides of the pyramid's levels, from the resolution down to 16.

    Raises:
        UserError: no power of two from 16 on.
    """
    if resolution < MIN_SIDE or resolution & (resolution - 1):
        raise UserError(f'--metrics: the sliced Wasserstein distance needs images of a power of two from {MIN_SIDE} '
                        f'pixels on, got {resolution}')
    return [resolution >> level for level in range((resolution // MIN_SIDE).bit_length())]


def laplacian_pyramid(pixels: torch.Tensor) -> list[torch.Tensor]:
    """uint8 [N, C, R, R] -> float32 levels of sides R, R/2 … 16: what each adds to the next; the last is the rest."""
    rest = pixels.to(torch.float32)
    levels = []
    for _ in level_sides(pixels.shape[-1])[1:]:
        smaller = _blur(rest)[:, :, ::2, ::2]
        levels.append(rest - _double(smaller))
        rest = smaller
    return [*levels, rest]


def patch_corners(items: Sequence[int], level: int, side: int, num: int, seed: int) -> Array:
    """Upper left corners (y, x) of the patches of each item, int64 [N, num, 2]: an item's own, whatever its batch."""
    streams = (np.random.default_rng([seed, item, level]) for item in items)
    return np.stack([stream.integers(side - PATCH_SIDE + 1, size=[num, 2]) for stream in streams])


def cut_patches(x: torch.Tensor, corners: Array) -> torch.Tensor:
    """[N, C, H, W] and corners [N, P, 2] -> [N, P, C, 7, 7]."""
    start = torch.as_tensor(corners, device=x.device)
    offsets = torch.arange(PATCH_SIDE, device=x.device)
    rows = start[:, :, 0, None, None] + offsets[:, None]  # [N, P, 7, 1]
    columns = start[:, :, 1, None, None] + offsets  # [N, P, 1, 7]
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x[image, :, rows, columns].permute(0, 1, 4, 2, 3)  # From [N, P, 7, 7, C].


# ---------------------------------------------------------------------------------------------------------------------
# A set of images as patches


class PatchSet:
    """The patches of a set of images, level by level in temporary files: 1.2 GB a level of 16,384 RGB images.

    One level of two sets is in memory when they are compared.

    Args:
        resolution: Side of the images, a power of two from 16 on.
        channels: 1 or 3.
        num_patches: From each level of each image.
        seed: Of their positions. Sets to compare should have different ones, unless images are compared in pairs.
        folder: Where the files lie: see `temporary_file`.
    """

    def __init__(
        self, resolution: int, channels: int, num_patches: int = PATCHES, seed: int = 0, folder: str | None = None
    ) -> None:
        self.sides = level_sides(resolution)
        self.shape = (channels, resolution, resolution)
        self.patch_shape = (channels, PATCH_SIDE, PATCH_SIDE)
        self.num_patches, self.seed = num_patches, seed
        self.num_items = 0
        self._files = [temporary_file(folder) for _ in self.sides]

    def append(self, pixels: torch.Tensor, items: Sequence[int]) -> None:
        """Adds uint8 images [N, C, R, R] that are number `items` of their set, on any device.

        Raises:
            ValueError: another shape or type.
            UserError: no space left for the temporary files.
        """
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (len(items), *self.shape):
            raise ValueError(f'pixels: expected uint8 {[len(items), *self.shape]}, '
                             f'got {pixels.dtype} {list(pixels.shape)}')
        for level, x in enumerate(laplacian_pyramid(pixels)):
            corners = patch_corners(items, level, self.sides[level], self.num_patches, self.seed)
            try:
                self._files[level].seek(0, os.SEEK_END)
                self._files[level].write(cut_patches(x, corners).cpu().numpy().tobytes())
                self._files[level].flush()
            except OSError as err:
                raise UserError(f'DNNLIB_CACHE_DIR: no room for patches of images ({err.strerror}); name a folder that '
                                'has it, or take fewer images: --num') from err
        self.num_items += len(items)

    def level(self, level: int) -> torch.Tensor:
        """Patches of a level, float32 [num_items, num_patches, C, 7, 7] on the CPU, in the order of `append`."""
        shape = (self.num_items, self.num_patches, *self.patch_shape)
        return torch.from_numpy(read_array(self._files[level], 0, shape, np.float32))

    def gathered_level(self, level: int, num_gpus: int, rank: int, device: torch.device) -> torch.Tensor:
        """`level` of all processes, interleaved; each must have appended every num_gpus-th item, and calls it."""
        mine = self.level(level)
        if num_gpus == 1:
            return mine
        most = torch.tensor([len(mine)], device=device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        parts = [mine[start : start + _GATHERED] for start in range(0, int(most), _GATHERED)]
        rows = [gather_interleaved(part.flatten(1).to(device), num_gpus, rank).cpu() for part in parts]
        return torch.cat(rows).unflatten(1, mine.shape[1:])

    def close(self) -> None:
        for file in self._files:
            file.close()


# ---------------------------------------------------------------------------------------------------------------------
# Distance


def standardise_(patches: torch.Tensor) -> torch.Tensor:
    """Brings each channel to mean 0 and deviation 1 over the whole set, in place, for a set may be half of the memory.

    [N, P, C, 7, 7], contiguous, on the CPU -> the same numbers as [N P, C 49].
    """
    channels = patches.view(-1, patches.shape[2], PATCH_SIDE**2)
    # float32 adds up a billion values with too large an error; the CPU, where the patches are, has float64.
    sums = torch.zeros([2, channels.shape[1]], dtype=torch.float64)
    for part in channels.split(_ROWS):
        wide = part.to(torch.float64)
        sums += torch.stack([wide.sum(dim=(0, 2)), wide.square().sum(dim=(0, 2))])
    mean, square = sums / (channels.shape[0] * channels.shape[2])
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1e-3)  # In levels of 0 … 255: a flat channel stays 0.
    return channels.sub_(mean.float()[:, None]).div_(std.float()[:, None]).flatten(1)


def random_directions(dim: int, num: int, seed: int) -> torch.Tensor:
    """Unit vectors, uniform on the sphere, float32 [dim, num]."""
    directions = np.random.default_rng([seed, dim]).standard_normal([dim, num], dtype=np.float32)
    return torch.from_numpy(directions / np.linalg.norm(directions, axis=0))


def _sorted_projections(x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """[M, D] on the CPU and [D, K] on the device -> [K, M], each row sorted, on the device."""
    parts = [directions.T @ part.to(directions.device).T for part in x.split(_ROWS)]
    x = torch.cat(parts, dim=1)
    if x.device.type == 'cpu':
        x.numpy().sort(axis=1)  # Ten times as fast as torch's, which also says where each value stood.
        return x
    return x.sort(dim=1).values


def sliced_wasserstein(
    a: torch.Tensor, b: torch.Tensor, directions: torch.Tensor, num_gpus: int = 1, rank: int = 0
) -> float:
    """Mean over directions [D, K] of the Wasserstein-1 distance of projections of two samples [M, D] of equal size.

    Runs on the device of `directions`; processes, each of which holds all of both samples, divide them.

    Raises:
        ValueError: sizes that differ.
    """
    if a.shape != b.shape:
        raise ValueError(f'samples: expected two of one shape, got {list(a.shape)} and {list(b.shape)}')
    total = 0.0
    for chunk in directions.split(_CHUNK, dim=1)[rank::num_gpus]:
        apart = (_sorted_projections(a, chunk) - _sorted_projections(b, chunk)).abs()
        total += float(apart.mean(dim=1).sum())
    if num_gpus > 1:
        sums = torch.tensor([total], dtype=torch.float64, device=directions.device)
        torch.distributed.all_reduce(sums)
        total = float(sums)
    return total / directions.shape[1]


def distance_of_patches(
    a: torch.Tensor, b: torch.Tensor, device: torch.device, seed: int = 0, num_gpus: int = 1, rank: int = 0
) -> float:
    """Distance, times 1e3, of one level's patches of two sets of as many images, [N, P, C, 7, 7] each, which it
    standardises in place."""
    directions = random_directions(a[0, 0].numel(), DIRECTIONS, seed).to(device)
    return SCALE * sliced_wasserstein(standardise_(a), standardise_(b), directions, num_gpus, rank)


def sliced_distances(
    a: PatchSet, b: PatchSet, device: torch.device, seed: int = 0, num_gpus: int = 1, rank: int = 0,
    tell: Callable[[int], None] | None = None,
) -> dict[int, float]:
    """Distance, times 1e3, of each level by its side in pixels. Every process calls it, and gets all of them.

    `tell` is called with the number of levels that are done.
    """
    distances = {}
    for level, side in enumerate(a.sides):
        both = [patches.gathered_level(level, num_gpus, rank, device) for patches in (a, b)]
        distances[side] = distance_of_patches(both[0], both[1], device, seed, num_gpus, rank)
        if tell is not None:
            tell(level + 1)
    return distances


def halves_distances(
    a: PatchSet, device: torch.device, seed: int = 0, num_gpus: int = 1, rank: int = 0,
    tell: Callable[[int], None] | None = None,
) -> dict[int, float]:
    """`sliced_distances` of the first half of a set to the second; an odd image at the end is left out."""
    distances = {}
    for level, side in enumerate(a.sides):
        patches = a.gathered_level(level, num_gpus, rank, device)
        half = len(patches) // 2
        distances[side] = distance_of_patches(patches[:half], patches[half : 2 * half], device, seed, num_gpus, rank)
        if tell is not None:
            tell(level + 1)
    return distances


def with_mean(name: str, by_side: dict[int, float]) -> dict[str, float]:
    """Results as numbers by name: the mean over the levels, then each level's."""
    mean = float(np.mean(list(by_side.values())))
    return {name: mean, **{f'{name}_{side}': value for side, value in by_side.items()}}
