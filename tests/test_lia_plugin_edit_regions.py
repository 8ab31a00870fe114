"""Regions where classes differ: Cohen's d as a formula, patches that are known, attributes that go together."""

import numpy as np
import pytest
import torch

from lia_plugin.edit_regions import Effect, Moments, strongest, widen


def pictures(labels, patches, seed=0, noise=0.3, channels=1):
    """Noise [n, C, 16, 16]; in the patch (slice, slice) of each attribute class 1 is brighter by 1."""
    img = torch.from_numpy(np.random.default_rng(seed).normal(0, noise, [len(labels), channels, 16, 16])).float()
    for column, (rows, columns) in zip(labels.T, patches):
        img[:, :, rows, columns] += torch.from_numpy(column)[:, None, None, None].float()
    return img


A, B = (slice(2, 6), slice(2, 6)), (slice(9, 14), slice(8, 13))


def patch_region(rows, columns):
    region = np.zeros([16, 16], bool)
    region[rows, columns] = True
    return widen(region, 1)


def moments_of(labels, img, classes, batch=None):
    moments = Moments(classes)
    for start in range(0, len(img), batch or len(img)):
        part = slice(start, start + (batch or len(img)))
        moments.add(labels[part], img[part])
    return moments


def test_two_classes_alone_give_cohens_d():
    labels = np.array([[0]] * 30 + [[1]] * 12)
    img = pictures(labels, [A], channels=3)
    effect = moments_of(labels, img, [2]).effect(0, 1)
    zero, one = img[:30].double().numpy(), img[30:].double().numpy()
    pooled = np.sqrt((zero.var(axis=0, ddof=1) * 29 + one.var(axis=0, ddof=1) * 11) / 40)
    np.testing.assert_allclose(effect.difference, one.mean(axis=0) - zero.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(effect.d, (one.mean(axis=0) - zero.mean(axis=0)) / pooled, atol=1e-9)
    assert effect.error == pytest.approx(np.sqrt(1 / 30 + 1 / 12))


def test_one_class_of_several_is_compared_with_the_mean_of_all_others():
    labels = np.arange(60)[:, None] % 3
    labels[:10] = 0
    img = pictures(labels, [A])
    effect = moments_of(labels, img, [3]).effect(0, 2)
    kind, x = labels[:, 0], img.double().numpy()
    np.testing.assert_allclose(effect.difference, x[kind == 2].mean(axis=0) - x[kind != 2].mean(axis=0), atol=1e-9)
    one_other = moments_of(labels, img, [3]).effect(0, 2, 1)
    np.testing.assert_allclose(one_other.difference, x[kind == 2].mean(axis=0) - x[kind == 1].mean(axis=0), atol=1e-9)


def test_the_region_is_the_patch_also_where_attributes_go_together():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 800)
    second = np.where(rng.random(800) < 0.8, first, 1 - first)  # Alone, each would show in both patches.
    labels = np.stack([first, second], axis=1)
    img = pictures(labels, [A, B])
    moments = moments_of(labels, img, [2, 2])
    for region, patch in ((moments.effect(0, 1).region(), A), (moments.effect(1, 0).region(), B)):
        assert not (region & ~patch_region(*patch)).any()
        assert region[patch].all()  # The weakest tenth of the patch is among the neighbours of the rest.
    alone = moments_of(labels[:, :1], img, [2]).effect(0, 1).region()
    assert (alone & patch_region(*B)).any()


def test_batches_and_unknown_labels_do_no_harm():
    labels = np.array([[0], [1], [-1], [0], [1]] * 10)
    img = pictures(labels.clip(0), [A])
    img[2::5] = 50  # Of unknown class: not compared.
    whole, parts = (moments_of(labels, img, [2], batch).effect(0, 1) for batch in (None, 7))
    np.testing.assert_allclose(whole.d, parts.d, atol=1e-6)
    known = labels[:, 0] >= 0
    np.testing.assert_allclose(
        whole.difference, moments_of(labels[known], img[known], [2]).effect(0, 1).difference, atol=1e-6)


def test_no_difference_no_region():
    labels = np.array([[0], [1]] * 200)
    assert not moments_of(labels, pictures(labels * 0, [A]), [2]).effect(0, 1).region().any()
    constant = moments_of(labels, torch.zeros([400, 1, 16, 16]), [2]).effect(0, 1)
    assert not constant.region().any() and np.isfinite(constant.d).all()
    assert not Effect(np.zeros([1, 4, 4]), np.zeros([1, 4, 4]), 0.0).region().any()


def test_strongest_takes_the_fewest_that_hold_the_share():
    weights = np.array([[5.0, 1], [3, 1]])
    assert np.array_equal(strongest(weights, 0.5), [[True, False], [False, False]])
    assert np.array_equal(strongest(weights, 0.79), [[True, False], [True, False]])
    assert not strongest(np.zeros([2, 2]), 0.9).any()


def test_widen_is_a_square():
    region = np.zeros([7, 7], bool)
    region[3, 3] = True
    assert widen(region, 2).sum() == 25 and widen(region, 2)[1, 1]


def test_classes_without_pictures_are_refused():
    with pytest.raises(ValueError, match='no picture was added'):
        Moments([2]).effect(0, 1)
    labels = np.zeros([4, 1], np.int64)
    with pytest.raises(ValueError, match='pictures of both kinds'):
        moments_of(labels, pictures(labels, [A]), [2]).effect(0, 1)
