"""The invert command with an optimisation: what it writes, from which start, in which space, and what it refuses."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, run, save_pickle, save_pictures
from test_lia_plugin_refinement import make_stock

from lia_plugin import host, images, initial_codes, spaces
from lia_plugin.host import UserError
from lia_plugin.refinement import Settings, refine


class Files:
    """Networks and pictures of this module's tests."""

    def __init__(self, folder: Path) -> None:
        from training.networks import Discriminator

        self.G = make_generator()
        torch.manual_seed(1)
        D = Discriminator(c_dim=0, img_resolution=RESOLUTION, img_channels=3, channel_base=128, channel_max=8)
        self.network = str(folder / 'lia.pkl')
        with open(self.network, 'wb') as file:
            pickle.dump(dict(G=self.G, D=D.eval(), G_ema=self.G, augment_pipe=None, training_set_kwargs=None), file)
        self.stage1 = save_pickle(folder / 'stage1.pkl', make_generator(encoder=False))
        self.stock = save_pickle(folder / 'stock.pkl', make_stock())
        self.pictures = save_pictures(folder / 'in', 3)
        self.one = str(self.pictures / 'picture0.png')


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('refine'))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))


def invert(network: str, target: Any, out: Path, *args: str) -> dict[str, Any]:
    assert run('--network', network, '--target', str(target), '--outdir', str(out), *args) == 0
    return json.loads((out / 'results.json').read_text())


def latents(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def codes(file: dict[str, np.ndarray]) -> set[str]:
    """Names of what is a code, not a noise map, nor where the crop lay."""
    return {key for key in file if '.' not in key}


def picture(path: Path) -> torch.Tensor:
    return images.to_float(images.read_image(path).pixels)


# Refinement


def test_refined_images_their_figures_and_pages(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    told = invert(files.network, files.pictures, out, '--refine=8', '--batch=2', '--prior-weight=0.01')
    plain = invert(files.network, files.pictures, tmp_path / 'plain')
    assert told['refine']['steps'] == 8 and told['init'] == 'encoder' and told['percep'] == 'disc'
    for row, before in zip(told['images'], plain['images']):
        assert row['mse'] < row['start_mse'] == pytest.approx(before['mse'], rel=1e-4)
        for name in ('typicality', 'log_prob', 'z_norm2', 'psnr'):
            assert row[f'start_{name}'] == pytest.approx(before[name], rel=1e-3, abs=1e-6)
            assert name in row
        assert row['seconds'] > 0 and row['ms'] > 0 and row['phi_error'] < 1e-4
    assert set(told['mean']) == set(told['units']) - {'moved_gain'}
    assert 'start MSE' in capsys.readouterr().out
    page = (out / 'index.html').read_text()
    assert 'Original, encoder and refined' in page
    side = PIL.Image.open(out / 'picture0_side.png')
    assert side.width > 1.4 * PIL.Image.open(tmp_path / 'plain' / 'picture0_side.png').width, 'three pictures'
    together = latents(out / 'latents.npz')
    for i in range(3):
        own = latents(out / f'picture{i}.npz')
        assert codes(own) == {'w', 'y', 'z', 'network_hash'} and np.array_equal(own['y'][0], together['y'][i])
        replayed = files.G(torch.from_numpy(own['z']), None, noise_mode='const')[0]
        shown = images.to_float(images.to_uint8(replayed))
        assert (shown - picture(out / f'picture{i}_recon.png')).abs().max() <= 2 / 127.5


def test_batches_do_not_matter(files: Files, tmp_path: Path) -> None:
    by_one = invert(files.network, files.pictures, tmp_path / 'a', '--refine=5', '--batch=1')
    at_once = invert(files.network, files.pictures, tmp_path / 'b', '--refine=5', '--batch=3')
    for a, b in zip(by_one['images'], at_once['images']):
        assert a['mse'] == pytest.approx(b['mse'], rel=1e-3)


def test_layers_of_their_own(files: Files, tmp_path: Path) -> None:
    args = ('--refine=5', '--space=y+', '--offset-weight=0.01', '--percep=none', '--lpips=none')
    told = invert(files.network, files.one, tmp_path, *args)
    found = latents(tmp_path / 'projected_w.npz')
    assert found['y_plus'].shape == (1, files.G.num_ws, 16) and np.array_equal(found['y_plus'][:, 0], found['y'])
    np.testing.assert_allclose(found['w'], found['y_plus'], atol=1e-6)  # Of this network y is w.
    z = files.G.mapping.y_to_z(torch.from_numpy(found['y']))
    np.testing.assert_allclose(z, found['z'], atol=1e-4)
    assert told['space'] == 'y+' and told['percep'] == 'none'
    again = invert(files.network, files.one, tmp_path / 'b', '--refine=1', '--space=y+', '--percep=none',
                   f'--init={tmp_path / "projected_w.npz"}')  # fmt: skip
    assert again['images'][0]['start_mse'] == pytest.approx(told['images'][0]['mse'], rel=1e-3)


def test_the_command_is_the_function(files: Files, tmp_path: Path) -> None:
    invert(files.network, files.one, tmp_path, '--refine=6', '--space=z', '--init=mean', '--percep=none',
           '--refine-lr=0.2', '--prior-weight=0.1', '--consistency-weight=0.05')  # fmt: skip
    settings = Settings(6, 'z', lr=0.2, prior_weight=0.1, consistency_weight=0.05)
    expected = refine(files.G, picture(Path(files.one))[None], settings=settings)
    np.testing.assert_allclose(latents(tmp_path / 'projected_w.npz')['y'], expected.code, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('space, lr', [('y', 0.3), ('y+', 0.1)])
def test_the_mean_is_no_code_of_the_image(files: Files, tmp_path: Path, space: str, lr: float) -> None:
    """What is said of the first step is what was done."""
    told = invert(files.network, files.one, tmp_path, '--refine=3', '--init=mean', f'--space={space}', '--percep=none')
    assert told['refine']['lr'] == lr
    expected = refine(files.G, picture(Path(files.one))[None], settings=Settings(3, space, lr=lr))
    key = 'y_plus' if space == 'y+' else 'y'
    np.testing.assert_allclose(latents(tmp_path / 'projected_w.npz')[key], expected.code, rtol=1e-3, atol=1e-4)
    if space == 'y':
        given = invert(files.network, files.one, tmp_path / 'b', '--refine=1', '--percep=none')
        assert given['refine']['lr'] == 0.03


def test_noise_is_saved_with_its_image(files: Files, tmp_path: Path) -> None:
    invert(files.network, files.pictures, tmp_path, '--refine=2', '--refine-noise', '--batch=2')
    own = latents(tmp_path / 'picture2.npz')
    maps = {key: value.shape for key, value in own.items() if key.startswith('noise.')}
    assert maps['noise.b16.conv1.noise_const'] == (1, 1, 16, 16) and len(maps) == 5
    assert not any(key.startswith('noise.') for key in latents(tmp_path / 'latents.npz'))


def test_noise_of_a_file_goes_on_with_its_code(files: Files, tmp_path: Path) -> None:
    """As it is, or as the start of what moves; and a tuned generator draws with it, too."""
    common = ('--percep=none', '--lpips=none')
    G = make_generator()
    for name, value in G.synthesis.named_buffers():
        if name.endswith('noise_strength'):
            value.fill_(0.5)
    network = save_pickle(tmp_path / 'noisy.pkl', G)
    first = invert(network, files.one, tmp_path / 'a', '--refine=4', '--refine-noise', *common)['images'][0]
    init = f'--init={tmp_path / "a" / "projected_w.npz"}'
    before = latents(tmp_path / 'a' / 'projected_w.npz')
    key = 'noise.b16.conv1.noise_const'
    plain = G.synthesis(torch.from_numpy(before['w']), noise_mode='const').clamp(-1, 1)
    assert abs(float((plain[0] - picture(Path(files.one))).square().mean()) - first['mse']) > 1e-3, 'noise shows'
    for folder, more, moves in (
        ('b', ('--refine=2',), False), ('c', ('--refine=2', '--refine-optimizer=adam'), False),
        ('d', ('--refine=4', '--refine-noise', '--refine-lr=0.01'), True), ('e', ('--tune=1',), False),
    ):  # fmt: skip
        told = invert(network, files.one, tmp_path / folder, init, *more, *common)['images'][0]
        start = told['pivot_mse' if folder == 'e' else 'start_mse']
        assert start == pytest.approx(first['mse'], rel=1e-3)
        after = latents(tmp_path / folder / 'projected_w.npz')
        assert np.array_equal(after[key], before[key]) != moves
        assert np.allclose(after[key], before[key], atol=0.1), 'but not far'


@pytest.mark.parametrize('kind', ['mp4', 'gif'])
def test_videos(files: Files, tmp_path: Path, kind: str) -> None:
    invert(files.network, files.pictures, tmp_path, '--refine=3', f'--save-video={kind}')
    found = sorted(path.name for path in tmp_path.glob(f'*.{kind}'))
    assert found == [f'picture{i}_refine.{kind}' for i in range(3)]
    if kind == 'mp4':
        frames = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / found[0]))[0]
        assert frames == 4 + 25, 'start, three steps, and a second of the end'
    else:
        with PIL.Image.open(tmp_path / found[0]) as video:
            assert video.n_frames == 4


def test_a_code_for_each_layer_can_be_used_as_one(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoder of y+ gives: all layers as they are, or the base code alone."""
    from lia_plugin.inverter import Inverter

    img = picture(Path(files.one))[None]
    layers = torch.randn([1, files.G.num_ws, 16], generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(files.G, 'encode', lambda img, c=None: layers)
    full = Inverter(files.G, 'y+')(img, None, ['a'])
    base = Inverter(files.G, 'y')(img, None, ['a'])
    assert full.y_plus is not None and torch.equal(full.y_plus, layers) and base.y_plus is None
    assert full.y is not None and base.y is not None and torch.equal(full.y, base.y)
    torch.testing.assert_close(base.recon, files.G.decode(layers[:, 0], noise_mode='const'))
    torch.testing.assert_close(full.recon, files.G.decode(layers, noise_mode='const'))
    for space, start in (('y+', full), ('y', base), ('z', base)):
        refined = Inverter(files.G, space, settings=Settings(2, space))(img, None, ['a'])
        assert refined.figures['start_mse'] == pytest.approx(start.figures['mse'], rel=1e-4)
        assert (refined.y_plus is not None) == (space == 'y+')


@pytest.mark.parametrize('encoder', [dict(space='y+'), dict(space='z'), dict(space='y+', iters=2)])
def test_every_kind_of_encoder_can_be_refined(files: Files, encoder: dict[str, Any]) -> None:
    from lia_plugin.inverter import Inverter

    G = make_generator()
    kwargs = {**G.init_kwargs, 'encoder_kwargs': dict(channel_base=128, channel_max=8, **encoder)}
    torch.manual_seed(0)
    G = type(G)(**kwargs).eval().requires_grad_(False)
    img = picture(Path(files.one))[None]
    for space in ('y', 'y+', 'z'):
        settings = Settings(3, space, lr=0.03, consistency_weight=0.01)
        found = Inverter(G, space, settings=settings)(img, None, ['a'])
        wanted = G.encode(img) if space == 'y+' else G.encode(img, space='y')
        error = (G.decode(wanted, noise_mode='const').clamp(-1, 1) - img).square().mean()
        assert found.figures['start_mse'] == pytest.approx([float(error)], rel=1e-4)
        assert found.figures['mse'] < found.figures['start_mse']
        assert (found.y_plus is not None) == (space == 'y+')


# Networks without an encoder, and without φ


def test_stage_1_starts_from_the_mean(files: Files, tmp_path: Path) -> None:
    told = invert(files.stage1, files.one, tmp_path, '--refine=5')
    row = told['images'][0]
    assert told['init'] == 'mean' and row['mse'] < row['start_mse'] and 'ms' not in row and 'typicality' in row
    mean = spaces.code_statistics(files.G).mean
    difference = files.G.decode(mean[None], noise_mode='const').clamp(-1, 1)[0] - picture(Path(files.one))
    assert row['start_mse'] == pytest.approx(float(difference.square().mean()), rel=1e-4)


@pytest.mark.parametrize('space', ['y', 'y+'])
def test_stock_networks_have_w_alone(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str
) -> None:
    told = invert(files.stock, files.pictures, tmp_path, '--refine=5', f'--space={space}')
    assert '--space=y is its w' in capsys.readouterr().err
    row = told['images'][0]
    assert row['mse'] < row['start_mse'] and not {'typicality', 'log_prob', 'z_norm2', 'ms'} & set(row)
    found = latents(tmp_path / 'picture1.npz')
    assert codes(found) == {'w', 'network_hash'} and found['w'].shape == (1, 6, 8)
    assert (np.ptp(found['w'], axis=1).max() > 0) == (space == 'y+')
    G = make_stock()
    shown = images.to_float(images.to_uint8(G.synthesis(torch.from_numpy(found['w']), noise_mode='const')[0]))
    assert (shown - picture(tmp_path / 'picture1_recon.png')).abs().max() <= 2 / 127.5
    again = invert(files.stock, files.pictures / 'picture1.png', tmp_path / 'b', '--refine=1', f'--space={space}',
                   f'--init={tmp_path / "picture1.npz"}')  # fmt: skip
    assert again['images'][0]['start_mse'] == pytest.approx(told['images'][1]['mse'], rel=1e-3)


# Codes from files


def test_codes_are_found_by_name_order_or_are_for_all(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = np.random.RandomState(0).randn(2, 16).astype(np.float32)
    np.savez(tmp_path / 'named.npz', y=codes, names=np.array(['b', 'a']))
    np.savez(tmp_path / 'plain.npz', y=codes)
    np.savez(tmp_path / 'one.npz', w=codes[:1, None].repeat(files.G.num_ws, axis=1))
    np.savez(tmp_path / 'both.npz', y=codes, y_plus=np.stack([codes] * files.G.num_ws, axis=1) + 1)
    np.savez(tmp_path / 'own.npz', y=codes[:1], names=np.array(['b']))

    def read(name: str) -> dict[str, np.ndarray]:
        found = initial_codes.read_codes(str(tmp_path / name), files.G, ['a', 'b'])
        return {key: point.code.numpy() for key, point in found.items()}

    assert np.array_equal(read('named.npz')['a'], codes[1]) and np.array_equal(read('plain.npz')['a'], codes[0])
    assert read('one.npz')['a'].shape == (files.G.num_ws, 16) and np.array_equal(read('one.npz')['b'][0], codes[0])
    assert np.array_equal(read('both.npz')['b'], np.stack([codes[1]] * files.G.num_ws) + 1)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all('one.npz: one code for all 2 images' in line for line in told)
    alone = initial_codes.read_codes(str(tmp_path / 'one.npz'), files.G, ['a'])
    named = initial_codes.read_codes(str(tmp_path / 'own.npz'), files.G, ['b'])
    assert list(alone) == ['a'] and np.array_equal(named['b'].code, codes[0]) and not capsys.readouterr().err
    with pytest.raises(UserError, match=r'own.npz: has no code for a \(1 of 2 images have none\); it names b$'):
        read('own.npz')


@pytest.mark.parametrize('network, more', [('network', ('--tune=1',)), ('stock', ('--refine=1',))])
def test_codes_of_a_file_keep_their_layers(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str, more: tuple[str, ...]
) -> None:
    path, common = getattr(files, network), ('--percep=none', '--lpips=none')
    first = invert(path, files.pictures, tmp_path, '--refine=5', '--space=y+', *common)
    init, name = f'--init={tmp_path / "latents.npz"}', 'pivot_mse' if more == ('--tune=1',) else 'start_mse'
    told = invert(path, files.pictures, tmp_path / 'b', init, *more, *common)
    assert told['space'] == 'y+' and 'base code' not in capsys.readouterr().err
    for before, row in zip(first['images'], told['images']):
        assert row[name] == pytest.approx(before['mse'], rel=1e-3)
    told = invert(path, files.one, tmp_path / 'c', init, '--refine=1', '--space=y', *common)
    assert told['images'][0]['start_mse'] != pytest.approx(first['images'][0]['mse'], rel=1e-3)
    assert '--space=y takes its base code (layer 0) alone' in capsys.readouterr().err
    invert(path, files.one, tmp_path, '--refine=2', '--space=y', *common)
    told = invert(path, files.one, tmp_path / 'd', f'--init={tmp_path / "projected_w.npz"}', '--refine=1', *common)
    assert told['space'] == 'y', 'copies are one code'


def test_offsets_have_a_weight_wherever_layers_have_codes(files: Files, tmp_path: Path) -> None:
    """Also where the encoder, or the file, says so and not the command line."""
    G = make_generator()
    torch.manual_seed(0)
    G = type(G)(**{**G.init_kwargs, 'encoder_kwargs': dict(channel_base=128, channel_max=8, space='y+')})
    network = save_pickle(tmp_path / 'plus.pkl', G.eval().requires_grad_(False))
    args = ('--refine=1', '--offset-weight=0.5', '--percep=none', '--lpips=none')
    told = invert(network, files.one, tmp_path / 'out', *args)
    assert told['space'] == 'y+' and told['refine']['offset_weight'] == 0.5
    np.savez(tmp_path / 'layers.npz', y_plus=np.random.RandomState(0).randn(1, files.G.num_ws, 16).astype(np.float32))
    told = invert(files.network, files.one, tmp_path / 'b', f'--init={tmp_path / "layers.npz"}', *args)
    assert told['space'] == 'y+'
    call = ('--network', network, '--target', files.one, '--outdir', str(tmp_path / 'c'), *args)
    assert run(*call, '--space=y') == 2 and not (tmp_path / 'c').exists()


def test_code_files_that_do_not_fit(files: Files, tmp_path: Path) -> None:
    (tmp_path / 'text.npz').write_text('nothing')
    np.save(tmp_path / 'array.npz', np.zeros(3))
    (tmp_path / 'array.npz.npy').rename(tmp_path / 'single.npz')
    np.savez(tmp_path / 'other.npz', x=np.zeros([1, 16]))
    np.savez(tmp_path / 'shape.npz', y=np.zeros([1, 15]))
    np.savez(tmp_path / 'layers.npz', y_plus=np.zeros([1, 5, 16]))
    np.savez(tmp_path / 'nan.npz', y=np.full([1, 16], np.nan))
    np.savez(tmp_path / 'three.npz', y=np.zeros([3, 16]))
    np.savez(tmp_path / 'named.npz', y=np.zeros([2, 16]), names=np.array(['a', 'c']))
    np.savez(tmp_path / 'names.npz', y=np.zeros([2, 16]), names=np.array(['a', 'b', 'c']))
    maps = {'layer': 'noise.b99.conv1.noise_const', 'size': 'noise.b16.conv1.noise_const'}
    for name, key in maps.items():
        np.savez(tmp_path / f'{name}.npz', **{'y': np.zeros([1, 16]), key: np.zeros([1, 1, 8, 8])})
    np.savez(tmp_path / 'object.npz', y=np.array([{}], dtype=object))
    for name, reason in {
        'none.npz': "no such file; it may be 'encoder', 'mean'", 'text.npz': 'not an .npz', 'single.npz': 'not an .npz',
        'other.npz': 'holds no y_plus or y or w', 'shape.npz': r'shape \[1, 15\]', 'layers.npz': r'shape \[1, 5, 16\]',
        'nan.npz': 'not finite', 'three.npz': '3 codes for 2 images', 'named.npz': 'no code for b .1 of 2',
        'layer.npz': 'no such layer', 'size.npz': r'finite numbers \[1, 1, 16, 16\]',
        'names.npz': r'names have shape \[3\], for 2 codes',
        'object.npz': 'not an .npz',
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=reason) as caught:
            initial_codes.read_codes(str(tmp_path / name), files.G, ['a', 'b'])
        assert str(caught.value).startswith('--init=') and name in str(caught.value)


# Tuning


@pytest.mark.parametrize('network', ['network', 'stock'])
def test_tuning_saves_a_network_that_draws_the_images(files: Files, tmp_path: Path, network: str) -> None:
    path = getattr(files, network)
    before = Path(path).read_bytes()
    args = ('--refine=3', '--tune=6', '--tune-lr=0.01', '--batch=2', '--percep=none')
    told = invert(path, files.pictures, tmp_path, *args)
    assert Path(path).read_bytes() == before
    tuned = host.load_network_pkl(str(tmp_path / 'tuned.pkl'))
    assert (tuned['D'] is not None) == (network == 'network')
    for i, row in enumerate(told['images']):
        assert row['mse'] < row['pivot_mse'] < row['start_mse']
        ws = torch.from_numpy(latents(tmp_path / f'picture{i}.npz')['w'])
        recon = tuned['G_ema'].synthesis(ws, noise_mode='const').clamp(-1, 1)[0]
        error = (recon - picture(files.pictures / f'picture{i}.png')).square().mean()
        assert float(error) == pytest.approx(row['mse'], rel=1e-3)
    assert 'refined and tuned' in (tmp_path / 'index.html').read_text()


def test_a_delta_is_the_tuned_network(files: Files, tmp_path: Path) -> None:
    options = ('--tune=4', '--tune-lr=0.01', '--tune-save=delta', '--percep=none')
    told = invert(files.network, files.one, tmp_path, *options)
    assert {path.suffix for path in tmp_path.glob('tuned*')} == {'.safetensors'} and told['tune']['steps'] == 4
    args = (f'--delta={tmp_path / "tuned.safetensors"}',)
    again = invert(files.network, files.one, tmp_path / 'b', *args)
    assert again['images'][0]['mse'] == pytest.approx(told['images'][0]['mse'], rel=1e-4)
    assert told['images'][0]['mse'] < told['images'][0]['pivot_mse']


# What is refused


def bad_calls(files: Files, folder: Path) -> dict[str, list[str]]:
    (folder / 'wrong.safetensors').write_text('nothing')
    lia, stage1, stock = (['--network', path] for path in (files.network, files.stage1, files.stock))
    return {
        'let an optimisation find the codes: invert.py --refine': stage1,
        'let an optimisation find the codes: invert.py --refine=1000': stock,
        '--refine-lr: only with --refine': [*lia, '--refine-lr=1'],
        '--refine-optimizer: only with --refine': [*lia, '--refine-optimizer=adam'],
        '--refine-optimizer=lbfgs: not with --refine-noise': [
            *lia, '--refine=1', '--refine-noise', '--refine-optimizer=lbfgs'],
        '--prior-weight: only with --refine': [*lia, '--prior-weight=1'],
        '--refine-noise: only with --refine': [*lia, '--refine-noise'],
        '--save-video: only with --refine': [*lia, '--save-video'],
        '--space=z: only with --refine=N': [*lia, '--space=z'],
        '--space=y+: the encoder gives y; only with --refine=N': [*lia, '--space=y+'],
        '--init=mean: only with --refine=N': [*lia, '--init=mean'],
        '--init=codes.npz: only with --refine=N or --tune=N': [*lia, '--init=codes.npz'],
        '--percep: only with --refine or --tune': [*lia, '--percep=none'],
        '--tune-save: only with --tune': [*lia, '--tune-save=delta'],
        '--offset-weight: only with --space=y+': [*lia, '--refine=1', '--offset-weight=1'],
        '--trunc: an optimisation': [*lia, '--refine=1', '--trunc=0.5'],
        '--noise-mode: an optimisation': [*lia, '--tune=1', '--noise-mode=random'],
        '--space=z: ': [*stock, '--refine=1', '--space=z'],
        '--prior-weight: ': [*stock, '--refine=1', '--prior-weight=1'],
        '--class: codes of a network without φ know no classes': [*stock, '--refine=1', '--class=0'],
        '--init=encoder: ': [*stage1, '--refine=1', '--init=encoder'],
        '--consistency-weight: ': [*stage1, '--refine=1', '--consistency-weight=1'],
        '--percep-weight: not with --percep=none': [*lia, '--refine=1', '--percep=none', '--percep-weight=0.5'],
        f'--percep-weight: {files.stage1}: holds no disc': [*stage1, '--refine=1', '--percep-weight=0.5'],
        '--percep=disc: ': [*stage1, '--refine=1', '--percep=disc'],
        '--init=none.npz: no such file': [*lia, '--refine=1', '--init=none.npz'],
        'not a safetensors file': [*lia, f'--delta={folder / "wrong.safetensors"}'],
        "--tune-save=delta: a delta belongs": [*lia, '--tune=1', '--tune-save=delta', '--delta=x'],
        "'--refine'": [*lia, '--refine=0'],
        "'--prior-weight'": [*lia, '--refine=1', '--prior-weight=nan'],
        "'--save-video'": [*lia, '--refine=1', '--save-video=avi'],
    }


def test_bad_calls_are_one_line_exit_code_2_and_nothing_written(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason, args in bad_calls(files, tmp_path).items():
        capsys.readouterr()
        assert run(*args, '--target', files.one, '--outdir', str(tmp_path / 'out')) == 2, reason
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and reason in lines[0], lines
        assert not (tmp_path / 'out').exists(), reason


def test_what_would_fail_at_the_end_fails_at_the_start(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the network is read."""
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('lia_plugin.invert_run.load_networks', lambda *_args, **_kwargs: pytest.fail('too late'))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    args = ['--network', files.network, '--target', files.one, '--tune=1']
    assert run(*args, '--outdir', str(tmp_path / 'out'), '--tune-save=delta') == 2
    assert 'pip install safetensors' in capsys.readouterr().err
    assert run(*args, '--outdir', str(tmp_path / 'file')) == 2
    assert '--outdir: ' in capsys.readouterr().err


def test_features_that_are_not_there_have_no_weight(files: Files, tmp_path: Path) -> None:
    told = invert(files.stage1, files.one, tmp_path, '--refine=1', '--lpips=none')
    assert told['percep'] == 'none' and told['refine']['percep_weight'] == 0


def test_networks_without_noise_inputs_say_so(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('lia_plugin.noise_maps.initial_noise', lambda synthesis, count: {})
    args = ['--network', files.network, '--target', files.one, '--refine=1', '--refine-noise']
    assert run(*args, '--outdir', str(tmp_path / 'out')) == 2
    assert 'has no noise inputs' in capsys.readouterr().err
