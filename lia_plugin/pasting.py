"""An edited crop back into the full picture that it was cut from."""

from __future__ import annotations

import math

import numpy as np
import torch

from lia_plugin.images import to_float, to_uint8, with_channels
from lia_plugin.placement import Array, Placement, apply_affine
from lia_plugin.resample import warp

FEATHER = 0.08  # Of the crop's side.
ALPHA = (2, 4)  # Channels of pictures whose last one is transparency.


def take(full: torch.Tensor, placement: Placement) -> torch.Tensor:
    """The crop: uint8 [C, H, W] -> uint8 [C, R, R]; mirrored where it reaches over the picture's border."""
    _check_size(full, placement)
    R = placement.resolution
    return to_uint8(warp(full, placement.array, (R, R)))


def paste(
    full: torch.Tensor,
    edited: torch.Tensor,
    placement: Placement,
    base: torch.Tensor | None = None,
    feather: float = FEATHER,
) -> torch.Tensor:
    """The full picture with the edit in it, uint8 [C, H, W]; pixels outside the crop stay as they are.

    `full` is uint8, grey, RGB or either with transparency, which stays; `edited` uint8 [1 or 3, R, R]. With `base`, the
    reconstruction before the edit, the *difference* edited - base is added: detail that the network cannot draw
    survives, and an edit that does nothing changes nothing. Without, the crop's place is filled with `edited`. A grey
    edit of a picture in colour changes its brightness alone.

    `feather` is the width of the soft edge, as a share of the crop's side, 0 to 0.5; sides of the crop that lie on
    the picture's border or beyond it have none.

    Raises:
        ValueError: sizes that do not fit the placement, or `feather` out of range.
    """
    _check_size(full, placement)
    _check_crop(edited, placement)
    if base is not None:
        _check_crop(base, placement)
    if not 0 <= feather <= 0.5:
        raise ValueError(f'feather: expected 0 to 0.5, got {feather}')
    left, top, right, bottom = _bounds(placement)
    result = full.clone()
    if left >= right or top >= bottom:
        return result
    window = result[: len(full) - (len(full) in ALPHA), top:bottom, left:right]  # A view: what is written stays.
    there = to_float(window)
    added = _change(there, edited, base, placement, (left, top))
    mask = soft_mask(placement, feather, (left, top), (right - left, bottom - top)).to(there.device)
    window.copy_(torch.where(mask > 0, to_uint8(there + mask * added), window))
    return result


def _change(
    there: torch.Tensor, edited: torch.Tensor, base: torch.Tensor | None, placement: Placement, corner: tuple[int, int]
) -> torch.Tensor:
    """What is to be added to the window `there` [C, h, w] of the picture, which begins at `corner`."""
    inverse = placement.inverse
    local = np.column_stack([inverse[:, :2], apply_affine(inverse, np.array([corner], dtype=np.float64))[0]])
    size = (there.shape[2], there.shape[1])
    channels = min(len(edited), len(there)) if base is None else min(len(edited), len(base), len(there))
    new = with_channels(to_float(edited), channels)
    if base is not None:
        return warp(new - with_channels(to_float(base), channels), local, size)
    return warp(new, local, size) - with_channels(there, channels)


def soft_mask(
    placement: Placement, feather: float, corner: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """How much of the edit each pixel of a window of the picture gets: 0 outside the crop, 1 within, float32 [h, w].

    The window begins at `corner` (x, y) and has `size` (w, h). Between, over feather * side, it rises as a smoothstep.
    """
    inverse = torch.from_numpy(placement.inverse)
    x = torch.arange(size[0], dtype=torch.float64) + (corner[0] + 0.5)
    y = torch.arange(size[1], dtype=torch.float64)[:, None] + (corner[1] + 0.5)
    u, v = (row[0] * x + row[1] * y + row[2] for row in inverse)
    R = placement.resolution
    inside = (u >= 0) & (u < R) & (v >= 0) & (v < R)
    mask = inside.to(torch.float64)
    if feather > 0:
        for distance, outer in zip((v, R - u, R - v, u), _outer_sides(placement)):
            if not outer:
                t = (distance / (feather * R)).clamp(0, 1)
                mask = mask * (t * t * (3 - 2 * t))
    return mask.to(torch.float32)


def _outer_sides(placement: Placement) -> list[bool]:
    """Which sides of the crop (upper, right, lower, left) have none of the picture beyond them."""
    corners = placement.corners
    return [_beyond(corners[i], corners[(i + 1) % 4], placement.size) for i in range(4)]


def _beyond(a: Array, b: Array, size: tuple[int, int], tolerance: float = 0.5) -> bool:
    """Whether a segment lies on the picture's border, or wholly outside."""
    ends = np.stack([a, b])
    return bool((ends <= tolerance).all(axis=0).any() or (ends >= np.array(size) - tolerance).all(axis=0).any())


def _bounds(placement: Placement) -> tuple[int, int, int, int]:
    """The smallest window (left, top, right, bottom) of the picture that holds all pixels of the crop."""
    low, high = placement.corners.min(axis=0), placement.corners.max(axis=0)
    left, top = (max(0, math.floor(value)) for value in low)
    right, bottom = (min(length, math.ceil(value)) for value, length in zip(high, placement.size))
    return left, top, right, bottom


def _check_size(full: torch.Tensor, placement: Placement) -> None:
    if (full.shape[2], full.shape[1]) != placement.size:
        raise ValueError(f'full: the crop was cut from {placement.size[0]}x{placement.size[1]}, this picture has '
                         f'{full.shape[2]}x{full.shape[1]}')


def _check_crop(crop: torch.Tensor, placement: Placement) -> None:
    R = placement.resolution
    if crop.dtype != torch.uint8 or crop.ndim != 3 or crop.shape[1:] != (R, R) or crop.shape[0] not in (1, 3):
        raise ValueError(f'crop: expected uint8 [1 or 3, {R}, {R}], got {crop.dtype} {list(crop.shape)}')
