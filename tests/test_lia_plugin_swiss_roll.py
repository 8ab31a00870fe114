"""The Swiss roll's geometry against quadrature and search, its density against its own samples, and φ fitted to it."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from lia_plugin import figure_swiss_roll, swiss_roll
from lia_plugin.figure_base import Exhibit, Options
from lia_plugin.swiss_roll import Roll, RollFit

ROLL = Roll()


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize('stop', [1.6 * math.pi, 3 * math.pi, ROLL.stop])
def test_arc_length_is_the_integral_of_speed(stop: float) -> None:
    def speed(t: float) -> float:
        return ROLL.pitch * math.hypot(1, t)  # |d/dt a·t·(cos t, sin t)|

    assert float(ROLL.arc_length(np.array(stop))) == pytest.approx(integrate.quad(speed, ROLL.start, stop)[0])
    # And of what the code draws: the length of a fine polygon.
    t = np.linspace(ROLL.start, stop, 20001)
    assert np.linalg.norm(np.diff(ROLL.spiral(t), axis=0), axis=1).sum() == pytest.approx(
        float(ROLL.arc_length(np.array(stop))), rel=1e-6)


def test_angles_undo_arc_lengths() -> None:
    t = np.linspace(ROLL.start, ROLL.stop, 77)
    np.testing.assert_allclose(ROLL.angle(ROLL.arc_length(t)), t, atol=1e-12)


def test_the_unrolled_roll_keeps_lengths() -> None:
    """A path on the roll is as long as its image in the rectangle: so straight lines there are the shortest ways."""
    t = np.linspace(0, 1, 5001)[:, None]
    a, b = np.array([[0.5, 0.2]]), np.array([[8.0, 2.7]])
    for flat in (a + (b - a) * t, a + (b - a) * np.concatenate([t, t**3], axis=1)):
        on_roll = np.linalg.norm(np.diff(ROLL.embed(flat), axis=0), axis=1).sum()
        assert on_roll == pytest.approx(np.linalg.norm(np.diff(flat, axis=0), axis=1).sum(), rel=1e-5)
    assert ROLL.geodesic(a, b)[0] == pytest.approx(math.hypot(7.5, 2.5))
    assert ROLL.geodesic(a, b)[0] > np.linalg.norm(ROLL.embed(b) - ROLL.embed(a))


def test_points_of_the_roll_are_on_it() -> None:
    assert ROLL.distance(ROLL.embed(ROLL.draw(500, stream()))).max() < 1e-9


def test_distance_is_what_a_search_finds() -> None:
    points = stream(1).uniform(-2.5, 2.5, [40, 3])

    def best(p: np.ndarray) -> float:
        def away(t: float) -> float:
            plane = ROLL.spiral(np.array(t)) - p[[0, 2]]
            beyond = max(abs(p[1]) - ROLL.height / 2, 0)
            return math.sqrt(float(plane @ plane) + beyond**2)

        starts = np.linspace(ROLL.start, ROLL.stop, 24)
        return min(optimize.minimize_scalar(away, bounds=pair, method='bounded', options=dict(xatol=1e-10)).fun
                   for pair in zip(starts[:-1], starts[1:]))  # fmt: skip

    np.testing.assert_allclose(ROLL.distance(points), [best(p) for p in points], atol=1e-6)


def test_off_the_spiral_by_a_known_step() -> None:
    """Along the normal of the spiral, less than half way to the next turn, the distance is the step."""
    t = np.linspace(ROLL.start + 0.1, ROLL.stop - 0.1, 50)
    tangent = np.stack([np.cos(t) - t * np.sin(t), np.sin(t) + t * np.cos(t)], axis=1)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.linalg.norm(tangent, axis=1)[:, None]
    for step in (0.2, -0.2):
        plane = ROLL.spiral(t) + step * normal
        points = np.stack([plane[:, 0], 0 * t, plane[:, 1]], axis=1)
        np.testing.assert_allclose(ROLL.distance(points), 0.2, atol=1e-9)
        points[:, 1] = ROLL.height / 2 + 0.15
        np.testing.assert_allclose(ROLL.distance(points), math.hypot(0.2, 0.15), atol=1e-9)


def test_samples_are_even_over_the_area() -> None:
    flat = ROLL.draw(20000, stream())
    assert (flat.min(axis=0) >= 0).all() and (flat.max(axis=0) <= [ROLL.length, ROLL.height]).all()
    np.testing.assert_allclose(flat.mean(axis=0), [ROLL.length / 2, ROLL.height / 2], rtol=0.02)


def test_the_density_integrates_to_one_and_is_that_of_the_samples() -> None:
    wide, step = Roll(noise=0.3), 0.3
    places = np.arange(-3.6, 3.7, step)  # With steps of one deviation the sum of a Gaussian is its integral.
    points = np.stack(np.meshgrid(places, places, places), axis=-1).reshape(-1, 3)
    assert np.exp(wide.log_density(points)).sum() * step**3 == pytest.approx(1, abs=1e-3)
    # Far from all edges it is the area's, blurred across in one dimension.
    inner = ROLL.embed(np.array([[ROLL.length / 2, ROLL.height / 2]]))
    expected = -math.log(ROLL.length * ROLL.height) - 0.5 * math.log(2 * math.pi * ROLL.noise**2)
    assert ROLL.log_density(inner)[0] == pytest.approx(expected, abs=0.02)
    far = inner + [[0, 50.0, 0]]
    assert np.isfinite(ROLL.log_density(far)).all() and ROLL.log_density(far)[0] < -1000


def test_noise_comes_down_to_its_own() -> None:
    settings = RollFit(steps=100, blur=8, blurred=0.5)
    noises = [swiss_roll.noise_at(ROLL, settings, step) for step in range(100)]
    assert noises[0] == pytest.approx(8 * ROLL.noise) and noises[25] == pytest.approx(8**0.5 * ROLL.noise)
    assert noises == sorted(noises, reverse=True) and noises[50] == noises[99] == ROLL.noise


def test_a_fresh_phi_is_the_identity_and_the_callers_randomness_stays() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    phi = swiss_roll.make_phi(RollFit(couplings=4, hidden=8))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn([5, 3])
    torch.testing.assert_close(phi(x)[0], x)
    with pytest.raises(AssertionError):  # An odd number of reversals is one.
        torch.testing.assert_close(swiss_roll.make_phi(RollFit(couplings=3, hidden=8))(x)[0], x)


def test_a_short_fit_raises_the_likelihood() -> None:
    steps: list[int] = []
    phi = swiss_roll.fit(ROLL, RollFit(steps=60, batch=128, couplings=6, hidden=16), steps.append)
    found = figure_swiss_roll.likelihoods(ROLL, phi, stream(3))
    assert steps == list(range(1, 61))
    assert found['gaussian'] < found['phi'] < found['truth']


def test_paths_of_a_phi_that_does_nothing_are_straight() -> None:
    """With the identity for φ a straight line in z is one in the data, with all its figures."""
    phi = swiss_roll.make_phi(RollFit(couplings=2, hidden=4)).requires_grad_(False)
    start, stop = ROLL.draw(20, stream(4)), ROLL.draw(20, stream(5))
    walked = figure_swiss_roll.ways_between(ROLL, phi, start, stop)
    np.testing.assert_allclose(walked.ways['straight in z'], walked.ways['straight in the data'], atol=1e-5)
    figures = figure_swiss_roll.measure(ROLL, walked)
    chord = np.linalg.norm(ROLL.embed(stop) - ROLL.embed(start), axis=1)
    assert figures['straight in the data']['length'] == pytest.approx(chord.mean())
    assert figures['along the roll']['distance'] < 1e-9 and figures['along the roll']['on_roll'] == 1
    assert figures['along the roll']['length_ratio'] == pytest.approx(1, abs=1e-3)
    assert figures['straight in the data']['distance'] > 0.1


def test_paths_are_measured_by_length_however_their_points_are_spread() -> None:
    """A leap off the roll and back in few of many points weighs as much as it is long."""
    flat = np.stack([np.linspace(2, 4, 9), np.full(9, 1.5)], axis=1)
    slow, end = ROLL.embed(flat), ROLL.embed(flat[-1:])
    out = end + np.array([[0.0, 2.0, 0.0]])  # Two beyond the roll's middle, half of a unit beyond its edge.
    sparse = np.concatenate([slow, out])[:, None]
    dense = np.concatenate([slow, end + (out - end) * np.linspace(0, 1, 401)[1:, None]])[:, None]
    for way, rtol in ((sparse, 1e-12), (dense, 1e-12)):
        share = figure_swiss_roll.shares(way)
        np.testing.assert_allclose(share.sum(axis=0), 1, rtol=rtol)
    half = figure_swiss_roll.shares(sparse)[-1, 0]
    assert half == pytest.approx(1 / np.linalg.norm(np.diff(sparse[:, 0], axis=0), axis=1).sum())
    walked = figure_swiss_roll.Walked(flat[:1], flat[-1:], dict(leap=dense))
    found = figure_swiss_roll.measure(ROLL, walked)['leap']
    beyond = 0.5 - 3 * ROLL.noise  # Of the way out, what lies more than 3 deviations over the edge.
    assert found['on_roll'] == pytest.approx(1 - beyond / found['length'], abs=2e-3)
    assert found['distance'] == pytest.approx(0.5**2 / 2 / found['length'], rel=1e-2)
    assert found['wholly_on_roll'] == 0 and found['farthest'] == pytest.approx(0.5)


def test_a_weighted_median_is_that_of_repeated_values() -> None:
    values, weights = stream().standard_normal([7, 3]), stream(1).integers(1, 5, [7, 3])
    expected = np.quantile(np.repeat(values.ravel(), weights.ravel()), 0.5, method='inverted_cdf')
    assert figure_swiss_roll.weighted_median(values, weights.astype(float)) == expected


def test_the_figure_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_swiss_roll, 'PAIRS', 12)
    monkeypatch.setattr(figure_swiss_roll, 'SHOWN', 50)
    monkeypatch.setattr(figure_swiss_roll, 'HELD_OUT', 200)
    shares: list[float] = []
    found = figure_swiss_roll.draw(Exhibit(Options(roll_steps=3)), shares.append)
    assert set(found.pictures) == {'', 'z'} and shares == sorted(shares)
    assert set(found.numbers['paths']) == set(figure_swiss_roll.KINDS)
    assert len(found.tables[0][1]) == 4 and len(found.tables[1][1]) == 3


def test_the_picture_axes_are_a_right_angled_frame() -> None:
    frame = np.stack(figure_swiss_roll.oblique_axes())
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert frame[1, 2] > 0.5, 'the spiral\'s second axis points upwards'
