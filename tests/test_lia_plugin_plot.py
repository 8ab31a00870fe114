"""The plot of points: where they come to lie, which marks the axes have, and names that cover nothing."""

import pytest
import torch

from lia_plugin import plot


def test_an_axis_is_logarithmic_with_all_values_inside() -> None:
    axis = plot.axis([0.01, 1.0, 100.0], start=0, end=100)
    low, middle, high = (axis.pixel(value) for value in (0.01, 1.0, 100.0))
    assert 0 < low < high < 100
    assert middle - low == pytest.approx(high - middle)


def test_one_value_has_an_axis_too() -> None:
    assert plot.axis([3.0], 0, 100).pixel(3.0) == pytest.approx(50)


@pytest.mark.parametrize(
    'low, high, expected', [(0.09, 1.1, [0.1, 0.2, 0.5, 1.0]), (0.001, 1000, [0.001, 0.01, 0.1, 1, 10, 100, 1000])])
def test_marks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert plot.Axis(low, high, 0, 1).ticks() == expected


@pytest.mark.parametrize('values', [[], [0.0, 1.0], [-1.0], [float('nan')], [float('inf'), 1.0]])
def test_values_without_a_logarithm_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match='above 0'):
        plot.axis(values, 0, 1)


def test_points_lie_where_their_axes_say() -> None:
    points = [plot.Point(0.01, 0.5, 'fast'), plot.Point(10.0, 0.02, 'slow')]
    picture = plot.scatter(points, 'title', 'x', 'y')
    assert picture.shape == (3, plot.HEIGHT, plot.WIDTH) and picture.dtype == torch.uint8
    across = plot.axis([p.x for p in points], plot.LEFT, plot.WIDTH - plot.RIGHT)
    up = plot.axis([p.y for p in points], plot.HEIGHT - plot.BOTTOM, plot.TOP)
    for point in points:
        pixel = picture[:, round(up.pixel(point.y)), round(across.pixel(point.x))]
        assert tuple(pixel.tolist()) == plot.POINT
    assert up.pixel(0.02) > up.pixel(0.5), 'large values are at the top'


def test_points_of_a_group_are_joined() -> None:
    points = [plot.Point(10.0, 0.1, 'c', 'g'), plot.Point(0.1, 0.1, 'a', 'g'), plot.Point(1.0, 0.1, 'b')]
    across = plot.axis([p.x for p in points], plot.LEFT, plot.WIDTH - plot.RIGHT)
    row = round(plot.axis([0.1], plot.HEIGHT - plot.BOTTOM, plot.TOP).pixel(0.1))
    column = round((across.pixel(0.1) + across.pixel(1.0)) / 2)
    for group, joined in (('g', True), ('', False)):
        picture = plot.scatter([p._replace(group=p.group and group) for p in points], 'title', 'x', 'y')
        found = [tuple(picture[:, row + k, column].tolist()) for k in (-1, 0, 1)]
        assert (plot.POINT in found) == joined


def test_names_of_neighbours_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[float, float, float, float]] = []
    place = plot._name

    def spy(draw: object, font: object, name: str, x: float, y: float, taken: list) -> None:
        place(draw, font, name, x, y, taken)  # type: ignore[arg-type]
        boxes.append(taken[-1])

    monkeypatch.setattr(plot, '_name', spy)
    plot.scatter([plot.Point(1.0, 1.0 + 0.001 * i, f'method {i}') for i in range(4)], 'title', 'x', 'y')
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
