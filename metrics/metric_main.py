"""The registry of metrics, and the host's own: FID and KID.

A metric is a function of MetricOptions that gives a dict of numbers, registered under its name:

    @register_metric
    def my_metric(opts): return dict(my_metric=1.0)

Its docstring's first line is what `calc_metrics.py --metrics=list` says. Attribute `held_out = True`: the
training loop gives it the validation set.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

import dnnlib
from dnnlib.util import EasyDict, UserError
from metrics import frechet_inception_distance, kernel_inception_distance, metric_utils

MetricFunction = Callable[[Any], dict[str, float]]
AnyMetric = TypeVar('AnyMetric', bound=MetricFunction)

_registry: dict[str, MetricFunction] = {}


def register_metric(fn: AnyMetric) -> AnyMetric:
    """Decorator: makes a function a metric. Raises ValueError if another function has the name already."""
    name = fn.__name__
    present = _registry.get(name, fn)
    if present.__module__ != fn.__module__:
        raise ValueError(f'metric {name}: {present.__module__} has registered it already, {fn.__module__} does again')
    _registry[name] = fn
    return fn


def is_valid_metric(metric: str) -> bool:
    return metric in _registry


def list_valid_metrics() -> list[str]:
    return list(_registry)


def get_metric(name: str) -> MetricFunction:
    """The function of that name. Raises UserError for an unknown one."""
    if name not in _registry:
        raise UserError(f'--metrics: {name}: unknown; there are {", ".join(_registry)}')
    return _registry[name]


@contextlib.contextmanager
def _own_randomness(opts: metric_utils.MetricOptions) -> Iterator[None]:
    """Seeds the global generators for a metric and puts them back: training goes on as if none had been computed."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[opts.device] if opts.device.type == 'cuda' else []):
        torch.manual_seed(opts.seed * opts.num_gpus + opts.rank)
        np.random.seed((opts.seed * opts.num_gpus + opts.rank) % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


def _broadcast(results: dict[str, float], opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Rank 0's numbers for all."""
    if opts.num_gpus == 1:
        return {key: float(value) for key, value in results.items()}
    numbers = torch.tensor(list(results.values()), dtype=torch.float64, device=opts.device)
    torch.distributed.broadcast(numbers, src=0)
    return dict(zip(results, numbers.tolist(), strict=True))


def calc_metric(metric: str, **kwargs: Any) -> EasyDict:
    """Computes a metric. Keywords: see MetricOptions.

    Returns:
        EasyDict of the host's keys (results, metric, total_time, total_time_str, num_gpus), the data set's name, and
        what the metric notes: n, the detector, the range of the values.

    Raises:
        UserError: unknown metric, or something amiss with network, data or detector.
    """
    fn = get_metric(metric)
    opts = metric_utils.MetricOptions(**kwargs)
    begin = time.time()
    with _own_randomness(opts):
        results = _broadcast(fn(opts), opts)
    passed = time.time() - begin
    timing = dict(total_time=passed, total_time_str=dnnlib.util.format_time(passed))
    notes = {'data': metric_utils.dataset_label(opts), **opts.notes}
    return EasyDict(results=EasyDict(results), metric=metric, **timing, num_gpus=opts.num_gpus, **notes)


def report_metric(result_dict: dict[str, Any], run_dir: str | None = None, snapshot_pkl: str | None = None) -> None:
    """Prints a result as one line of JSON, and appends it to `metric-NAME.jsonl` in the run directory if there is one.

    Numbers that are not finite become null, with a warning, since JSON has no word for them.
    """
    name = result_dict['metric']
    get_metric(name)
    if run_dir is not None and snapshot_pkl is not None:
        snapshot_pkl = os.path.relpath(snapshot_pkl, run_dir)
    results = dict(result_dict['results'])
    for key, value in results.items():
        if not math.isfinite(value):
            print(f'Warning: {key} is {value}: the network gives images that are not finite', file=sys.stderr)
            results[key] = None
    record = {**result_dict, 'results': results, 'snapshot_pkl': snapshot_pkl, 'timestamp': time.time()}
    line = json.dumps(record, allow_nan=False)
    print(line, flush=True)
    if run_dir is not None and os.path.isdir(run_dir):
        with open(os.path.join(run_dir, f'metric-{name}.jsonl'), 'a', encoding='utf-8') as f:
            f.write(line + '\n')


def _fid(opts: metric_utils.MetricOptions, max_real: int | None) -> float:
    return frechet_inception_distance.compute_fid(opts, max_real=max_real, num_gen=opts.num or 50000)


def _kid(opts: metric_utils.MetricOptions, max_real: int | None) -> float:
    return kernel_inception_distance.compute_kid(
        opts, max_real=max_real, num_gen=opts.num or 50000, num_subsets=100, max_subset_size=1000)


@register_metric
def fid50k_full(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Fréchet Inception distance of 50,000 generated images to the whole data set."""
    return dict(fid50k_full=_fid(opts.with_dataset(max_size=None, xflip=False), max_real=None))


@register_metric
def kid50k_full(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Kernel Inception distance of 50,000 generated images to the whole data set."""
    return dict(kid50k_full=_kid(opts.with_dataset(max_size=None, xflip=False), max_real=1000000))


@register_metric
def fid50k(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Fréchet Inception distance of 50,000 generated images to 50,000 real ones, mirrored if training was."""
    return dict(fid50k=_fid(opts.with_dataset(max_size=None), max_real=opts.num or 50000))


@register_metric
def kid50k(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Kernel Inception distance of 50,000 generated images to 50,000 real ones, mirrored if training was."""
    return dict(kid50k=_kid(opts.with_dataset(max_size=None), max_real=opts.num or 50000))
