"""Codes as edits store them: the keys of invert.py's files, and the same codes when they are read again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing_files import arrays, make_layered
from test_lia_plugin_inversion import make_generator
from test_lia_plugin_refinement import make_stock

from lia_plugin import code_output, codes, noise_maps, prior
from lia_plugin.placement import centre_crop, from_arrays


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator(c_dim=2)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_everything_comes_back(G: Any, tmp_path: Path) -> None:
    own = {name: draw(*value.shape[1:]) for name, value in noise_maps.initial_noise(G.synthesis, 1).items()}
    place = centre_crop((40, 30), 16)
    made = codes.made_codes(['a', 'b'], draw(2, 16), torch.eye(2), [own, {}], [None, place])
    code_output.save_codes(str(tmp_path / 'made.npz'), G, made)
    read = codes.file_codes(G, str(tmp_path / 'made.npz'))
    assert read.names == ('a', 'b') and torch.equal(read.code, made.code) and torch.equal(read.c, made.c)
    network = {name: value[0] for name, value in noise_maps.initial_noise(G.synthesis, 1).items()}
    for found, expected in zip(read.noise, (own, network)):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    first, second = from_arrays(arrays(tmp_path / 'made.npz'), 2)
    assert first is None and second is not None and second.size == (40, 30)
    np.testing.assert_allclose(second.matrix, place.matrix)


def test_keys_are_those_that_are_known_of_the_network(tmp_path: Path) -> None:
    layered = make_layered()
    for network, code, keys in (
        (make_generator(), draw(1, 16), {'w', 'y', 'z', 'names'}),
        (layered, draw(1, layered.num_ws, 16), {'w', 'y', 'z', 'y_plus', 'names'}),
        (make_stock(), draw(1, 8), {'w', 'names'}),
    ):
        code_output.save_codes(str(tmp_path / 'one.npz'), network, codes.made_codes(['one'], code))
        stored = arrays(tmp_path / 'one.npz')
        assert set(stored) == keys | {'network_hash'} and stored['w'].shape == (1, network.num_ws, network.w_dim)


def test_figures_are_those_of_the_prior(G: Any) -> None:
    c = torch.eye(2)
    y = G.mapping.z_to_y(draw(2, 16), c)
    figures = code_output.prior_figures(G, y, c)
    assert figures['z_norm2'] == pytest.approx(draw(2, 16).square().sum(dim=1).tolist(), rel=1e-4)
    assert figures['log_prob'] == pytest.approx(prior.log_prob(G, y, c).tolist())
    assert code_output.prior_figures(make_stock(), draw(2, 8), None) == {}
