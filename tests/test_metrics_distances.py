"""FID and KID as formulas: closed forms, and independent libraries on the same features."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics.feature_stats import FeatureStats
from metrics.frechet_inception_distance import frechet_distance, sqrt_product_trace
from metrics.kernel_inception_distance import kernel_distance, squared_mmd


def sample(n, d, seed, scale=1.0, shift=0.0):
    stream = np.random.RandomState(seed)
    return stream.randn(n, d) @ (np.eye(d) + 0.3 * stream.randn(d, d)) * scale + shift


def moments(x):
    stats = FeatureStats(capture_mean_cov=True)
    stats.append(x)
    return stats.get_mean_cov()


def test_with_equal_covariances_fid_is_the_squared_distance_of_the_means():
    cov = np.cov(sample(100, 6, seed=0).T)
    shift = np.arange(6.0)
    assert frechet_distance(shift, cov, np.zeros(6), cov) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_with_diagonal_covariances_fid_is_the_distance_of_the_deviations():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    expected = np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('ranks', [(8, 8), (8, 3), (3, 8), (3, 3), (0, 8)])
def test_trace_term_equals_the_matrix_root_at_any_rank(ranks):
    stream = np.random.RandomState(5)
    a, b = (factor @ factor.T for factor in (stream.randn(8, rank) for rank in ranks))
    expected = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    assert sqrt_product_trace(a, b) == pytest.approx(expected, abs=1e-5)


def test_fid_agrees_with_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    a, b = moments(sample(200, 16, seed=1)), moments(sample(150, 16, seed=2, scale=1.4, shift=0.5))
    expected = _compute_fid(*(torch.from_numpy(x) for x in (*a, *b)))
    assert frechet_distance(*a, *b) == pytest.approx(float(expected), rel=1e-8)


def test_kid_agrees_with_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = sample(50, 8, seed=1), sample(50, 8, seed=2, shift=0.5)
    assert squared_mmd(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-9)


def test_mmd_of_two_points_a_side_by_hand():
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0]])
    # Pairs within x: (0·1 + 1)³ = 1; within y: 1; across: (0·2 + 1)³, 1, (2 + 1)³ = 27, 1.
    assert squared_mmd(x, y) == pytest.approx(1 + 1 - 2 * (1 + 1 + 27 + 1) / 4)


def test_kid_is_unbiased_and_subsets_follow_the_seed():
    x, y = (np.random.RandomState(seed).randn(2000, 4) for seed in (1, 2))
    first = kernel_distance(x, y, num_subsets=50, max_subset_size=40, seed=0)
    assert first == kernel_distance(x, y, num_subsets=50, max_subset_size=40, seed=0)
    assert first != kernel_distance(x, y, num_subsets=50, max_subset_size=40, seed=1)
    spread = np.std([kernel_distance(x, y, 1, 40, seed=i) for i in range(50)])
    assert abs(first) < 3 * spread / np.sqrt(50) and spread > 0


def test_kid_with_the_whole_sample_needs_no_luck():
    x, y = sample(30, 4, seed=1), sample(30, 4, seed=2)
    assert kernel_distance(x, y, num_subsets=3, max_subset_size=1000) == pytest.approx(squared_mmd(y, x), rel=1e-9)


def test_kid_of_a_single_image_is_refused():
    with pytest.raises(UserError, match='at least 2'):
        kernel_distance(np.zeros([1, 4]), np.zeros([5, 4]), 1, 10)


def test_stats_give_numpy_mean_and_population_covariance_however_they_are_fed():
    x = sample(37, 5, seed=3).astype(np.float32)
    stats = FeatureStats(capture_all=True, capture_mean_cov=True, max_items=30)
    for start in range(0, 37, 7):
        stats.append(x[start : start + 7])
    mean, cov = stats.get_mean_cov()
    assert stats.is_full() and stats.num_items == 30
    np.testing.assert_array_equal(stats.get_all(), x[:30])
    np.testing.assert_allclose(mean, x[:30].astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x[:30].astype(float).T, bias=True), atol=1e-12)


def test_stats_survive_the_disk_without_pickle(tmp_path):
    stats = FeatureStats(capture_all=True, capture_mean_cov=True, max_items=9)
    stats.append(sample(9, 3, seed=0))
    path = str(tmp_path / 'stats.npz')
    stats.save(path)
    back = FeatureStats.load(path)
    np.testing.assert_array_equal(back.get_all(), stats.get_all())
    np.testing.assert_array_equal(back.get_mean_cov()[1], stats.get_mean_cov()[1])
    assert (back.max_items, back.num_items, back.is_full()) == (9, 9, True)


def test_a_pickle_in_place_of_stats_is_not_run(tmp_path):
    trap = np.empty([1], dtype=object)
    trap[0] = {'anything': 1}
    path = str(tmp_path / 'stats.npz')
    np.savez(path, header=trap, raw_mean=trap, raw_cov=trap, features=trap)
    with pytest.raises(ValueError, match='not feature statistics'):
        FeatureStats.load(path)


def test_stats_refuse_another_width_and_another_rank():
    stats = FeatureStats(capture_mean_cov=True)
    stats.append(np.zeros([2, 3]))
    with pytest.raises(ValueError, match='got 4 dimensions, expected 3'):
        stats.append(np.zeros([2, 4]))
    with pytest.raises(ValueError, match=r'expected \[N, D\]'):
        stats.append(np.zeros([2]))
