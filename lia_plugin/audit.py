"""A data set through the eyes of a network: what it can't reconstruct, what has an unusual code, what is there twice.

`measure` looks at each image once, in several processes if need be; `judge` says what the figures mean together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import calibration, duplicates, host, images, inversion, prior
from lia_plugin.duplicates import Duplicate
from lia_plugin.host import UserError
from lia_plugin.similarity import psnr_from_mse
from lia_plugin.targets import Target, stored_labels

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]  # Images done, images there are.

FAR_OUT = 2.0  # Quartile ranges above the median: Tukey's fence, 1.5 above the upper quartile.
MIN_MSE = 1e-10  # Perfect images have no logarithm: they end here.


# ---------------------------------------------------------------------------------------------------------------------
# Looking at each image


@dataclasses.dataclass
class Measured:
    """Figures of n images that could be read, in the order of `items`."""

    items: Array  # int64 [n], places in the list of all targets
    mse: Array  # float64 [n], images in [-1, 1]
    ssim: Array  # float64 [n]; nan where images are too small
    log_prob: Array  # float64 [n]
    z: Array  # float32 [n, z_dim], of base codes
    thumbs: Array  # float16 [n, C, 8, 8]
    hashes: Array  # uint8 [n, 2, HASH_BYTES]
    pixel_sum: Array  # float64 [C, H, W], over all images
    square_sum: Array  # float64 [], over all images and pixels
    failures: dict[int, str]  # Item -> why it couldn't be read.
    notes: dict[int, str]  # Item -> what was changed to fit it to the network.

    @property
    def pair_mse(self) -> float:
        """Mean squared difference of two random images of the set: what nearness of images is measured in."""
        n = len(self.items)
        mean_square = float(self.square_sum) / self.pixel_sum.size / n
        return max(2 * (mean_square - float(np.square(self.pixel_sum / n).mean())), 0)


class _Reader(torch.utils.data.Dataset[Any]):
    """Reads images for other processes: (item, pixels or None, notes or the reason)."""

    def __init__(self, targets: Sequence[Target], share: Sequence[int], resolution: int, channels: int) -> None:
        self.targets, self.share = [targets[item] for item in share], share
        self.resolution, self.channels = resolution, channels

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None, str]:
        try:
            loaded = self.targets[index].read(self.resolution, self.channels)
        except UserError as error:
            return self.share[index], None, str(error)
        return self.share[index], loaded.pixels, '; '.join(loaded.notes)


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


def label_reader(G: Any, class_index: int | None, targets: Sequence[Target]) -> Callable[[Target], torch.Tensor | None]:
    """Target -> its label [c_dim] for the network, of class `class_index` or else of its dataset.json; None without.

    Raises UserError, now or from the function, for a label that is missing or doesn't fit the network.
    """
    stored = stored_labels(targets) if G.c_dim > 0 and class_index is None else None
    if stored is None:
        c = inversion.class_labels(G, class_index, 1, 'cpu')
        return lambda target: None if c is None else c[0]
    return lambda target: inversion.label_row(G, stored[target.name], target.label)


@torch.no_grad()
def measure(
    G: Any,
    targets: Sequence[Target],
    device: torch.device,
    class_index: int | None = None,
    batch: int = 32,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress = lambda done, total: None,
) -> Measured:
    """Encodes and reconstructs this process's share of the targets: numbers rank, rank + world_size, …

    An image that can't be read is noted and passed over. Numbers depend neither on the batch size nor on the processes.
    """
    label_of = label_reader(G, class_index, targets)
    share = range(rank, len(targets), world_size)
    workers = host.loader_workers(len(share))
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Reader(targets, share, G.img_resolution, G.img_channels), batch_size=batch, collate_fn=_as_list,
        num_workers=workers, multiprocessing_context='spawn' if workers else None,  # A fork would share open zips.
    )  # fmt: skip
    parts = [_empty(G)]
    done = 0
    for group in loader:
        read = [(item, pixels, notes) for item, pixels, notes in group if pixels is not None]
        failures = {item: reason for item, pixels, reason in group if pixels is None}
        if read:
            labels = [label_of(targets[item]) for item, _pixels, _notes in read]
            part = _measure_batch(G, read, labels, device)
            parts[0].pixel_sum += part.pixel_sum
            part.pixel_sum = np.zeros([])  # Hundreds of large images would be in the way.
            parts.append(part)
        parts[-1].failures.update(failures)
        done += len(group)
        progress(min(done * world_size, len(targets)), len(targets))
        if len(parts) > 256:
            parts = [merge(parts)]
    return merge(parts)


def _measure_batch(
    G: Any, read: Sequence[tuple[int, torch.Tensor, str]], labels: Sequence[torch.Tensor | None], device: torch.device
) -> Measured:
    pixels = torch.stack([one for _item, one, _notes in read])
    img = images.to_float(pixels).to(device)
    given = [label for label in labels if label is not None]
    c = torch.stack(given).to(device) if given else None
    y, z = G.invert(img, c)
    recon = G.decode(y, c, noise_mode='const').to(torch.float32)
    likeness = inversion.compare_images(img, recon)
    shown = img.cpu()
    return Measured(
        items=np.array([item for item, _pixels, _notes in read]),
        mse=np.array(likeness['mse']),
        ssim=np.array(likeness.get('ssim', [np.nan] * len(read))),
        log_prob=prior.log_prob(G, y, c).cpu().numpy().astype(np.float64),
        z=z.to(torch.float32).cpu().numpy(),
        thumbs=duplicates.thumbnails(shown).numpy(),
        hashes=np.stack([duplicates.pixel_hashes(one) for one in pixels]),
        pixel_sum=shown.sum(dim=0, dtype=torch.float64).numpy(),
        square_sum=shown.square().sum(dtype=torch.float64).numpy(),
        failures={},
        notes={item: notes for item, _pixels, notes in read if notes},
    )


def _empty(G: Any) -> Measured:
    """Of no images."""
    image, side = (G.img_channels, G.img_resolution, G.img_resolution), duplicates.THUMB_SIDE
    return Measured(
        items=np.zeros([0], np.int64), mse=np.zeros([0]), ssim=np.zeros([0]), log_prob=np.zeros([0]),
        z=np.zeros([0, G.z_dim], np.float32), thumbs=np.zeros([0, G.img_channels, side, side], np.float16),
        hashes=np.zeros([0, 2, duplicates.HASH_BYTES], np.uint8), pixel_sum=np.zeros(image),
        square_sum=np.zeros([]), failures={}, notes={},
    )  # fmt: skip


PER_IMAGE = ('items', 'mse', 'ssim', 'log_prob', 'z', 'thumbs', 'hashes')
SUMS = ('pixel_sum', 'square_sum')
TEXTS = ('failures', 'notes')


def merge(parts: Sequence[Measured]) -> Measured:
    """Several shares as one, sorted by item."""
    order = np.argsort(np.concatenate([part.items for part in parts]))
    merged: dict[str, Any] = {}
    for name in PER_IMAGE:
        merged[name] = np.concatenate([getattr(part, name) for part in parts])[order]
    for name in SUMS:
        merged[name] = np.asarray(sum(getattr(part, name) for part in parts))
    for name in TEXTS:
        merged[name] = {item: text for part in parts for item, text in getattr(part, name).items()}
    return Measured(**merged)


# ---------------------------------------------------------------------------------------------------------------------
# What the figures mean together


class Rules(NamedTuple):
    """Which images to suggest to drop."""

    worst: float = 0.0  # The share with the largest reconstruction error.
    atypical: float = 0.0  # The share with the least typical codes.
    duplicates: str = 'yes'  # 'no', 'yes' = all but one of equal images, 'all' = of nearly equal and mirrored ones too.
    near: float = 0.05  # Near-duplicates differ by no more than this share of what two random images differ by.


@dataclasses.dataclass
class Judged:
    """A verdict on n images; arrays have n entries, in the order of `Measured`."""

    figures: dict[str, Array]  # By the names of UNITS.
    rank_error: Array  # 1 = the largest error
    rank_atypical: Array  # 1 = the code farthest from the others
    odd_error: Array  # bool
    odd_code: Array  # bool
    duplicates: list[Duplicate]
    rules: Rules
    usual: calibration.Calibration
    is_own: bool  # The calibration is of these very images.
    pair_mse: float


UNITS = {
    'mse': 'mean squared difference of image and reconstruction, images in [-1, 1]',
    'psnr': 'dB, peak 2',
    'ssim': 'Gaussian window 11, sigma 1.5, data range 2',
    'z_norm2': 'squared length of z; its mean under the prior is z_dim',
    'log_prob': 'log p(y), in nats',
    'log_prob_per_dim': 'log p(y) / z_dim, in nats',
    'distance': 'squared Mahalanobis distance of z to the codes of the calibration (its own set: of the other images)',
    'typicality': 'two-sided p-value of z_norm2 under chi-square with z_dim degrees of freedom',
    'typicality_set': 'empirical two-sided p-value of z_norm2 in the calibration',
    'p_log_prob': 'empirical two-sided p-value of log_prob in the calibration',
    'p_distance': 'empirical p-value of a distance at least as large in the calibration',
}


def judge(
    measured: Measured,
    usual: calibration.Calibration | None,
    rules: Rules,
    read: Callable[[int], torch.Tensor],
    network: str,
    data: str,
    device: torch.device | str = 'cpu',
) -> Judged:
    """Ranks the images and finds duplicates.

    Args:
        usual: What codes are compared with. None = those of the set itself, each image with the others.
        read: Place in `measured` -> that image, floats [C, H, W] in [-1, 1].
        network: `calibration.network_hash` of the network, for the calibration that is made.
        data: What the set is called there.

    Raises:
        UserError: too few images for a calibration, or codes that are not finite.
    """
    if not (np.isfinite(measured.z).all() and np.isfinite(measured.mse).all()):
        raise UserError(f'{data}: the network gives codes or images that are not finite')
    members = usual is None
    usual = usual or calibration.calibrate(measured.z, measured.log_prob, network, data)
    figures = _figures(measured, usual, members)
    spread_error = spread_score(np.log(measured.mse.clip(min=MIN_MSE)))
    tiny = np.finfo(np.float64).tiny
    spread_code = spread_score(*(np.log(values.clip(min=tiny)) for values in (figures['distance'], usual.distance)))
    found = duplicates.find_duplicates(
        measured.hashes, torch.from_numpy(measured.thumbs), rules.near * measured.pair_mse, read, device
    )
    return Judged(
        figures=figures,
        rank_error=_rank(measured.mse),
        # Neither |z|^2 nor log p(y), nor a small distance, told foreign images from a set of faces as well as this did.
        rank_atypical=_rank(figures['distance']),
        odd_error=spread_error > FAR_OUT,
        odd_code=spread_code > FAR_OUT,
        duplicates=found,
        rules=rules,
        usual=usual,
        is_own=members,
        pair_mse=measured.pair_mse,
    )


def _figures(measured: Measured, usual: calibration.Calibration, members: bool) -> dict[str, Array]:
    z, log_prob = measured.z, measured.log_prob
    own = calibration.own_figures(z, log_prob, usual.gaussian) if members else usual.figures(z, log_prob)
    ssim = {} if np.isnan(measured.ssim).all() else {'ssim': measured.ssim}
    return {
        'mse': measured.mse,
        'psnr': psnr_from_mse(torch.from_numpy(measured.mse)).numpy(),
        **ssim,
        'z_norm2': own.square_norm,
        'log_prob': own.log_prob,
        'log_prob_per_dim': own.log_prob / z.shape[1],
        'distance': own.distance,
        'typicality': prior.typicality(torch.from_numpy(z)).numpy(),
        **usual.p_values(own, members),
    }


def spread_score(values: Array, usual: Array | None = None) -> Array:
    """How many quartile ranges each value lies above (> 0) or below the median of `usual` (None = the values).

    Few far values don't move it, however far they are.
    """
    low, middle, high = np.quantile(values if usual is None else usual, [0.25, 0.5, 0.75])
    return (values - middle) / max(high - low, 1e-12 * max(abs(middle), 1))


def _rank(values: Array) -> Array:
    """1 for the largest; equal ones in the order of the set."""
    rank = np.empty([len(values)], np.int64)
    rank[np.argsort(-values, kind='stable')] = np.arange(1, len(values) + 1)
    return rank


def reasons_to_drop(judged: Judged, names: Sequence[str]) -> list[list[str]]:
    """What speaks against each of n images by the rules; nothing = keep it. `names` is what they are called."""
    reasons: list[list[str]] = [[] for _ in names]
    for what, rank, share in (('worst reconstruction', judged.rank_error, judged.rules.worst),
                              ('least typical code', judged.rank_atypical, judged.rules.atypical)):  # fmt: skip
        for index in np.flatnonzero(rank <= int(share * len(names) + 1e-9)):
            reasons[index].append(f'{what}: rank {rank[index]}')
    dropped = {'no': (), 'yes': ('exact',), 'all': duplicates.KINDS}[judged.rules.duplicates]
    for duplicate in judged.duplicates:
        if duplicate.kind in dropped:
            reasons[duplicate.index].append(f'{duplicate.kind} duplicate of {names[duplicate.first]}')
    return reasons
