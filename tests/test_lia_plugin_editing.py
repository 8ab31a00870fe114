"""Paths, grids, mixtures and variations of codes: closed forms, exact ends, and the prior's own statistics."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.interpolate
import scipy.stats
import torch
from test_lia_plugin_inversion import make_generator
from test_lia_plugin_refinement import make_stock

from lia_plugin import editing, noise_maps, spaces
from lia_plugin.editing import Variation
from lia_plugin.networks import Generator


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def source(seed: int = 99) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


@pytest.fixture(scope='module')
def conditional() -> Any:
    return make_generator(c_dim=3)


@pytest.fixture(scope='module')
def deep() -> Any:
    """A conditional network with a host's mapping network, in which w depends on the label."""
    torch.manual_seed(0)
    made = Generator(
        z_dim=8, c_dim=3, w_dim=8, img_resolution=16, img_channels=3,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=8), base_kwargs=dict(num_layers=2)),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
    )  # fmt: skip
    return made.eval().requires_grad_(False)


def layered(G: Any, count: int, seed: int = 0) -> torch.Tensor:
    """y+ that differs from layer to layer, as typical as z is."""
    z = draw(count * G.num_ws, G.z_dim, seed=seed)
    return G.mapping.z_to_y(z).unflatten(0, [count, G.num_ws])


# Paths


@pytest.mark.parametrize('space', ['y', 'y+', 'z'])
@pytest.mark.parametrize('kind', ['linear', 'cubic'])
@pytest.mark.parametrize('loop', [False, True])
def test_keyframes_of_a_path_are_the_codes_themselves(G: Any, space: str, kind: str, loop: bool) -> None:
    code = layered(G, 3)
    path = editing.interpolate(G, code, None, space, 4, kind, loop)
    assert len(path.code) == (12 if loop else 9) and path.c is None
    assert torch.equal(path.code[[0, 4, 8]], code[:, 0] if space == 'y' else code)


def test_y_goes_straight(G: Any) -> None:
    code = draw(2, 16)
    path = editing.interpolate(G, code, None, 'y', 4).code
    torch.testing.assert_close(path, torch.stack([code[0] + (code[1] - code[0]) * i / 4 for i in range(5)]))


def test_z_goes_along_an_arc_at_even_speed_and_its_length_changes_evenly(G: Any) -> None:
    ends = torch.stack([draw(16), 1.5 * draw(16, seed=1)])
    path = G.mapping.y_to_z(editing.interpolate(G, G.mapping.z_to_y(ends), None, 'z', 6).code)
    norms = path.norm(dim=1)
    torch.testing.assert_close(norms, torch.linspace(float(norms[0]), float(norms[-1]), 7), atol=1e-4, rtol=1e-4)
    between = torch.nn.functional.cosine_similarity(path[1:], path[:-1]).acos()
    whole = float(torch.nn.functional.cosine_similarity(ends[:1], ends[1:]).acos())
    torch.testing.assert_close(between, torch.full([6], whole / 6), atol=1e-3, rtol=1e-3)


def test_z_of_y_plus_goes_layer_by_layer(G: Any) -> None:
    code = layered(G, 2)
    path = editing.interpolate(G, code, None, 'z', 4).code
    for layer in (0, G.num_ws - 1):
        torch.testing.assert_close(path[:, layer], editing.interpolate(G, code[:, layer], None, 'z', 4).code,
                                   atol=1e-4, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize('loop, condition', [(False, 'not-a-knot'), (True, 'periodic')])
def test_a_smooth_path_in_y_is_scipys_spline(G: Any, loop: bool, condition: str) -> None:
    code = draw(4, 16)
    points = np.concatenate([code, code[:1]]) if loop else code.numpy()
    path = editing.interpolate(G, code, None, 'y', 3, 'cubic', loop).code
    spline = scipy.interpolate.CubicSpline(np.arange(len(points)), points, bc_type=condition)
    np.testing.assert_allclose(path, spline(np.arange(len(path)) / 3), atol=1e-5)


def test_the_last_frame_of_a_loop_is_one_step_before_the_first(G: Any) -> None:
    code = draw(2, 16)
    path = editing.interpolate(G, code, None, 'y', 4, loop=True).code
    torch.testing.assert_close(path[7], code[1] + (code[0] - code[1]) * 0.75)


def test_labels_go_with_the_path_and_z_stays_exact(conditional: Any) -> None:
    c = torch.eye(3)[[0, 2]]
    z = draw(2, 16)
    code = torch.cat([conditional.mapping.z_to_y(z[i : i + 1], c[i : i + 1]) for i in range(2)])
    path = editing.interpolate(conditional, code, c, 'z', 2)
    assert torch.equal(path.c, torch.tensor([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]))
    middle = conditional.mapping.y_to_z(path.code[1:2], path.c[1:2])[0]
    arc = z.sum(dim=0) / z.sum(dim=0).norm() * z.norm(dim=1).mean()
    halfway = torch.nn.functional.normalize(z, dim=1).sum(dim=0)
    torch.testing.assert_close(middle / middle.norm(), halfway / halfway.norm(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(middle.norm(), arc.norm(), atol=1e-4, rtol=1e-4)


def test_bad_paths(G: Any) -> None:
    for kwargs, words in (
        (dict(space='w'), 'space'), (dict(kind='round'), 'kind'), (dict(steps=0), 'one step'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            editing.interpolate(G, draw(2, 16), None, **kwargs)
    with pytest.raises(ValueError, match='two keyframes'):
        editing.interpolate(G, draw(1, 16))
    with pytest.raises(ValueError, match='needs φ'):
        editing.interpolate(make_stock(), draw(2, 8), None, 'z')


# Grids


@pytest.mark.parametrize('space', ['y', 'z'])
def test_a_grid_has_its_corners_and_paths_for_edges(G: Any, space: str) -> None:
    code = G.mapping.z_to_y(draw(4, 16))
    grid = editing.bilinear(G, code, None, space, 5).code.unflatten(0, [5, 5])
    assert torch.equal(grid[[0, 0, -1, -1], [0, -1, 0, -1]], code)
    for edge, ends in ((grid[:, 0], [0, 2]), (grid[0], [0, 1]), (grid[:, -1], [1, 3]), (grid[-1], [2, 3])):
        torch.testing.assert_close(edge, editing.interpolate(G, code[ends], None, space, 4).code, atol=1e-4, rtol=1e-4)


def test_a_grid_in_y_is_bilinear(G: Any) -> None:
    code = draw(4, 16)
    grid = editing.bilinear(G, code, None, 'y', 3).code
    torch.testing.assert_close(grid[4], code.mean(dim=0))
    torch.testing.assert_close(grid[5], (code[1] + code[3]) / 2)
    with pytest.raises(ValueError, match='four corners'):
        editing.bilinear(G, code[:3])


# Noise


def own_noise(G: Any, seed: int) -> dict[str, torch.Tensor]:
    """Maps of an image's own, each a draw."""
    own = noise_maps.initial_noise(G.synthesis, 1)
    return {name: draw(*value[0].shape, seed=seed + i) for i, (name, value) in enumerate(own.items())}


def test_noise_has_its_ends_and_keeps_its_variance_between(G: Any) -> None:
    keys = [own_noise(G, 0), own_noise(G, 100), {}]
    path = editing.NoisePath(G, keys, steps=4)
    assert len(path) == 9 and len(path[2:7]) == 5
    network = {name: value[0] for name, value in noise_maps.initial_noise(G.synthesis, 1).items()}
    for index, expected in ((0, keys[0]), (4, keys[1]), (8, network)):
        assert path[index].keys() == expected.keys()
        assert all(torch.equal(path[index][name], value) for name, value in expected.items())
    name = max(keys[0], key=lambda key: keys[0][key].numel())
    assert float(path[2][name].square().mean()) == pytest.approx(1, abs=0.2), 'of a straight line, one half'
    assert path.values == 9 * sum(value.numel() for value in network.values())


def test_noise_of_loops_and_grids(G: Any) -> None:
    keys = [own_noise(G, 100 * i) for i in range(4)]
    loop = editing.NoisePath(G, keys, steps=2, loop=True)
    back = editing.NoisePath(G, [keys[3], keys[0]], steps=2)
    grid = editing.NoiseGrid(G, keys, side=3)
    assert len(loop) == 8 and len(grid) == 9
    for name in keys[0]:
        assert torch.equal(loop[7][name], back[1][name])
        for index, key in ((0, 0), (2, 1), (6, 2), (8, 3)):
            assert torch.equal(grid[index][name], keys[key][name])
        assert torch.equal(grid[3][name], editing.NoisePath(G, [keys[0], keys[2]], steps=2)[1][name])


def test_no_noise_of_their_own_is_none_of_the_paths(G: Any) -> None:
    path = editing.NoisePath(G, [{}, {}], steps=3)
    assert path[:] == [{}] * 4 and path.values == 0


# Mixing


def test_mixed_layers_are_those_of_the_columns_and_no_others() -> None:
    rows, columns = draw(2, 5, 3), draw(4, 5, 3, seed=1)
    mixed = editing.mix(rows, columns, (0, 3))
    assert mixed.shape == (2, 4, 5, 3)
    for r in range(2):
        for k in range(4):
            assert torch.equal(mixed[r, k, [0, 3]], columns[k, [0, 3]])
            assert torch.equal(mixed[r, k, [1, 2, 4]], rows[r, [1, 2, 4]])
    assert torch.equal(editing.mix(rows, columns, ())[:, 0], rows)


def test_bad_mixtures() -> None:
    with pytest.raises(ValueError, match='layers 0 to 4'):
        editing.mix(draw(1, 5, 3), draw(1, 5, 3), (5,))
    with pytest.raises(ValueError, match='one network'):
        editing.mix(draw(1, 5, 3), draw(1, 6, 3), (0,))


# Variations


@pytest.mark.parametrize('how', [Variation(0.0), Variation(0.7), Variation(0.3, share=0.4),
                                 Variation(0.0, coords=(1, 5)), Variation(0.5, share=0.5, coords=range(3, 9))])
def test_variations_keep_the_prior(how: Variation) -> None:
    z = draw(2000, 10)
    varied = editing.vary_z(z, 3, how, source(7)).flatten(0, 1)
    norms = varied[::3].square().sum(dim=1).double().numpy()
    assert scipy.stats.kstest(norms, scipy.stats.chi2(10).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(varied[1::3].flatten().double().numpy(), scipy.stats.norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize('rho', [0.0, 0.5, 0.9])
def test_rho_is_the_correlation(rho: float) -> None:
    z = draw(4000, 8)
    varied = editing.vary_z(z, 1, Variation(rho), source(3))[:, 0]
    found = np.corrcoef(z.flatten(), varied.flatten())[0, 1]
    assert found == pytest.approx(rho, abs=4 / math.sqrt(z.numel()))
    moved = float((varied - z).square().mean().sqrt())
    assert moved == pytest.approx(math.sqrt(2 - 2 * rho), rel=0.02)


def test_rho_one_is_the_same_image_and_rho_zero_forgets_it(G: Any) -> None:
    z = draw(3, 16)
    assert torch.equal(editing.vary_z(z, 2, Variation(1.0), source()), z[:, None].expand(-1, 2, -1))
    anew = [editing.vary_z(start, 2, Variation(0.0), source(5)) for start in (z, 100 * z)]
    assert torch.equal(*anew)
    code = G.mapping.z_to_y(z)
    torch.testing.assert_close(editing.vary(G, code, None, 2, Variation(1.0), source())[:, 1], code, atol=1e-4, rtol=0)


def test_a_share_of_the_coordinates_changes_others_each_time() -> None:
    z = draw(5, 20)
    changed = editing.vary_z(z, 50, Variation(0.0, share=0.3), source()) != z[:, None]
    assert torch.equal(changed.sum(dim=-1), torch.full([5, 50], 6))
    assert changed.float().mean(dim=[0, 1]).sub(0.3).abs().max() < 0.12, 'every coordinate has its turn'
    within = editing.vary_z(z, 50, Variation(0.0, share=0.5, coords=(0, 4, 8, 12)), source()) != z[:, None]
    assert torch.equal(within.sum(dim=-1), torch.full([5, 50], 2))
    assert within.any(dim=0).any(dim=0).nonzero().flatten().tolist() == [0, 4, 8, 12]


def test_named_coordinates_change_and_no_others() -> None:
    z = draw(2, 6)
    changed = editing.vary_z(z, 3, Variation(0.4, coords=(2, 3)), source()) != z[:, None]
    assert changed.all(dim=0).all(dim=0).tolist() == [False, False, True, True, False, False]
    assert not changed[..., [0, 1, 4, 5]].any()


def test_layers_change_together_or_each_for_itself(G: Any) -> None:
    z = draw(1, 16)
    code = G.mapping.z_to_y(z)
    for each_layer in (False, True):
        how = Variation(0.0, layers=(1, 2), each_layer=each_layer)
        varied = editing.vary(G, code, None, 2, how, source())
        assert varied.shape == (1, 2, G.num_ws, 16)
        assert torch.equal(varied[0, 0, [0, 3]], code.expand(2, -1)), 'other layers stay the very same'
        assert not torch.allclose(varied[0, 0, 1], code[0])
        assert torch.allclose(varied[0, 0, 1], varied[0, 0, 2], atol=1e-5) is not each_layer


def test_variations_of_a_class_stay_in_it(conditional: Any) -> None:
    c = torch.eye(3)[[1, 2]]
    z = draw(2, 16)
    varied = editing.vary(conditional, conditional.mapping.z_to_y(z, c), c, 3, Variation(0.8), source(1))
    expected = editing.vary_z(z, 3, Variation(0.8), source(1))
    for k in range(3):
        torch.testing.assert_close(conditional.mapping.y_to_z(varied[:, k], c), expected[:, k], atol=1e-4, rtol=1e-4)


def test_bad_variations(G: Any) -> None:
    for how in (Variation(1.1), Variation(math.nan), Variation(0.5, share=-0.1), Variation(0.5, coords=(16,)),
                Variation(0.5, layers=(99,))):  # fmt: skip
        with pytest.raises(ValueError, match='expected'):
            editing.vary(G, draw(1, 16), None, 1, how, source())
    with pytest.raises(ValueError, match='φ'):
        editing.vary(make_stock(), draw(1, 8), None, 1, Variation(), source())


def test_paths_and_variations_of_a_network_whose_styles_know_the_class(deep: Any) -> None:
    c = torch.eye(3)[[0, 1]]
    code = deep.mapping.z_to_y(draw(2, 8), c)
    path = editing.interpolate(deep, code, c, 'z', 3)
    assert path.c is not None and torch.equal(path.c[[0, 3]], c)
    torch.testing.assert_close(spaces.code_to_ws(deep, path.code, path.c)[[0, 3]], spaces.code_to_ws(deep, code, c))


def test_segments_name_their_frames() -> None:
    assert list(editing.segments(3, 2, False)) == [(0, 1, [0, 1, 2]), (1, 2, [2, 3, 4])]
    assert list(editing.segments(2, 2, True)) == [(0, 1, [0, 1, 2]), (1, 0, [2, 3, 0])]


def test_a_share_of_no_coordinates_changes_none() -> None:
    z = torch.randn([2, 6])
    how = editing.Variation(0.5, share=0.5, coords=())
    assert torch.equal(editing.vary_z(z, 3, how, torch.Generator().manual_seed(0)), z[:, None].expand(2, 3, 6))
