"""Lengths and distances of paths in feature spaces, against closed forms and the features' own distances."""

import numpy as np
import pytest
import torch

import dnnlib
from lia_plugin import path_measures
from lia_plugin.path_measures import FeatureSpace, Sketch, measure_steps, nearest
from lia_plugin.perceptual import DiscriminatorFeatures
from lia_plugin.similarity import mse


def make_features(weights: list[float] | None = None, channels: int = 3) -> DiscriminatorFeatures:
    torch.manual_seed(0)
    D = dnnlib.util.construct_class_by_name(
        class_name='training.networks.Discriminator', c_dim=0, img_resolution=16, img_channels=channels,
        channel_base=128, channel_max=8)  # fmt: skip
    return DiscriminatorFeatures(D, weights)


def photos(count: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand([count, channels, 16, 16], generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pairwise(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


@pytest.mark.parametrize('kind', ['pixels', 'D', 'weighted'])
def test_rows_are_as_far_apart_as_their_images(kind: str) -> None:
    img = photos(5)
    percep = None if kind == 'pixels' else make_features([0.5, 2.0] if kind == 'weighted' else None)
    space = FeatureSpace(percep, batch=2)
    rows = space.embed(img)
    compare = mse if percep is None else percep.distance
    expected = [[float(compare(img[[i]], img[[j]])) ** 0.5 for j in range(5)] for i in range(5)]
    np.testing.assert_allclose(pairwise(rows), expected, atol=1e-5)
    np.testing.assert_allclose(space.distance(img[:4], img[1:]), np.diag(np.array(expected), 1), atol=1e-6)


def test_long_features_are_sketched_alike_in_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    img = photos(6)
    exact = FeatureSpace(None).embed(img)
    monkeypatch.setattr(path_measures, 'SKETCH', 512)
    space = FeatureSpace(None, batch=4)
    rows = space.embed(img)
    assert rows.shape == (6, 512) and exact.shape == (6, 768)
    np.testing.assert_array_equal(rows[:2], space.embed(img[:2]))
    far = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(pairwise(rows)[far], pairwise(exact)[far], rtol=0.2)


def test_a_sketch_keeps_squared_lengths_on_average() -> None:
    x = torch.randn([1, 3000], generator=torch.Generator().manual_seed(0))
    ratios = [float(Sketch(3000, 64, seed, 'cpu')(x).square().sum() / x.square().sum()) for seed in range(200)]
    spread = (2 / 64) ** 0.5
    assert np.mean(ratios) == pytest.approx(1, abs=4 * spread / 200**0.5)
    assert np.std(ratios) == pytest.approx(spread, rel=0.25)


def test_a_straight_path_of_pixels_is_as_long_as_its_ends_are_apart() -> None:
    a, b = photos(2)
    t = torch.tensor([0, 0.1, 0.4, 0.5, 1.0])[:, None, None, None]
    line = a + (b - a) * t
    space = FeatureSpace(None)
    found = measure_steps(space.distance(line[:-1], line[1:])[:, None], space.distance(line[:1], line[-1:]))
    assert found.length[0] == pytest.approx(float(mse(a[None], b[None])) ** 0.5, rel=1e-5)
    assert found.straightness[0] == pytest.approx(1, rel=1e-5)
    assert found.evenness[0] == pytest.approx(0.25 / 0.5, rel=1e-5)


def test_measures_of_a_square_and_of_a_path_that_returns() -> None:
    steps = np.ones([4, 2])
    found = measure_steps(steps, np.array([2**0.5, 0]))
    assert found.length.tolist() == [4, 4] and found.evenness.tolist() == [1, 1]
    assert found.straightness == pytest.approx([2**0.5 / 4, 0])
    still = measure_steps(np.zeros([3, 1]), np.zeros(1))
    assert still.length[0] == 0 and np.isfinite(still).all()


def test_the_nearest_other_image() -> None:
    reals = np.array([[0, 0], [3, 4], [10, 0]], np.float32)
    points = np.array([[0, 0], [9, 0]], np.float32)
    np.testing.assert_allclose(nearest(points, reals), [0, 1], atol=1e-6)
    own = np.array([[True, False, False], [False, False, True]])
    np.testing.assert_allclose(nearest(points, reals, own), [5, 52**0.5], rtol=1e-6)
