"""Fréchet distances against closed forms and SciPy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from lia_plugin import frechet


def random_gaussian(seed, dim=6):
    stream = np.random.default_rng(seed)
    return stream.standard_normal(dim), np.cov(stream.standard_normal([dim, 3 * dim]))


def test_distance_of_two_gaussians_agrees_with_scipy():
    (mean_a, cov_a), (mean_b, cov_b) = random_gaussian(0), random_gaussian(1)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet.frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet_distance(mean_a, cov_a, mean_a, cov_a) == pytest.approx(0, abs=1e-9)
    standard = frechet.frechet_distance(mean_a, cov_a, np.zeros(6), np.eye(6))
    assert frechet.frechet_to_standard_normal(mean_a, cov_a) == pytest.approx(standard, rel=1e-9)


def test_moments_of_vectors_that_come_in_parts():
    rows = np.random.default_rng(0).standard_normal([50, 4]) + 3
    moments = frechet.Moments(4)
    for part in np.split(rows, [1, 20]):
        moments.add(part)
    mean, cov = moments.mean_and_cov(50)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)


def test_frechet_distance_to_the_standard_normal_in_closed_form():
    distance = frechet.frechet_to_standard_normal
    assert distance(np.array([3.0, 4.0]), np.diag([4.0, 9.0])) == pytest.approx(25 + 1 + 4)
    assert distance(np.zeros(5), np.eye(5)) == pytest.approx(0, abs=1e-12)


def test_the_floor_is_what_true_samples_of_this_number_get():
    z = np.random.RandomState(0).randn(60, 20)
    true = frechet.frechet_to_standard_normal(z.mean(axis=0), np.cov(z.T, bias=True))
    assert frechet.frechet_floor(60, 20) == pytest.approx(true, rel=0.3)
    assert frechet.frechet_floor(10000, 20) < 0.02 * true
