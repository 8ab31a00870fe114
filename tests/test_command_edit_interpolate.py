"""`edit interpolate`: ends that are reconstructions, what it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from editing_files import Files, arrays, drawn, edit, make_layered, picture, refused
from test_lia_plugin_inversion import make_generator, save_pickle
from test_lia_plugin_inversion import run as invert
from test_lia_plugin_sampling import noisy

from lia_plugin import host, interpolation_run, noise_maps, sheets


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('interpolate'))


def told(folder: Path) -> Any:
    return json.loads((folder / 'results.json').read_text())


def test_a_path_between_images_begins_and_ends_at_their_reconstructions(files: Files, tmp_path: Path) -> None:
    invert('--network', files.network, '--target', str(files.pictures), '--outdir', str(tmp_path / 'inverted'))
    out = tmp_path / 'out'
    assert edit('interpolate', *files.images[:3], '--network', files.network, '--outdir', out, '--steps=3',
                '--space=z', '--space=y', '--frames') == 0  # fmt: skip
    for space in ('z', 'y'):
        for key in range(3):
            frame = picture(out / 'frames' / f'{space}_{3 * key:04d}.png').int()
            recon = picture(tmp_path / 'inverted' / f'picture{key}_recon.png').int()
            assert (frame - recon).abs().max() <= 1
        path = arrays(out / f'path_{space}.npz')
        assert path['names'].tolist() == [f'{space}_{i:04d}' for i in range(7)]
        torch.testing.assert_close(files.G.mapping.y_to_z(torch.from_numpy(path['y'])), torch.from_numpy(path['z']))
        np.testing.assert_array_equal(path['w'][:, 0], path['y'])  # Of this network y is w.
        for i, img in enumerate(drawn(files.G, path['y'])):
            assert (picture(out / 'frames' / f'{space}_{i:04d}.png').int() - img.int()).abs().max() <= 1
    figures = told(out)
    assert [key['name'] for key in figures['keyframes']] == ['picture0', 'picture1', 'picture2']
    assert len(figures['spaces']['z']['each_frame']['typicality']) == 7
    y = arrays(out / 'path_y.npz')['y']
    np.testing.assert_allclose(y[1], y[0] + (y[3] - y[0]) / 3, atol=1e-5)


def test_distances_in_the_picture_are_those_of_the_frames(files: Files, tmp_path: Path) -> None:
    assert edit('interpolate', '1,2', '--network', files.network, '--outdir', tmp_path, '--steps=3', '--frames') == 0
    frames = [picture(tmp_path / 'frames' / f'y_{i:04d}.png').float() / 127.5 for i in range(4)]
    steps = [float((b - a).square().mean().sqrt()) for a, b in zip(frames, frames[1:])]
    figures = told(tmp_path)['spaces']['y']
    assert figures['picture_length'] == pytest.approx(sum(steps), rel=1e-4)
    assert figures['largest_step'] == pytest.approx(max(steps), rel=1e-4) and figures['frames'] == 4


def test_the_strip_shows_originals_frames_and_spaces(files: Files, tmp_path: Path) -> None:
    assert edit('interpolate', files.images[0], '5', '--network', files.network, '--outdir', tmp_path, '--steps=2',
                '--space=z', '--space=y', '--frames') == 0  # fmt: skip
    strip = picture(tmp_path / 'strip.png')
    step = 128 + sheets.GAP
    left = strip.shape[2] - (5 * step - sheets.GAP)
    shown = strip[:, sheets.LINE :, left:][:, ::8, ::8]
    assert torch.equal(shown[:, :16, :16], picture(Path(files.images[0])))
    for row, space in enumerate(('z', 'y')):
        for i in range(3):
            y, x = (sheets.LINE + row * step), left + (1 + i) * step
            expected = picture(tmp_path / 'frames' / f'{space}_{i:04d}.png')
            assert torch.equal(strip[:, y : y + 128 : 8, x : x + 128 : 8], expected)
    assert (strip[:, sheets.LINE :, left + 4 * step :] == 255).all(), 'a seed has no original'


def test_long_paths_make_short_strips(files: Files, tmp_path: Path) -> None:
    assert edit('interpolate', '5,6', '--network', files.network, '--outdir', tmp_path, '--steps=40') == 0
    assert picture(tmp_path / 'strip.png').shape[2] == 9 * (128 + sheets.GAP) - sheets.GAP
    assert len(arrays(tmp_path / 'path_y.npz')['y']) == 41


@pytest.mark.parametrize('count, places', [(2, [0, 1]), (3, [0, 1, 2]), (9, list(range(9))), (13, range(0, 13, 2)),
                                           (121, range(0, 121, 15)), (12, [0, 1, 3, 4, 6, 7, 8, 10, 11])])
def test_which_frames_a_strip_shows(count: int, places: list[int]) -> None:
    assert interpolation_run.shown_places(count) == list(places)


@pytest.mark.parametrize('kind', ['mp4', 'gif', 'webp'])
def test_videos_hold_every_frame(files: Files, tmp_path: Path, kind: str) -> None:
    assert edit('interpolate', '1-3', '--network', files.network, '--outdir', tmp_path, '--steps=2', '--loop',
                f'--video={kind}', '--fps=20', '--path=cubic', '--space=z') == 0  # fmt: skip
    assert len(arrays(tmp_path / 'path_z.npz')['y']) == 6
    if kind == 'mp4':
        import imageio_ffmpeg

        reader = imageio_ffmpeg.read_frames(str(tmp_path / 'video.mp4'))
        meta = next(reader)
        assert meta['size'] == (256, 256) and meta['fps'] == 20 and len(list(reader)) == 6
    else:
        with PIL.Image.open(tmp_path / f'video.{kind}') as video:
            assert video.n_frames == 6 and video.size == (256, 256)
            video.load()
            assert video.info['duration'] == 50


def test_several_spaces_share_a_video(files: Files, tmp_path: Path) -> None:
    assert edit('interpolate', '1-2', '--network', files.network, '--outdir', tmp_path, '--steps=2', '--video=webp',
                '--space=z', '--space=y') == 0  # fmt: skip
    with PIL.Image.open(tmp_path / 'video.webp') as video:
        assert video.size == (2 * 256 + sheets.GAP, 256 + sheets.LINE)


def test_a_grid_lies_between_four_corners(files: Files, tmp_path: Path) -> None:
    assert edit('interpolate', *files.images, '--network', files.network, '--outdir', tmp_path, '--steps=2', '--grid',
                '--space=z', '--space=y', '--frames') == 0  # fmt: skip
    paths = {space: arrays(tmp_path / f'path_{space}.npz')['y'] for space in ('z', 'y')}
    for corner in (0, 2, 6, 8):
        np.testing.assert_array_equal(paths['z'][corner], paths['y'][corner])
    np.testing.assert_allclose(paths['y'][4], paths['y'][[0, 2, 6, 8]].mean(axis=0), atol=1e-5)
    grid, step = picture(tmp_path / 'grid_y.png'), 128 + sheets.GAP
    middle = grid[:, sheets.LINE + step :, 2 * step :][:, :128:8, :128:8]
    assert torch.equal(middle, picture(tmp_path / 'frames' / 'y_0004.png'))
    corner = grid[:, sheets.LINE + 2 * step :, 4 * step :][:, :128:8, :128:8]
    assert torch.equal(corner, picture(Path(files.images[3])))
    assert not (tmp_path / 'strip.png').exists()


def test_stored_paths_are_inputs_again_with_their_noise(files: Files, tmp_path: Path) -> None:
    noise = {f'noise.{name}': torch.randn_like(value).numpy()
             for name, value in noise_maps.initial_noise(files.G.synthesis, 2).items()}  # fmt: skip
    y = files.G.mapping.z_to_y(torch.randn([2, 16])).numpy()
    np.savez(tmp_path / 'own.npz', y=y, names=np.array(['a', 'b']), **noise)
    out = tmp_path / 'out'
    assert edit('interpolate', tmp_path / 'own.npz', '--network', files.network, '--outdir', out, '--steps=2',
                '--frames') == 0  # fmt: skip
    path = arrays(out / 'path_y.npz')
    for name, value in noise.items():
        np.testing.assert_array_equal(path[name][[0, 2]], value)
    again = tmp_path / 'again'
    assert edit('interpolate', f'{out / "path_y.npz"}:y_0001', f'{out / "path_y.npz"}:y_0002', '--network',
                files.network, '--outdir', again, '--steps=1', '--frames') == 0  # fmt: skip
    for i in range(2):
        same = picture(again / 'frames' / f'y_{i:04d}.png').int() - picture(out / 'frames' / f'y_{i + 1:04d}.png').int()
        assert same.abs().max() <= 1


def test_y_plus_is_kept_unless_y_is_asked_for(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    G = make_layered()
    network = save_pickle(tmp_path / 'layered.pkl', G)
    code = G.mapping.z_to_y(torch.randn([2 * G.num_ws, 16])).unflatten(0, [2, G.num_ws])
    np.savez(tmp_path / 'own.npz', y_plus=code.numpy())
    args = (tmp_path / 'own.npz', '--network', network, '--steps=2')
    assert edit('interpolate', *args, '--outdir', tmp_path / 'a') == 0 and not capsys.readouterr().err
    np.testing.assert_array_equal(arrays(tmp_path / 'a' / 'path_y_plus.npz')['y_plus'][[0, 2]], code)
    assert edit('interpolate', *args, '--outdir', tmp_path / 'b', '--space=y', '--space=z') == 0
    assert '--space=y' in capsys.readouterr().err
    assert 'y_plus' not in arrays(tmp_path / 'b' / 'path_y.npz')
    np.testing.assert_array_equal(arrays(tmp_path / 'b' / 'path_z.npz')['y_plus'][[0, 2]], code)
    assert picture(tmp_path / 'a' / 'strip.png').shape[0] == 3, 'sheets are RGB, whatever the network draws'


def test_classes_are_mixed_on_the_way_and_that_is_said(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    G = host.load_network_pkl(files.conditional)['G_ema']
    c = torch.eye(3)[[0, 2]]
    y = G.mapping.z_to_y(torch.randn([2, 16]), c)
    np.savez(tmp_path / 'two.npz', y=y.numpy(), c=c.numpy())
    assert edit('interpolate', tmp_path / 'two.npz', '--network', files.conditional, '--outdir', tmp_path / 'out',
                '--steps=2', '--space=z') == 0  # fmt: skip
    path = arrays(tmp_path / 'out' / 'path_z.npz')
    np.testing.assert_array_equal(path['c'], [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(path['y'][[0, 2]], y)
    np.testing.assert_allclose(G.mapping.y_to_z(torch.from_numpy(path['y']), torch.from_numpy(path['c'])), path['z'])
    assert 'different classes' in capsys.readouterr().err
    assert edit('interpolate', '1-2', '--network', files.conditional, '--outdir', tmp_path / 'one', '--class=1') == 0
    assert not capsys.readouterr().err


def test_stock_networks_have_w_and_no_z(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ('1-2', '--network', files.stock, '--outdir')
    assert edit('interpolate', *args, tmp_path / 'out', '--steps=2') == 0
    assert 'typical' not in capsys.readouterr().out
    path = arrays(tmp_path / 'out' / 'path_y.npz')
    assert set(path) == {'w', 'names', 'network_hash'}
    np.testing.assert_allclose(path['w'][1], path['w'][[0, 2]].mean(axis=0), atol=1e-5)
    refused(capsys, edit('interpolate', *args, tmp_path / 'z', '--space=z'), 'has no φ', tmp_path / 'z')


def test_what_is_refused(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    for args, words in (
        (['7'], 'two keyframes at least, got 1'),
        (['7', '8', '9', '--grid'], 'four corners, from top left to bottom right, got 3'),
        (['7-10', '--grid', '--loop'], '--loop: not with --grid'),
        (['7-10', '--grid', '--video=gif'], '--video=gif: not with --grid'),
        (['7-8', '--grid', '--path=cubic'], '--path=cubic: not with --grid'),
        (['7-8', '--video=gif', '--fps=60'], 'GIF shows at most 50'),
        (['7-8', '--steps=0'], '--steps'),
        (['7', str(tmp_path / 'no.png')], 'no.png'),
        ([], 'INPUT'),
    ):
        refused(capsys, edit('interpolate', *args, '--network', files.network, '--outdir', out), words, out)


def test_opposite_codes_have_no_arc(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = torch.randn([1, 16])
    np.savez(tmp_path / 'own.npz', y=files.G.mapping.z_to_y(torch.cat([z, -z])).numpy())
    args = (tmp_path / 'own.npz', '--network', files.network, '--outdir', tmp_path / 'out')
    refused(capsys, edit('interpolate', *args, '--space=z'), '--space=z: slerp: the two codes point', tmp_path / 'out')
    assert edit('interpolate', *args, '--space=y', '--steps=1') == 0


def test_a_bad_image_is_left_out_and_counted(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'bad.png').write_bytes(b'no image')
    assert edit('interpolate', files.images[0], tmp_path / 'bad.png', files.images[1], '--network', files.network,
                '--outdir', tmp_path / 'out') == 1  # fmt: skip
    assert 'bad.png' in capsys.readouterr().err
    assert [key['name'] for key in told(tmp_path / 'out')['keyframes']] == ['picture0', 'picture1']


def test_more_frames_than_the_memory_holds_are_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ('0-999', '--network', files.network, '--outdir', tmp_path / 'out', '--steps=100000')
    refused(capsys, edit('interpolate', *args), '--steps=100000: makes 99900001 frames', tmp_path / 'out')


def test_a_curve_between_opposite_codes_is_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    z = torch.randn([1, 16])
    np.savez(tmp_path / 'own.npz', y=files.G.mapping.z_to_y(torch.cat([z, -z])).numpy())
    refused(capsys, edit('interpolate', tmp_path / 'own.npz', '--network', files.network, '--outdir', tmp_path / 'out',
                         '--space=z', '--path=cubic', '--steps=2'), 'opposite', tmp_path / 'out')  # fmt: skip


def test_w_of_one_code_for_all_layers_is_not_said_to_differ(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit('interpolate', '1-2', '--network', files.stock, '--outdir', tmp_path, '--steps=1') == 0
    assert edit('interpolate', tmp_path / 'path_y.npz', '--network', files.stock, '--outdir', tmp_path / 'again',
                '--steps=1', '--space=y') == 0  # fmt: skip
    assert 'differ' not in capsys.readouterr().err


def test_strips_and_grids_are_no_larger_than_can_be_looked_at(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, 'MAX_PIXELS', 2_000_000)
    assert edit('interpolate', '1-9', '--network', files.network, '--outdir', tmp_path, '--steps=1') == 0
    fit = sheets.most_rows(interpolation_run.MAX_COLUMNS + 2, 16)
    assert f'room for the first {fit} pairs of 9 keyframes' in capsys.readouterr().err and fit < 8
    strip = picture(tmp_path / 'strip.png')
    assert strip.shape[1] == fit * (sheets.LINE + 128 + 3 * sheets.GAP) - 3 * sheets.GAP
    assert len(arrays(tmp_path / 'path_y.npz')['y']) == 9
    out = tmp_path / 'grid'
    args = ('1-4', '--network', files.network, '--outdir', out, '--grid', '--steps=11')
    refused(capsys, edit('interpolate', *args), '--steps=11: 12 x 12 pictures are too large for one grid', out)


def test_small_tiles_show_the_frames_in_their_places(files: Files, tmp_path: Path) -> None:
    assert edit('interpolate', *files.images[:2], '--network', files.network, '--outdir', tmp_path, '--steps=2',
                '--frames', '--tile=8') == 0  # fmt: skip
    strip, step = picture(tmp_path / 'strip.png')[:, sheets.LINE :], 8 + sheets.GAP
    originals = [picture(Path(name)) for name in files.images[:2]]
    frames = [picture(tmp_path / 'frames' / f'y_{i:04d}.png') for i in range(3)]
    for i, img in enumerate((originals[0], *frames, originals[1])):
        assert torch.equal(strip[:, :, i * step : i * step + 8], sheets.shrunk(img, 8))


def test_random_noise_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    network = save_pickle(tmp_path / 'noisy.pkl', noisy(make_generator(encoder=False)))
    args = ('1,1', '--network', network, '--steps=2', '--frames', '--outdir')
    frames = {}
    for name, more in (('one', ['--batch=1']), ('five', ['--batch=5']), ('other', ['--seed=1'])):
        assert edit('interpolate', *args, tmp_path / name, '--noise-mode=random', *more) == 0
        frames[name] = torch.stack([picture(tmp_path / name / 'frames' / f'y_{i:04d}.png').int() for i in range(3)])
    assert (frames['one'] - frames['five']).abs().max() <= 1
    assert (frames['one'] - frames['other']).abs().max() > 5
    assert (frames['one'][0] - frames['one'][1]).abs().max() > 5, 'each frame has noise of its own'


def test_a_keyframe_that_cannot_be_read_is_named_where_too_few_are_left(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'bad.png').write_bytes(b'no picture')
    assert edit('interpolate', '3', str(tmp_path / 'bad.png'), '--network', files.network, '--outdir',
                str(tmp_path / 'out')) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and 'bad.png' in lines[0] and not (tmp_path / 'out').exists()
