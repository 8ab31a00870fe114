"""What the plugin's metrics are and need: how they register, which can be computed with what is there, `all-recon`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lia_plugin import host, perceptual
from lia_plugin.host import UserError

MetricFunction = TypeVar('MetricFunction', bound=Callable[[Any], dict[str, float]])

ALL_RECON = 'all-recon'
FILES = {  # What a metric may need a file for: the option, as people are told of it.
    'detector': '--detector=FILE|URL (a feature network)',
    'lpips': "--lpips=FILE|URL (NVIDIA's vgg16.pt)",
    'id_detector': '--id-detector=FILE (TorchScript: RGB images in [-1, 1] to one vector each)',
}


def register(
    held_out: bool,
    labels_only: bool = False,
    collectors: tuple[str, ...] = (),
    min_side: int = 1,
    file: str | None = None,
    training_set: bool = False,
    ours_only: bool = False,
) -> Callable[[MetricFunction], MetricFunction]:
    """Registers with the host.

    Args:
        held_out: The loop should give it images that the network was not trained on.
        labels_only: It takes nothing but labels from the data, so that a network without classes needs no data.
        collectors: What it gathers from the pass through the images, see `lia_plugin.collectors`.
        min_side: The smallest images that it is defined on, in pixels.
        file: Key of FILES: a network that it needs.
        training_set: It needs the training set too, beside the images to reconstruct.
        ours_only: It needs what NVIDIA's checkouts haven't.
    """

    def decorate(fn: MetricFunction) -> MetricFunction:
        traits = dict(
            held_out=held_out, labels_only=labels_only, collectors=collectors, min_side=min_side, file=file,
            training_set=training_set, ours_only=ours_only, needs_encoder=True,
            needs_detector='inception' if file == 'detector' else None,  # As the host's metrics say it.
        )  # fmt: skip
        for name, value in traits.items():
            setattr(fn, name, value)
        host.register_metric(fn)
        return fn

    return decorate


@dataclasses.dataclass(frozen=True)
class Situation:
    """What there is to measure with."""

    resolution: int
    training_set: str | None = None  # Why there is none; None if there is one.
    detector: str | None = None  # As the user has given them, None = not at all.
    lpips: str | None = None
    id_detector: str | None = None

    def has_file(self, kind: str) -> bool:
        """Whether a network has been given, or was downloaded before."""
        default = {'detector': host.detector_url('inception'), 'lpips': perceptual.VGG16_URL}.get(kind)
        return bool(getattr(self, kind)) or default is not None and host.cached_download(default) is not None


def obstacle(name: str, situation: Situation) -> str | None:
    """Why a metric can't be computed at all, as the end of '… needs'; None if it can."""
    fn = host.metric_function(name)
    if situation.resolution < getattr(fn, 'min_side', 1):
        return f'images of at least {fn.min_side} pixels a side, the network makes {situation.resolution}'
    if getattr(fn, 'ours_only', False) and not host.OURS:
        return f'our own metrics, and {host.NAME} comes before them here: run it outside of the checkout'
    if getattr(fn, 'training_set', False) and situation.training_set is not None:
        return f'the training set, {situation.training_set}'
    if getattr(fn, 'file', None) == 'id_detector' and situation.id_detector is None:
        return FILES['id_detector']
    return None


def check(names: Iterable[str], situation: Situation) -> None:
    """UserError for the first metric that can't be computed."""
    for name in names:
        if (why := obstacle(name, situation)) is not None:
            raise UserError(f'--metrics: {name} needs {why}')


def expand(names: Iterable[str], situation: Situation) -> tuple[list[str], list[str]]:
    """Metric names with `all-recon` replaced, and lines for people: what that leaves out, and why.

    It stands for all metrics of reconstructions that need nothing but what the user has given or has downloaded before.
    """
    found, left_out = [], []
    for name in names:
        if name != ALL_RECON:
            found.append(name)
            continue
        for metric in reconstruction_metrics():
            why = obstacle(metric, situation)
            kind = getattr(host.metric_function(metric), 'file', None)
            if why is None and kind is not None and not situation.has_file(kind):
                why = f'{FILES[kind]}, which was never downloaded'
            if why is None:
                found.append(metric)
            else:
                left_out.append(f'{metric} (needs {why})')
    notes = [f'{ALL_RECON} leaves out {"; ".join(left_out)}'] if left_out else []
    return list(dict.fromkeys(found)), notes


def reconstruction_metrics() -> list[str]:
    """Names of the metrics that compare reconstructions with images."""
    from metrics import metric_main

    return [name for name in metric_main.list_valid_metrics() if name.startswith('recon_')]
