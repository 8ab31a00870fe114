"""The sliced Wasserstein distance of generated images to a data set, and what real images get against real ones."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from dnnlib.util import UserError
from metrics import metric_utils
from metrics.sliced_wasserstein import PatchSet, halves_distances, sliced_distances, with_mean

_FAKE_SEED = 1 << 32  # Beyond all seeds of people: patches of generated images lie elsewhere than those of real ones.


def _real_patches(opts: metric_utils.MetricOptions, dataset: Any, order: list[int], chosen: range) -> PatchSet:
    """Patches of items order[i] for i in `chosen`; of this process, its share of them."""
    patches = PatchSet(dataset.image_shape[-1], dataset.image_shape[0], seed=opts.seed)
    mine = chosen[opts.rank :: opts.num_gpus]
    progress = opts.progress.sub('patches of the data set', len(chosen), rel_hi=0.2)
    batch = opts.batch_size(dataset.image_shape[-1])
    loaded = metric_utils.iterate_dataset(dataset, [order[i] for i in mine], batch, opts.device)
    for images, _labels in loaded:
        patches.append(images, mine[patches.num_items : patches.num_items + len(images)])
        progress.update(min(patches.num_items * opts.num_gpus, len(chosen)))
    return patches


def _fake_patches(opts: metric_utils.MetricOptions, num: int) -> PatchSet:
    source = metric_utils.GeneratedImages(opts)
    patches = PatchSet(source.G.img_resolution, source.G.img_channels, seed=opts.seed + _FAKE_SEED)
    progress = opts.progress.sub('patches of generated images', num, rel_lo=0.2, rel_hi=0.6)
    for items in metric_utils.shares(opts, num, opts.batch_size(source.G.img_resolution)):
        patches.append(source.images(items), items)
        progress.update(min(patches.num_items * opts.num_gpus, num))
    return patches


def _open_fitting_dataset(opts: metric_utils.MetricOptions) -> Any:
    """The data set. UserError for fewer than two images, or other shapes than the network's."""
    dataset = metric_utils.open_dataset(opts)
    if len(dataset) < 2:
        raise UserError(f'--data: the sliced Wasserstein distance needs at least 2 images, got {len(dataset)}')
    shape = [opts.G.img_channels, opts.G.img_resolution, opts.G.img_resolution]
    if list(dataset.image_shape) != shape:
        raise UserError(f'--data: its images are of (channels, height, width) {list(dataset.image_shape)}, '
                        f'those of the network {shape}')
    return dataset


def compute_swd(opts: metric_utils.MetricOptions, num_images: int) -> dict[str, float]:
    """Distances × 1e3: `swd` (mean over levels), `swd_SIDE` for each, and the same of real images against other real
    ones as `swd_floor…`.

    As many random images of the data set as there are, at most `num_images`, and as many generated ones. The floor
    compares them with as many others of the data set or, where it has not enough, one half of them with the other:
    the note `n_floor` says with how many a side. The fewer, the higher it is.

    Raises:
        UserError: fewer than two images, other shapes than the network's, or no power of two.
    """
    dataset = _open_fitting_dataset(opts)
    n = min(num_images, len(dataset))
    if n < 2:
        raise UserError(f'--num: the sliced Wasserstein distance needs at least 2 images, got {n}')
    order = np.random.default_rng(opts.seed).permutation(len(dataset)).tolist()
    work: dict[str, Any] = dict(device=opts.device, seed=opts.seed, num_gpus=opts.num_gpus, rank=opts.rank)
    with contextlib.ExitStack() as stack:
        real = stack.enter_context(contextlib.closing(_real_patches(opts, dataset, order, range(n))))
        fake = stack.enter_context(contextlib.closing(_fake_patches(opts, n)))
        progress = opts.progress.sub('levels', len(real.sides), rel_lo=0.6, rel_hi=0.8)
        distances = sliced_distances(real, fake, **work, tell=progress.update)
        floor_progress = opts.progress.sub('levels of the floor', len(real.sides), rel_lo=0.8)
        if 2 * n <= len(dataset):
            others = stack.enter_context(contextlib.closing(_real_patches(opts, dataset, order, range(n, 2 * n))))
            n_floor, floors = n, sliced_distances(real, others, **work, tell=floor_progress.update)
        else:
            n_floor, floors = n // 2, halves_distances(real, **work, tell=floor_progress.update)
    opts.notes.update(n=n, n_real=n, n_floor=n_floor, value_range='uint8 0..255')
    return {**with_mean('swd', distances), **with_mean('swd_floor', floors)}
