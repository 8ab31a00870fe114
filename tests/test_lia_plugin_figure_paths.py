"""Paths between real images: their ends, what is measured along them, and which pairs there are."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from figure_exhibits import deep_generator, exhibit
from test_lia_plugin_inversion import make_generator, save_pictures

from lia_plugin import figure_paths
from lia_plugin.figure_base import CannotDraw, mean_and_error, with_error
from lia_plugin.path_measures import FeatureSpace


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pictures(tmp_path_factory.mktemp('data') / 'set', 10))


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


def test_pairs_are_disjoint_and_of_one_class() -> None:
    pairs = figure_paths.draw_pairs(None, 3, 0, 7)
    flat = [item for pair in pairs for item in pair]
    assert len(pairs) == 3 and len(set(flat)) == 6
    labels = torch.eye(2)[torch.tensor([0, 0, 0, 1, 1, 1])]
    assert all(bool((labels[a] == labels[b]).all()) for a, b in figure_paths.draw_pairs(labels, 9, 0, 6))
    with pytest.raises(CannotDraw, match='no two images'):
        figure_paths.draw_pairs(None, 3, 0, 1)
    with pytest.raises(CannotDraw, match='of one class'):
        figure_paths.draw_pairs(torch.eye(3), 3, 0, 3)


def test_paths_of_both_spaces_have_the_reconstructions_for_ends(G: Any, data: str) -> None:
    show = exhibit(G, data)
    pairs, points = [(0, 3), (5, 1)], 5
    ends = show.draw(show.reals.code, None)
    for space in ('y', 'z'):
        ways = figure_paths.walk(show, pairs, space, points)
        torch.testing.assert_close(ways.images[:, 0], ends[[0, 5]])
        torch.testing.assert_close(ways.images[:, -1], ends[[3, 1]])
        assert ways.log_p is not None and ways.z_norm2 is not None
        # In z the length is interpolated, so its square lies below the chord of the squares.
        z = G.mapping.y_to_z(show.reals.code)
        expected = z.square().sum(dim=1).numpy()[np.array(pairs)] / 16
        np.testing.assert_allclose(ways.z_norm2[:, [0, -1]], expected, rtol=1e-4)
        if space == 'z':
            middle = ((expected**0.5).mean(axis=1)) ** 2
            np.testing.assert_allclose(ways.z_norm2[:, 2], middle, rtol=1e-3)
    faded = figure_paths.cross_fade(ways)
    torch.testing.assert_close(faded.images[:, 2], (ends[[0, 5]] + ends[[3, 1]]) / 2)


@pytest.mark.parametrize('plus', [False, True])
def test_the_control_is_straight_in_z(data: str, plus: bool) -> None:
    show = exhibit(deep_generator() if plus else make_generator(channels=1), data)
    ends = show.reals.code[[0, 3]]
    path = figure_paths.straight_in_z(show.G, ends, None, 5)
    torch.testing.assert_close(path.code[[0, 4]], ends, rtol=1e-4, atol=1e-4)
    z = torch.stack([show.G.mapping.y_to_z(code if plus else code[None]) for code in path.code])
    torch.testing.assert_close(z[2], (z[0] + z[4]) / 2, rtol=1e-3, atol=1e-3)


def test_a_cross_fade_of_pixels_is_straight(G: Any, data: str) -> None:
    show = exhibit(G, data)
    pairs = [(0, 3), (5, 1)]
    ways = figure_paths.cross_fade(figure_paths.walk(show, pairs, 'y', 5))
    space = FeatureSpace(None)
    found = figure_paths.measure(ways, space, figure_paths.embed_reals(show, space), pairs)
    np.testing.assert_allclose(found.figures['straightness'], 1, rtol=1e-4)
    np.testing.assert_allclose(found.figures['evenness'], 1, rtol=1e-3)
    assert found.profiles['nearest'].shape == (2, 5) and 'log_p' not in found.figures


def test_pair_by_pair_is_all_at_once(G: Any, data: str) -> None:
    show, pairs, space = exhibit(G, data, shown=1), [(0, 3), (5, 1)], FeatureSpace(None)
    reals = figure_paths.embed_reals(show, space)
    measured, shown = figure_paths.measure_all(show, pairs, 'y', 7, space, reals, lambda share: None)
    ways = figure_paths.walk(show, pairs, 'z', 7)
    expected = figure_paths.measure(ways, space, reals, pairs)
    for found, wanted in ((measured['z'].figures, expected.figures), (measured['z'].profiles, expected.profiles)):
        assert set(found) == set(wanted)
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(measured['z'].rows, expected.rows, atol=1e-5)
    assert [list(kinds) for kinds in shown] == [['y', 'z', 'pixels']] and shown[0]['z'].shape[0] == 3


def test_two_images_have_no_others_to_be_near_to(G: Any, data: str) -> None:
    show = exhibit(G, data)
    ways = figure_paths.walk(show, [(0, 1)], 'y', 4)
    space = FeatureSpace(None)
    assert 'nearest' not in figure_paths.measure(ways, space, space.embed(show.originals([0, 1])), [(0, 1)]).figures


def test_differences_go_pair_by_pair() -> None:
    y = dict(length=np.array([1.0, 2.0, 4.0]), nearest=np.array([1.0, 1.0, 1.0]))
    z = dict(length=np.array([1.5, 3.0, 4.0]), nearest=np.array([0.0, 2.0, 3.0]))
    found = figure_paths.differences(y, z)
    assert found['length']['mean'] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert found['length']['pairs_greater'] == pytest.approx(2 / 3)
    assert found['nearest']['mean'] == pytest.approx(2 / 3)
    assert found['nearest']['error'] == pytest.approx(np.std([-1, 1, 2], ddof=1) / 3**0.5)


def test_means_have_errors_where_there_are_several() -> None:
    assert mean_and_error([1.0, 3.0]) == dict(mean=2.0, error=1.0)
    assert math.isnan(mean_and_error([1.0])['error'])
    assert with_error(dict(mean=0.5, error=0.25), '+.2f') == '+0.50 ± 0.25'
    assert with_error(mean_and_error([2.0]), '.1f') == '2.0'
