"""What is measured of a method: its reconstructions of the held-out images, their codes, and the time it takes.

Figures per image come from `inversion.compare_images`; distances between sets of images from the registry of metrics,
which is handed the reconstructions that are there already (`Replay`): nothing is reconstructed, or optimised, twice.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lia_plugin import host, images, inversion, prior, refinement, spaces
from lia_plugin.compare import Method
from lia_plugin.host import UserError
from lia_plugin.networks import base_code
from lia_plugin.perceptual import Perceptual
from metrics import metric_main

SET_METRICS: tuple[str, ...] = ('recon_fid', 'recon_swd')
ENCODER_METRICS: tuple[str, ...] = ('latent_fd',)
LABEL_METRICS: tuple[str, ...] = ('ls',)  # Where the data has labels.
GENERATOR_METRICS: tuple[str, ...] = ('fid50k_full',)
PATH_METRICS: tuple[str, ...] = ('ppl_zend', 'ppl2_wend')
REPEATS = 5  # Timings of a single pass; the median counts.
SLOW = 1.0  # Seconds; what takes longer is timed once.


class Reconstructed(NamedTuple):
    """Reconstructions [N, C, H, W], float32 in [-1, 1], and the codes they are made of, y or y+."""

    recon: torch.Tensor
    code: torch.Tensor


Reconstruct = Callable[[torch.Tensor, torch.Tensor | None], Reconstructed]


def reconstructor(method: Method, G: Any) -> Reconstruct:
    """The method as a function of images NCHW in [-1, 1] and labels [N, c_dim] or None."""
    if method.optimises:
        return functools.partial(_optimise, method, G, spaces.code_statistics(G))
    return functools.partial(_one_pass, G)


@torch.no_grad()
def _one_pass(G: Any, img: torch.Tensor, c: torch.Tensor | None) -> Reconstructed:
    code = G.encode(img, c)
    return Reconstructed(G.decode(code, c, noise_mode='const').to(torch.float32).clamp(-1, 1), code)


def optimisation(method: Method) -> refinement.Settings:
    """How a method optimises: towards the pixels of the image, and the exact prior if it says so."""
    settings = refinement.Settings(
        steps=method.steps, space=method.space, optimizer=method.optimizer, prior_weight=method.prior_weight
    )
    return settings.resolved(given=method.needs is not None)


def _optimise(
    method: Method, G: Any, statistics: spaces.Statistics, img: torch.Tensor, c: torch.Tensor | None
) -> Reconstructed:
    start = None
    if method.needs is not None:
        with torch.no_grad():
            start = G.encode(img, c)
    found = refinement.refine(G, img, c, start, settings=optimisation(method), statistics=statistics)
    return Reconstructed(found.recon.clamp(-1, 1), found.code)


# ---------------------------------------------------------------------------------------------------------------------
# Images


def batches(
    dataset_kwargs: Mapping[str, Any], G: Any, device: torch.device, size: int, tag: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """All images in [-1, 1] and their labels (None if G has no classes), with a bar on stderr."""
    dataset = host.open_data_set(**dataset_kwargs)
    loaded = host.batches(dataset, range(len(dataset)), size, device)
    for pixels, labels in tqdm(loaded, total=-(-len(dataset) // size), desc=tag, leave=False, disable=None):
        yield images.to_float(pixels), labels if G.c_dim else None
    dataset.close()


class Replay(torch.nn.Module):
    """Stands where metrics expect a network that encodes: knows the images that were reconstructed, and gives back what
    became of them. An image's code is its number, [N, 1]."""

    def __init__(self, G: Any, img: torch.Tensor, recon: torch.Tensor) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.c_dim = G.img_resolution, G.img_channels, G.c_dim
        self.z_dim, self.num_ws = 1, 1
        self.register_buffer('recon', recon)
        self.numbers = {_key(pixels): i for i, pixels in enumerate(images.to_uint8(img).cpu())}

    def encode(self, img: torch.Tensor, c: torch.Tensor | None = None, space: str | None = None) -> torch.Tensor:
        numbers = [self.numbers[_key(pixels)] for pixels in images.to_uint8(img).cpu()]
        return torch.tensor(numbers, dtype=torch.float32, device=img.device)[:, None]

    def decode(self, y: torch.Tensor, c: torch.Tensor | None = None, **_synthesis_kwargs: Any) -> torch.Tensor:
        return self.get_buffer('recon')[y[:, 0].round().long()]

    @property
    def mapping(self) -> Replay:
        return self

    def y_to_z(self, y: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        return y


def _key(pixels: torch.Tensor) -> bytes:
    return hashlib.sha256(pixels.numpy().tobytes()).digest()


# ---------------------------------------------------------------------------------------------------------------------
# Reconstructions


class Measurement(NamedTuple):
    """Figures of one method on one set of images."""

    figures: dict[str, Any]
    shown: np.ndarray  # The first reconstructions, uint8 [K, C, H, W].


def measure(
    reconstruct: Reconstruct,
    G: Any,
    dataset_kwargs: Mapping[str, Any],
    device: torch.device,
    batch: int,
    tag: str,
    options: Mapping[str, Any],  # Of set metrics: detector.
    shown: int = 0,
    lpips: Perceptual | None = None,
) -> Measurement:
    """Reconstructs all images of a data set and measures that: means over images, with n and standard errors."""
    originals, recons, rows, seconds = [], [], [], []
    for img, c in batches(dataset_kwargs, G, device, batch, tag):
        start = time.perf_counter()
        found = reconstruct(img, c)
        recons.append(found.recon.cpu())  # Which waits for the device.
        seconds.append(time.perf_counter() - start)
        originals.append(img.cpu())
        rows.append({**inversion.compare_images(img, found.recon, lpips), **code_figures(G, found.code, c)})
    columns = {name: np.array([x for row in rows for x in row[name]]) for name in rows[0]}
    figures: dict[str, Any] = {name: float(values.mean()) for name, values in columns.items()}
    n = len(columns['mse'])
    figures.update(n=n, mse_error=float(columns['mse'].std() / n**0.5), seconds_measuring=sum(seconds))
    recon = torch.cat(recons)
    figures.update(set_distances(Replay(G, torch.cat(originals), recon), dataset_kwargs, device, options))
    return Measurement(figures, images.to_uint8(recon[:shown]).numpy())


@torch.no_grad()
def code_figures(G: Any, code: torch.Tensor, c: torch.Tensor | None) -> dict[str, list[float]]:
    """How typical codes are: ‖z‖²/d (1 under the prior), its two-sided p, and log p(y)/d, of the base codes."""
    y = base_code(code)
    z = G.mapping.y_to_z(y, c)
    return dict(
        z_norm2=(prior.squared_norm(z) / z.shape[1]).tolist(),
        typicality=prior.typicality(z).tolist(),
        log_p=(G.mapping.log_prob(y, c) / y.shape[1]).tolist(),
    )


def set_distances(
    replay: Replay, dataset_kwargs: Mapping[str, Any], device: torch.device, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Each metric of SET_METRICS that there is: its number, or why there is none under `<name>_left_out`."""
    return registry(SET_METRICS, replay, dataset_kwargs, device, options)


def encoder_figures(
    G: Any,
    dataset_kwargs: Mapping[str, Any],
    device: torch.device,
    options: Mapping[str, Any],
    labels: str | None = None,  # CSV file of attributes. None = the data set's own labels, if it has any.
) -> dict[str, Any]:
    """Metrics of the codes of real images: how they fit the prior, and how well labels, if there are any, part them."""
    names, data = ENCODER_METRICS, dict(dataset_kwargs)
    dataset = host.open_data_set(**{**data, 'use_labels': True})
    if labels is None and dataset.has_labels:
        data['use_labels'] = True
    if labels is not None or dataset.has_labels:
        names = names + LABEL_METRICS
    dataset.close()
    return registry(names, G, data, device, options, {} if labels is None else dict(labels=labels))


def registry(
    names: tuple[str, ...],
    G: Any,
    dataset_kwargs: Mapping[str, Any],
    device: torch.device,
    options: Mapping[str, Any],  # num, detector.
    more: Mapping[str, Any] | None = None,  # Options of the plugin's own metrics.
) -> dict[str, Any]:
    """Metrics of the registry: all their numbers, the notes beside them under `<name>_notes`."""
    results: dict[str, Any] = {}
    for name in filter(metric_main.is_valid_metric, names):
        try:
            found = host.calc_metric(
                name, dataset_kwargs, False, options, dict(more or {}), G=G, num_gpus=1, rank=0, device=device)
        except UserError as error:
            results[f'{name}_left_out'] = host.one_line(error)
            continue
        results.update(found['results'])
        results[f'{name}_notes'] = {key: found[key] for key in ('n', 'n_real', 'detector') if key in found}
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Time


def seconds_per_image(
    reconstruct: Reconstruct, G: Any, dataset_kwargs: Mapping[str, Any], device: torch.device, batch: int
) -> dict[str, float]:
    """Warm seconds from an image on the device to its reconstruction in memory: alone, and as one of a batch.

    Of slow methods only the first: `measure` has reconstructed batches with them, and tells how long that took.
    """
    img, c = next(batches(dataset_kwargs, G, device, batch, 'timing'))
    single = _timed(reconstruct, img[:1], None if c is None else c[:1])
    if single > SLOW:
        return dict(seconds=single)
    return dict(seconds=single, seconds_batched=_timed(reconstruct, img, c) / len(img), timed_batch=len(img))


def _timed(reconstruct: Reconstruct, img: torch.Tensor, c: torch.Tensor | None) -> float:
    """Median of several calls after a first one, or the first one where it is slow: warming up is lost in it."""
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        reconstruct(img, c).recon.cpu()
        taken.append(time.perf_counter() - start)
        if taken[0] > SLOW:
            return taken[0]
    return float(np.median(taken[1:]))
