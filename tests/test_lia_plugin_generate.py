"""The generate command: the stock scripts' names and numbers, latents, classes, grids, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, save_pickle, save_pictures
from test_lia_plugin_inversion import run as invert
from test_lia_plugin_refinement import make_stock
from test_lia_plugin_sampling import make_deep, noisy
from test_networks_stylegan3 import make_generator as make_stylegan3

from lia_plugin import cli, codes, memory, noise_maps, prior, sampling, spaces
from lia_plugin.generate_run import GenerateOptions
from lia_plugin.images import to_uint8


class Networks:
    """Networks of this module's tests by name, with the paths of their pickles."""

    def __init__(self, folder: Path) -> None:
        made = dict(
            lia=make_generator(), stage1=make_generator(encoder=False), labels=make_generator(c_dim=3),
            grey=make_generator(channels=1), deep=make_deep(num_layers=2), stock=make_stock(),
            stock_labels=make_stock(c_dim=3), stylegan3=make_stylegan3(),
        )  # fmt: skip
        for G in made.values():
            torch.nn.init.normal_(noisy(G).mapping.w_avg)
        self.G = {name: G.eval().requires_grad_(False) for name, G in made.items()}
        self.path = {name: save_pickle(folder / f'{name}.pkl', G) for name, G in self.G.items()}


@pytest.fixture(scope='module')
def nets(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(tmp_path_factory.mktemp('networks'))


def generate(network: str, out: Path, *args: str) -> dict[str, Any]:
    given = [f'--network={network}', f'--outdir={out}', '--device=cpu', *args]
    assert cli.run(cli.load_command('generate'), given) == 0
    return json.loads((out / 'generate.json').read_text())


def pixels(path: Path) -> torch.Tensor:
    with PIL.Image.open(path) as picture:
        array = np.asarray(picture).astype(np.int32)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within a level, for arithmetic differs between batches."""
    assert found.shape == expected.shape and (found - expected.int()).abs().max() <= 1


def latents(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# Seeds


@pytest.mark.parametrize('name', ['lia', 'stage1', 'labels', 'grey', 'deep', 'stock', 'stock_labels', 'stylegan3'])
def test_seeds_are_what_the_network_makes_of_numpys_draws(nets: Networks, tmp_path: Path, name: str) -> None:
    G = nets.G[name]
    given = ['--class=2'] if G.c_dim else []
    told = generate(nets.path[name], tmp_path, '--seeds=0,7-9', '--trunc=0.7', '--batch=3', *given)
    c = torch.eye(3)[[2]] if G.c_dim else None
    for seed in (0, 7, 8, 9):
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float()
        img = G(z, c, truncation_psi=0.7, noise_mode='const')
        assert_same(pixels(tmp_path / f'seed{seed:04d}.png'), to_uint8(img)[0])
    assert len(list(tmp_path.iterdir())) == 5 and [row['seed'] for row in told['images']] == [0, 7, 8, 9]
    assert ('log_prob' in told['images'][0]) == (name in ('lia', 'stage1', 'labels', 'grey')), 'where y is known'


def test_figures_are_those_of_the_truncated_code(nets: Networks, tmp_path: Path) -> None:
    G = nets.G['lia']
    told = generate(nets.path['lia'], tmp_path, '--seeds=0-2', '--trunc=0.5')
    y = G.mapping.w_avg.lerp(G.mapping.z_to_y(codes.seeds_to_z(range(3), 16)), 0.5)
    z = G.mapping.y_to_z(y)
    for row, norm, log_prob, p in zip(told['images'], z.square().sum(1), prior.log_prob(G, y), prior.typicality(z)):
        assert row['z_norm2'] == pytest.approx(float(norm), rel=1e-4)
        assert row['log_prob'] == pytest.approx(float(log_prob), rel=1e-4)
        assert row['typicality'] == pytest.approx(float(p), rel=1e-3)
    assert set(told['units']) == {'z_norm2', 'log_prob', 'typicality'}


@pytest.mark.parametrize('name', ['lia', 'deep', 'stock', 'stylegan3'])
def test_without_any_of_the_code_all_pictures_are_the_mean(nets: Networks, tmp_path: Path, name: str) -> None:
    G = nets.G[name]
    generate(nets.path[name], tmp_path, '--seeds=0-1', '--trunc=0')
    mean = to_uint8(G.synthesis(G.mapping.w_avg.repeat([1, G.num_ws, 1]), noise_mode='const'))[0]
    for seed in (0, 1):
        assert_same(pixels(tmp_path / f'seed000{seed}.png'), mean)


@pytest.mark.parametrize('mode', ['const', 'random', 'none'])
def test_batches_make_no_difference(nets: Networks, tmp_path: Path, mode: str) -> None:
    for batch in (1, 4):
        generate(nets.path['stock'], tmp_path / str(batch), '--seeds=0-4', f'--batch={batch}', f'--noise-mode={mode}')
    for seed in range(5):
        one, many = (pixels(tmp_path / batch / f'seed000{seed}.png') for batch in '14')
        assert (one - many).abs().max() <= 1


def test_auto_draws_as_many_as_fit(nets: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random state is not moved on by what is tried: codes and noise of seeds stay theirs."""
    measured: list[int] = []

    def batch_size(device: torch.device, work: Any) -> int:
        measured.append(memory.peak_bytes(work, device))
        return 3

    monkeypatch.setattr(memory, 'batch_size', batch_size)
    sizes: list[int] = []
    render = sampling.render
    monkeypatch.setattr(sampling, 'render', lambda G, ws, *rest: sizes.append(len(ws)) or render(G, ws, *rest))
    for batch in ('3', 'auto'):
        generate(nets.path['stock'], tmp_path / batch, '--seeds=0-4', f'--batch={batch}', '--noise-mode=random')
    assert sizes == [3, 2, 3, 2] and len(measured) == 1 and measured[0] > 0
    for seed in range(5):
        assert torch.equal(*(pixels(tmp_path / batch / f'seed000{seed}.png') for batch in ('3', 'auto')))


def test_noise_modes_differ_and_random_is_the_seeds(nets: Networks, tmp_path: Path) -> None:
    for mode in ('const', 'random', 'none'):
        generate(nets.path['stock'], tmp_path / mode, '--seeds=1', f'--noise-mode={mode}')
    generate(nets.path['stock'], tmp_path / 'again', '--seeds=0-1', '--noise-mode=random')
    folders = ('const', 'random', 'none', 'again')
    const, random, none, again = (pixels(tmp_path / folder / 'seed0001.png') for folder in folders)
    assert_same(again, random)
    assert min((a - b).abs().max() for a, b in ((const, random), (const, none), (random, none))) > 10


def test_each_seed_in_several_classes(nets: Networks, tmp_path: Path) -> None:
    G = nets.G['labels']
    told = generate(nets.path['labels'], tmp_path, '--seeds=3,4', '--class=all')
    assert [(row['seed'], row['class']) for row in told['images']] == [(s, k) for s in (3, 4) for k in range(3)]
    img = G(codes.seeds_to_z([4], 16), torch.eye(3)[[1]], noise_mode='const')
    assert_same(pixels(tmp_path / 'seed0004_class1.png'), to_uint8(img)[0])


def test_a_stylegan3_picture_is_moved(nets: Networks, tmp_path: Path) -> None:
    for name, args in (('still', []), ('moved', ['--translate=0.2,0', '--rotate=30'])):
        generate(nets.path['stylegan3'], tmp_path / name, '--seeds=0', *args)
    still, moved = (pixels(tmp_path / name / 'seed0000.png') for name in ('still', 'moved'))
    assert (still - moved).abs().max() > 2


# Latents


@pytest.mark.parametrize('name, trunc', [('lia', ['--trunc=0.6']), ('labels', []), ('stock', ['--trunc=0.6']),
                                         ('deep', ['--trunc=0.6', '--trunc-space=y']), ('deep', ['--trunc=0.6']),
                                         ('stock_labels', []), ('lia', ['--trunc=0.6', '--trunc-cutoff=2'])])
def test_latents_make_the_same_pictures_again(nets: Networks, tmp_path: Path, name: str, trunc: list[str]) -> None:
    G = nets.G[name]
    label = ['--class=1'] if G.c_dim else []
    generate(nets.path[name], tmp_path / 'a', '--seeds=0-3', '--save-latents', '--batch=3', *trunc, *label)
    found = latents(tmp_path / 'a' / 'latents.npz')
    in_w_alone = name == 'deep' and len(trunc) == 1
    expected = {'w', 'names', 'network_hash'} | ({'c'} if G.c_dim else set())
    if spaces.has_prior(G) and not in_w_alone:
        expected |= {'y', 'z'} | ({'y_plus'} if len(trunc) == 2 and name == 'lia' else set())
    assert set(found) == expected and found['names'].tolist() == [f'seed000{i}' for i in range(4)]
    told = generate(nets.path[name], tmp_path / 'b', f'--projected-w={tmp_path}/a/latents.npz')
    for i in range(4):
        assert_same(pixels(tmp_path / 'b' / f'seed000{i}.png'), pixels(tmp_path / 'a' / f'seed000{i}.png'))
    assert ('log_prob' in told['images'][0]) == (spaces.has_prior(G) and not in_w_alone)
    if 'z' in found:
        y = G.mapping.z_to_y(torch.from_numpy(found['z']), None if not G.c_dim else torch.from_numpy(found['c']))
        np.testing.assert_allclose(y, found['y'], atol=1e-4)


def test_what_invert_wrote_is_drawn_as_it_was(nets: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a file for each image."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    pictures = save_pictures(tmp_path / 'in', 2)
    out = tmp_path / 'inverted'
    assert invert('--network', nets.path['lia'], '--target', str(pictures), '--outdir', str(out)) == 0
    files = [f'--projected-w={out}/picture{i}.npz' for i in range(2)]
    generate(nets.path['lia'], tmp_path / 'again', *files)
    for i in range(2):
        assert_same(pixels(tmp_path / 'again' / f'picture{i}.png'), pixels(out / f'picture{i}_recon.png'))


def test_codes_of_each_layer_and_noise_of_an_images_own(nets: Networks, tmp_path: Path) -> None:
    G = nets.G['lia']
    torch.manual_seed(0)
    y_plus, noise = torch.randn([2, G.num_ws, 16]), noise_maps.draw_noise(G.synthesis, [5, 6])
    arrays = {f'noise.{name}': value.numpy() for name, value in noise.items()}
    np.savez(tmp_path / 'x.npz', y_plus=y_plus.numpy(), **arrays)
    generate(nets.path['lia'], tmp_path / 'a', f'--projected-w={tmp_path}/x.npz', '--save-latents')
    generate(nets.path['lia'], tmp_path / 'b', f'--projected-w={tmp_path}/a/latents.npz')
    img = to_uint8(noise_maps.synthesize(G.synthesis, G.mapping.y_to_ws(y_plus), noise))
    for i, folder in ((0, 'a'), (1, 'a'), (0, 'b'), (1, 'b')):
        assert_same(pixels(tmp_path / folder / f'proj0{i}.png'), img[i])


@pytest.mark.parametrize('name', ['lia', 'deep', 'stock', 'stylegan3'])
def test_a_projectors_w(nets: Networks, tmp_path: Path, name: str) -> None:
    G = nets.G[name]
    ws = torch.randn([2, G.num_ws, G.w_dim], generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / 'projected_w.npz', w=ws.numpy())
    generate(nets.path[name], tmp_path / 'out', f'--projected-w={tmp_path}/projected_w.npz')
    for i in range(2):
        assert_same(pixels(tmp_path / 'out' / f'proj0{i}.png'), to_uint8(G.synthesis(ws, noise_mode='const'))[i])


def test_stored_names_cannot_leave_the_folder(nets: Networks, tmp_path: Path) -> None:
    names = np.array(['../../evil', '/tmp/evil', 'a', 'A'])
    np.savez(tmp_path / 'x.npz', w=np.zeros([4, 6, 16], np.float32), names=names)
    generate(nets.path['lia'], tmp_path / 'out', f'--projected-w={tmp_path}/x.npz')
    found = sorted(path.name for path in (tmp_path / 'out').glob('*.png'))
    assert found == ['.._.._evil.png', 'A_2.png', '_tmp_evil.png', 'a.png']
    assert not list(tmp_path.glob('*.png')) and not list(tmp_path.parent.glob('evil*'))


# Pictures


def test_grids_hold_the_pictures_row_by_row(nets: Networks, tmp_path: Path) -> None:
    generate(nets.path['grey'], tmp_path / 'each', '--seeds=0-4')
    generate(nets.path['grey'], tmp_path / 'grid', '--seeds=0-4', '--grid=2x2', '--batch=3')
    assert {path.name for path in (tmp_path / 'grid').iterdir()} == {'grid00.png', 'grid01.png', 'generate.json'}
    sheets = [pixels(tmp_path / 'grid' / f'grid0{i}.png') for i in range(2)]
    assert sheets[0].shape == (1, 2 * RESOLUTION, 2 * RESOLUTION)
    for seed in range(5):
        top, left = (RESOLUTION * place for place in divmod(seed % 4, 2))
        tile = sheets[seed // 4][:, top : top + RESOLUTION, left : left + RESOLUTION]
        assert_same(tile, pixels(tmp_path / 'each' / f'seed000{seed}.png'))


def test_captions_and_formats(nets: Networks, tmp_path: Path) -> None:
    generate(nets.path['lia'], tmp_path, '--seeds=0-3', '--grid=2x2', '--captions', '--format=jpg')
    with PIL.Image.open(tmp_path / 'grid00.jpg') as picture:
        assert picture.format == 'JPEG' and picture.height > 2 * 128
    generate(nets.path['lia'], tmp_path / 'w', '--seeds=0', '--format=webp')
    with PIL.Image.open(tmp_path / 'w' / 'seed0000.webp') as picture:
        assert picture.format == 'WEBP' and picture.size == (RESOLUTION, RESOLUTION)


# Bad input


@pytest.mark.parametrize('name, args, reason', [
    ('lia', [], '--seeds: say which'),
    ('lia', ['--seeds=x'], "'x' is no list of numbers"),
    ('lia', ['--seeds=0', '--class=0'], '--class: this network has no classes'),
    ('lia', ['--seeds=0', '--class=all'], '--class: this network has no classes'),
    ('labels', ['--seeds=0'], '0 to 2; none given'),
    ('labels', ['--seeds=0', '--class=0,3'], '0 to 2; got 3'),
    ('stock_labels', ['--seeds=0'], '0 to 2; none given'),
    ('lia', ['--seeds=0', '--rotate=10'], '--rotate: this network is a StyleGAN2'),
    ('stock', ['--seeds=0', '--trunc=0.5', '--trunc-space=y'], '--trunc-space=y'),
    ('lia', ['--seeds=0', '--trunc-cutoff=2'], '--trunc-cutoff: only with --trunc'),
    ('lia', ['--seeds=0', '--trunc=0.5', '--trunc-cutoff=7'], 'has 6 layers; got 7'),
    ('lia', ['--seeds=0', '--captions'], '--captions: only with --grid'),
    ('lia', ['--seeds=0', '--grid=2000x1', '--format=webp'], 'too large for webp'),
    ('lia', ['--projected-w=nothing.npz'], 'nothing.npz: no such file'),
    ('labels', ['--seeds=0', '--class=0,1', '--projected-w=x.npz'], '--class: codes of --projected-w'),
])
def test_bad_input_is_one_line_and_writes_nothing(
    nets: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, args: list[str], reason: str
) -> None:
    given = [f'--network={nets.path[name]}', f'--outdir={tmp_path}/out', '--device=cpu', *args]
    assert cli.run(cli.load_command('generate'), given) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and reason in err, err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('arrays, reason', [
    (dict(w=np.zeros([1, 6, 9], np.float32)), 'its w has shape [1, 6, 9]'),
    (dict(w=np.full([1, 6, 16], np.nan, np.float32)), 'not finite'),
    (dict(v=np.zeros(3)), 'holds no y_plus or y or w'),
    (dict(w=np.zeros([1, 6, 16], np.float32), names=np.array(['a', 'b'])), 'its names have shape [2]'),
])
def test_bad_latents(
    nets: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: Any, reason: str
) -> None:
    np.savez(tmp_path / 'x.npz', **arrays)
    given = [f'--network={nets.path["lia"]}', f'--outdir={tmp_path}/out', f'--projected-w={tmp_path}/x.npz',
             '--device=cpu']  # fmt: skip
    assert cli.run(cli.load_command('generate'), given) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and reason in err and 'x.npz' in err, err
    assert not (tmp_path / 'out').exists()


def test_y_of_a_w_alone_cannot_be_truncated(nets: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / 'x.npz', w=np.zeros([1, 6, 8], np.float32))
    given = [f'--network={nets.path["deep"]}', f'--outdir={tmp_path}/out', f'--projected-w={tmp_path}/x.npz',
             '--device=cpu', '--seeds=0-9', '--trunc=0.5', '--trunc-space=y']  # fmt: skip
    assert cli.run(cli.load_command('generate'), given) == 2
    assert '--trunc-space=y' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_the_options_are_the_commands() -> None:
    command = cli.load_command('generate')
    assert {param.name for param in command.params if param.expose_value} == set(GenerateOptions.__dataclass_fields__)
