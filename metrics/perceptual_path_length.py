"""Perceptual path length: Karras et al. 2019, "A style-based generator architecture for GANs", section 4.1.

Two images an ε apart on a path between two latents, their perceptual distance over ε², the mean of that without
its smallest and largest hundredth.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from metrics import metric_utils
from metrics.detectors import FeatureDetector
from metrics.feature_stats import Array, gather_interleaved
from metrics.generated import item_stream, prepare_network, random_label, shares

EPSILON = 1e-4
MAX_SIDE = 256  # Larger images are brought down to this before the network sees them.
MAPPING_KEYWORDS = ('truncation_psi', 'truncation_cutoff')


class Ends(NamedTuple):
    """Both ends of N paths, where on them to measure, the label, and the seed of the noise."""

    z0: torch.Tensor  # [N, z_dim]
    z1: torch.Tensor  # [N, z_dim]
    t: torch.Tensor  # [N, 1]
    c: torch.Tensor  # [N, c_dim]
    noise_seeds: list[int]


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation with interpolated length: [N, D] twice and t [N, 1] -> [N, D].

    The direction moves along the great circle; the length goes linearly from ‖a‖ to ‖b‖. StyleGAN's published
    measure has length 1 throughout, which its normalisation of z hides: there the length changes nothing. An invertible
    mapping has no such normalisation, takes z as it is, and expects lengths of about √D: with length 1 the path would
    lie near the origin, where no sample ever falls.
    """
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    a, b = a / length_a, b / length_b
    cosine = (a * b).sum(dim=-1, keepdim=True)
    angle = t * torch.acos(cosine.clamp(-1, 1))
    across = b - cosine * a
    across = across / across.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (a * torch.cos(angle) + across * torch.sin(angle)) * (length_a + t * (length_b - length_a))


def crop_face(img: torch.Tensor) -> torch.Tensor:
    """What the first StyleGAN measured of an aligned face: half of the height from 3/8 on, the middle half across."""
    part = img.shape[2] // 8
    return img[:, :, 3 * part : 7 * part, 2 * part : 6 * part]


def bring_down(img: torch.Tensor, resolution: int) -> torch.Tensor:
    """Mean pooling by the whole factor that `resolution` is of 256 pixels."""
    factor = resolution // MAX_SIDE
    return torch.nn.functional.avg_pool2d(img, factor) if factor > 1 else img


def trimmed_mean(values: Array) -> float:
    """Mean of what lies between the 1st and the 99th percentile, both of them data points and included."""
    low = np.percentile(values, 1, method='lower')
    high = np.percentile(values, 99, method='higher')
    return float(values[(values >= low) & (values <= high)].mean(dtype=np.float64))


@contextlib.contextmanager
def own_noise(G: torch.nn.Module, seeds: list[int]) -> Iterator[None]:
    """Gives each path constant noise of its own, the same for both of its points: layers' `noise_const` [H, W] becomes
    [2 N, 1, H, W] for a while. So an image is the same whatever the batch it falls into.
    """
    noisy = (module for module in G.modules() if isinstance(getattr(module, 'noise_const', None), torch.Tensor))
    layers: list[Any] = list(noisy)
    before = [layer.noise_const for layer in layers]
    streams = [torch.Generator(before[0].device).manual_seed(seed) for seed in seeds] if layers else []
    try:
        for layer, noise in zip(layers, before):
            drawn = [torch.randn(noise.shape, generator=stream, device=noise.device) for stream in streams]
            layer.noise_const = torch.stack(drawn * 2)[:, None].to(noise.dtype)
        yield
    finally:
        for layer, noise in zip(layers, before):
            layer.noise_const = noise


class PathSampler:
    """Distances of pairs of images on random paths, per item; which items share a batch changes nothing."""

    def __init__(
        self, opts: metric_utils.MetricOptions, detector: FeatureDetector, space: str, sampling: str, crop: bool
    ) -> None:
        if space not in ('z', 'w') or sampling not in ('full', 'end'):
            raise ValueError(f"space, sampling: expected 'z' or 'w' and 'full' or 'end', got {space!r}, {sampling!r}")
        self.opts, self.detector = opts, detector
        self.space, self.sampling, self.crop = space, sampling, crop
        self.G = copy.deepcopy(prepare_network(opts))  # A copy, because its noise is exchanged.
        self.dataset = metric_utils.open_dataset(opts) if self.G.c_dim > 0 else None
        self.mapping_kwargs = {key: opts.G_kwargs[key] for key in MAPPING_KEYWORDS if key in opts.G_kwargs}
        taken = (*MAPPING_KEYWORDS, 'noise_mode', 'force_fp32')
        self.synthesis_kwargs = {key: value for key, value in opts.G_kwargs.items() if key not in taken}
        lpips = 'return_lpips' in detector.keywords
        self.detector_kwargs = dict(resize_images=False, return_lpips=True) if lpips else dict(return_features=True)

    def draw(self, items: range) -> Ends:
        """The random numbers of each item, from a stream of its own."""
        z, t, c, seeds = [], [], [], []
        for item in items:
            stream = item_stream(self.opts, item)
            z.append(stream.standard_normal([2, self.G.z_dim], dtype=np.float32))
            c.append(random_label(self.opts, self.G, self.dataset, stream))
            t.append([stream.random(dtype=np.float32) if self.sampling == 'full' else np.float32(0)])
            seeds.append(int(stream.integers(2**63)))
        arrays = (np.stack(z), np.asarray(t, np.float32), np.stack(c))
        ends, where, labels = (torch.as_tensor(array, device=self.opts.device) for array in arrays)
        return Ends(ends[:, 0], ends[:, 1], where, labels, seeds)

    def pairs(self, ends: Ends) -> torch.Tensor:
        """ws [2 N, num_ws, w_dim]: N points on the paths, and the N points ε further on."""
        further = ends.t + EPSILON
        c = torch.cat([ends.c, ends.c])
        if self.space == 'z':
            z = torch.cat([slerp(ends.z0, ends.z1, ends.t), slerp(ends.z0, ends.z1, further)])
            return self.G.mapping(z=z, c=c, **self.mapping_kwargs)
        w0, w1 = self.G.mapping(z=torch.cat([ends.z0, ends.z1]), c=c, **self.mapping_kwargs).chunk(2)
        return torch.cat([w0.lerp(w1, ends.t[:, :, None]), w0.lerp(w1, further[:, :, None])])

    @torch.no_grad()
    def distances(self, items: range) -> torch.Tensor:
        """d(x(t), x(t + ε)) / ε², [N]."""
        ends = self.draw(items)
        ws = self.pairs(ends)
        with own_noise(self.G, ends.noise_seeds):
            img = self.G.synthesis(ws=ws, noise_mode='const', force_fp32=True, **self.synthesis_kwargs)
        img = crop_face(img) if self.crop else img
        # Unrounded: 8 bits would hide a step of ε altogether.
        pixels = (bring_down(img, self.G.img_resolution).to(torch.float32) + 1) * 127.5
        a, b = self.detector(pixels, **self.detector_kwargs).chunk(2)
        return (a - b).square().sum(dim=1) / EPSILON**2


def compute_ppl(
    opts: metric_utils.MetricOptions, num_samples: int, space: str, sampling: str, crop: bool
) -> float:
    """Perceptual path length in z or w, anywhere on the paths ('full') or at their ends; all processes get it.

    The distance is LPIPS as the detector has it (`return_lpips`), or the squared distance of its features.
    """
    url = opts.detector_url('vgg16')
    detector = metric_utils.get_feature_detector(url, opts.device, opts.num_gpus, opts.rank, opts.progress.verbose)
    sampler = PathSampler(opts, detector, space, sampling, crop)
    progress = opts.progress.sub('paths', num_samples)
    found = [torch.zeros([0], device=opts.device)]
    for items in shares(opts, num_samples, max(opts.batch_size(sampler.G.img_resolution) // 2, 1)):  # Two images each.
        found.append(sampler.distances(items))
        progress.update(min(sum(map(len, found)) * opts.num_gpus, num_samples))
    distances = gather_interleaved(torch.cat(found)[:, None], opts.num_gpus, opts.rank)[:, 0].cpu().numpy()
    metric_utils.note_images(opts, url, num_fake=len(distances))
    measure = 'LPIPS' if 'return_lpips' in detector.keywords else 'squared distance of features'
    opts.notes.update(data='generated images', value_range='0..255, unrounded', distance=measure)
    if space == 'z':  # StyleGAN's own paths have length 1.
        opts.notes.update(path='slerp, lengths interpolated')
    return trimmed_mean(distances)
