"""What metrics share: their options, progress, and feature statistics of a data set or a generator.

Numbers don't depend on the batch size or on how many processes share the work: process r of P handles items
r, r + P, …, the last batch is as small as it must be, and item i of a generator has a latent of its own.
(Only a synthesis network's random noise is drawn batch by batch.)
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import tqdm

import dnnlib
from dnnlib.util import EasyDict, UserError
from metrics import detectors
from metrics.detectors import get_feature_detector, get_feature_detector_name
from metrics.feature_stats import FeatureStats

__all__ = [
    'FeatureStats', 'MetricOptions', 'ProgressMonitor', 'compute_feature_stats_for_dataset',
    'compute_feature_stats_for_generator', 'get_feature_detector', 'get_feature_detector_name', 'open_dataset',
]


class ProgressMonitor:
    """Says on stderr how far a metric is, and reports to the caller's `progress_fn(current, total)`.

    On a terminal a bar, else a line now and then. Arguments from `pfn_lo` on: the span of the whole that this
    monitor stands for.
    """

    line_interval = 10.0  # Seconds between lines where stderr is not a terminal.

    def __init__(
        self,
        tag: str | None = None,
        num_items: int | None = None,
        flush_interval: int = 1000,
        verbose: bool = False,
        progress_fn: Callable[[float, float], Any] | None = None,
        pfn_lo: float = 0,
        pfn_hi: float = 1000,
        pfn_total: float = 1000,
    ) -> None:
        self.tag, self.num_items, self.verbose = tag, num_items, verbose
        self.flush_interval = flush_interval
        self.progress_fn = progress_fn
        self.span = (pfn_lo, pfn_hi, pfn_total)
        self.start_time = self.line_time = time.time()
        self.told_items = 0
        speaks = verbose and tag is not None
        self.bar = tqdm.tqdm(total=num_items, desc=tag, leave=False) if speaks and sys.stderr.isatty() else None
        self.lines = speaks and self.bar is None
        if progress_fn is not None:
            progress_fn(pfn_lo, pfn_total)

    def update(self, cur_items: int) -> None:
        """Tells that `cur_items` of all items are done."""
        done = self.num_items is not None and cur_items >= self.num_items
        if self.bar is not None:
            self.bar.update(cur_items - self.bar.n)
            if done:
                self.bar.close()
        now = time.time()
        if self.lines and (done or now - self.line_time > self.line_interval):
            passed = dnnlib.util.format_time(now - self.start_time)
            print(f'{self.tag}: {cur_items} of {self.num_items or "?"} items, {passed}', file=sys.stderr, flush=True)
            self.line_time = now
        if done or cur_items - self.told_items >= self.flush_interval:
            self.told_items = cur_items
            if self.progress_fn is not None and self.num_items:
                lo, hi, total = self.span
                self.progress_fn(lo + (hi - lo) * cur_items / self.num_items, total)

    def sub(
        self, tag: str | None = None, num_items: int | None = None, flush_interval: int = 1000, rel_lo: float = 0,
        rel_hi: float = 1,
    ) -> ProgressMonitor:
        """A monitor for the part `rel_lo … rel_hi` of this one's span."""
        lo, hi, total = self.span
        ends = [lo + (hi - lo) * part for part in (rel_lo, rel_hi)]
        return ProgressMonitor(tag, num_items, flush_interval, self.verbose, self.progress_fn, ends[0], ends[1], total)


@dataclasses.dataclass
class MetricOptions:
    """All that a metric is given. It writes only to `notes` and `shared`; `with_dataset` makes changed copies.

    The first eight are the host's.
    """

    G: Any = None  # The network: the EMA generator of a snapshot.
    G_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # Keywords of G(): truncation, noise.
    dataset_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # Data set: class_name and arguments.
    num_gpus: int = 1  # Number of processes.
    rank: int = 0  # Which of them this is.
    device: Any = None  # None = a GPU if there is one.
    progress: Any = None  # ProgressMonitor. None = silence.
    cache: bool = True  # Keep the features of data sets on disk.
    detector: str | None = None  # TorchScript path or URL, or random:SEED. None = Inception.
    num: int | None = None  # Number of images instead of the metric's own.
    batch: int | None = None  # Images at a time. None = by resolution.
    seed: int = 0  # Of latents, noise and subsets.
    shared: dict[Any, Any] | None = None  # Hand the same dict to several metrics of one network to share passes.
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)  # What results say beside numbers: n, detector, …

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_gpus:
            raise ValueError(f'rank: got {self.rank} of {self.num_gpus} processes')
        for name in ('num', 'batch'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f'--{name}: got {value}, expected at least 1')
        self.G_kwargs = EasyDict(self.G_kwargs)
        self.dataset_kwargs = EasyDict(self.dataset_kwargs)
        if self.device is None:
            self.device = torch.device('cuda', self.rank) if torch.cuda.is_available() else torch.device('cpu')
        self.device = torch.device(self.device)
        leads = self.progress is not None and self.rank == 0
        self.progress = self.progress.sub() if leads else ProgressMonitor()
        self.detector = self.detector or detectors.INCEPTION_URL

    def with_dataset(self, **changes: Any) -> MetricOptions:
        """The same options with other data set arguments; `notes` and `shared` stay common."""
        other = copy.copy(self)
        other.dataset_kwargs = EasyDict({**self.dataset_kwargs, **changes})
        return other

    def batch_size(self, resolution: int) -> int:
        """Images at a time: as asked for, or 64, fewer above 256 pixels."""
        return self.batch or max(min(64, 64 * 256**2 // resolution**2), 4)


def dataset_label(opts: MetricOptions) -> str | None:
    """What results call the data set: its file's name, and the split if it is one."""
    kwargs = opts.dataset_kwargs
    stem = os.path.splitext(os.path.basename(os.path.abspath(kwargs['path'])))[0] if kwargs.get('path') else None
    name = kwargs.get('name') or stem
    split = kwargs.get('split')
    return f'{name} ({split} split)' if name and split else name


def note_images(opts: MetricOptions, num_fake: int, num_real: int) -> None:
    """Notes what a distance between features of generated and real images rests on."""
    name = get_feature_detector_name(str(opts.detector))
    opts.notes.update(n=num_fake, n_real=num_real, detector=name, value_range='uint8 0..255')


def open_dataset(opts: MetricOptions) -> Any:
    """The data set of `opts.dataset_kwargs`."""
    if 'class_name' not in opts.dataset_kwargs:
        raise UserError('--data: this metric needs a data set, and the network file names none')
    return dnnlib.util.construct_class_by_name(**opts.dataset_kwargs)


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> uint8, the formula of published FIDs. Its twin is in `lia_plugin.images`, out of reach here."""
    return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def prepare_network(opts: MetricOptions) -> Any:
    """`opts.G` on the device, in evaluation mode, without gradients: itself if it is so already, else a copy."""
    tensors = [*opts.G.parameters(), *opts.G.buffers()]
    ready = not opts.G.training and not any(t.requires_grad for t in tensors)
    if ready and all(t.device == opts.device for t in tensors):
        return opts.G
    return copy.deepcopy(opts.G).eval().requires_grad_(False).to(opts.device)


def _default_loader_kwargs(num_items: int, device: torch.device) -> dict[str, Any]:
    # Workers take about a second to start: not worth it for a few images.
    workers = 0 if num_items < 4096 else min(3, os.cpu_count() or 1)
    return dict(num_workers=workers, pin_memory=device.type == 'cuda')


def iterate_dataset(
    dataset: Any, items: list[int], batch_size: int, device: torch.device, loader_kwargs: dict[str, Any] | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(uint8 images NCHW, labels [N, c_dim]) of the items in their order, all of them, on the device."""
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
    items = list(range(opts.rank, num_items, opts.num_gpus))
    batch = batch_size or opts.batch_size(dataset.image_shape[-1])
    for images, _labels in iterate_dataset(dataset, items, batch, opts.device, data_loader_kwargs):
        stats.append_torch(detector(images, **detector_kwargs))
        progress.update(min(stats.num_items * opts.num_gpus, num_items))
    stats.merge_processes(opts.num_gpus, opts.rank, opts.device)
    if path is not None and opts.rank == 0:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        stats.save(path)
    return stats


def draw_inputs(opts: MetricOptions, G: Any, dataset: Any, items: range) -> tuple[torch.Tensor, torch.Tensor]:
    """z ~ N(0, I) [N, z_dim] and labels [N, c_dim] of random images, for generated images number `items`."""
    latents, labels = [], []
    for item in items:
        stream = np.random.default_rng([opts.seed, item])
        latents.append(stream.standard_normal(G.z_dim, dtype=np.float32))
        if G.c_dim > 0:
            labels.append(dataset.get_label(int(stream.integers(len(dataset)))))
    c = np.stack(labels) if labels else np.zeros([len(latents), 0], np.float32)
    if c.shape[1] != G.c_dim:
        raise UserError(f'--data: its labels have {c.shape[1]} dimensions, but the network takes {G.c_dim}')
    return torch.as_tensor(np.stack(latents), device=opts.device), torch.as_tensor(c, device=opts.device)


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
    G = prepare_network(opts)
    dataset = open_dataset(opts) if G.c_dim > 0 else None
    detector = get_feature_detector(detector_url, opts.device, opts.num_gpus, opts.rank, opts.progress.verbose)
    progress = opts.progress.sub('generator features', stats.max_items, rel_lo=rel_lo, rel_hi=rel_hi)
    items = range(opts.rank, stats.max_items, opts.num_gpus)
    step = batch_gen or batch_size or opts.batch_size(G.img_resolution)
    for start in range(0, len(items), step):
        z, c = draw_inputs(opts, G, dataset, items[start : start + step])
        images = to_uint8(G(z=z, c=c, **opts.G_kwargs))
        stats.append_torch(detector(images, **detector_kwargs))
        progress.update(min(stats.num_items * opts.num_gpus, stats.max_items))
    stats.merge_processes(opts.num_gpus, opts.rank, opts.device)
    return stats
