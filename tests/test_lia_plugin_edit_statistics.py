"""Statistics of edits: closed forms, and intervals that cover as often as they say."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from lia_plugin import edit_statistics as st


def test_balanced_accuracy_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    assert st.balanced_accuracy(labels, found) == pytest.approx(balanced_accuracy_score(labels, found))
    assert np.isnan(st.balanced_accuracy(labels[:0], found[:0]))


def test_crossing_is_linear_between_amounts_and_first():
    curves = np.array([[0, 0.2, 0.6, 0.4, 0.9], [0, 0, 0, 0.1, 0.2], [0.7, 0, 0, 0, 1], [0, 0.4, 0.4, 0.4, 0.6]])
    np.testing.assert_allclose(st.crossing(curves, 0.5), [1.75, np.nan, 0, 3.5])
    assert st.crossing(np.array([0, 0.5]), 0.5) == 1


def test_values_at_a_place():
    curve = np.array([0.0, 10, 20, np.inf])
    np.testing.assert_allclose(st.at_place(np.stack([curve] * 4), np.array([0.25, 2, np.nan, 3])),
                               [2.5, 20, np.nan, np.inf])


def test_weights_sum_to_one_and_repeat():
    weights = st.resample_weights(7, seed=3, resamples=20)
    assert weights.shape == (20, 7) and np.allclose(weights.sum(axis=1), 1)
    assert np.array_equal(weights, st.resample_weights(7, seed=3, resamples=20))
    assert not np.array_equal(weights, st.resample_weights(7, seed=4, resamples=20))


def test_interval_covers_a_known_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = rng.normal(5, 2, 80)
        estimate = st.interval(float(values.mean()), st.resample_weights(80, trial, 300) @ values)
        covered += estimate.low <= 5 <= estimate.high
        assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 2 / np.sqrt(80), rel=0.5)
    assert 0.89 <= covered / 200 <= 0.985


def test_equal_success_of_thresholds_has_a_closed_form():
    # Image i changes at amount i + 1 of 4: half of them have at 2, where the cost, amount², is 4; between 4 it is not.
    success = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], float)
    amounts = np.arange(5.0)
    cost = np.repeat(amounts[:, None] ** 2, 4, axis=1)
    weights = st.resample_weights(4, 0, 500)
    found = st.at_equal_success(success, {'amount': amounts, 'cost': cost}, 0.5, weights)
    assert found['amount'].value == 2 and found['cost'].value == 4
    assert found['cost'].estimate().low <= 4 <= found['cost'].estimate().high
    missed = st.at_equal_success(success[:2], {'amount': amounts[:2]}, 0.5, weights)['amount'].estimate()
    assert np.isnan(missed.value) and 0 < missed.found < 1


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    success = np.linspace(0, 1, 5)[:, None] * np.ones(40)
    cost = rng.normal(10, 5, [5, 40])
    weights = st.resample_weights(40, 0)
    one = st.at_equal_success(success, {'cost': cost}, 0.5, weights)['cost']
    two = st.at_equal_success(success, {'cost': cost + 1}, 0.5, weights)['cost']
    difference = two.minus(one)
    assert difference == pytest.approx((1, 1, 1, 1))  # Images vary by 5, but each by 1 between the edits.
    assert one.estimate().high - one.estimate().low > 2
