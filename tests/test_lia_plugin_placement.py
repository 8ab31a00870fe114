"""Placements: their maths, and files that hold them."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest

from lia_plugin import placement


def turned(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def test_centre_crop_of_wide_tall_and_odd_pictures() -> None:
    for size, corners in (((8, 4), [2, 0, 6, 4]), ((3, 7), [0, 2, 3, 5]), ((6, 6), [0, 0, 6, 6])):
        found = placement.centre_crop(size, 16).corners
        assert [*found[0], *found[2]] == corners


def test_inverse_and_scale() -> None:
    p = placement.place(turned(0.3, 2.5, 10, -4), (100, 80), 32)
    points = np.random.default_rng(0).normal(size=[5, 2])
    there = placement.apply_affine(p.array, points)
    np.testing.assert_allclose(placement.apply_affine(p.inverse, there), points, atol=1e-12)
    assert p.scale == pytest.approx(2.5)
    composed = placement.compose_affine(p.inverse, p.array)
    np.testing.assert_allclose(composed, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_json_round_trip_is_exact() -> None:
    p = placement.place(turned(0.1, 1 / 3, 2, 3), (30, 20), 8, 'faces.zip', 'a/ü.png')
    assert placement.Placement.from_json(json.loads(json.dumps(p.to_json()))) == p
    assert p.label == 'faces.zip:a/ü.png'


def test_arrays_round_trip_through_an_npz_with_gaps() -> None:
    known = placement.place(turned(0.1, 1 / 3, 2, 3), (30, 20), 8, 'a.png')
    member = placement.place(turned(0, 2, 0, 0), (16, 16), 8, 'b.zip', 'c.png')
    file = io.BytesIO()
    np.savez(file, **placement.to_arrays([known, None, member]))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert placement.from_arrays(dict(arrays), 3) == (known, None, member)
        with pytest.raises(ValueError, match='expected 2 of each'):
            placement.from_arrays(dict(arrays), 2)
        damaged = {key: value for key, value in arrays.items() if key != 'placement.size'}
        with pytest.raises(ValueError, match='placement.size'):
            placement.from_arrays(damaged, 3)
    assert placement.from_arrays({}, 2) == (None, None)


@pytest.mark.parametrize('matrix', [np.zeros([2, 3]), np.full([2, 3], np.nan), np.eye(3), np.array([1.0])])
def test_refuses_what_is_no_placement(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match='placement'):
        placement.place(matrix, (4, 4), 4)


@pytest.mark.parametrize('change', [dict(size=[0, 3]), dict(size=[1]), dict(resolution='x'), dict(matrix=[[1, 2], [3]]),
                                    dict(matrix=None), dict(size=None)])
def test_refuses_json_of_another_form(change: dict[str, object]) -> None:
    content = placement.centre_crop((4, 4), 4).to_json()
    with pytest.raises(ValueError):
        placement.Placement.from_json({**content, **change})
