"""Precision and recall: Kynkäänniemi et al. 2019, "Improved precision and recall metric for … generative models".

A set's manifold is the union of balls round its feature vectors, each reaching to its k-th nearest neighbour there.
Precision is the share of generated images on the manifold of the real ones, recall the share of real images on the
manifold of the generated ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dnnlib.util import UserError
from metrics import metric_utils

TILE = 4096  # Rows and columns of a block of distances: 64 MiB, whatever the number of images.


def _tiles(x: torch.Tensor, device: torch.device, first: int = 0, step: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
    """(row of its beginning, block on the device) of every `step`-th block from the `first` on."""
    for start in range(first * TILE, len(x), step * TILE):
        yield start, x[start : start + TILE].to(device)


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """‖a − b‖² of all pairs, [M, D], [N, D] -> [M, N], as a matrix product: D is in the thousands."""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _sum_over_processes(x: torch.Tensor, num_gpus: int) -> torch.Tensor:
    if num_gpus > 1:
        torch.distributed.all_reduce(x)
    return x


def kth_neighbour_distances(
    x: torch.Tensor, k: int, device: torch.device, num_gpus: int = 1, rank: int = 0
) -> torch.Tensor:
    """Squared distance of each vector to its k-th nearest other one, [N, D] -> [N], on the device.

    Processes divide the rows. Only one block of distances is in memory at a time.

    Raises:
        ValueError: there are not more than k vectors.
    """
    if len(x) <= k:
        raise ValueError(f'k: {k} neighbours need more than {k} vectors, got {len(x)}')
    radii = torch.zeros([len(x)], device=device)
    for row, block in _tiles(x, device, rank, num_gpus):
        nearest = torch.full([len(block), k], float('inf'), device=device)
        for column, others in _tiles(x, device):
            distances = _squared_distances(block, others)
            if column == row:
                distances.fill_diagonal_(float('inf'))  # Nothing is its own neighbour.
            nearest = torch.cat([nearest, distances], dim=1).topk(k, dim=1, largest=False).values
        radii[row : row + len(block)] = nearest[:, -1]
    return _sum_over_processes(radii, num_gpus)


def share_on_manifold(
    probes: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor, num_gpus: int = 1, rank: int = 0
) -> float:
    """Share of probes [M, D] within the squared radius [N] of any centre [N, D]; computed on the device of `radii`."""
    inside = torch.zeros([], device=radii.device)
    for _row, block in _tiles(probes, radii.device, rank, num_gpus):
        found = torch.zeros([len(block)], dtype=torch.bool, device=radii.device)
        for column, others in _tiles(centres, radii.device):
            found |= (_squared_distances(block, others) <= radii[column : column + len(others)]).any(dim=1)
        inside += found.sum()
    return float(_sum_over_processes(inside, num_gpus)) / len(probes)


def precision_recall(
    real: torch.Tensor, fake: torch.Tensor, k: int, device: torch.device, num_gpus: int = 1, rank: int = 0
) -> tuple[float, float]:
    """Precision and recall of features [M, D], [N, D]. Every process holds all of them, and gets the result."""
    # Distances are differences of large squares: the smaller the vectors, the less float32 loses.
    centre = real.mean(dim=0)
    real, fake = real - centre, fake - centre
    work = dict(num_gpus=num_gpus, rank=rank)
    precision, recall = (
        share_on_manifold(probes, centres, kth_neighbour_distances(centres, k, device, **work), **work)
        for probes, centres in ((fake, real), (real, fake))
    )
    return precision, recall


def compute_pr(
    opts: metric_utils.MetricOptions, max_real: int, num_gen: int, nhood_size: int
) -> tuple[float, float]:
    """Precision and recall of `num_gen` generated images and the first `max_real` real ones, as all processes get it.

    Raises:
        UserError: no more images on a side than neighbours.
    """
    url = opts.detector_url('vgg16')
    call = dict(opts=opts, detector_url=url, detector_kwargs=dict(return_features=True), capture_all=True)
    real = metric_utils.compute_feature_stats_for_dataset(
        rel_lo=0, rel_hi=0.2, max_items=max_real, **call)  # type: ignore[arg-type]
    fake = metric_utils.compute_feature_stats_for_generator(
        rel_lo=0.2, rel_hi=0.9, max_items=num_gen, **call)  # type: ignore[arg-type]
    metric_utils.note_images(opts, url, num_fake=fake.num_items, num_real=real.num_items)
    if min(real.num_items, fake.num_items) <= nhood_size:
        raise UserError(f'--num: neighbour {nhood_size} of an image needs more than {nhood_size} images a side, got '
                        f'{real.num_items} real and {fake.num_items} generated')
    return precision_recall(
        real.get_all_torch(), fake.get_all_torch(), nhood_size, opts.device, opts.num_gpus, opts.rank)
