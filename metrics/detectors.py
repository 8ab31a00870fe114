"""Feature networks: NVIDIA's Inception and VGG16 by URL, any TorchScript file, or a fixed-seed one that needs no file.

Features of different networks don't compare, so each has a name that tells what it is, and it stands in each result.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import dnnlib
from dnnlib.util import UserError
from torch_utils import distributed

INCEPTION_NAME = 'inception-2015-12-05'
_NVIDIA = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/'
INCEPTION_URL = f'{_NVIDIA}{INCEPTION_NAME}.pt'
VGG16_URL = f'{_NVIDIA}vgg16.pt'
URLS = dict(inception=INCEPTION_URL, vgg16=VGG16_URL)  # By the names that metrics give as `needs_detector`.
INCEPTION_SHA256 = 'f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4'
RANDOM_PREFIX = 'random:'
WITHOUT_DOWNLOAD = 'or do without it: --detector=FILE (TorchScript) or --detector=random:0'


class RandomFeatures(torch.nn.Module):
    """Convolutions with fixed random weights, each level averaged over the image: repeatable, but not Inception.

    uint8 [N, 3, H, W] -> float32 [N, 480]. Weights come from NumPy's frozen RandomState stream, so that one seed means
    one network on every machine and in every version of torch.
    """

    def __init__(self, seed: int, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        stream = np.random.RandomState(seed)
        inputs = 3
        for level, outputs in enumerate(widths):
            weight = stream.randn(outputs, inputs, 3, 3) * np.sqrt(2 / (9 * inputs))
            self.register_buffer(f'weight{level}', torch.as_tensor(weight, dtype=torch.float32))
            inputs = outputs
        self.num_levels = len(widths)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        x = img.to(torch.float32) / 127.5 - 1
        features = []
        for level in range(self.num_levels):
            x = torch.nn.functional.conv2d(x, self.get_buffer(f'weight{level}'), stride=2, padding=1)
            x = torch.nn.functional.leaky_relu(x, 0.2)
            features.append(x.mean(dim=[2, 3]))
        return torch.cat(features, dim=1)


class FeatureDetector(torch.nn.Module):
    """What metrics call: uint8 NCHW images of 1 or 3 channels -> float32 features [N, D].

    Keywords that the network inside doesn't know (NVIDIA's `return_features`) are left out.
    """

    def __init__(self, network: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name
        schema = getattr(getattr(network, 'forward', None), 'schema', None)
        self.keywords = {argument.name for argument in schema.arguments} if schema is not None else set()

    def forward(self, img: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if img.shape[1] == 1:
            img = img.repeat([1, 3, 1, 1])
        known = {key: value for key, value in kwargs.items() if key in self.keywords}
        features = self.network(img, **known)
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or features.shape[0] != img.shape[0]:
            shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise UserError(f'--detector: {self.name} gave {shape} for {img.shape[0]} images, expected [N, features]')
        return features.to(torch.float32)


def _random_seed(url: str) -> int:
    digits = url.removeprefix(RANDOM_PREFIX)
    if not digits.isdecimal() or int(digits) >= 2**32:
        raise UserError(f'--detector: {url}: expected random:SEED with a whole number of at most 4294967295')
    return int(digits)


def _local_file(url: str, verbose: bool = False) -> str:
    """Path of the detector's file, downloaded to the cache if need be."""
    if not dnnlib.util.is_url(url, allow_file_urls=True):
        if not os.path.isfile(url):
            raise UserError(f'--detector: {url}: no such file; expected a TorchScript file, a URL or random:SEED')
        return url
    try:
        return dnnlib.util.open_url(url, verbose=verbose, return_filename=True)
    except UserError as err:
        raise UserError(f'{err}; {WITHOUT_DOWNLOAD}') from err


@functools.lru_cache(maxsize=16)
def _hash_of_version(path: str, size: int, mtime_ns: int) -> str:
    return dnnlib.util.file_hash(path)


def _sha256(path: str) -> str:
    stat = os.stat(path)
    return _hash_of_version(path, stat.st_size, stat.st_mtime_ns)


def get_feature_detector_name(url: str) -> str:
    """Name for results and cache files: `inception-2015-12-05` only for NVIDIA's very file, known by its SHA-256.

    Else `random:SEED`, or the file's name and the first 8 digits of its SHA-256.
    """
    if url.startswith(RANDOM_PREFIX):
        return f'{RANDOM_PREFIX}{_random_seed(url)}'
    sha256 = _sha256(_local_file(url))
    stem = os.path.splitext(os.path.basename(url.split('?')[0].rstrip('/')))[0]
    return INCEPTION_NAME if sha256 == INCEPTION_SHA256 else f'{stem}-{sha256[:8]}'


@functools.lru_cache(maxsize=2)
def _load_script(path: str, sha256: str) -> torch.nn.Module:
    try:
        with warnings.catch_warnings():
            # torch >= 2.13 calls TorchScript deprecated; the published detectors exist in no other form.
            warnings.simplefilter('ignore')
            return torch.jit.load(path, map_location='cpu').eval()
    except (RuntimeError, ValueError) as err:
        raise UserError(f'--detector: {path}: not a TorchScript file ({str(err).splitlines()[0]})') from err


def _warn_if_altered(url: str, path: str) -> None:
    sha256 = _sha256(path)
    if INCEPTION_NAME in url and sha256 != INCEPTION_SHA256:
        print(f'Warning: {path} is not the published {INCEPTION_NAME} (SHA-256 {sha256[:8]}…, expected '
              f'{INCEPTION_SHA256[:8]}…): delete it if the download broke; its scores don\'t compare', file=sys.stderr)


@contextlib.contextmanager
def _leader_first(num_gpus: int, rank: int) -> Iterator[None]:
    """One process of each machine goes through the body before the others: these find the download in its cache."""
    leads = distributed.local_rank(rank) == 0
    if num_gpus > 1 and not leads:
        torch.distributed.barrier()
    yield
    if num_gpus > 1 and leads:
        torch.distributed.barrier()


def get_feature_detector(
    url: str, device: torch.device | None = None, num_gpus: int = 1, rank: int = 0, verbose: bool = False
) -> FeatureDetector:
    """Opens a detector on a device (None = CPU).

    Args:
        url: Path or URL of a TorchScript file, or 'random:SEED'.
        device: Where it runs.
        num_gpus: Number of processes; the first one of each machine downloads, the others wait.
        rank: Which of them this is.
        verbose: Show the download.

    Raises:
        UserError: No such file, no way to download it, or not TorchScript.
    """
    network: torch.nn.Module
    if url.startswith(RANDOM_PREFIX):
        network = RandomFeatures(_random_seed(url))
    else:
        with _leader_first(num_gpus, rank):
            path = _local_file(url, verbose and rank == 0)
        if rank == 0:
            _warn_if_altered(url, path)
        network = _load_script(os.path.abspath(path), _sha256(path))
    network = network.to(device) if device is not None else network
    return FeatureDetector(network, get_feature_detector_name(url)).eval().requires_grad_(False)
