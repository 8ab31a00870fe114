"""Maps of points: clusters stay apart, and what is laid in lies among its neighbours."""

import math

import numpy as np
import pytest

from lia_plugin import embedding
from lia_plugin.figure_base import CannotDraw


def test_a_map_keeps_clusters_apart() -> None:
    stream = np.random.default_rng(0)
    centres = stream.standard_normal([2, 80]) * 20
    rows = np.concatenate([centres[[i]] + stream.standard_normal([40, 80]) for i in range(2)]).astype(np.float32)
    found = embedding.tsne_map(rows, rows[[3, 50]])
    # What is laid in comes to lie among those that it is like.
    for laid, own, others in zip(found.laid, (slice(0, 40), slice(40, 80)), (slice(40, 80), slice(0, 40))):
        to_own, to_others = (np.linalg.norm(found.places[part] - laid, axis=1) for part in (own, others))
        assert to_own.max() < to_others.min()
    assert found.places.shape == (80, 2) and found.components == 50 and 0.9 < found.variance <= 1
    a, b = found.places[:40], found.places[40:]
    assert np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) > max(a.std(), b.std())
    with pytest.raises(CannotDraw, match='3 points'):
        embedding.tsne_map(rows[:3], rows[:1])


def test_neighbours_are_as_many_as_the_perplexity_says() -> None:
    square = np.random.default_rng(0).chisquare(20, 500) * 1e3
    for perplexity in (5.0, 30.0, 400.0):
        share = embedding.neighbours(square, perplexity)
        assert share.sum() == pytest.approx(1) and share.argmax() == square.argmin()
        assert math.exp(-(share[share > 0] * np.log(share[share > 0])).sum()) == pytest.approx(perplexity, rel=1e-3)


def test_the_place_in_a_map_is_an_optimum() -> None:
    stream = np.random.default_rng(0)
    places, share = stream.standard_normal([50, 2]) * 5, stream.dirichlet(np.ones(50))
    place = stream.standard_normal(2)
    value, slope = embedding._divergence(place, share, places)
    for axis in range(2):
        step = np.eye(2)[axis] * 1e-5
        ends = [embedding._divergence(place + sign * step, share, places)[0] for sign in (1, -1)]
        assert slope[axis] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)
    weight = 1 / (1 + np.square(place - places).sum(axis=1))
    assert value == pytest.approx(-(share * np.log(weight / weight.sum())).sum())
