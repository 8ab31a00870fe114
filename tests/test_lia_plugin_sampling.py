"""Truncation in w and in y, StyleGAN3's transform, and pictures that don't depend on their batch."""

from typing import Any

import pytest
import torch
from test_lia_plugin_inversion import make_generator
from test_lia_plugin_refinement import make_stock
from test_networks_stylegan3 import R, calibrate, stir
from test_networks_stylegan3 import make_generator as make_stylegan3

from lia_plugin import codes, input_transform, noise_maps, sampling, spaces
from lia_plugin.host import UserError
from lia_plugin.networks import Generator

DIM = 16


def make_deep(**mapping: Any) -> Any:
    """LIA whose y is not w."""
    torch.manual_seed(0)
    G = Generator(
        z_dim=DIM, c_dim=0, w_dim=8, img_resolution=16, img_channels=3,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=16), **mapping),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
    )  # fmt: skip
    torch.nn.init.normal_(G.mapping.w_avg)
    return G.eval().requires_grad_(False)


def noisy(G: Any) -> Any:
    """Noise counts for nothing at the start of training."""
    for name, strength in G.synthesis.named_parameters():
        if name.endswith('noise_strength'):
            torch.nn.init.constant_(strength, 0.5)
    return G


def draw(G: Any, count: int = 4) -> torch.Tensor:
    return spaces.z_to_code(G, codes.seeds_to_z(range(count), G.z_dim))


@pytest.mark.parametrize('make', [make_generator, make_stock, make_deep], ids=['y is w', 'stock', 'y is not w'])
@pytest.mark.parametrize('psi, cutoff', [(1, None), (0.6, None), (0, None), (0.6, 2), (-0.5, 0)])
def test_truncation_in_w_is_the_networks_own(make: Any, psi: float, cutoff: int | None) -> None:
    G = make() if make is not make_deep else make_deep(num_layers=2)
    z = codes.seeds_to_z(range(4), G.z_dim)
    ws, code = sampling.to_ws(G, draw(G), None, sampling.truncation(G, psi, cutoff))
    torch.testing.assert_close(ws, G.mapping(z, None, truncation_psi=psi, truncation_cutoff=cutoff))
    assert (code is None) == (make is make_deep and psi != 1), 'a truncated w is of no known y'
    if code is not None:
        torch.testing.assert_close(spaces.code_to_ws(G, code), ws)


@pytest.mark.parametrize('cutoff', [None, 2])
def test_where_y_is_w_truncation_in_both_is_one(cutoff: int | None) -> None:
    G = make_generator()
    in_w, in_y = (sampling.to_ws(G, draw(G), None, sampling.truncation(G, 0.3, cutoff, space)) for space in 'wy')
    assert torch.equal(in_w[0], in_y[0]) and torch.equal(in_w[1], in_y[1])  # type: ignore[arg-type]


def test_truncation_in_y_goes_to_the_mean_of_y() -> None:
    G = make_deep(num_layers=2)
    code = draw(G)
    mean = spaces.code_statistics(G).mean
    ws, pulled = sampling.to_ws(G, code, None, sampling.truncation(G, 0.25, space='y'))
    torch.testing.assert_close(pulled, mean + 0.25 * (code - mean))
    torch.testing.assert_close(ws, G.mapping.y_to_ws(pulled))
    none, _ = sampling.to_ws(G, code, None, sampling.truncation(G, 0, space='y'))
    torch.testing.assert_close(none, G.mapping.y_to_ws(mean[None]).expand(4, -1, -1))


def test_layers_of_a_code_are_truncated_each_for_itself() -> None:
    G = make_generator()
    code = torch.randn([2, G.num_ws, DIM])
    ws, _ = sampling.to_ws(G, code, None, sampling.truncation(G, 0.5, 3))
    torch.testing.assert_close(ws[:, :3], (code[:, :3] + G.mapping.w_avg) / 2)
    assert torch.equal(ws[:, 3:], code[:, 3:])


@pytest.mark.parametrize('make, options, reason', [
    (make_generator, dict(cutoff=99), '--trunc-cutoff: this network has 6 layers; got 99'),
    (make_stock, dict(space='y'), 'no φ'),
    (lambda: make_deep(base_kwargs={}), dict(space='y'), 'one length'),
])
def test_truncation_that_cannot_be(make: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        sampling.truncation(make(), 0.5, **options)


# Pictures


@pytest.mark.parametrize('make', [make_generator, make_stock, make_stylegan3], ids=['lia', 'stylegan2', 'stylegan3'])
def test_pictures_do_not_depend_on_their_batch(make: Any) -> None:
    G = noisy(make().eval())
    ws, _ = sampling.to_ws(G, draw(G, 5), None, sampling.truncation(G))
    noise = noise_maps.draw_noise(G.synthesis, range(5))
    together = sampling.render(G, ws, noise).int()
    for i in range(5):
        own = sampling.render(G, ws[i : i + 1], noise_maps.draw_noise(G.synthesis, [i])).int()
        assert (together[i] - own[0]).abs().max() <= 1


def test_noise_of_a_seed_is_standard_normal_and_its_own() -> None:
    synthesis = make_stock().synthesis
    noise = noise_maps.draw_noise(synthesis, [3, 4])
    assert {name: value.shape[2:] for name, value in noise.items()} == {
        name: value.shape for name, value in synthesis.named_buffers() if name.endswith('noise_const')}
    alone = noise_maps.draw_noise(synthesis, [4])
    assert all(torch.equal(value[1:], alone[name]) for name, value in noise.items())
    values = torch.cat([value.flatten(1) for value in noise.values()], dim=1)
    assert values.shape[1] > 400 and values.mean().abs() < 0.15 and (values.std() - 1).abs() < 0.1
    assert float(torch.corrcoef(values)[0, 1].abs()) < 0.2
    assert noise_maps.draw_noise(make_stylegan3().synthesis, [0]) == {}


# StyleGAN3's transform


def picture(G: Any, *transform: Any) -> torch.Tensor:
    input_transform.set_transform(G, *transform)
    return G.requires_grad_(False)(torch.ones([1, 8]), None, noise_mode='const')


def test_a_picture_moves_by_whole_samples_exactly() -> None:
    """A sixteenth of the picture is one sample of the coarsest grid; only what the edges let in differs."""
    G = calibrate(stir(make_stylegan3(resolution=64, num_layers=2)))
    still, moved = picture(G), picture(G, (4 / 64, -8 / 64))
    torch.testing.assert_close(  # Right by 4 pixels, up by 8.
        moved[:, :, 16:-24, 24:-20], still[:, :, 24:-16, 20:-24], atol=1e-4 * float(still.std()), rtol=0)


def test_a_picture_turns_counter_clockwise() -> None:
    G = calibrate(stir(make_stylegan3(**R)))
    with torch.no_grad():
        G.synthesis.input.affine.weight.zero_()  # Its own rotation and shift would come in between.
        G.synthesis.input.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    still, turned = picture(G), picture(G, (0, 0), 90)
    torch.testing.assert_close(turned, still.rot90(1, dims=(2, 3)), atol=1e-4 * float(still.std()), rtol=0)


def test_first_turned_then_moved() -> None:
    matrix = input_transform.sampling_matrix((0.3, -0.1), 90)
    seen = torch.tensor([0.3, -0.1 - 0.2, 1], dtype=torch.float64)  # Where (0.2, 0) has come to: turned to (0, -0.2).
    torch.testing.assert_close(matrix @ seen, torch.tensor([0.2, 0, 1], dtype=torch.float64))


@pytest.mark.parametrize('transform, option', [(((0.1, 0), 0), '--translate'), (((0, 0), 5), '--rotate')])
def test_a_stylegan2_cannot_be_moved(transform: Any, option: str) -> None:
    with pytest.raises(UserError, match=f'{option}: this network is a StyleGAN2'):
        input_transform.set_transform(make_stock(), *transform)
