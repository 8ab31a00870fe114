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
    points = (thumbs.to(torch.float32) - centre).to(device)
    radius = values * (math.sqrt(limit) + ROUNDING) ** 2
    half_square = points.square().sum(dim=[1, 2, 3]) / 2
    for start, stop in _blocks(n):
        matches: dict[int, list[tuple[int, bool]]] = {}
        for mirrored in (False, True):
            query = points[start:stop].flip(3) if mirrored else points[start:stop]
            near = _nearness(query.flatten(1), points[:stop].flatten(1), half_square[:stop])
            near[:, start:].masked_fill_(torch.ones_like(near[:, start:], dtype=torch.bool).triu(), -math.inf)
            enough = half_square[start:stop] - radius / 2
            rows = (near.amax(dim=1) >= enough).nonzero()[:, 0]
            for row, earlier in _first_hits(near[rows] >= enough[rows, None]):
                matches.setdefault(start + int(rows[row]), []).append((earlier, mirrored))
        for index in sorted(matches):
            yield index, sorted(matches[index])


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of parts of n rows, so small that their distances to all n fit into memory."""
    block = max(1, min(4096, MAX_BLOCK // max(n, 1)))
    return ((start, min(start + block, n)) for start in range(0, n, block))


def _nearness(query: torch.Tensor, points: torch.Tensor, half_square: torch.Tensor) -> torch.Tensor:
    """(|q|² − |q − p|²) / 2 of all pairs: [M, d], [n, d] and |p|²/2 [n] -> [M, n]. One pass over memory."""
    return torch.addmm(half_square, query, points.T, beta=-1)


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


def closest_codes(
    codes: torch.Tensor, count: int, device: torch.device | str = 'cpu', seed: int = 0
) -> list[tuple[int, int, float]]:
    """The closest pairs of codes [n, d], nearest first: (index, later index, distance), at most `count`.

    Each code makes a pair with its nearest one alone. Above 64 dimensions neighbours are looked up in a random
    projection to 64, which keeps distances to some ten percent; the distances given are exact.
    """
    points = codes - codes.mean(dim=0)
    if codes.shape[1] > 64:
        points = points @ torch.randn([codes.shape[1], 64], generator=torch.Generator().manual_seed(seed)) / 8
    points = points.to(device)
    half_square = points.square().sum(dim=1) / 2
    gaps = torch.empty([len(codes)])
    for start, stop in _blocks(len(codes)):
        near = _nearness(points[start:stop], points, half_square)
        near[:, start:stop].fill_diagonal_(-math.inf)
        gaps[start:stop] = (half_square[start:stop] - near.amax(dim=1)).cpu()
    places = gaps.argsort()[: 2 * count].to(device)  # Most pairs come up twice.
    near = _nearness(points[places], points, half_square)
    near[torch.arange(len(places), device=near.device), places] = -math.inf
    ends = [sorted(pair) for pair in zip(places.tolist(), near.argmax(dim=1).tolist())]
    pairs = {(a, b): float((codes[a] - codes[b]).norm()) for a, b in ends}
    return sorted(((a, b, gap) for (a, b), gap in pairs.items()), key=lambda pair: pair[2])[:count]
