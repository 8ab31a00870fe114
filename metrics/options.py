"""What every metric is given: its options, and how it says how far it is."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import tqdm

import dnnlib
from dnnlib.util import EasyDict, UserError
from metrics import detectors
from metrics.detectors import get_feature_detector_name


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
    detector: str | None = None  # TorchScript path or URL, or random:SEED. None = the metric's own network.
    num: int | None = None  # Number of images instead of the metric's own.
    batch: int | None = None  # Images at a time. None = by resolution.
    seed: int = 0  # Of latents, noise and subsets.
    shared: dict[Any, Any] | None = None  # Hand one dict to several metrics to share passes: see metrics.shared_pass.
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

    def detector_url(self, network: str) -> str:
        """The detector asked for, or NVIDIA's 'inception' or 'vgg16'."""
        return self.detector or detectors.URLS[network]

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


def note_images(opts: MetricOptions, detector_url: str, num_fake: int, num_real: int | None = None) -> None:
    """Notes what a figure of features rests on; `num_real` is None where no real image is looked at."""
    real = {} if num_real is None else dict(n_real=num_real)
    name = get_feature_detector_name(detector_url)
    opts.notes.update(n=num_fake, **real, detector=name, value_range='uint8 0..255')


def open_dataset(opts: MetricOptions) -> Any:
    """The data set of `opts.dataset_kwargs`."""
    if 'class_name' not in opts.dataset_kwargs:
        raise UserError('--data: this metric needs a data set, and the network file names none')
    return dnnlib.util.construct_class_by_name(**opts.dataset_kwargs)
