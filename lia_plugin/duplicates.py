"""Images that a set has twice: equal pixels, nearly equal pixels, and the mirror images of either.

Of each group the first image stands for it. Memory grows with the number of images by some hundred bytes each; pictures
are read again only for pairs that may be near-duplicates.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

THUMB_SIDE = 8
HASH_BYTES = 16
MAX_MATCHES = 16  # So many earlier images may be compared with each one.
MAX_BLOCK = 2**25  # Distances at once.
CACHED_IMAGES = 256
ROUNDING = 1e-3  # Root mean square error, at most, of thumbnails stored as float16.
KINDS = ('exact', 'mirrored', 'near', 'near mirrored')


@dataclasses.dataclass(frozen=True, order=True)
class Duplicate:
    """Image `index` repeats image `first`, which comes before it.

    That one repeats no other, unless `index` equals it and it is itself nearly like another.
    """

    index: int
    first: int
    kind: str  # One of KINDS.
    mse: float  # Between the two, mirrored if it says so; images in [-1, 1].


def pixel_hashes(pixels: torch.Tensor) -> Array:
    """Content hashes of an image uint8 [C, H, W] and of its mirror image -> uint8 [2, HASH_BYTES]."""
    both = (np.ascontiguousarray(view.numpy()) for view in (pixels, pixels.flip(2)))
    digests = (hashlib.blake2b(view.tobytes(), digest_size=HASH_BYTES).digest() for view in both)
    return np.stack([np.frombuffer(digest, np.uint8) for digest in digests])


def thumbnails(img: torch.Tensor) -> torch.Tensor:
    """Means over an 8x8 grid: images NCHW whose sides are multiples of 8 -> float16 [N, C, 8, 8].

    Averaging brings images nearer to each other, never farther apart: the mean squared difference of thumbnails is a
    lower bound of that of the images.
    """
    return torch.nn.functional.adaptive_avg_pool2d(img, THUMB_SIDE).to(torch.float16)


def exact_duplicates(hashes: Array) -> list[Duplicate]:
    """Images of equal pixels, and mirrored ones, by `pixel_hashes` [n, 2, HASH_BYTES] of all."""
    seen: dict[bytes, int] = {}
    found = []
    for index, (plain, mirrored) in enumerate(hashes):
        if (first := seen.get(plain.tobytes())) is not None:
            found.append(Duplicate(index, first, 'exact', 0.0))
        elif (first := seen.get(mirrored.tobytes())) is not None:
            found.append(Duplicate(index, first, 'mirrored', 0.0))
        else:
            seen[plain.tobytes()] = index
    return found


def near_candidates(
    thumbs: torch.Tensor, limit: float, device: torch.device | str = 'cpu'
) -> Iterator[tuple[int, list[tuple[int, bool]]]]:
    """Pairs of images whose mean squared difference may be `limit` or less, by their thumbnails [n, C, 8, 8].

    Gives (image, [(earlier image, is it mirrored), …]), the earliest first, for each image that has such pairs. None is
    missed, but of many earlier ones all but the first MAX_MATCHES of each kind are passed over.
    """
    n, values = len(thumbs), math.prod(thumbs.shape[1:])
    centre = thumbs.to(torch.float32).mean(dim=0)
    centre = (centre + centre.flip(2)) / 2  # Alike for both kinds; it keeps products small, and so their rounding.
    flat = (thumbs.to(torch.float32) - centre).flatten(1)
    square = flat.square().sum(dim=1)
    radius = values * (math.sqrt(limit) + ROUNDING) ** 2
    flat_there, square_there = flat.to(device), square.to(device)
    block = max(1, min(4096, MAX_BLOCK // max(n, 1)))
    for start in range(0, n, block):
        stop = min(start + block, n)
        matches: dict[int, list[tuple[int, bool]]] = {}
        for mirrored in (False, True):
            rows = thumbs[start:stop].flip(3) if mirrored else thumbs[start:stop]
            query = (rows.to(torch.float32) - centre).flatten(1).to(device)
            distance = square_there[start:stop, None] + square_there[:stop] - 2 * query @ flat_there[:stop].T
            hits = (distance <= radius).tril(diagonal=start - 1)
            for row, earlier in _first_hits(hits):
                matches.setdefault(start + row, []).append((earlier, mirrored))
        for index in sorted(matches):
            yield index, sorted(matches[index])


def _first_hits(hits: torch.Tensor) -> list[tuple[int, int]]:
    """(row, column) of the first MAX_MATCHES true values of each row of a bool matrix."""
    crowded = hits.sum(dim=1) > MAX_MATCHES
    if crowded.any():
        order = hits[crowded].to(torch.int32).cumsum(dim=1)
        hits[crowded] &= order <= MAX_MATCHES
    return [(row, column) for row, column in hits.nonzero().tolist()]


def find_duplicates(
    hashes: Array,
    thumbs: torch.Tensor,
    near_limit: float,
    read: Callable[[int], torch.Tensor],
    device: torch.device | str = 'cpu',
) -> list[Duplicate]:
    """All images that repeat an earlier one, in order.

    Args:
        hashes: `pixel_hashes` of all, [n, 2, HASH_BYTES].
        thumbs: `thumbnails` of all, [n, C, 8, 8].
        near_limit: Mean squared difference of near-duplicates at most, images in [-1, 1]. 0 = look for exact ones only.
        read: Index -> that image, floats [C, H, W] in [-1, 1]; asked about pairs that may be near.
        device: Where distances of thumbnails are computed.
    """
    exact = exact_duplicates(hashes)
    if near_limit <= 0:
        return exact
    repeated = {duplicate.index for duplicate in exact}
    unique = [index for index in range(len(hashes)) if index not in repeated]
    cached_read = functools.lru_cache(CACHED_IMAGES)(read)
    near: dict[int, Duplicate] = {}
    for place, matches in near_candidates(thumbs[unique], near_limit, device):
        pairs = [(unique[earlier], mirrored) for earlier, mirrored in matches if unique[earlier] not in near]
        found = _confirm(unique[place], pairs, near_limit, cached_read)
        if found is not None:
            near[found.index] = found
    return sorted([*exact, *near.values()])


def _confirm(
    index: int, pairs: list[tuple[int, bool]], limit: float, read: Callable[[int], torch.Tensor]
) -> Duplicate | None:
    """The nearest of the earlier images, if it is near enough by all pixels."""
    found = []
    for first, mirrored in pairs:
        image = read(index).flip(2) if mirrored else read(index)
        mse = float((image - read(first)).square().mean())
        found.append((mse, first, 'near mirrored' if mirrored else 'near'))
    if not found or min(found)[0] > limit:
        return None
    mse, first, kind = min(found)
    return Duplicate(index, first, kind, mse)


def groups(duplicates: Sequence[Duplicate]) -> dict[int, list[Duplicate]]:
    """First image of each group -> its duplicates, groups and duplicates in the order of the set."""
    first_of = {duplicate.index: duplicate.first for duplicate in duplicates}
    found: dict[int, list[Duplicate]] = {}
    for duplicate in duplicates:
        found.setdefault(first_of.get(duplicate.first, duplicate.first), []).append(duplicate)
    return dict(sorted(found.items()))


def nearest_codes(codes: torch.Tensor, device: torch.device | str = 'cpu', seed: int = 0) -> tuple[Array, Array]:
    """Each code's nearest other one: [n, d] -> its index [n] and the distance between them [n].

    Above 64 dimensions neighbours are looked up in a random projection to 64, which keeps distances to some ten
    percent; the distances given are exact.
    """
    n, d = codes.shape
    points = codes - codes.mean(dim=0)
    if d > 64:
        points = points @ torch.randn([d, 64], generator=torch.Generator().manual_seed(seed))
    points = points.to(device)
    square = points.square().sum(dim=1)
    index = torch.empty([n], dtype=torch.int64)
    block = max(1, min(4096, MAX_BLOCK // n))
    for start in range(0, n, block):
        rows = torch.arange(start, min(start + block, n))
        distance = square - 2 * points[start : start + block] @ points.T
        distance[rows - start, rows] = math.inf
        index[start : start + block] = distance.argmin(dim=1).cpu()
    return index.numpy(), (codes - codes[index]).norm(dim=1).numpy()
