"""What inputs of editing commands become: seeds, .npz files and images as codes, and back as pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, save_pickle, save_pictures
from test_lia_plugin_refinement import make_stock
from test_lia_plugin_sampling import make_deep

from lia_plugin import cli, code_output, codes, images, paths, spaces
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


def read(G: Any, *inputs: str, **kwargs: Any) -> codes.Codes:
    return codes.read_inputs(inputs, G, 'net.pkl', **kwargs)


@pytest.mark.parametrize('text, seeds', [('7', [7]), ('0,1,4-6', [0, 1, 4, 5, 6]), ('seed:3-3', [3]),
                                         ('./7', None), ('7.png', None), ('', None), ('1-', None)])
def test_what_is_a_seed(text: str, seeds: list[int] | None) -> None:
    assert codes.parse_seeds(text) == seeds


@pytest.mark.parametrize('text', ['6-4', '0-99999999', '0-69999,0-69999', str(2**32)])
def test_seeds_that_cannot_be(text: str) -> None:
    with pytest.raises(UserError, match='seeds'):
        codes.parse_seeds(text)


def test_seeds_are_those_of_the_stylegan_scripts(G: Any) -> None:
    z = torch.from_numpy(np.random.RandomState(5).randn(1, G.z_dim)).float()
    found = read(G, '3,5')
    assert found.names == ('seed0003', 'seed0005')
    torch.testing.assert_close(codes.render(G, found.code)[1:], G(z, None, noise_mode='const'))


def test_truncation_is_of_seeds_alone(G: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / 'in', 1)
    full, half = (read(G, '3', str(tmp_path / 'in'), psi=psi) for psi in (1, 0.5))
    torch.testing.assert_close(G.mapping.y_to_ws(half.code[:1]), G.mapping.y_to_ws(full.code[:1], None, 0.5))
    assert torch.equal(half.code[1], full.code[1])


def test_images_are_encoded_and_keep_their_pixels(G: Any, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 3)
    found = read(G, str(folder), batch=2)
    img = images.to_float(torch.stack([images.read_image(path).pixels for path in sorted(folder.iterdir())]))
    torch.testing.assert_close(found.code, G.encode(img))
    assert found.originals[2] is not None and torch.equal(images.to_float(found.originals[2]), img[2])
    assert found[[2, 0]].names == ('picture2', 'picture0') and torch.equal(found[1:].code, found.code[1:])


def test_order_is_that_of_the_inputs_and_names_are_unique(G: Any, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 1)
    found = read(G, str(folder), '1', str(folder), '1')
    assert found.names == ('picture0', 'seed0001', 'picture0_2', 'seed0001_2')


def test_what_invert_wrote_is_read_back(tmp_path: Path) -> None:
    G = make_generator()
    network = save_pickle(tmp_path / 'lia.pkl', G)
    folder = save_pictures(tmp_path / 'in', 2)
    command = cli.load_command('invert')
    assert cli.run(command, [f'--network={network}', f'--target={folder}', f'--outdir={tmp_path / "out"}',
                             '--device=cpu', '--lpips=none']) == 0
    direct = read(G, str(folder))
    torch.testing.assert_close(read(G, str(tmp_path / 'out' / 'latents.npz')).code, direct.code)
    one = read(G, f'{tmp_path / "out" / "latents.npz"}:picture1')
    torch.testing.assert_close(one.code, direct.code[1:])
    assert one.names == ('picture1',)
    with pytest.raises(UserError, match='picture0'):
        read(G, f'{tmp_path / "out" / "latents.npz"}:picture7')


def test_latents_of_a_single_image_are_called_as_the_image(G: Any, tmp_path: Path) -> None:
    network = save_pickle(tmp_path / 'lia.pkl', G)
    (picture,) = save_pictures(tmp_path / 'in', 1).iterdir()
    assert cli.run(cli.load_command('invert'), [f'--network={network}', f'--target={picture}', '--device=cpu',
                   f'--outdir={tmp_path / "out"}', '--lpips=none']) == 0  # fmt: skip
    path = tmp_path / 'out' / 'projected_w.npz'
    assert read(G, str(path)).names == read(G, f'{path}:{picture.stem}').names == (picture.stem,)
    np.savez(tmp_path / 'projected_w.npz', w=np.zeros([1, G.num_ws, G.w_dim], np.float32))  # A projector's.
    assert read(G, str(tmp_path / 'projected_w.npz')).names == ('projected_w',)
    np.savez(tmp_path / 'none.npz', w=np.zeros([0, G.num_ws, G.w_dim], np.float32))
    with pytest.raises(UserError, match='none.npz'):
        read(G, str(tmp_path / 'none.npz'))


def test_layers_and_single_codes_together_are_layered(G: Any, tmp_path: Path) -> None:
    layers = torch.randn([1, G.num_ws, G.z_dim]).numpy()
    np.savez(tmp_path / 'plus.npz', y_plus=layers)
    found = read(G, '0', str(tmp_path / 'plus.npz'))
    assert found.code.shape == (2, G.num_ws, G.z_dim) and np.array_equal(found.code[1], layers[0])
    torch.testing.assert_close(codes.render(G, found.code)[:1], codes.render(G, read(G, '0').code))


def test_labels_are_all_or_none(tmp_path: Path) -> None:
    """w out of a file has no class; beside it that of seeds says nothing, and rows must not go astray."""
    G = make_stock(c_dim=3)
    np.savez(tmp_path / 'w.npz', w=np.zeros([1, G.w_dim], np.float32))
    assert read(G, '0', str(tmp_path / 'w.npz'), class_idx=1).c is None
    found = read(G, '0', '1', class_idx=1).c
    assert found is not None and torch.equal(found, torch.eye(3)[[1, 1]])


def test_an_image_of_its_own_noise_keeps_it_beside_others(G: Any, tmp_path: Path) -> None:
    own = {f'noise.{name}': value[:, 0:1].numpy() + 3 for name, value in
           codes.noise_maps.initial_noise(G.synthesis, 1).items()}
    for buffer in G.synthesis.modules():
        if hasattr(buffer, 'noise_strength'):
            buffer.noise_strength.fill_(0.3)
    np.savez(tmp_path / 'noisy.npz', y=np.zeros([1, G.z_dim], np.float32), **own)
    np.savez(tmp_path / 'plain.npz', y=np.zeros([1, G.z_dim], np.float32))
    both = read(G, str(tmp_path / 'noisy.npz'), str(tmp_path / 'plain.npz'))
    drawn = codes.render(G, both.code, noise=both.noise)
    torch.testing.assert_close(drawn[1:], codes.render(G, both.code[1:]))
    assert (drawn[0] - drawn[1]).abs().max() > 0.01


def test_a_bad_image_is_left_out_or_raises(G: Any, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 1)
    (folder / 'bad.png').write_bytes(b'no picture')
    failures: list[tuple[str, str]] = []
    assert read(G, str(folder), failures=failures).names == ('picture0',)
    assert [label for label, _reason in failures] == [str(folder / 'bad.png')]
    with pytest.raises(UserError, match='bad.png'):
        read(G, str(folder))


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    G = make_generator(encoder=False)
    save_pictures(tmp_path / 'in', 1)
    for text, reason in [(str(tmp_path / 'in'), 'encoder'), (str(tmp_path / 'none.npz'), 'no such file')]:
        with pytest.raises(UserError, match=reason):
            read(G, text)
    with pytest.raises(UserError, match='INPUT'):
        read(G)


def test_stored_classes_stand_unless_one_is_given(tmp_path: Path) -> None:
    G = make_generator(c_dim=3)
    c = np.eye(3, dtype=np.float32)[[2, 0]]
    np.savez(tmp_path / 'two.npz', y=np.zeros([2, G.z_dim], np.float32), c=c)
    assert read(G, str(tmp_path / 'two.npz')).c.tolist() == c.tolist()  # type: ignore[union-attr]
    assert read(G, str(tmp_path / 'two.npz'), class_idx=1).c.argmax(dim=1).tolist() == [1, 1]  # type: ignore[union-attr]
    np.savez(tmp_path / 'none.npz', y=np.zeros([2, G.z_dim], np.float32))
    with pytest.raises(UserError, match='--class'):
        read(G, str(tmp_path / 'none.npz'))


@pytest.mark.parametrize('space', spaces.SPACES)
@pytest.mark.parametrize('layered', [False, True])
def test_spaces_lead_back(space: str, layered: bool) -> None:
    G = make_generator(c_dim=2)
    shape = [3, G.num_ws, G.z_dim] if layered else [3, G.z_dim]
    code, c = torch.randn(shape), torch.eye(2)[[0, 1, 0]]
    there = paths.to_space(G, code, c, space)
    expected = spaces.fit_code(G, code, space == 'y+') if space != 'z' else code
    torch.testing.assert_close(paths.from_space(G, there, c, space), expected, rtol=1e-4, atol=1e-4)
    if space == 'z' and layered:
        torch.testing.assert_close(there[:, 1], G.mapping.y_to_z(code[:, 1], c))


def test_resolution_is_the_networks(G: Any, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 1, side=40)
    found = read(G, str(folder))
    assert found.originals[0] is not None and found.originals[0].shape == (3, RESOLUTION, RESOLUTION)

def test_codes_too_large_for_float32_are_refused(G: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / 'large.npz', y=np.full([2, G.z_dim], 1e300))
    with pytest.raises(UserError, match='too large for float32'):
        read(G, str(tmp_path / 'large.npz'))


def test_where_y_has_one_length_it_is_not_truncated() -> None:
    """The picture of psi * y is that of y there, so that --trunc would do nothing and say nothing."""
    G = make_deep(base_kwargs={})
    with pytest.raises(UserError, match='--trunc: .*one length'):
        read(G, '3', psi=0.5)
    assert len(read(G, '3')) == 1


def test_many_equal_names_are_numbered() -> None:
    assert codes.unique_names(['a', 'A', 'a_2', 'a', 'b']) == ('a', 'A_2', 'a_2_2', 'a_3', 'b')
    assert len(set(codes.unique_names(['x'] * 20_000))) == 20_000


def test_latents_of_another_network_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    G = make_generator()
    for name, network in (('own', G), ('tuned', make_generator()), ('other', make_generator())):
        moved = dict(tuned=network.synthesis.b4.const, other=network.mapping.phi.coupling0.shift.bias).get(name)
        if moved is not None:
            moved.add_(1)
        code_output.save_codes(str(tmp_path / f'{name}.npz'), network, codes.seed_codes(network, [0]))
        capsys.readouterr()
        assert len(read(G, str(tmp_path / f'{name}.npz'))) == 1
        assert ('another network' in capsys.readouterr().err) == (name == 'other'), name


def test_what_is_cut_off_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_pickle(tmp_path / 'lia.pkl', make_generator())
    for name, size in (('square', (40, 40)), *((f'wide{i}', (40, 20)) for i in range(7))):
        PIL.Image.new('L', size, 99).save(tmp_path / f'{name}.png')
    session = Session.open(path, device='cpu', outdir=str(tmp_path / 'out'))
    session.read([str(tmp_path / 'square.png'), '7'])
    assert capsys.readouterr().err == ''
    session.read([str(tmp_path / 'wide0.png')])
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and told[0].endswith('wide0.png: of 40x20 pixels only the centre square is edited')
    session.read([str(tmp_path)], failures=[])
    told = capsys.readouterr().err.splitlines()
    assert sum('centre square' in line for line in told) == 5 and told[5].startswith('… and 2 more; another crop')
