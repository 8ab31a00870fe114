"""Inversion of images, and the invert command from files to results."""

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from lia_plugin import cli, images, inversion, page, placement, targets
from lia_plugin.host import UserError
from lia_plugin.network_hash import generator_hash
from lia_plugin.networks import Generator

RESOLUTION = 16


def make_generator(c_dim: int = 0, channels: int = 3, encoder: bool = True) -> Any:
    torch.manual_seed(0)
    G = Generator(
        z_dim=16, c_dim=c_dim, w_dim=16, img_resolution=RESOLUTION, img_channels=channels,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=16)),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
        encoder_kwargs=dict(channel_base=128, channel_max=8) if encoder else None,
    )  # fmt: skip
    torch.nn.init.normal_(G.mapping.w_avg)
    return G.eval().requires_grad_(False)


def save_pickle(path: Path, G: Any) -> str:
    with open(path, 'wb') as file:
        pickle.dump(dict(training_set_kwargs=None, G=G, D=None, G_ema=G, augment_pipe=None), file)
    return str(path)


def save_pictures(folder: Path, count: int, side: int = RESOLUTION) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        noise = np.random.RandomState(i).randint(0, 255, [side, side, 3], dtype=np.uint8)
        PIL.Image.fromarray(noise).save(folder / f'picture{i}.png')
    return folder


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


@pytest.fixture(scope='module')
def network(G: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', G)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))


def run(*args: str) -> int:
    return cli.run(cli.load_command('invert'), ['--device=cpu', *args])


# Functions


def test_latents_images_and_figures_belong_together(G: Any) -> None:
    img = torch.rand([3, 3, RESOLUTION, RESOLUTION], generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = inversion.invert_images(G, img)
    assert found.ws.shape == (3, G.num_ws, 16) and found.recon.shape == img.shape
    torch.testing.assert_close(G.mapping(found.z, None), found.ws, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(G.synthesis(found.ws, noise_mode='const'), found.recon)
    clipped = found.recon.clamp(-1, 1)  # as a picture file holds it, and as the metrics count
    expected = [float(((img[i] - clipped[i]) ** 2).mean()) for i in range(3)]
    assert found.figures['mse'] == pytest.approx(expected, rel=1e-5)
    assert found.figures['z_norm2'] == pytest.approx(found.z.square().sum(dim=1).tolist())
    assert all(error < 1e-4 for error in found.figures['phi_error'])
    assert set(found.figures) == set(inversion.UNITS) - {'lpips', 'typicality_set', 'p_distance'}
    assert all(len(values) == 3 for values in found.figures.values())


def test_a_perfect_encoder_has_no_error(G: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn([2, 16], generator=torch.Generator().manual_seed(0))
    y = G.mapping.z_to_y(z)
    monkeypatch.setattr(G, 'encode', lambda img: y, raising=False)
    found = inversion.invert_images(G, G.decode(y, noise_mode='const'))
    assert max(found.figures['mse']) < 1e-12 and min(found.figures['psnr']) > 120
    assert found.figures['ssim'] == pytest.approx([1, 1], abs=1e-6)


def test_truncation_pulls_the_reconstruction_to_the_mean(G: Any) -> None:
    img = torch.zeros([1, 3, RESOLUTION, RESOLUTION])
    full, half, none = (inversion.invert_images(G, img, truncation_psi=psi) for psi in (1, 0.5, 0))
    assert torch.equal(full.y, half.y) and torch.equal(full.z, none.z)
    torch.testing.assert_close(none.ws[0], G.mapping.w_avg.expand(G.num_ws, -1))
    torch.testing.assert_close(half.ws, (full.ws + none.ws) / 2)


def test_figures_of_small_images_leave_ssim_out() -> None:
    img = torch.zeros([1, 1, 8, 8])
    assert set(inversion.compare_images(img, img)) == {'mse', 'psnr'}


def test_lpips_is_reported_by_whoever_computes_it(G: Any) -> None:
    class Constant(torch.nn.Module):
        def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.full([len(a)], 0.25)

    figures = inversion.compare_images(torch.zeros([2, 3, 16, 16]), torch.ones([2, 3, 16, 16]), Constant())  # type: ignore[arg-type]
    assert figures['lpips'] == [0.25, 0.25]


def test_class_labels() -> None:
    labels = inversion.class_labels(SimpleNamespace(c_dim=3), 2, 2, 'cpu')
    assert labels is not None and labels.tolist() == [[0, 0, 1]] * 2 and labels.dtype == torch.float32
    assert inversion.class_labels(SimpleNamespace(c_dim=0), None, 2, 'cpu') is None
    for c_dim, index in ((3, None), (3, 3), (3, -1), (0, 0)):
        with pytest.raises(UserError, match='--class'):
            inversion.class_labels(SimpleNamespace(c_dim=c_dim), index, 1, 'cpu')


def test_mean_figures() -> None:
    assert inversion.mean_figures([{'mse': 1.0, 'psnr': 3.0}, {'mse': 3.0, 'psnr': 4.0}]) == {'mse': 2.0, 'psnr': 3.5}


# Targets


def test_targets_come_from_files_folders_patterns_and_zips_once_each(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    (folder / 'notes.txt').write_text('x')
    (folder / 'sub').mkdir()
    (folder / 'picture0.png').rename(folder / 'sub' / 'picture1.png')
    archive = tmp_path / 'set.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        file.write(folder / 'picture1.png', '00000/img0.png')
        file.writestr('dataset.json', '{}')
    found = targets.collect([str(folder), str(archive), str(folder / '*.png'), str(folder / 'picture1.png')])
    assert [(Path(t.path).name, t.member, t.name) for t in found] == [
        ('picture1.png', None, 'in_picture1'),
        ('picture1.png', None, 'sub_picture1'),
        ('set.zip', '00000/img0.png', 'img0'),
    ]
    assert found[2].read(8, 1).pixels.shape == (1, 8, 8)


def test_results_of_an_earlier_call_are_no_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    out = save_pictures(folder / 'out', 3)
    save_pictures(out / 'deeper', 1)
    beside = save_pictures(folder / 'outer', 1)
    (tmp_path / 'link').symlink_to(out)
    link = str(tmp_path / 'link')

    def count(source: str | Path, outdir: str | Path) -> int:
        return len(targets.collect([str(source)], outdir=str(outdir)))

    assert count(folder, out) == 3 and count(folder, link) == 3, 'and not what only begins with the same letters'
    assert count(f'{folder}/**/*.png', out) == 3 and count(f'{folder}/o*', out) == 1
    assert f'--target={folder}: 4 images in {out}, where results go, are left out' in capsys.readouterr().err
    for source, number in ((out, 4), (out / 'deeper', 1), (out / 'picture0.png', 1), (f'{out}/*0.png', 1)):
        assert count(source, out) == number, 'who names it means it'
    assert count(folder, folder) == 7 and count(beside, folder) == 1 and count(folder, tmp_path / 'new') == 7
    assert not capsys.readouterr().err
    monkeypatch.chdir(folder)
    assert count('.', 'out') == 3 and count('*.png', '.') == 2 and count('out/*.png', 'out') == 3
    assert len(targets.collect([str(folder), str(out)], outdir=str(out))) == 7
    with pytest.raises(UserError, match='holds no image file'):
        count(f'{folder}/out*/d*', out)


def test_results_are_not_inverted_again(network: str, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    for _ in range(2):
        assert run('--network', network, '--target', str(folder), '--outdir', str(folder / 'out'), '--lpips=none') == 0
    assert json.loads((folder / 'out' / 'results.json').read_text())['n'] == 2


def test_result_names_cannot_leave_the_folder_or_collide(tmp_path: Path) -> None:
    archive = tmp_path / 'hostile.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for name in ('../../up.png', '/absolute.png', 'C:\\windows.png', 'a b?.png', 'same.png', 'same.jpg', '..png'):
            file.writestr(name, b'')
    names = [target.name for target in targets.collect([str(archive)])]
    assert len({name.lower() for name in names}) == 7
    assert all(name and not set(name) & set('/\\:? ') and not name.startswith('.') for name in names)


@pytest.mark.parametrize('source, reason', [
    ('none.png', 'no such file'),
    ('empty', 'holds no image'),
    ('*.gif', 'no such file, folder or pattern'),
    ('broken.zip', 'not a readable zip'),
])
def test_useless_targets_are_named(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.zip').write_bytes(b'PK\x03\x04 and nothing more')
    with pytest.raises(UserError, match=reason) as caught:
        targets.collect([str(tmp_path / source)])
    assert source in str(caught.value)


def test_zip_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, 'MAX_MEMBER_BYTES', 1000)
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('big.png', bytes(10_000))
    (target,) = targets.collect([str(tmp_path / 'bomb.zip')])
    with pytest.raises(UserError, match='refused'):
        target.read(8, 3)


# The command


def test_one_image(network: str, G: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_pictures(tmp_path / 'in', 1, side=40)
    out = tmp_path / 'out'
    assert run('--network', network, '--target', str(folder / 'picture0.png'), '--outdir', str(out)) == 0
    names = ['picture0_recon.png', 'picture0_side.png', 'projected_w.npz', 'results.json']
    assert sorted(path.name for path in out.iterdir()) == names
    with np.load(out / 'projected_w.npz') as latents:
        arrays = {key: latents[key] for key in latents}
        assert str(arrays.pop('network_hash')) == generator_hash(G)
        own = {key: (value.shape, value.dtype) for key, value in arrays.items() if not key.startswith(placement.PREFIX)}
        assert own == {
            'w': ((1, G.num_ws, 16), np.float32), 'y': ((1, 16), np.float32), 'z': ((1, 16), np.float32),
        }
        replayed = G(torch.from_numpy(latents['z']), None, noise_mode='const')
    recon = images.read_image(out / 'picture0_recon.png').pixels
    difference = images.to_uint8(replayed[0]).int() - recon.int()
    assert difference.abs().max() <= 1, 'the saved z gives the saved reconstruction'
    results = json.loads((out / 'results.json').read_text())
    assert results['n'] == 1 and results['images'][0]['changes'] == ['resized from 40x40 to 16x16']
    (where,) = placement.from_arrays(arrays, 1)
    assert where is not None and (where.size, where.scale, where.resolution) == ((40, 40), 2.5, 16)
    assert where.source == str(folder / 'picture0.png') and where.to_json() == results['images'][0]['placement']
    assert set(results['units']) - {'moved_gain'} <= set(results['mean']) <= set(results['images'][0])
    screen = capsys.readouterr()
    assert 'resized from 40x40' in screen.err and 'picture0' in screen.out and 'PSNR' in screen.out


def test_a_folder_in_batches_equals_one_by_one(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / 'in', 3)
    out = tmp_path / 'out'
    assert run('--network', network, '--target', str(folder), '--outdir', str(out), '--batch=2', '--lpips=none') == 0
    assert {'grid.png', 'index.html', 'latents.npz', 'results.json'} <= {path.name for path in out.iterdir()}
    assert 'mean of 3' in capsys.readouterr().out
    results = json.loads((out / 'results.json').read_text())
    mses = [image['mse'] for image in results['images']]
    assert results['mean']['mse'] == pytest.approx(sum(mses) / 3)
    assert results['psnr_of_mean_mse'] == pytest.approx(10 * np.log10(4 / np.mean(mses)))
    with np.load(out / 'latents.npz') as together:
        assert together['names'].tolist() == ['picture0', 'picture1', 'picture2']
        for i in range(3):
            run('--network', network, '--target', str(folder / f'picture{i}.png'), '--outdir', str(tmp_path / f'{i}'))
            with np.load(tmp_path / f'{i}' / 'projected_w.npz') as alone, np.load(out / f'picture{i}.npz') as own:
                for key in ('w', 'y', 'z'):
                    np.testing.assert_allclose(alone[key][0], together[key][i], atol=1e-5)
                    np.testing.assert_array_equal(own[key][0], together[key][i])


def test_bad_files_in_a_batch_are_named_counted_and_the_rest_is_done(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    (folder / 'bad.png').write_bytes(b'nothing')
    out = tmp_path / 'out'
    assert run('--network', network, '--target', str(folder), '--outdir', str(out)) == 1
    screen = capsys.readouterr().err.strip().splitlines()
    assert screen[-1].startswith('Error: 1 of 3 images could not be used') and 'bad.png' in screen[-1]
    results = json.loads((out / 'results.json').read_text())
    assert results['n'] == 2 and [failure['image'] for failure in results['failed']] == [str(folder / 'bad.png')]
    assert (out / 'picture1_recon.png').exists()


def test_a_batch_of_bad_files_alone_is_bad_input(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('a.png', 'b.png'):
        (tmp_path / name).write_bytes(b'nothing')
    assert run('--network', network, '--target', str(tmp_path), '--outdir', str(tmp_path / 'out')) == 2
    assert 'Error: 2 of 2 images could not be used' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems have no such names')
def test_file_names_need_not_be_utf8(network: str, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    odd = os.fsdecode(os.fsencode(folder) + b'/\xff.png')
    os.rename(folder / 'picture0.png', odd)
    out = os.fsdecode(os.fsencode(tmp_path) + b'/out\xfe')
    assert run('--network', network, '--target', str(folder), '--outdir', out, '--lpips=none') == 0
    with open(os.path.join(out, 'results.json'), encoding='utf-8') as file:
        sources = [row['source'] for row in json.load(file)['images']]
    assert sorted(sources) == sorted([str(folder / 'picture1.png'), odd]), 'as they are, odd bytes included'


def test_pages_of_odd_names_are_utf8(tmp_path: Path) -> None:
    page.save_page(tmp_path / 'page.html', 'é \udcff', [page.Section('\udcfe', [page.paragraph('\udcfd')])])
    text = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert 'é \\udcff' in text and '<h2>\\udcfe</h2>' in text and '\\udcfd' in text


def test_conditional_grey_network(tmp_path: Path) -> None:
    network = save_pickle(tmp_path / 'grey.pkl', make_generator(c_dim=2, channels=1))
    folder = save_pictures(tmp_path / 'in', 2)
    out = tmp_path / 'out'
    assert run('--network', network, '--target', str(folder), '--outdir', str(out), '--class=1', '--trunc=0.7') == 0
    assert images.read_image(out / 'picture0_recon.png').pixels.shape == (1, RESOLUTION, RESOLUTION)
    assert run('--network', network, '--target', str(folder), '--outdir', str(out)) == 2


@pytest.mark.parametrize('labels', [[1, 0, 1], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
@pytest.mark.parametrize('zipped', [False, True])
def test_labels_of_a_data_set_go_with_their_images(tmp_path: Path, labels: list[Any], zipped: bool) -> None:
    G = make_generator(c_dim=2)
    network = save_pickle(tmp_path / 'conditional.pkl', G)
    folder = save_pictures(tmp_path / 'in', 4)
    (folder / 'sub').mkdir()
    (folder / 'picture3.png').rename(folder / 'sub' / 'last.png')
    (folder / 'picture0.png').write_bytes(b'nothing')  # The rows of the others must not move up.
    names = ['picture0.png', 'picture1.png', 'picture2.png', 'sub/last.png']
    table = [list(pair) for pair in zip(names, [labels[1], *labels])]
    (folder / 'dataset.json').write_text(json.dumps({'labels': table[::-1]}))
    if zipped:
        with zipfile.ZipFile(tmp_path / 'in.zip', 'w') as file:
            for name in [*names, 'dataset.json']:
                file.write(folder / name, name)
    target = str(tmp_path / 'in.zip') if zipped else str(folder)
    assert run('--network', network, '--target', target, '--outdir', str(tmp_path / 'out'), '--batch=2') == 1
    for name, index in (('picture1', 1), ('picture2', 0), ('last', 1)):
        path = next(folder.rglob(f'{name}.png'))
        img = images.to_float(images.read_image(path, RESOLUTION, 3).pixels[None])
        z = [G.invert(img, torch.eye(2)[[c]])[1][0].numpy() for c in (0, 1)]
        assert np.abs(z[0] - z[1]).max() > 1e-2, 'or the class would not matter'
        with np.load(tmp_path / 'out' / f'{name}.npz') as latents:
            np.testing.assert_allclose(latents['z'][0], z[index], atol=1e-4)
            np.testing.assert_array_equal(latents['c'], np.eye(2, dtype=np.float32)[[index]])
            (where,) = placement.from_arrays(dict(latents), 1)
        stored = path.relative_to(folder).as_posix()
        assert where is not None and (where.source, where.member) == ((target, stored) if zipped else (str(path), None))


@pytest.mark.parametrize('table, complaint', [
    ([['picture0.png', 0], ['picture1.png', 2]], 'picture1.png: is of class 2, but the network has the classes 0 to 1'),
    ([['picture0.png', [0, 1, 0]], ['picture1.png', [1, 0, 0]]], 'picture0.png: its label has 3 numbers.*takes 2'),
    ([['picture0.png', 0]], r'picture1.png: has no label in a dataset.json \(1 of 2.*--class'),
    ([['picture0.png', 'cat']], 'dataset.json: label of picture0.png'),
    (None, '--class: this network needs one of its classes, 0 to 1; none given'),
])
def test_labels_that_do_not_fit(tmp_path: Path, table: Any, complaint: str) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    (folder / 'dataset.json').write_text(json.dumps({'labels': table}))
    G, found = SimpleNamespace(c_dim=2), targets.collect([str(folder)])
    with pytest.raises(UserError, match=complaint):
        inversion.target_labels(G, None, found)
    rows = inversion.target_labels(G, 1, found)
    assert rows is not None and [row.tolist() for row in rows.values()] == [[0, 1]] * 2, '--class overrides all'
    assert inversion.target_labels(SimpleNamespace(c_dim=0), None, found) is None, 'and no network without asks'


def bad_calls(folder: Path, network: str) -> dict[str, list[str]]:
    good = str(save_pictures(folder / 'in', 1) / 'picture0.png')
    (folder / 'bad.png').write_bytes(b'nothing')
    (folder / 'text.pt').write_text('nothing')
    stage1 = save_pickle(folder / 'stage1.pkl', make_generator(encoder=False))
    return {
        'not an image': ['--network', network, '--target', str(folder / 'bad.png')],
        'no such file': ['--network', network, '--target', str(folder / 'none.png')],
        'stage 1': ['--network', stage1, '--target', good],
        'none.pkl': ['--network', str(folder / 'none.pkl'), '--target', good],
        '--class': ['--network', network, '--target', good, '--class=1'],
        '--lpips=none': ['--network', network, '--target', good, f'--lpips={folder / "text.pt"}'],
        '--device=abacus': ['--network', network, '--target', good, '--device=abacus'],
        'nan is not a finite number': ['--network', network, '--target', good, '--trunc=nan'],
        'inf is not a finite number': ['--network', network, '--target', good, '--trunc=inf'],
        "'--batch'": ['--network', network, '--target', good, '--batch=0'],
        'is no folder; give another place': ['--network', network, '--target', good, '--outdir', good],
        "'--network'": ['--target', good],
        "'--target'": ['--network', network],
    }


def test_bad_calls_are_one_line_exit_code_2_and_nothing_written(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason, args in bad_calls(tmp_path, network).items():
        capsys.readouterr()
        assert run('--outdir', str(tmp_path / 'out'), *args) == 2, reason
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('LPIPS left out')]
        assert len(lines) == 1 and reason in lines[0], lines
        assert not (tmp_path / 'out').exists(), reason
