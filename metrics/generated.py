"""Generated images, batch by batch: each batch a pure function of the network, the seed and which images it holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch

from dnnlib.util import UserError
from metrics.detectors import FeatureDetector
from metrics.options import MetricOptions, open_dataset
from metrics.shared_pass import store_of


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> uint8, the formula of published FIDs. Its twin is in `lia_plugin.images`, out of reach here."""
    return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def prepare_network(opts: MetricOptions) -> Any:
    """`opts.G` on the device, in evaluation mode, without gradients: itself if it is so already, else a copy."""
    tensors = [*opts.G.parameters(), *opts.G.buffers()]
    ready = not opts.G.training and not any(t.requires_grad for t in tensors)
    if ready and all(t.device == opts.device for t in tensors):
        return opts.G
    return copy.deepcopy(opts.G).eval().requires_grad_(False).to(opts.device)


def item_stream(opts: MetricOptions, item: int) -> np.random.Generator:
    """The random numbers of one image, whatever the batch or process it falls into."""
    return np.random.default_rng([opts.seed, item])


def random_label(opts: MetricOptions, G: Any, dataset: Any, stream: np.random.Generator) -> np.ndarray:
    """The label of a random image of the data set, [c_dim]; empty without one. UserError if it doesn't fit."""
    label = dataset.get_label(int(stream.integers(len(dataset)))) if G.c_dim > 0 else np.zeros([0], np.float32)
    if len(label) != G.c_dim:
        raise UserError(f'--data: its labels have {len(label)} dimensions, but the network takes {G.c_dim}')
    return label


def draw_inputs(opts: MetricOptions, G: Any, dataset: Any, items: range) -> tuple[torch.Tensor, torch.Tensor]:
    """z ~ N(0, I) [N, z_dim] and labels [N, c_dim] of random images, for generated images number `items`."""
    latents, labels = [], []
    for item in items:
        stream = item_stream(opts, item)
        latents.append(stream.standard_normal(G.z_dim, dtype=np.float32))
        labels.append(random_label(opts, G, dataset, stream))
    z, c = (torch.as_tensor(np.stack(rows), device=opts.device) for rows in (latents, labels))
    return z, c


def shares(opts: MetricOptions, num: int, step: int) -> Iterator[range]:
    """The items of this process among `num`, `step` at a time; all of them, the last batch as small as it must be."""
    items = range(opts.rank, num, opts.num_gpus)
    return (items[start : start + step] for start in range(0, len(items), step))


class GeneratedImages:
    """Images of `opts.G` under `opts.G_kwargs`. Batches that an earlier metric of the same command has made are taken
    from what it kept.

    With a conditional G the labels are those of random images of the data set.
    """

    def __init__(self, opts: MetricOptions) -> None:
        self.opts = opts
        self.G = prepare_network(opts)
        self.dataset = open_dataset(opts) if self.G.c_dim > 0 else None
        self.store = store_of(opts.shared)
        if self.store is not None:
            self.store.owners[id(opts.G)] = opts.G
        labels = opts.dataset_kwargs if self.dataset is not None else None
        what = json.dumps([opts.G_kwargs, opts.seed, str(opts.device), labels], sort_keys=True, default=repr)
        self.key: tuple[Hashable, ...] = (id(opts.G), what)

    @torch.no_grad()
    def images(self, items: range) -> torch.Tensor:
        """uint8 [N, C, H, W] on the device."""
        key = ('images', *self.key, items)
        kept = self.store.get(key) if self.store is not None else None
        if kept is not None:
            return torch.from_numpy(kept).to(self.opts.device)
        images = self._synthesize(items)
        if self.store is not None:
            self.store.put(key, images.cpu().numpy())
        return images

    @torch.no_grad()
    def features(self, items: range, detector: FeatureDetector, detector_kwargs: dict[str, Any]) -> np.ndarray:
        """float32 [N, D] of the images."""
        key = ('features', detector.name, repr(sorted(detector_kwargs.items())), *self.key, items)
        kept = self.store.get(key) if self.store is not None else None
        if kept is None:
            kept = detector(self.images(items), **detector_kwargs).cpu().numpy()
            if self.store is not None:
                self.store.put(key, kept)
        return kept

    def _synthesize(self, items: range) -> torch.Tensor:
        z, c = draw_inputs(self.opts, self.G, self.dataset, items)
        # The noise of a synthesis network comes from the global state: seeded by batch, or it would depend on what
        # was drawn before, and a batch not made again would shift all that follow.
        with torch.random.fork_rng(devices=[z.device] if z.device.type == 'cuda' else []):
            torch.manual_seed(int(np.random.default_rng([self.opts.seed, items[0], 1]).integers(2**63)))
            return to_uint8(self.G(z=z, c=c, **self.opts.G_kwargs))
