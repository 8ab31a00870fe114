"""Plain axes: where things come to lie, which marks there are, and colours that go from one end to the other."""

import numpy as np
import pytest
import torch

from lia_plugin import canvas
from lia_plugin.canvas import Key, Panel, Range


@pytest.mark.parametrize(
    'axis, expected',
    [(Range(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]), (Range(-3, 12), [0, 5, 10]),
     (Range(0.013, 0.021), [0.014, 0.016, 0.018, 0.02]), (Range(-1e6, 1e6), [-1e6, -5e5, 0, 5e5, 1e6])],
)  # fmt: skip
def test_marks_are_round_and_inside(axis: Range, expected: list[float]) -> None:
    assert canvas.ticks(axis) == pytest.approx(expected)


def test_a_span_has_everything_inside() -> None:
    low, high = canvas.span([2.0, -1.0, 5.0], room=0.1)
    assert (low, high) == pytest.approx((-1.6, 5.6))
    assert canvas.span([3.0]).low < 3 < canvas.span([3.0]).high
    assert canvas.span([0.0]) == Range(-0.5, 0.5)


@pytest.mark.parametrize('values', [[], [float('nan')], [1.0, float('inf')]])
def test_a_span_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match='all finite'):
        canvas.span(values)


def colour_at(picture: torch.Tensor, place: np.ndarray) -> tuple[int, ...]:
    return tuple(picture[:, round(place[1]), round(place[0])].tolist())


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_points_and_lines_lie_where_the_axes_say() -> None:
    panel = Panel(Range(0, 10), Range(-1, 1), 'title', 'x', 'y', width=300, height=200)
    panel.points([[2, 0.5]], canvas.RED, 4)
    panel.line([[4, -0.6], [8, -0.6]], canvas.GREEN, 4)
    picture = panel.picture()
    assert picture.shape == (3, 200, 300) and picture.dtype == torch.uint8
    dot, middle, beside = panel.pixels([[2, 0.5], [6, -0.6], [9, -0.6]])
    assert dot[0] == pytest.approx(panel.left + 0.2 * (panel.right - panel.left))
    assert dot[1] == pytest.approx(panel.bottom - 0.75 * (panel.bottom - panel.top))
    assert colour_at(picture, dot) == rgb(canvas.RED) and colour_at(picture, middle) == rgb(canvas.GREEN)
    assert colour_at(picture, beside) == (255, 255, 255)


def test_equal_axes_have_one_unit() -> None:
    panel = Panel(Range(0, 1), Range(0, 5), 'title', width=400, height=300, marks=False, equal=True)
    origin, across, up = panel.pixels([[0, 0], [1, 0], [0, 1]])
    assert across[0] - origin[0] == pytest.approx(origin[1] - up[1])
    assert panel.x.low <= 0 < 1 <= panel.x.high and panel.y.low <= 0 < 5 <= panel.y.high


@pytest.mark.parametrize('corner', ['left', 'right'])
def test_a_legend_shows_each_colour_in_its_corner(corner: str) -> None:
    panel = Panel(Range(0, 1), Range(0, 1), '', width=300, height=200)
    panel.legend([Key('a line', canvas.RED), Key('points', canvas.GREEN, is_line=False)], corner)
    picture = panel.picture()
    half = picture[:, :, :150] if corner == 'left' else picture[:, :, 150:]
    seen = {tuple(pixel) for pixel in half.flatten(1).T.tolist()}
    assert {rgb(canvas.RED), rgb(canvas.GREEN)} <= seen


def test_a_rainbow_goes_from_blue_to_red() -> None:
    blue, middle, red = (rgb(colour) for colour in canvas.rainbow([0, 0.5, 1]))
    assert blue[2] > blue[0] and red[0] > red[2] and middle not in (blue, red)
    assert canvas.rainbow([-1, 2]) == canvas.rainbow([0, 1])


def test_pictures_side_by_side() -> None:
    a, b = torch.zeros([3, 4, 5], dtype=torch.uint8), torch.ones([3, 4, 2], dtype=torch.uint8)
    assert torch.equal(canvas.beside([a, b])[:, :, 5:], b)
