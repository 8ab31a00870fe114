"""Crops taken out of pictures and put back: closed forms, exactness, and a checkerboard that turns round."""

from __future__ import annotations

import math

import numpy as np
import torch

from lia_plugin import pasting, placement


def noise(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, [channels, height, width], generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def smooth(channels: int, height: int, width: int) -> torch.Tensor:
    """A picture of low frequencies: resampling hardly harms it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing='ij')
    waves = [torch.sin(3 * x + i) + torch.cos(4 * y - i) for i in range(channels)]
    return ((torch.stack(waves) + 2) * 60).to(torch.uint8)


def turned(size: tuple[int, int], resolution: int, angle: float, scale: float) -> placement.Placement:
    """A crop whose centre is the picture's."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    corner = np.array(size) / 2 - linear @ np.full(2, resolution / 2)
    return placement.place(np.column_stack([linear, corner]), size, resolution)


def test_a_crop_that_is_the_picture_is_replaced_exactly() -> None:
    full, edited = noise(3, 16, 16), noise(3, 16, 16, seed=1)
    assert torch.equal(pasting.paste(full, edited, placement.centre_crop((16, 16), 16)), edited)


def test_a_crop_of_the_pictures_own_scale_is_exact_within() -> None:
    full, edited = noise(3, 20, 40), noise(3, 20, 20, seed=1)
    p = placement.centre_crop((40, 20), 20)
    assert torch.equal(pasting.take(full, p), full[:, :, 10:30])
    hard = pasting.paste(full, edited, p, feather=0)
    assert torch.equal(hard[:, :, 10:30], edited)
    soft = pasting.paste(full, edited, p, feather=0.25)
    for result in (hard, soft):
        assert torch.equal(result[:, :, :10], full[:, :, :10]) and torch.equal(result[:, :, 30:], full[:, :, 30:])
    assert torch.equal(soft[:, :, 15:25], edited[:, :, 5:15])  # Beyond the soft edge; above and below there is none.
    assert torch.equal(pasting.paste(full, pasting.take(full, p), p), full)


def test_a_turned_crop_pasted_unedited_changes_little_inside_and_nothing_outside() -> None:
    full = smooth(3, 90, 120)
    p = turned((120, 90), 32, angle=0.4, scale=1.7)
    result = pasting.paste(full, pasting.take(full, p), p)
    mask = pasting.soft_mask(p, 0, (0, 0), (120, 90))
    assert 0.9 * (32 * 1.7) ** 2 < mask.sum() < 1.1 * (32 * 1.7) ** 2
    assert torch.equal(result[:, mask == 0], full[:, mask == 0])
    assert (result.int() - full.int()).abs().max() <= 2
