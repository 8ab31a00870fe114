"""Inception score: closed forms, torchmetrics as oracle, and what its probabilities are."""

import numpy as np
import pytest
import torch
from generator_fakes import Flat, LinearGenerator, Logits, latents, save_script

from dnnlib.util import UserError
from metrics import metric_main
from metrics.inception_score import inception_score, to_probabilities

CPU = torch.device('cpu')


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def calc(detector, num=40):
    return metric_main.calc_metric('is50k', G=LinearGenerator(), num=num, device=CPU, detector=detector)


def test_certain_and_diverse_gives_the_number_of_classes_and_indifference_gives_one():
    certain = np.tile(np.eye(5), [8, 1])
    assert inception_score(certain, 4) == pytest.approx((5, 0))
    assert inception_score(np.full([40, 5], 0.2), 4) == pytest.approx((1, 0))
    assert inception_score(np.eye(5)[[2] * 40], 4) == pytest.approx((1, 0)), 'certain, but always the same'


def test_two_kinds_of_rows_by_hand():
    p = np.array([[0.75, 0.25], [0.25, 0.75]] * 5)
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert inception_score(p, 1) == pytest.approx((np.exp(divergence), 0))


@pytest.mark.parametrize('splits', [1, 3])
def test_agrees_with_torchmetrics(splits, monkeypatch):
    from torchmetrics.image.inception import InceptionScore

    class Identity(torch.nn.Module):
        def forward(self, x):
            return x

    monkeypatch.setattr(torch, 'randperm', torch.arange)  # It shuffles; published scores don't.
    logits = np.random.RandomState(0).randn(90, 7).astype(np.float64) * 2
    oracle = InceptionScore(feature=Identity(), splits=splits)
    oracle.update(torch.from_numpy(logits))
    mean, std = inception_score(softmax(logits), splits)
    assert mean == pytest.approx(float(oracle.compute()[0]), rel=1e-6)
    if splits > 1:  # Its deviation is that of a sample.
        assert std * np.sqrt(splits / (splits - 1)) == pytest.approx(float(oracle.compute()[1]), rel=1e-5)


def test_splits_are_consecutive_and_leave_out_nothing():
    p = softmax(np.random.RandomState(1).randn(23, 4))
    parts = [inception_score(p[start:stop], 1)[0] for start, stop in ((0, 7), (7, 15), (15, 23))]
    assert inception_score(p, 3) == pytest.approx((np.mean(parts), np.std(parts)))


def test_the_score_of_a_stand_in_is_what_its_formula_says(tmp_path):
    result = calc(save_script(Flat(), tmp_path / 'flat.pt'))
    pixels = np.full([40, 4], 128.0)
    pixels[:, :3] = np.clip(latents(40) / 100 * 127.5 + 128, 0, 255).astype(np.uint8)
    expected = inception_score(softmax(pixels / 127.5 * 20), 10)
    assert (result.results.is50k_mean, result.results.is50k_std) == pytest.approx(expected, rel=1e-5)
    assert result.n == 40 and result.splits == 10 and result.probabilities == "the detector's own"
    assert result.detector.startswith('flat-')


def test_logits_become_probabilities_and_results_say_so(tmp_path):
    result = calc(save_script(Logits(), tmp_path / 'logits.pt'))
    assert result.probabilities == "softmax of the detector's outputs" and result.results.is50k_mean > 1
    logits = np.random.RandomState(0).randn(5, 3)
    np.testing.assert_allclose(to_probabilities(logits)[0], softmax(logits))
    assert to_probabilities(softmax(logits))[1] == "the detector's own"


def test_features_without_classes_are_refused_before_any_image_is_made():
    G = LinearGenerator()
    with pytest.raises(UserError, match='--detector: random:0 has no classes, and is50k'):
        metric_main.calc_metric('is50k', G=G, num=40, device=CPU, detector='random:0')
    assert not G.synthesis.calls
    with pytest.raises(UserError, match='is50k'):
        metric_main.check_detector(['fid50k', 'is50k'], 'random:0')
    metric_main.check_detector(['fid50k', 'is50k'], None)


def test_fewer_images_than_splits_are_refused(tmp_path):
    with pytest.raises(UserError, match='--num: .* 10 splits.* got 9'):
        calc(save_script(Flat(), tmp_path / 'flat.pt'), num=9)
    with pytest.raises(ValueError, match='at least as many rows'):
        inception_score(np.eye(3), 4)
