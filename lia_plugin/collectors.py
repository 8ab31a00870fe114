"""What metrics gather from one pass through the data: images are encoded and decoded once for all of them.

A collector takes batch after batch, keeps figures or sums, never images, and adds up over processes at the end. A
metric names those that it needs. The first metric of a command that needs a pass runs it for all metrics of that
command, whose names the command has put into the dict that they share; the others find their results there.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from lia_plugin import evaluation, host, images, metric_traits, perceptual, prior, similarity
from lia_plugin.evaluation import Array
from lia_plugin.frechet import Moments
from lia_plugin.host import UserError
from lia_plugin.networks import base_code
from metrics import metric_utils

OTHER_PLACES = 1 << 32  # Beyond all seeds of people: these patches lie elsewhere than those.


class Batch:
    """Some images of the data set on the way through the network.

    `items` are their numbers in the data set, `img` [N, C, H, W] in [-1, 1], `y` what the encoder gives.
    """

    def __init__(self, opts: Any, G: Any, items: list[int], img: torch.Tensor, c: torch.Tensor | None) -> None:
        self.opts, self.G, self.items, self.img, self.c = opts, G, items, img, c
        self.y = evaluation.encode(opts, G, img, c)

    @functools.cached_property
    def base(self) -> torch.Tensor:
        """The code of each image as a whole, [N, z_dim]."""
        return base_code(self.y)

    @functools.cached_property
    def z(self) -> torch.Tensor:
        """[N, z_dim]"""
        return self.G.mapping.y_to_z(self.base, self.c)

    @functools.cached_property
    def recon(self) -> torch.Tensor:
        """Reconstructions, clipped to [-1, 1]."""
        return evaluation.reconstruct(self.opts, self.G, self.y, self.c)

    @functools.cached_property
    def recon_pixels(self) -> torch.Tensor:
        """Reconstructions as uint8 RGB."""
        return images.with_channels(images.to_uint8(self.recon), 3)


class Collector:
    """`update` with each batch of this process's share, then `merge` once."""

    def update(self, batch: Batch) -> None:
        raise NotImplementedError

    def merge(self, opts: Any) -> None:
        """Makes what this process has gathered into what all have; all processes call it."""
        raise NotImplementedError


class PerImage(Collector):
    """One figure an image, in the order of the data set: `values` [n], float64."""

    def __init__(self, n: int, figure: Callable[[Batch], torch.Tensor]) -> None:
        self.values: Array = np.zeros(n)
        self.figure = figure

    def update(self, batch: Batch) -> None:
        self.values[batch.items] = evaluation.to_array(self.figure(batch))

    def merge(self, opts: Any) -> None:
        del self.figure  # And with it the network that it may come from.
        (self.values,) = evaluation.sum_over_processes(opts, self.values)


class Vectors(Collector):
    """One vector an image, in the order of the data set: `rows` [n, dim], float32."""

    def __init__(self, n: int, dim: int, vector: Callable[[Batch], torch.Tensor]) -> None:
        self.rows: Array = np.zeros([n, dim], np.float32)
        self.vector = vector

    def update(self, batch: Batch) -> None:
        self.rows[batch.items] = self.vector(batch).cpu().numpy()

    def merge(self, opts: Any) -> None:
        del self.vector
        (self.rows,) = evaluation.sum_over_processes(opts, self.rows)


class Gaussian(Collector):
    """Mean [dim] and population covariance [dim, dim] of one vector an image, float64."""

    mean: Array
    cov: Array

    def __init__(self, n: int, dim: int, vector: Callable[[Batch], torch.Tensor]) -> None:
        self.n, self.vector = n, vector
        self.sums = Moments(dim)

    def update(self, batch: Batch) -> None:
        self.sums.add(evaluation.to_array(self.vector(batch)))

    def merge(self, opts: Any) -> None:
        del self.vector
        self.sums.total, self.sums.outer = evaluation.sum_over_processes(opts, self.sums.total, self.sums.outer)
        self.mean, self.cov = self.sums.mean_and_cov(self.n)
        del self.sums


class Patches(Collector):
    """Sliced Wasserstein distances by level: `recon` to the images, and `floor`, of the images to themselves.

    Both compare the same patches of the images with others: those of the reconstructions, and those of the images at
    the very same places. Perfect reconstructions get the floor exactly. Of larger sets `n` random images are taken.
    """

    recon: dict[int, float]
    floor: dict[int, float]

    def __init__(self, opts: Any, G: Any, n: int) -> None:
        self.maths = host.sliced_wasserstein()
        self.n, self.seed = min(n, self.maths.NUM_IMAGES), host.metric_option(opts, 'seed') or 0
        if self.n < opts.num_gpus:
            raise UserError(f'--gpus: {opts.num_gpus} processes for {self.n} images; use fewer')
        self.chosen = set(np.random.default_rng(self.seed).permutation(n)[: self.n].tolist())
        self.sets = [self.maths.PatchSet(G.img_resolution, G.img_channels, seed=seed)
                     for seed in (self.seed, self.seed + OTHER_PLACES, self.seed + OTHER_PLACES)]  # fmt: skip

    def update(self, batch: Batch) -> None:
        places = [k for k, item in enumerate(batch.items) if item in self.chosen]
        items = [batch.items[k] for k in places]
        if items:
            real, recon = (images.to_uint8(img[places]) for img in (batch.img, batch.recon))
            for patches, pixels in zip(self.sets, (real, real, recon)):
                patches.append(pixels, items)

    def merge(self, opts: Any) -> None:
        real, again, recon = self.sets
        work = dict(device=opts.device, seed=self.seed, num_gpus=opts.num_gpus, rank=opts.rank)
        self.floor = self.maths.sliced_distances(real, again, **work)
        self.recon = self.maths.sliced_distances(real, recon, **work)
        for patches in self.sets:
            patches.close()
        del self.sets, self.chosen


# ---------------------------------------------------------------------------------------------------------------------
# The collectors that there are, by the names that metrics use


def load_lpips(opts: Any) -> perceptual.VGG16Features:
    source = host.metric_option(opts, 'lpips') or perceptual.VGG16_URL
    try:
        return perceptual.VGG16Features(source).to(opts.device)
    except UserError as error:
        raise UserError(f'--lpips: {error}') from None


def load_detector(opts: Any) -> Any:
    return metric_utils.get_feature_detector(
        url=host.inception_url(opts), device=opts.device, num_gpus=opts.num_gpus, rank=opts.rank,
        verbose=opts.progress.verbose,
    )  # fmt: skip


def load_embedder(opts: Any) -> torch.nn.Module:
    source = host.metric_option(opts, 'id_detector')
    if source is None:
        raise UserError(f'--metrics: recon_id needs {metric_traits.FILES["id_detector"]}')
    try:
        return perceptual.load_torchscript(source).to(opts.device)
    except UserError as error:
        raise UserError(f'--id-detector: {error}') from None


def identity_similarity(embed: Callable[[torch.Tensor], Any], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of the embeddings of each image pair, NCHW RGB in [-1, 1] twice -> [N].

    NaN where either embedding is not finite or zero: the network has found no face.
    """
    vectors = [embed(x) for x in (a, b)]
    for found in vectors:
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(a):
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise UserError(f'--id-detector: gave {shape} for {len(a)} images, expected [N, features]')
    first, second = (x.to(torch.float32) for x in vectors)
    lengths = first.norm(dim=1) * second.norm(dim=1)
    cosine = (first * second).sum(dim=1) / lengths
    return torch.where(lengths.isfinite() & (lengths > 0), cosine, torch.full_like(cosine, math.nan))


def _lpips(opts: Any, G: Any, n: int) -> Collector:
    distance = load_lpips(opts)
    return PerImage(n, lambda batch: distance(batch.img, batch.recon))


def _features(opts: Any, G: Any, n: int) -> Collector:
    detector = load_detector(opts)
    probe = torch.zeros([1, 3, G.img_resolution, G.img_resolution], dtype=torch.uint8, device=opts.device)
    dim = detector(probe, return_features=True).shape[1]
    return Gaussian(n, dim, lambda batch: detector(batch.recon_pixels, return_features=True))


def _identity(opts: Any, G: Any, n: int) -> Collector:
    embed = load_embedder(opts)

    def figure(batch: Batch) -> torch.Tensor:
        pair = (images.with_channels(img, 3) for img in (batch.img, batch.recon))
        return identity_similarity(embed, *pair)

    return PerImage(n, figure)


COLLECTORS: dict[str, Callable[[Any, Any, int], Collector]] = {
    'mse': lambda opts, G, n: PerImage(n, lambda batch: similarity.mse(batch.img, batch.recon)),
    'ssim': lambda opts, G, n: PerImage(n, lambda batch: similarity.ssim(batch.img, batch.recon)),
    'ms_ssim': lambda opts, G, n: PerImage(n, lambda batch: similarity.ms_ssim(batch.img, batch.recon)),
    'lpips': _lpips,
    'features': _features,
    'identity': _identity,
    'patches': Patches,
    'squared_norm': lambda opts, G, n: PerImage(n, lambda batch: prior.squared_norm(batch.z)),
    'z_gaussian': lambda opts, G, n: Gaussian(n, G.z_dim, lambda batch: batch.z),
    'z': lambda opts, G, n: Vectors(n, G.z_dim, lambda batch: batch.z),
    'y': lambda opts, G, n: Vectors(n, G.z_dim, lambda batch: batch.base),
}


# ---------------------------------------------------------------------------------------------------------------------
# The pass


@torch.no_grad()
def _pass(opts: Any, names: Iterable[str]) -> dict[str, Collector]:
    """The named collectors after all images."""
    G = evaluation.prepare_network(opts)
    dataset = evaluation.open_dataset(opts, G)
    found = {name: COLLECTORS[name](opts, G, len(dataset)) for name in names}
    for items, img, c in evaluation.real_batches(opts, G, dataset):
        batch = Batch(opts, G, items, img, c)
        for collector in found.values():
            collector.update(batch)
    for collector in found.values():
        collector.merge(opts)
    return found


def _wanted(opts: Any, shared: dict[Any, Any]) -> Iterator[str]:
    """The collectors of all metrics of a command, as far as the command has said which these are."""
    for name in shared.get('metrics', ()):
        yield from getattr(host.metric_function(name), 'collectors', ())


def _key(opts: Any, name: str) -> tuple[Any, ...]:
    """A collector's place in the shared dict: another network, data set or number of images has another."""
    arguments = json.dumps([evaluation.evaluation_set(opts), opts.G_kwargs], sort_keys=True, default=repr)
    return 'lia_plugin.collectors', id(opts.G), arguments, name


def collect(opts: Any, *names: str) -> list[Any]:
    """The named collectors after all images of `opts`'s data set, out of a pass that all metrics of a command share."""
    evaluation.check_encoder(opts.G)
    shared = host.metric_option(opts, 'shared')
    if shared is None:
        shared = {}
    if any(_key(opts, name) not in shared for name in names):
        missing = [name for name in dict.fromkeys([*names, *_wanted(opts, shared)]) if _key(opts, name) not in shared]
        for name, collector in _pass(opts, missing).items():
            shared[_key(opts, name)] = (opts.G, collector)  # Holds G, so that its id stays its own.
    return [shared[_key(opts, name)][1] for name in names]
