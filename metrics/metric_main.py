"""The registry of metrics, and the host's own.

A metric is a function of MetricOptions that gives a dict of numbers, registered under its name:

    @register_metric
    def my_metric(opts): return dict(my_metric=1.0)

Its docstring's first line is what `calc_metrics.py --metrics=list` says. What callers must know before they call it
stands in attributes, all of which may be missing; `traits` sets them:

    held_out        True: the training loop gives it the validation set
    needs_detector  'inception' or 'vgg16': it looks at that network's features, or those of `opts.detector`
    needs_classes   True: of that network it takes class probabilities
    min_side        images must have at least as many pixels a side
    generates       True: it looks at the generated images that several metrics share (metrics.shared_pass)
    labels_only     True: it takes nothing but labels from the data, so that a network without classes needs no data
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

import dnnlib
from dnnlib.util import EasyDict, UserError
from metrics import (
    detectors,
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    metric_utils,
    perceptual_path_length,
    precision_recall,
    shared_pass,
    sliced_wasserstein,
)
from metrics.swd import compute_swd

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


def traits(**attributes: Any) -> Callable[[AnyMetric], AnyMetric]:
    """Decorator: sets a metric's attributes."""

    def decorate(fn: AnyMetric) -> AnyMetric:
        vars(fn).update(attributes)
        return fn

    return decorate


def is_valid_metric(metric: str) -> bool:
    return metric in _registry


def list_valid_metrics() -> list[str]:
    return list(_registry)


def get_metric(name: str) -> MetricFunction:
    """The function of that name. Raises UserError for an unknown one."""
    if name not in _registry:
        raise UserError(f'--metrics: {name}: unknown; there are {", ".join(_registry)}')
    return _registry[name]


def check_detector(metrics: Iterable[str], detector: str | None) -> None:
    """UserError, before any work is done, for a metric that can't use the detector asked for."""
    for name in metrics:
        if getattr(get_metric(name), 'needs_classes', False) and str(detector).startswith(detectors.RANDOM_PREFIX):
            raise UserError(f'--detector: {detector} has no classes, and {name} is about class probabilities: give a '
                            f'TorchScript classifier, or leave {name} out')


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
    check_detector([metric], opts.detector)
    begin = time.time()
    sharing = {name for name, function in _registry.items() if getattr(function, 'generates', False)}
    with _own_randomness(opts), shared_pass.taking_part(opts.shared, metric, sharing, opts.num_gpus):
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


# ---------------------------------------------------------------------------------------------------------------------
# The host's own


def _whole(opts: metric_utils.MetricOptions) -> metric_utils.MetricOptions:
    """On every image of the data set, as it is."""
    return opts.with_dataset(max_size=None, xflip=False)


def _as_trained(opts: metric_utils.MetricOptions) -> metric_utils.MetricOptions:
    """On every image of the data set, and mirrored ones if training had them."""
    return opts.with_dataset(max_size=None)


def _fid(opts: metric_utils.MetricOptions, max_real: int | None) -> float:
    return frechet_inception_distance.compute_fid(opts, max_real=max_real, num_gen=opts.num or 50000)


def _kid(opts: metric_utils.MetricOptions, max_real: int | None) -> float:
    return kernel_inception_distance.compute_kid(
        opts, max_real=max_real, num_gen=opts.num or 50000, num_subsets=100, max_subset_size=1000)


def _pr(name: str, opts: metric_utils.MetricOptions, max_real: int) -> dict[str, float]:
    precision, recall = precision_recall.compute_pr(
        opts, max_real=max_real, num_gen=opts.num or 50000, nhood_size=3)
    return {f'{name}_precision': precision, f'{name}_recall': recall}


def _ppl(opts: metric_utils.MetricOptions, space: str, sampling: str, crop: bool) -> float:
    return perceptual_path_length.compute_ppl(
        _whole(opts), num_samples=opts.num or 50000, space=space, sampling=sampling, crop=crop)


_inception_features = traits(needs_detector='inception', generates=True)
_vgg16_features = traits(needs_detector='vgg16', generates=True)
_inception_classes = traits(needs_detector='inception', needs_classes=True, generates=True, labels_only=True)
_vgg16_distance = traits(needs_detector='vgg16', labels_only=True)


@register_metric
@_inception_features
def fid50k_full(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Fréchet Inception distance of 50,000 generated images to the whole data set."""
    return dict(fid50k_full=_fid(_whole(opts), max_real=None))


@register_metric
@_inception_features
def kid50k_full(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Kernel Inception distance of 50,000 generated images to the whole data set."""
    return dict(kid50k_full=_kid(_whole(opts), max_real=1000000))


@register_metric
@_vgg16_features
def pr50k3_full(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Precision and recall of 50,000 generated images to the whole data set (at most 200,000 of it), 3 neighbours."""
    return _pr('pr50k3_full', _whole(opts), max_real=200000)


@register_metric
@_inception_classes
def is50k(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Inception score of 50,000 generated images: mean and deviation over 10 splits."""
    mean, std = inception_score.compute_is(_whole(opts), num_gen=opts.num or 50000, num_splits=10)
    return dict(is50k_mean=mean, is50k_std=std)


@register_metric
@_vgg16_distance
def ppl2_wend(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Perceptual path length at the ends of 50,000 paths in w, whole images (StyleGAN2)."""
    return dict(ppl2_wend=_ppl(opts, 'w', 'end', crop=False))


@register_metric
@traits(generates=True, min_side=sliced_wasserstein.MIN_SIDE)
def swd(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Sliced Wasserstein distance × 1e3 of 16,384 generated images to as many real ones, by size of detail."""
    return compute_swd(_whole(opts), opts.num or sliced_wasserstein.NUM_IMAGES)


@register_metric
@_inception_features
def fid50k(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Fréchet Inception distance of 50,000 generated images to 50,000 real ones, mirrored if training was."""
    return dict(fid50k=_fid(_as_trained(opts), max_real=opts.num or 50000))


@register_metric
@_inception_features
def kid50k(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Kernel Inception distance of 50,000 generated images to 50,000 real ones, mirrored if training was."""
    return dict(kid50k=_kid(_as_trained(opts), max_real=opts.num or 50000))


@register_metric
@_vgg16_features
def pr50k3(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Precision and recall of 50,000 generated images to 50,000 real ones, mirrored if training was, 3 neighbours."""
    return _pr('pr50k3', _as_trained(opts), max_real=opts.num or 50000)


@register_metric
@_vgg16_distance
def ppl_zfull(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Perceptual path length along 50,000 paths in z, middle of the face (StyleGAN)."""
    return dict(ppl_zfull=_ppl(opts, 'z', 'full', crop=True))


@register_metric
@_vgg16_distance
def ppl_wfull(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Perceptual path length along 50,000 paths in w, middle of the face (StyleGAN)."""
    return dict(ppl_wfull=_ppl(opts, 'w', 'full', crop=True))


@register_metric
@_vgg16_distance
def ppl_zend(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Perceptual path length at the ends of 50,000 paths in z, middle of the face (StyleGAN)."""
    return dict(ppl_zend=_ppl(opts, 'z', 'end', crop=True))


@register_metric
@_vgg16_distance
def ppl_wend(opts: metric_utils.MetricOptions) -> dict[str, float]:
    """Perceptual path length at the ends of 50,000 paths in w, middle of the face (StyleGAN)."""
    return dict(ppl_wend=_ppl(opts, 'w', 'end', crop=True))
