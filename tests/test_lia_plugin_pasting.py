"""Crops taken out of pictures and put back: closed forms, exactness, and a checkerboard that turns round."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
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


def test_a_checkerboard_through_a_rotation_comes_back_where_it_was() -> None:
    """Cut out turned, at the picture's own scale, and pasted: the board's fields keep their places and levels."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing='ij')
    board = (((x // 8 + y // 8) % 2) * 200 + 20).to(torch.uint8)[None]
    p = turned((96, 96), 64, angle=0.3, scale=1)
    back = pasting.paste(board, pasting.take(board, p), p, feather=0)
    inside = pasting.soft_mask(p, 0, (0, 0), (96, 96)) > 0
    centres = ((x % 8 - 3.5).abs() < 2) & ((y % 8 - 3.5).abs() < 2) & inside
    assert centres.sum() > 500
    assert (back.int() - board.int())[0, centres].abs().max() <= 12
    assert (back.float() - board.float())[0, inside].square().mean().sqrt() < 0.2 * 200, 'edges soften, no more'
    mirrored = pasting.paste(board, pasting.take(board, p).flip(2), p, feather=0)
    assert (mirrored.float() - board.float())[0, inside].square().mean().sqrt() > 0.4 * 200, 'the test can fail'


def test_the_difference_is_added_and_detail_survives() -> None:
    full, base = noise(3, 64, 64), smooth(3, 16, 16) // 2
    p = placement.centre_crop((64, 64), 16)
    assert torch.equal(pasting.paste(full, base, p, base=base), full), 'an edit without a change changes nothing'
    brighter = base + 20
    result = pasting.paste(full // 2, brighter, p, base=base)
    assert (result.int() - (full // 2).int() - 20).abs().max() <= 1
    assert (pasting.paste(full // 2, brighter, p).float().std() < 0.9 * (full // 2).float().std()), 'replacing loses it'


def test_a_grey_edit_of_a_colour_picture_keeps_the_colours() -> None:
    full = torch.stack([torch.full([32, 32], level) for level in (150, 100, 50)]).to(torch.uint8)
    p = placement.centre_crop((32, 32), 8)
    grey = torch.full([1, 8, 8], 120, dtype=torch.uint8)
    added = pasting.paste(full, grey + 10, p, base=grey)
    assert [int(channel.float().mean()) for channel in added] == [160, 110, 60]
    replaced = pasting.paste(full, grey, p)
    luma = sum(weight * replaced[i].float() for i, weight in enumerate((0.299, 0.587, 0.114)))
    assert isinstance(luma, torch.Tensor) and (luma - 120).abs().max() <= 1
    assert (replaced[0].int() - replaced[2].int() - 100).abs().max() <= 1
    colour = torch.stack([torch.full([8, 8], level) for level in (30, 60, 90)]).to(torch.uint8)
    assert len(pasting.paste(full[:1], colour, p)) == 1, 'a grey picture stays grey'


def test_transparency_stays() -> None:
    for channels in (2, 4):
        full = noise(channels, 16, 16)
        edited = noise(channels - 1, 16, 16, seed=1)
        result = pasting.paste(full, edited, placement.centre_crop((16, 16), 16))
        assert torch.equal(result[-1], full[-1]) and torch.equal(result[:-1], edited)


def test_a_picture_smaller_than_the_crop_is_not_aliased() -> None:
    full = smooth(1, 16, 16)
    p = placement.centre_crop((16, 16), 64)
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 64, 64)
    result = pasting.paste(full, stripes, p)
    assert (result.float() - 127.5).abs().max() < 12, 'stripes finer than its pixels become their mean'
    assert (pasting.paste(full, pasting.take(full, p), p).int() - full.int()).abs().float().mean() < 1.5


def test_a_crop_that_reaches_over_the_border_is_mirrored_and_goes_back() -> None:
    full = smooth(1, 32, 32)
    p = placement.place(np.array([[1.0, 0, -8], [0, 1, -8]]), (32, 32), 24)
    crop = pasting.take(full, p)
    assert torch.equal(crop[:, 8:, 8:], full[:, :16, :16])
    assert torch.equal(crop[:, :8, 8:], full[:, :8, :16].flip(1)) and torch.equal(crop[:, 8:, :8],
                                                                                  full[:, :16, :8].flip(2))  # fmt: skip
    edited = torch.full([1, 24, 24], 255, dtype=torch.uint8)
    result = pasting.paste(full, edited, p, feather=0.2)
    assert result[0, 0, 0] == 255, 'no soft edge where the picture ends'
    assert full[0, 0, 14] < result[0, 0, 14] < 255 and torch.equal(result[:, 16:], full[:, 16:])
    away = placement.place(np.array([[1.0, 0, 100], [0, 1, 100]]), (32, 32), 24)
    assert torch.equal(pasting.paste(full, edited, away), full)


def test_the_soft_edge_is_a_smoothstep_of_the_distance() -> None:
    p = placement.place(np.array([[1.0, 0, 10], [0, 1, 10]]), (60, 60), 40)
    mask = pasting.soft_mask(p, 0.25, (0, 0), (60, 60))
    t = (np.arange(10) + 0.5) / 10
    np.testing.assert_allclose(mask[30, 10:20], t * t * (3 - 2 * t), rtol=1e-5)
    assert mask[30, :10].sum() == 0 and (mask[20:40, 20:40] == 1).all()
    assert torch.equal(mask, mask.T) and torch.equal(mask, mask.flip(0))


@pytest.mark.parametrize('change', [dict(full=torch.zeros([3, 9, 8], dtype=torch.uint8)), dict(feather=0.6),
                                    dict(edited=torch.zeros([3, 5, 4], dtype=torch.uint8)),
                                    dict(edited=torch.zeros([3, 4, 4])), dict(base=torch.zeros([2, 4, 4]))])
def test_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    good: dict[str, Any] = dict(full=noise(3, 8, 8), edited=noise(3, 4, 4), placement=placement.centre_crop((8, 8), 4))
    pasting.paste(**good)
    with pytest.raises(ValueError, match='full|crop|feather'):
        pasting.paste(**{**good, **change})
