"""Metrics of an encoding network: how well it reconstructs. Those of its latents are in `lia_plugin.latent_metrics`.

They attach to any host's registry and are given its options; images are in [-1, 1], reconstructions clipped to it, with
the network's constant noise. Numbers depend neither on the batch size nor on the number of processes.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import torch

import dnnlib
from lia_plugin import evaluation, host, perceptual, similarity
from lia_plugin import latent_metrics as _registers_others  # noqa: F401
from lia_plugin.collectors import collect
from lia_plugin.evaluation import Array
from lia_plugin.frechet import frechet_distance
from lia_plugin.host import UserError
from lia_plugin.metric_traits import register
from metrics import metric_utils

MIN_MSE = 1e-10  # Perfect images have an infinite PSNR, which no mean survives: it ends at 106 dB.


def say(opts: Any, results: dict[str, float], n: int, **notes: Any) -> dict[str, float]:
    """Results with what must stand beside them; values are of images in [-1, 1] unless a note says otherwise."""
    return host.say(opts, results, n, **{'space': evaluation.measured_space(opts), 'value_range': '[-1, 1]', **notes})


def check_side(opts: Any, name: str, side: int) -> None:
    """UserError if the network's images are smaller than a metric can be."""
    if opts.G.img_resolution < side:
        raise UserError(f'--metrics: {name} needs images of at least {side} pixels a side, '
                        f'the network makes {opts.G.img_resolution}')


# ---------------------------------------------------------------------------------------------------------------------
# Image by image


@register(held_out=True, collectors=('mse',))
def recon_mse(opts: Any) -> dict[str, float]:
    """Mean squared error of reconstructions, images in [-1, 1] (4 times that of images in [0, 1])."""
    (errors,) = collect(opts, 'mse')
    return say(opts, dict(recon_mse=float(errors.values.mean())), len(errors.values))


@register(held_out=True, collectors=('mse',))
def recon_psnr(opts: Any) -> dict[str, float]:
    """Peak signal-to-noise ratio of reconstructions in dB, peak 2: mean over images, and that of the mean error."""
    (errors,) = collect(opts, 'mse')
    n = len(errors.values)
    clamped = torch.from_numpy(np.append(errors.values, errors.values.mean())).clamp(min=MIN_MSE)
    decibels = similarity.psnr_from_mse(clamped).numpy()
    return say(opts, dict(recon_psnr=float(decibels[:-1].mean()), recon_psnr_of_mean_mse=float(decibels[-1])), n)


@register(held_out=True, collectors=('ssim',), min_side=similarity.SSIM_WINDOW)
def recon_ssim(opts: Any) -> dict[str, float]:
    """Structural similarity of reconstructions: Gaussian window of 11 pixels, σ 1.5, data range 2."""
    check_side(opts, 'recon_ssim', similarity.SSIM_WINDOW)
    (found,) = collect(opts, 'ssim')
    return say(opts, dict(recon_ssim=float(found.values.mean())), len(found.values))


@register(held_out=True, collectors=('ms_ssim',), min_side=similarity.MS_SSIM_SIDE)
def recon_msssim(opts: Any) -> dict[str, float]:
    """Structural similarity of reconstructions at 5 scales (images of at least 161 pixels), data range 2."""
    check_side(opts, 'recon_msssim', similarity.MS_SSIM_SIDE)
    (found,) = collect(opts, 'ms_ssim')
    return say(opts, dict(recon_msssim=float(found.values.mean())), len(found.values))


@register(held_out=True, collectors=('lpips',), file='lpips')
def recon_lpips(opts: Any) -> dict[str, float]:
    """LPIPS of reconstructions: VGG16 with NVIDIA's weights, at the images' own size (papers often take AlexNet's)."""
    (found,) = collect(opts, 'lpips')
    name = file_name(host.metric_option(opts, 'lpips') or perceptual.VGG16_URL)
    return say(opts, dict(recon_lpips=float(found.values.mean())), len(found.values), lpips=f'VGG16, {name}')


@register(held_out=True, collectors=('identity',), file='id_detector')
def recon_id(opts: Any) -> dict[str, float]:
    """Cosine of the face embeddings of image and reconstruction; where none is found it counts as 0, and is counted."""
    (found,) = collect(opts, 'identity')
    failed = np.isnan(found.values)
    results = dict(recon_id=float(np.where(failed, 0, found.values).mean()), recon_id_failed=float(failed.sum()))
    name = file_name(host.metric_option(opts, 'id_detector'))
    return say(opts, results, len(found.values), id_detector=name)


def file_name(source: str) -> str:
    """What results call the file of a network: its name and the first 8 digits of its SHA-256."""
    path = host.fetch(source)
    stem = os.path.splitext(os.path.basename(source.split('?')[0].rstrip('/')))[0]
    return f'{stem}-{host.file_hash(path)[:8]}'


# ---------------------------------------------------------------------------------------------------------------------
# As a set


def _with_data(opts: Any, data: dict[str, Any]) -> Any:
    other = copy.copy(opts)
    other.dataset_kwargs = dnnlib.EasyDict(data)
    return other


def _real_moments(opts: Any, data: dict[str, Any]) -> tuple[int, Array, Array]:
    """Number, mean and covariance of the features of a data set's images, from the host's cache if they are there."""
    stats = metric_utils.compute_feature_stats_for_dataset(
        opts=_with_data(opts, data), detector_url=host.inception_url(opts), detector_kwargs=dict(return_features=True),
        capture_mean_cov=True,
    )  # fmt: skip
    return stats.num_items, *stats.get_mean_cov()


def _recon_fid(opts: Any, name: str, data: dict[str, Any], **notes: Any) -> dict[str, float]:
    (found,) = collect(opts, 'features')
    n_real, mean, cov = _real_moments(opts, data)
    distance = frechet_distance(found.mean, found.cov, mean, cov) if opts.rank == 0 else float('nan')
    detector = metric_utils.get_feature_detector_name(host.inception_url(opts))
    return say(opts, {name: distance}, found.n, n_real=n_real, detector=detector, value_range='uint8 0..255', **notes)


@register(held_out=True, collectors=('features',), file='detector')
def recon_fid(opts: Any) -> dict[str, float]:
    """Fréchet Inception distance of reconstructions to the very images they reconstruct; biased upward at small n."""
    evaluation.check_encoder(opts.G)
    return _recon_fid(opts, 'recon_fid', evaluation.evaluation_set(opts))


@register(held_out=True, collectors=('features',), file='detector', training_set=True)
def recon_fid_train(opts: Any) -> dict[str, float]:
    """Fréchet Inception distance of reconstructions to the whole training set; biased upward at small n."""
    training_set = host.metric_option(opts, 'training_set')
    if training_set is None:
        raise UserError('--metrics: recon_fid_train needs the training set, which metrics are not told here; '
                        'calc_metrics tells it to them')
    data = {**training_set, 'xflip': False, 'max_size': None}
    return _recon_fid(opts, 'recon_fid_train', data, real_data=host.data_label(_with_data(opts, data)))


@register(held_out=True, collectors=('patches',), min_side=16, ours_only=True)
def recon_swd(opts: Any) -> dict[str, float]:
    """Sliced Wasserstein distance × 1e3 of reconstructions to the images, by size of detail, and its floor."""
    check_side(opts, 'recon_swd', 16)
    (found,) = collect(opts, 'patches')
    with_mean = found.maths.with_mean
    results = {**with_mean('recon_swd', found.recon), **with_mean('recon_swd_floor', found.floor)}
    return say(opts, results, found.n, value_range='uint8 0..255')
