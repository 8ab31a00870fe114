"""Contact sheets: every picture in its place and unchanged, words where they belong, sizes that can be looked at."""

import pytest
import torch

from lia_plugin import images, sheets
from lia_plugin.images import WHITE


def tile(value: int, side: int = 128, channels: int = 3) -> torch.Tensor:
    return torch.full([channels, side, side], value, dtype=torch.uint8)


def test_pictures_stand_in_their_places_as_they_are() -> None:
    made = sheets.sheet([[tile(1), None, tile(3)], [tile(4)]])
    step = 128 + sheets.GAP
    assert made.shape == (3, 2 * step - sheets.GAP, 3 * step - sheets.GAP) and made.dtype == torch.uint8
    for row, column, value in ((0, 0, 1), (0, 1, WHITE), (0, 2, 3), (1, 0, 4), (1, 1, WHITE)):
        assert (made[:, row * step : row * step + 128, column * step : column * step + 128] == value).all()


def test_words_stand_above_in_front_and_below_and_not_on_the_pictures() -> None:
    rows = [[tile(9), tile(9)], [tile(9), tile(9)]]
    bare = sheets.sheet(rows)
    made = sheets.sheet(rows, ['a', 'b'], ['one', 'two'], ['c', 'd'])
    assert made.shape[1] == bare.shape[1] + 2 * sheets.LINE
    left = made.shape[2] - bare.shape[2]
    assert torch.equal(made[:, sheets.LINE : sheets.LINE + bare.shape[1], left:], bare)
    step = 128 + sheets.GAP
    for band in (made[:, : sheets.LINE, left : left + 128], made[:, : sheets.LINE, left + step :],
                 made[:, -sheets.LINE :, left : left + 128], made[:, sheets.LINE : sheets.LINE + 128, :left],
                 made[:, sheets.LINE + step : -sheets.LINE, :left]):  # fmt: skip
        assert band.min() < 128
    assert made[:, : sheets.LINE, :left].min() == WHITE


def test_long_words_are_cut_to_their_place() -> None:
    made = sheets.sheet([[tile(9), None]], ['a name that is far longer than its picture is wide, by any measure', ''])
    assert made[:, : sheets.LINE, 128 + sheets.GAP :].min() == WHITE
    wide = sheets.sheet([[tile(9)]], captions=['w' * 500])
    assert wide.shape[2] <= 128 + sheets.MAX_CAPTION + 2 * sheets.MARGIN


def test_small_pictures_are_magnified_without_new_colours_and_large_ones_reduced() -> None:
    small = torch.randint(0, 256, [1, 32, 32], dtype=torch.uint8)
    made = sheets.sheet([[small]])
    assert torch.equal(made[:, ::4, ::4], small.expand(3, -1, -1)) and made.shape == (3, 128, 128)
    checks = (torch.arange(512)[:, None] + torch.arange(512)).remainder(2).mul(200).to(torch.uint8)[None]
    assert torch.equal(sheets.sheet([[checks]]), torch.full([3, 256, 256], 100, dtype=torch.uint8))
    assert sheets.sheet([[tile(5, 40)]], side=100).shape == (3, 100, 100)
    assert sheets.sheet([[torch.zeros([3, 20, 40])]], side=60).shape == (3, 60, 120)


def test_floats_and_greys_are_shown_alike() -> None:
    assert torch.equal(sheets.sheet([[torch.ones([1, 64, 64])]]), sheets.sheet([[tile(255, 64)]]))


def test_sheets_beneath_each_other() -> None:
    made = sheets.stack([tile(1, 10), tile(2, 20)], gap=5)
    assert made.shape == (3, 35, 20)
    assert (made[:, :10, :10] == 1).all() and (made[:, :10, 10:] == WHITE).all() and (made[:, 15:] == 2).all()


def test_what_is_no_sheet() -> None:
    with pytest.raises(ValueError, match='one shape'):
        sheets.sheet([[tile(1), tile(1, 64)]])
    with pytest.raises(ValueError, match='none'):
        sheets.sheet([[None]])
    with pytest.raises(ValueError, match='captions: expected 1, got 2'):
        sheets.sheet([[tile(1)]], captions=['a', 'b'])


@pytest.mark.parametrize('columns, resolution, side', [(3, 16, None), (12, 1024, None), (5, 32, 100), (1, 8, 8)])
def test_the_rows_that_have_room_make_no_larger_sheet(columns: int, resolution: int, side: int | None) -> None:
    rows = sheets.most_rows(columns, resolution, side)
    tile = torch.zeros([1, resolution, resolution], dtype=torch.uint8)
    row = sheets.sheet([[tile] * columns], ['a'] * columns, ['caption ' * 30], side=side)
    assert 0.3 * images.MAX_PIXELS < rows * row.shape[1] * row.shape[2] <= images.MAX_PIXELS


@pytest.mark.parametrize('resolution, side', [(512, None), (600, 96), (16, None), (16, 50)])
def test_a_sheet_of_shrunk_pictures_is_that_of_whole_ones(resolution: int, side: int | None) -> None:
    tiles = torch.randint(256, [2, 3, resolution, resolution], generator=torch.Generator().manual_seed(0)).byte()
    small = sheets.shrunk(tiles, side)
    assert small.shape[2] == min(resolution, side or sheets.SIDE)
    assert torch.equal(small[1], sheets.shrunk(tiles[1], side))
    assert torch.equal(sheets.sheet([[*small]], side=side), sheets.sheet([[*tiles]], side=side))
