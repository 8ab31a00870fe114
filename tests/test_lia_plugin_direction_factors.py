"""SeFa against NumPy's eigenvectors of weights taken by name, PCA against scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from test_lia_plugin_inversion import make_generator
from test_lia_plugin_refinement import make_stock

from lia_plugin import direction_factors as factors
from lia_plugin import spaces
from lia_plugin.host import UserError


def styles_by_name(G: Any) -> dict[int, list[np.ndarray]]:
    """Layer of ws -> weights, by StyleGAN2's rule: a ToRGB takes what the next block's first convolution does."""
    found: dict[int, list[np.ndarray]] = {}
    place = 0
    for res in G.synthesis.block_resolutions:
        block = getattr(G.synthesis, f'b{res}')
        for name in ('conv0', 'conv1'):
            if hasattr(block, name):
                affine = getattr(block, name).affine
                found[place] = [affine.weight.numpy().astype(np.float64) / np.sqrt(affine.weight.shape[1])]
                place += 1
    return found


def assert_same_axes(found: list[factors.Factor], expected: np.ndarray) -> None:
    for factor, row in zip(found, expected, strict=True):
        assert abs(float(factor.vector @ torch.from_numpy(row.copy()))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('layers', [None, [0, 1], [3]])
def test_sefa_is_the_eigenvectors_of_the_style_weights(layers: list[int] | None) -> None:
    G = make_generator()
    own = styles_by_name(G)
    A = np.concatenate([weight for k in sorted(own) if layers is None or k in layers for weight in own[k]])
    if layers is None:  # The last ToRGB has a layer of ws for itself.
        affine = G.synthesis.b16.torgb.affine
        A = np.concatenate([A, affine.weight.numpy().astype(np.float64) / np.sqrt(affine.weight.shape[1])])
    values, vectors = np.linalg.eigh(A.T @ A)
    found = factors.sefa(G, 4, layers)
    assert_same_axes(found, vectors[:, ::-1][:, :4].T)
    assert [factor.strength for factor in found] == pytest.approx(values[::-1][:4].tolist(), rel=1e-6)
    assert found[0].share == pytest.approx(values[-1] / values.sum(), rel=1e-6)
    gains = [float(np.linalg.norm(A @ factor.vector.numpy())) ** 2 for factor in found]
    assert gains == pytest.approx([factor.strength for factor in found], rel=1e-6)


def test_sefa_of_stock_and_alias_free_networks() -> None:
    from training.networks_stylegan3 import Generator

    stock = make_stock()
    assert sorted(factors.style_weights(stock)) == list(range(stock.num_ws))
    torch.manual_seed(0)
    G = Generator(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, channel_base=128, channel_max=8,
                  num_layers=4, mapping_kwargs=dict(num_layers=1)).eval().requires_grad_(False)  # fmt: skip
    weights = factors.style_weights(G)
    assert sorted(weights) == list(range(1, G.num_ws)), 'the input, layer 0, is a turn and a shift'
    for k, name in enumerate(G.synthesis.layer_names, start=1):
        affine = getattr(G.synthesis, name).affine
        torch.testing.assert_close(weights[k][0], affine.weight.double() / 4)
    assert len(factors.sefa(G, 3, [1, 2])) == 3
    with pytest.raises(UserError, match='none of them has style weights'):
        factors.sefa(G, 3, [0])


def test_sefa_in_z_and_through_mapping_layers_is_that_of_small_changes() -> None:
    """λ = E‖A J n‖², here with J n by differences."""
    G = make_generator()
    A = torch.cat([weight for weights in factors.style_weights(G).values() for weight in weights])
    first = factors.sefa(G, 1, space='z')[0]
    codes, _c = spaces.sample_codes(G, factors.JACOBIAN_SAMPLES)
    z = G.mapping.y_to_z(codes)
    mapping = G.mapping.double()
    step = 1e-4 * first.vector
    slopes = (mapping.y_to_w(mapping.z_to_y(z.double() + step)) - mapping.y_to_w(mapping.z_to_y(z.double() - step)))
    gain = float((slopes / 2e-4 @ A.t()).square().sum(dim=1).mean())
    mapping.float()
    assert gain == pytest.approx(first.strength, rel=1e-3)


def test_pca_is_scikit_learns() -> None:
    random = torch.Generator().manual_seed(0)
    codes = torch.randn(300, 8, generator=random) * torch.linspace(1, 3, 8) + 5
    found, expected = factors.pca(codes, 5), PCA(5).fit(codes.numpy().astype(np.float64))
    assert_same_axes(found, expected.components_)
    assert [factor.strength for factor in found] == pytest.approx(expected.explained_variance_, rel=1e-6)
    assert [factor.share for factor in found] == pytest.approx(expected.explained_variance_ratio_, rel=1e-6)
    assert len(factors.pca(codes[:3], 5)) == 2, 'three codes span a plane'
    with pytest.raises(UserError, match='needs two codes'):
        factors.pca(codes[:1], 1)
