"""What the metrics of an encoding network share: network and data with their checks, batches, codes, reconstructions.

Numbers depend neither on the batch size nor on the number of processes: process r of P handles items r, r + P, …
Uses only such options and functions as every host has; what only ours has is asked for with a default.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import host, images
from lia_plugin.host import UserError

Array = npt.NDArray[Any]


def full_precision() -> None:
    """Turns TF32 off, which changes features and codes in their third digit."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def check_encoder(G: Any) -> None:
    """UserError if the network has no encoder."""
    if not hasattr(G, 'encode'):
        raise UserError('--network: not a LIA network: it has no encoder; this metric needs one (train.py --cfg=lia)')
    if getattr(G, 'encoder', G) is None:
        raise UserError('--network: stage-1 network: train the encoder first: train.py --stage=encoder --resume=PKL')


def prepare_network(opts: Any) -> Any:
    """A copy of the network on the device, in evaluation mode. UserError if it has no encoder."""
    check_encoder(opts.G)
    return copy.deepcopy(opts.G).eval().requires_grad_(False).to(opts.device)


def own_space(G: Any) -> str:
    """The space that a network's encoder gives: 'y', 'y+' or 'z'."""
    return getattr(getattr(G, 'encoder', None), 'space', 'y')


def check_space(G: Any, space: str | None) -> None:
    """UserError if the encoder can't be measured in a space. None = its own; a y+ encoder can give y alone as well."""
    own = own_space(G)
    if space not in (None, own) and not (own == 'y+' and space == 'y'):
        others = ' or y (its base code alone)' if own == 'y+' else ''
        raise UserError(f"--space: {space}: this network's encoder gives {own}; measure it in {own}{others}")


def measured_space(opts: Any) -> str:
    """The space that the metrics of a command measure an encoder in."""
    return host.metric_option(opts, 'space') or own_space(opts.G)


def encode(opts: Any, G: Any, img: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """Images NCHW in [-1, 1] → what the encoder gives in the measured space: y [N, z_dim] or y+ [N, num_ws, z_dim]."""
    check_space(G, space := measured_space(opts))
    return G.encode(img, c) if space == own_space(G) else G.encode(img, c, space=space)


def evaluation_set(opts: Any) -> dict[str, Any]:
    """The data to reconstruct: each image once, never mirrored, `opts.num` of them if asked for."""
    if 'class_name' not in opts.dataset_kwargs:
        raise UserError('--data: this metric needs a data set, and the network file names none')
    wanted = [n for n in (host.metric_option(opts, 'num'), opts.dataset_kwargs.get('max_size')) if n is not None]
    return {**opts.dataset_kwargs, 'xflip': False, 'max_size': min(wanted, default=None)}


def open_dataset(opts: Any, G: Any, **changes: Any) -> Any:
    """The set to reconstruct, with some other arguments, checked against the network: UserError for other shapes or
    labels."""
    dataset = host.open_data_set(**{**evaluation_set(opts), **changes})
    expected = [G.img_channels, G.img_resolution, G.img_resolution]
    if list(dataset.image_shape) != expected:
        raise UserError(f'--data: {dataset.name} has images of (channels, height, width) {list(dataset.image_shape)}, '
                        f'the network {expected}; convert them with dataset_tool.py')
    if G.c_dim > 0 and dataset.label_dim != G.c_dim:
        raise UserError(f'--data: labels of {dataset.name} have {dataset.label_dim} dimensions, '
                        f'but the network takes {G.c_dim}')
    return dataset


def batch_size(opts: Any, resolution: int) -> int:
    return host.metric_option(opts, 'batch') or max(min(64, 64 * 256**2 // resolution**2), 4)


def real_batches(opts: Any, G: Any, dataset: Any) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor | None]]:
    """This process's share of the data set, all of it: (which items, images in [-1, 1], labels or None)."""
    share = list(range(opts.rank, len(dataset), opts.num_gpus))
    progress = opts.progress.sub(tag='reconstructions', num_items=len(dataset))
    done = 0
    for pixels, labels in host.batches(dataset, share, batch_size(opts, G.img_resolution), opts.device):
        items = share[done : done + len(pixels)]
        yield items, images.to_float(pixels), labels if G.c_dim > 0 else None
        done += len(items)
        progress.update(min(done * opts.num_gpus, len(dataset)))


def synthesis_kwargs(opts: Any) -> dict[str, Any]:
    return {'noise_mode': 'const', **opts.G_kwargs}


def reconstruct(opts: Any, G: Any, y: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    return G.decode(y, c, **synthesis_kwargs(opts)).to(torch.float32).clamp(-1, 1)


def sum_over_processes(opts: Any, *arrays: Array) -> list[Array]:
    """Elementwise sums over all processes, float64. Items of other processes are zeros in mine, so lists add up too."""
    if opts.num_gpus == 1:
        return list(arrays)
    flat = torch.as_tensor(np.concatenate([array.ravel() for array in arrays]), device=opts.device)
    torch.distributed.all_reduce(flat)
    parts = np.split(flat.cpu().numpy(), np.cumsum([array.size for array in arrays])[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


def to_array(x: torch.Tensor) -> Array:
    return x.cpu().numpy().astype(np.float64)
