"""What metrics share: feature statistics of a data set or a generator, and all names that callers look for here.

Numbers don't depend on the batch size or on how many processes share the work: process r of P handles items
r, r + P, …, the last batch is as small as it must be, and item i of a generator has a latent of its own.
(Only a synthesis network's random noise is drawn batch by batch.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import dnnlib
from dnnlib.util import UserError
from metrics.detectors import FeatureDetector, get_feature_detector, get_feature_detector_name
from metrics.feature_stats import FeatureStats
from metrics.generated import GeneratedImages, draw_inputs, prepare_network, shares, to_uint8
from metrics.options import MetricOptions, ProgressMonitor, dataset_label, note_images, open_dataset
from metrics.shared_pass import store_of

__all__ = [
    'FeatureStats', 'GeneratedImages', 'MetricOptions', 'ProgressMonitor', 'compute_feature_stats_for_dataset',
    'compute_feature_stats_for_generator', 'dataset_label', 'draw_inputs', 'get_feature_detector',
    'get_feature_detector_name', 'note_images', 'open_dataset', 'prepare_network', 'shares', 'to_uint8',
]


def _default_loader_kwargs(num_items: int, device: torch.device) -> dict[str, Any]:
    return dict(num_workers=dnnlib.util.loader_workers(num_items), pin_memory=device.type == 'cuda')


def iterate_dataset(
    dataset: Any, items: list[int], batch_size: int, device: torch.device, loader_kwargs: dict[str, Any] | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(uint8 images NCHW, labels [N, c_dim]) of the items in their order, all of them, on the device."""
    if hasattr(dataset, 'stream'):  # Our data sets have a faster way than torch's loader.
        with contextlib.closing(dataset.stream(items, batch_size, device, **loader_kwargs or {})) as batches:
            yield from batches
        return
    if loader_kwargs is None:
        loader_kwargs = _default_loader_kwargs(len(items), device)
    if hasattr(dataset, 'close'):
        dataset.close()  # Forked workers must not share one open file.
    # A generator of its own: else it draws a number of the global one's, and the noise of fakes shifts with the cache.
    own = torch.Generator()
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, sampler=items, generator=own, **loader_kwargs)
    try:
        for images, labels in loader:
            yield images.to(device), labels.to(device)
    except UserError as err:
        raise dnnlib.util.without_traceback(err) from err
    finally:
        if hasattr(dataset, 'close'):
            dataset.close()


def _fingerprint(path: Any) -> list[Any]:
    """Sizes and times of a file, or of all files in a folder: changes when the data behind a path does."""
    if not isinstance(path, str) or not os.path.exists(path):
        return []
    if os.path.isfile(path):
        return [os.stat(path).st_size, os.stat(path).st_mtime_ns]
    digest = hashlib.md5(usedforsecurity=False)
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            stat = os.stat(os.path.join(folder, name))
            digest.update(f'{name} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return [digest.hexdigest()]


def _cache_file(opts: MetricOptions, dataset: Any, detector_name: str, arguments: dict[str, Any]) -> str:
    data = opts.dataset_kwargs
    key = dict(arguments, dataset_kwargs=data, detector=detector_name, content=_fingerprint(data.get('path')))
    md5 = hashlib.md5(json.dumps(key, sort_keys=True, default=repr).encode(), usedforsecurity=False).hexdigest()
    tag = re.sub(r'[^\w.\[\]-]', '-', f'{dataset.name}-{detector_name}')
    return dnnlib.make_cache_dir_path('gan-metrics', f'{tag}-{md5}.npz')


def _load_cached(opts: MetricOptions, path: str) -> FeatureStats | None:
    """Statistics from the cache, or None if any process can't read them: all decide alike."""
    stats = None
    if os.path.isfile(path):
        try:
            stats = FeatureStats.load(path)
        except ValueError as err:
            print(f'Warning: {err}; computing them again', file=sys.stderr)
    if opts.num_gpus > 1:
        found = torch.tensor([stats is not None], dtype=torch.int32, device=opts.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
        stats = stats if bool(found) else None
    return stats


def _real_features(
    opts: MetricOptions, dataset: Any, batches: list[range], detector: FeatureDetector,
    detector_kwargs: dict[str, Any], loader_kwargs: dict[str, Any] | None,
) -> Iterator[np.ndarray]:
    """Features of each batch of items, float32 [N, D]: an earlier metric's of the same command if all were kept."""
    store = store_of(opts.shared)
    what = [opts.dataset_kwargs, detector.name, sorted(detector_kwargs.items()), str(opts.device)]
    keys = [('real features', json.dumps(what, sort_keys=True, default=repr), items) for items in batches]
    if store is not None and all(key in store for key in keys):
        for key in keys:
            kept = store.get(key)
            assert kept is not None, 'nothing is ever taken out'
            yield kept
        return
    step = max(map(len, batches), default=1)
    items = [item for batch in batches for item in batch]
    loaded = iterate_dataset(dataset, items, step, opts.device, loader_kwargs)
    for key, (images, _labels) in zip(keys, loaded, strict=True):
        features = detector(images, **detector_kwargs).cpu().numpy()
        if store is not None:
            store.put(key, features)
        yield features


@torch.no_grad()
def compute_feature_stats_for_dataset(
    opts: MetricOptions,
    detector_url: str,
    detector_kwargs: dict[str, Any],
    rel_lo: float = 0,
    rel_hi: float = 1,
    batch_size: int | None = None,
    data_loader_kwargs: dict[str, Any] | None = None,
    max_items: int | None = None,
    **stats_kwargs: Any,
) -> FeatureStats:
    """Features of the first `max_items` (None = all) images of the data set, from the cache if they are there.

    Cache files `gan-metrics/<data set>-<detector>-<md5>.npz` are plain arrays and belong to the data set's arguments,
    the size and time of its file, the detector and what is kept. `stats_kwargs` go to FeatureStats.
    """
    dataset = open_dataset(opts)
    num_items = len(dataset) if max_items is None else min(len(dataset), max_items)
    detector = get_feature_detector(detector_url, opts.device, opts.num_gpus, opts.rank, opts.progress.verbose)
    arguments = dict(detector_kwargs=detector_kwargs, max_items=max_items, stats_kwargs=stats_kwargs)
    path = _cache_file(opts, dataset, detector.name, arguments) if opts.cache else None
    cached = _load_cached(opts, path) if path is not None else None
    if cached is not None:
        return cached

    stats = FeatureStats(max_items=num_items, **stats_kwargs)
    progress = opts.progress.sub('dataset features', num_items, rel_lo=rel_lo, rel_hi=rel_hi)
    batches = list(shares(opts, num_items, batch_size or opts.batch_size(dataset.image_shape[-1])))
    for features in _real_features(opts, dataset, batches, detector, detector_kwargs, data_loader_kwargs):
        stats.append(features)
        progress.update(min(stats.num_items * opts.num_gpus, num_items))
    stats.merge_processes(opts.num_gpus, opts.rank, opts.device)
    if path is not None and opts.rank == 0:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        stats.save(path)
    return stats


@torch.no_grad()
def compute_feature_stats_for_generator(
    opts: MetricOptions,
    detector_url: str,
    detector_kwargs: dict[str, Any],
    rel_lo: float = 0,
    rel_hi: float = 1,
    batch_size: int | None = None,
    batch_gen: int | None = None,  # Images that G makes at a time. None = batch_size.
    jit: bool = False,  # Callers of the host's may pass it; tracing gains nothing, so it is ignored.
    **stats_kwargs: Any,
) -> FeatureStats:
    """Features of `max_items` generated images. `stats_kwargs` go to FeatureStats and must hold `max_items`.

    G_kwargs apply. With a conditional G the labels are those of random images of the data set.
    """
    stats = FeatureStats(**stats_kwargs)
    if stats.max_items is None:
        raise ValueError('max_items: a generator never ends, so a number of images is needed')
    source = GeneratedImages(opts)
    detector = get_feature_detector(detector_url, opts.device, opts.num_gpus, opts.rank, opts.progress.verbose)
    progress = opts.progress.sub('generator features', stats.max_items, rel_lo=rel_lo, rel_hi=rel_hi)
    step = batch_gen or batch_size or opts.batch_size(source.G.img_resolution)
    for items in shares(opts, stats.max_items, step):
        stats.append(source.features(items, detector, detector_kwargs))
        progress.update(min(stats.num_items * opts.num_gpus, stats.max_items))
    stats.merge_processes(opts.num_gpus, opts.rank, opts.device)
    return stats
