"""Paths through codes: closed forms of lines and arcs, SciPy's splines, exact keyframes."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.interpolate
import torch

from lia_plugin import paths


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_an_arc_has_even_angles_and_even_lengths() -> None:
    a, b = torch.tensor([2.0, 0, 0]), torch.tensor([0, 4.0, 0])
    path = paths.slerp(a, b, torch.linspace(0, 1, 5))
    angles, lengths = torch.atan2(path[:, 1], path[:, 0]), path.norm(dim=1)
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))
    torch.testing.assert_close(lengths, torch.linspace(2, 4, 5))


@pytest.mark.parametrize('line', [paths.lerp, paths.slerp])
def test_ends_are_exact_and_rows_independent(line: Any) -> None:
    a, b = draw(3, 7), draw(3, 7, seed=1)
    path = line(a, b, torch.tensor([0, 0.3, 1]))
    assert torch.equal(path[0], a) and torch.equal(path[2], b)
    torch.testing.assert_close(path[:, 1], line(a[1], b[1], torch.tensor([0, 0.3, 1])))


def test_a_straight_line_divides_evenly() -> None:
    torch.testing.assert_close(paths.lerp(draw(4), draw(4, seed=1), torch.tensor([0.25]))[0],
                               0.75 * draw(4) + 0.25 * draw(4, seed=1))


def test_parallel_codes_have_no_arc_but_a_line() -> None:
    a = draw(6)
    torch.testing.assert_close(paths.slerp(a, 3 * a, torch.tensor([0.5]))[0], 2 * a)
    assert paths.slerp(a, a * (1 + 1e-6), torch.linspace(0, 1, 9)).isfinite().all()


def test_opposite_codes_are_refused() -> None:
    with pytest.raises(ValueError, match='opposite'):
        paths.slerp(draw(6), -2 * draw(6), torch.tensor([0.5]))


@pytest.mark.parametrize('closed, condition', [(False, 'not-a-knot'), (True, 'periodic')])
def test_a_cubic_path_is_scipys_spline(closed: bool, condition: str) -> None:
    keys, t = draw(5, 3, 4), torch.linspace(0, 4, 17)
    points = np.concatenate([keys, keys[:1]]) if closed else keys.numpy()
    expected = scipy.interpolate.CubicSpline(np.arange(len(points)), points, bc_type=condition)(t.numpy())
    np.testing.assert_allclose(paths.Cubic(keys, closed)(t), expected, atol=1e-5)


def test_a_cubic_path_keeps_the_length_that_its_ends_have() -> None:
    keys = draw(4, 64)
    path = paths.walk(keys, 4, 'cubic', spherical=True)
    norms = keys.norm(dim=1)
    torch.testing.assert_close(path.norm(dim=1)[2], (norms[0] + norms[1]) / 2)
    torch.testing.assert_close(path[::4], keys)


@pytest.mark.parametrize('kind', paths.KINDS)
@pytest.mark.parametrize('spherical', [False, True])
@pytest.mark.parametrize('closed', [False, True])
def test_a_walk_meets_its_keyframes(kind: str, spherical: bool, closed: bool) -> None:
    keys = draw(4, 2, 6)
    path = paths.walk(keys, 3, kind, closed, spherical)
    assert len(path) == (12 if closed else 10)
    torch.testing.assert_close(path[::3], keys)


def test_a_closed_cubic_walk_has_no_seam() -> None:
    path = paths.walk(draw(4, 6), 200, 'cubic', closed=True)
    steps = torch.cat([path, path[:2]]).diff(dim=0)
    assert (steps[1:] - steps[:-1]).norm(dim=1).max() < 0.02 * steps.norm(dim=1).max()


@pytest.mark.parametrize('closed', [False, True])
def test_a_curve_through_zero_keeps_no_length(closed: bool) -> None:
    """Between opposite keyframes there is no shortest way on the sphere, for a spline as little as for an arc."""
    keys = torch.stack([draw(6), -draw(6)])
    with pytest.raises(ValueError, match='opposite'):
        paths.walk(keys, 4, 'cubic', closed, spherical=True)
    assert paths.walk(keys, 4, 'cubic', closed).isfinite().all()


@pytest.mark.parametrize('kind', paths.KINDS)
@pytest.mark.parametrize('closed', [False, True])
@pytest.mark.parametrize('spherical', [False, True])
def test_parts_of_a_walk_are_the_whole(kind: str, closed: bool, spherical: bool) -> None:
    walk = paths.Walk(draw(4, 2, 6), 5, kind, closed, spherical)
    whole = walk.at(0, len(walk))
    assert len(whole) == len(walk) == (20 if closed else 16)
    cuts = [0, 1, 4, 13, len(walk) - 1, len(walk)]
    torch.testing.assert_close(torch.cat([walk.at(i, k) for i, k in zip(cuts, cuts[1:])]), whole)


def test_a_spline_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a video of many frames fits it for every batch of them."""
    walk = paths.Walk(draw(4, 6), 3, 'cubic', closed=True)
    monkeypatch.setattr(scipy.interpolate, 'CubicSpline', None)
    assert walk.at(2, 5).shape == (3, 6)


@pytest.mark.parametrize('keys, steps, kind', [(draw(1, 4), 3, 'linear'), (draw(2, 4), 0, 'linear'),
                                               (draw(2, 4), 3, 'round')])
def test_walks_that_cannot_be(keys: torch.Tensor, steps: int, kind: str) -> None:
    with pytest.raises(ValueError, match='walk'):
        paths.walk(keys, steps, kind)
