"""What is looked at before metrics are computed, so that what can't work says so at once and not after hours."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any

from lia_plugin import collectors, host, latent_metrics
from lia_plugin.host import UserError


def _takes(name: str, option: str) -> bool:
    """Whether a metric looks at an option of calc_metrics."""
    fn = host.metric_function(name)
    if option == 'labels':
        return name == 'ls'
    if option == 'space':
        return getattr(fn, 'needs_encoder', False)
    if option == 'detector':
        return host.needed_detector(name) is not None
    return getattr(fn, 'file', None) == option


def check_options(metrics: Iterable[str], given: Mapping[str, Any]) -> None:
    """UserError for an option that counts for nothing, because no metric that is wanted takes it.

    `given` are `detector, lpips, id_detector, labels, space` as the user said them, None = not said.
    """
    names = list(metrics)
    for option in ('detector', 'lpips', 'id_detector', 'labels', 'space'):
        if given[option] is not None and not any(_takes(name, option) for name in names):
            said = option.replace('_', '-')
            raise UserError(f'--{said}: none of the metrics takes it ({", ".join(names)}); leave it out')


def check_files(metrics: Iterable[str], given: Mapping[str, Any], verbose: bool) -> None:
    """Opens, and downloads if need be, the networks that metrics look through. UserError for one that is no use.

    `given` are `detector, lpips, id_detector` as the user said them, None = not said.
    """
    names = list(metrics)
    options = types.SimpleNamespace(lpips=given['lpips'], id_detector=given['id_detector'], device='cpu')
    loaders = dict(lpips=collectors.load_lpips, id_detector=collectors.load_embedder)
    for kind, load in loaders.items():
        if any(getattr(host.metric_function(name), 'file', None) == kind for name in names):
            load(options)
    host.fetch_detectors(names, given['detector'], verbose)


def check_labels(metrics: Iterable[str], data: Mapping[str, Any], num: int | None, labels: str | None) -> None:
    """UserError if `ls` is wanted and can't be computed: no labels that tell images of `data` apart, no scikit-learn.

    `data` are the arguments of the set to reconstruct, `labels` is what `--labels` says.
    """
    if 'ls' in metrics:
        latent_metrics.attributes(types.SimpleNamespace(dataset_kwargs=data, num=num, labels=labels))
