"""Metrics of a network that encodes: how well it reconstructs, and whether its latents are where the prior says.

They attach to any host's registry and are given its options; images are in [-1, 1], reconstructions clipped to it, with
the network's constant noise. Numbers depend neither on the batch size nor on the number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

import dnnlib
from lia_plugin import evaluation, host, images, similarity
from lia_plugin.evaluation import Array
from lia_plugin.host import UserError
from metrics import metric_utils

MetricFunction = TypeVar('MetricFunction', bound=Callable[[Any], dict[str, float]])

CYCLE_IMAGES = 1000
MIN_MSE = 1e-10  # Perfect images have an infinite PSNR, which no mean survives: it ends at 106 dB.


# ---------------------------------------------------------------------------------------------------------------------
# Registration


def register(
    held_out: bool, labels_only: bool = False, needs_detector: str | None = None
) -> Callable[[MetricFunction], MetricFunction]:
    """Registers with the host.

    Args:
        held_out: The loop should give it images that the network was not trained on.
        labels_only: It takes nothing but labels from the data, so that a network without classes needs no data.
        needs_detector: 'inception' or 'vgg16': the network whose features it looks at.
    """

    def decorate(fn: MetricFunction) -> MetricFunction:
        fn.held_out = held_out  # type: ignore[attr-defined]
        fn.labels_only = labels_only  # type: ignore[attr-defined]
        fn.needs_encoder = True  # type: ignore[attr-defined]
        fn.needs_detector = needs_detector  # type: ignore[attr-defined]
        host.register_metric(fn)
        return fn

    return decorate


# ---------------------------------------------------------------------------------------------------------------------
# Reconstruction


@register(held_out=True)
def recon_mse(opts: Any) -> dict[str, float]:
    """Mean squared error of reconstructions, images in [-1, 1] (4 times that of images in [0, 1])."""
    measured = evaluation.measure(opts, decode=True)
    return host.say(opts, dict(recon_mse=float(measured.mse.mean())), measured.n, value_range='[-1, 1]')


@register(held_out=True)
def recon_psnr(opts: Any) -> dict[str, float]:
    """Peak signal-to-noise ratio of reconstructions in dB, peak 2: mean over images, and that of the mean error."""
    measured = evaluation.measure(opts, decode=True)
    errors = torch.from_numpy(np.append(measured.mse, measured.mse.mean())).clamp(min=MIN_MSE)
    decibels = similarity.psnr_from_mse(errors).numpy()
    results = dict(recon_psnr=float(decibels[:-1].mean()), recon_psnr_of_mean_mse=float(decibels[-1]))
    return host.say(opts, results, measured.n, value_range='[-1, 1]')


@register(held_out=True)
def recon_ssim(opts: Any) -> dict[str, float]:
    """Structural similarity of reconstructions: Gaussian window of 11 pixels, σ 1.5, data range 2."""
    if opts.G.img_resolution < similarity.SSIM_WINDOW:
        raise UserError(f'--metrics: recon_ssim needs images of at least {similarity.SSIM_WINDOW} pixels a side, '
                        f'the network makes {opts.G.img_resolution}')
    measured = evaluation.measure(opts, decode=True)
    return host.say(opts, dict(recon_ssim=float(measured.ssim.mean())), measured.n, value_range='[-1, 1]')


def sqrt_product_trace(a: Array, b: Array) -> float:
    """tr (A B)^½ of covariances. The host may be one that has no such function to share."""
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(min=0))
    return float(np.sqrt(np.linalg.eigvalsh(root.T @ b @ root).clip(min=0)).sum())


@torch.no_grad()
def _reconstruction_moments(opts: Any, detector: Any) -> tuple[int, Array, Array]:
    """Number, mean and population covariance of the features of all reconstructions."""
    G = evaluation.prepare_network(opts)
    dataset = evaluation.open_dataset(opts, G)
    if len(dataset) < opts.num_gpus:
        raise UserError(f'--gpus: {opts.num_gpus} processes for {len(dataset)} images; use fewer')
    total: Array | None = None
    outer: Array | None = None
    for _items, img, c in evaluation.real_batches(opts, G, dataset):
        pixels = images.to_uint8(evaluation.reconstruct(opts, G, G.encode(img, c), c))
        features = evaluation.to_array(detector(images.with_channels(pixels, 3), return_features=True))
        total = features.sum(axis=0) + (0 if total is None else total)
        outer = features.T @ features + (0 if outer is None else outer)
    assert total is not None and outer is not None, 'each process has an image at least'
    total, outer = evaluation.sum_over_processes(opts, total, outer)
    mean = total / len(dataset)
    return len(dataset), mean, outer / len(dataset) - np.outer(mean, mean)


@register(held_out=True, needs_detector='inception')
def recon_fid(opts: Any) -> dict[str, float]:
    """Fréchet Inception distance of reconstructions to the very images they reconstruct; biased upward at small n."""
    url = host.inception_url(opts)
    evaluation.check_encoder(opts.G)  # Before anything is downloaded.
    detector = metric_utils.get_feature_detector(
        url=url, device=opts.device, num_gpus=opts.num_gpus, rank=opts.rank, verbose=opts.progress.verbose)
    n, mean, cov = _reconstruction_moments(opts, detector)
    same = copy.copy(opts)
    same.dataset_kwargs = dnnlib.EasyDict(evaluation.evaluation_set(opts))
    real_mean, real_cov = metric_utils.compute_feature_stats_for_dataset(
        opts=same, detector_url=url, detector_kwargs=dict(return_features=True), capture_mean_cov=True).get_mean_cov()
    distance = float('nan')
    if opts.rank == 0:
        cross = sqrt_product_trace(cov, real_cov)
        distance = float(np.square(mean - real_mean).sum() + np.trace(cov) + np.trace(real_cov) - 2 * cross)
    name = metric_utils.get_feature_detector_name(url)
    return host.say(opts, dict(recon_fid=distance), n, detector=name, value_range='uint8 0..255')


# ---------------------------------------------------------------------------------------------------------------------
# Latents of real images


def frechet_to_standard_normal(mean: Array, cov: Array) -> float:
    """Fréchet distance of N(mean, cov) to N(0, I): ‖μ‖² + Σ (√λᵢ − 1)² over the eigenvalues of cov."""
    roots = np.sqrt(np.linalg.eigvalsh(cov).clip(min=0))
    return float(np.square(mean).sum() + np.square(roots - 1).sum())


def frechet_floor(n: int, dim: int, seed: int = 0) -> float:
    """What n true samples of N(0, I) get: the share of a result that only the small number of images explains."""
    stream = np.random.default_rng(seed)
    total, outer = np.zeros(dim), np.zeros([dim, dim])
    for start in range(0, n, 4096):
        z = stream.standard_normal([min(4096, n - start), dim])
        total += z.sum(axis=0)
        outer += z.T @ z
    mean = total / n
    return frechet_to_standard_normal(mean, outer / n - np.outer(mean, mean))


@register(held_out=True)
def latent_fd(opts: Any) -> dict[str, float]:
    """Fréchet distance of encoded images z = φ(f(x)) to N(0, I), its floor at this n, and KS of ‖z‖² against χ²."""
    from scipy import stats  # Here, because it takes half a second.

    measured = evaluation.measure(opts, decode=False)
    dim = len(measured.z_mean)
    if np.isfinite(measured.square_norm).all():
        ks = stats.kstest(measured.square_norm, 'chi2', args=(dim,))
        distance, figures = frechet_to_standard_normal(measured.z_mean, measured.z_cov), (ks.statistic, ks.pvalue)
    else:
        distance, figures = float('nan'), (float('nan'), float('nan'))
    results = dict(
        latent_fd=distance,
        latent_fd_floor=frechet_floor(measured.n, dim, host.metric_option(opts, 'seed') or 0),
        latent_fd_ks=float(figures[0]),
        latent_fd_ks_p=float(figures[1]),
    )
    return host.say(opts, results, measured.n, value_range='[-1, 1]')


# ---------------------------------------------------------------------------------------------------------------------
# Generated images, whose latents are known


def _draw(opts: Any, G: Any, dataset: Any, items: range) -> tuple[torch.Tensor, torch.Tensor | None]:
    """z ~ N(0, I) and labels of random images: item i has a stream of its own, whatever the batch it falls into."""
    seed = host.metric_option(opts, 'seed') or 0
    streams = [np.random.default_rng([seed, item]) for item in items]
    z = torch.from_numpy(np.stack([stream.standard_normal(G.z_dim) for stream in streams]).astype(np.float32))
    c = None
    if dataset is not None:
        labels = [dataset.get_label(int(stream.integers(len(dataset)))) for stream in streams]
        c = torch.from_numpy(np.stack(labels)).to(opts.device)
    return z.to(opts.device), c


def _relative_error(x: torch.Tensor, truth: torch.Tensor) -> Array:
    return evaluation.to_array((x - truth).norm(dim=1) / truth.norm(dim=1))


@torch.no_grad()
def _cycle_pass(opts: Any, n: int) -> tuple[Array, Array]:
    G = evaluation.prepare_network(opts)
    dataset = evaluation.open_dataset(opts, G) if G.c_dim > 0 else None
    errors_y, errors_z = np.zeros(n), np.zeros(n)
    share = range(opts.rank, n, opts.num_gpus)
    step = evaluation.batch_size(opts, G.img_resolution)
    progress = opts.progress.sub(tag='cycles', num_items=n)
    for start in range(0, len(share), step):
        items = share[start : start + step]
        z, c = _draw(opts, G, dataset, items)
        y = G.mapping.z_to_y(z, c)
        found = G.encode(G.decode(y, c, **evaluation.synthesis_kwargs(opts)).to(torch.float32), c)
        errors_y[list(items)] = _relative_error(found, y)
        errors_z[list(items)] = _relative_error(G.mapping.y_to_z(found, c), z)
        progress.update(min((start + len(items)) * opts.num_gpus, n))
    by_y, by_z = evaluation.sum_over_processes(opts, errors_y, errors_z)
    return by_y, by_z


def _cycle(opts: Any, name: str) -> dict[str, float]:
    n = host.metric_option(opts, 'num') or CYCLE_IMAGES
    shared = host.metric_option(opts, 'shared')
    key = ('lia_plugin.metrics', id(opts.G), 'cycle', n)
    if shared is None or key not in shared:
        errors = _cycle_pass(opts, n)
        if shared is not None:
            shared[key] = (opts.G, errors)
    else:
        errors = shared[key][1]
    value = float(errors[0 if name == 'cycle_y' else 1].mean())
    return host.say(opts, {name: value}, n, data='generated images', value_range='[-1, 1]')


@register(held_out=False, labels_only=True)
def cycle_y(opts: Any) -> dict[str, float]:
    """‖f(g(y)) − y‖ / ‖y‖ on generated images, mean."""
    return _cycle(opts, 'cycle_y')


@register(held_out=False, labels_only=True)
def cycle_z(opts: Any) -> dict[str, float]:
    """‖φ(f(g(y))) − z‖ / ‖z‖ with y = φ⁻¹(z), on generated images, mean."""
    return _cycle(opts, 'cycle_z')
