"""Pictures through affine maps, with neither jagged edges nor moiré: what cuts crops out and puts them back."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from lia_plugin.images import to_float
from lia_plugin.placement import Array, apply_affine

FINEST = 4  # So many look-ups to a side of a result's pixel; what is finer still is reduced before them.


def warp(img: torch.Tensor, matrix: Array, size: tuple[int, int]) -> torch.Tensor:
    """[C, h, w] -> floats [C, H, W] of size (W, H); `matrix` [2, 3] maps coordinates of the result to those of `img`.

    `img` is pixels, which become floats in [-1, 1], or floats of any range. Bicubic. Where the result is coarser than
    `img` it is drawn finer first, then reduced, so that nothing aliases. Beyond its border the picture goes on
    mirrored. A map that hits pixels' centres alone gives them unchanged.
    """
    region, offset = _needed(img, matrix, size)
    img = to_float(region) if region.dtype == torch.uint8 else region
    matrix = np.column_stack([matrix[:, :2], matrix[:, 2] - offset])
    reduction = math.ceil(_largest_step(matrix) - 1e-6) // FINEST
    if reduction > 1:
        img, matrix = _reduced(img, matrix, reduction)
    width, height = size
    # Of a picture that is a few pixels by now more look-ups would tell no more.
    finer = max(1, min(2 * FINEST, math.ceil(_largest_step(matrix) - 1e-6)))
    drawn = _sample(img, np.column_stack([matrix[:, :2] / finer, matrix[:, 2]]), (width * finer, height * finer))
    return _resized(drawn, height, width)[0]


def _reduced(img: torch.Tensor, matrix: Array, factor: int) -> tuple[torch.Tensor, Array]:
    """About 1/factor of the picture's size, and the matrix that leads there."""
    old = np.array([img.shape[2], img.shape[1]])
    new = -(-old // factor)
    return _resized(img[None], int(new[1]), int(new[0]))[0], matrix * (new / old)[:, None]


def _resized(img: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if img.shape[2:] == (height, width):
        return img
    return F.interpolate(img, size=(height, width), mode='bicubic', antialias=True, align_corners=False)


def _largest_step(matrix: Array) -> float:
    """How far apart in the source two neighbours of the result can be."""
    return float(np.linalg.svd(matrix[:, :2], compute_uv=False).max())


def _sample(img: torch.Tensor, matrix: Array, size: tuple[int, int]) -> torch.Tensor:
    """One bicubic look-up for each pixel: [C, h, w] -> [1, C, H, W]."""
    width, height = size
    # Normalised coordinates of grid_sample: -1 and 1 are the outer borders. Float64, so that centres stay centres.
    to_unit = np.array([[2 / img.shape[2]], [2 / img.shape[1]]])
    a = torch.from_numpy(matrix * to_unit)
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = torch.arange(height, dtype=torch.float64)[:, None] + 0.5
    points = [a[i, 0] * x + a[i, 1] * y + (a[i, 2] - 1) for i in range(2)]
    grid = torch.stack(points, dim=-1)[None].to(torch.float32)
    return F.grid_sample(img[None], grid.to(img.device), 'bicubic', padding_mode='reflection', align_corners=False)


def _needed(img: torch.Tensor, matrix: Array, size: tuple[int, int]) -> tuple[torch.Tensor, Array]:
    """The part of a large picture that a look-up touches, with the corner where it begins, (x, y).

    Its border is the picture's own where the look-up reaches beyond that, so that mirroring stays what it is.
    """
    width, height = size
    corners = apply_affine(matrix, np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64))
    spans = [_span(corners[:, axis].min(), corners[:, axis].max(), img.shape[2 - axis]) for axis in range(2)]
    (left, right), (top, bottom) = spans
    return img[:, top:bottom, left:right], np.array([left, top], dtype=np.float64)


def _span(low: float, high: float, length: int, margin: int = 3) -> tuple[int, int]:
    """First and last + 1 of the pixels between two coordinates, and of their mirrored images if they lie outside."""
    start, stop = math.floor(low) - margin, math.ceil(high) + margin
    first = max(0, min(start, 2 * length - stop)) if stop > length else max(0, start)
    last = min(length, max(stop, -start)) if start < 0 else min(length, stop)
    return (first, last) if last - first > 1 else (0, length)
