"""`edit mix`: whose layers a mixture has, file names as style_mixing.py's, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing_files import Files, arrays, drawn, edit, picture, refused
from test_lia_plugin_inversion import save_pickle
from test_lia_plugin_refinement import make_stock

from lia_plugin import host, images, sheets
from lia_plugin.networks import Generator


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('mix'))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_mixtures_of_seeds_are_those_of_style_mixing(files: Files, tmp_path: Path) -> None:
    """By the stock recipe: w of the row, its layers in --styles overwritten by those of the column."""
    G = host.load_network_pkl(files.stock)['G_ema']
    assert edit('mix', '--rows=85,100', '--cols=55', '--styles=0-2', '--trunc=0.7', '--network', files.stock,
                '--outdir', tmp_path) == 0  # fmt: skip
    assert names(tmp_path) == {'85-85.png', '100-100.png', '55-55.png', '85-55.png', '100-55.png', 'grid.png',
                               'mixed.npz', 'results.json'}  # fmt: skip
    z = torch.from_numpy(np.stack([np.random.RandomState(seed).randn(8) for seed in (85, 100, 55)])).float()
    ws = G.mapping(z, None, truncation_psi=0.7)
    for i, seed in enumerate((85, 100)):
        mixed = ws[i : i + 1].clone()
        mixed[:, [0, 1, 2]] = ws[2:, [0, 1, 2]]
        img = images.to_uint8(G.synthesis(mixed, noise_mode='const'))[0]
        assert (picture(tmp_path / f'{seed}-55.png').int() - img.int()).abs().max() <= 1
        np.testing.assert_allclose(arrays(tmp_path / 'mixed.npz')['w'][i], mixed[0], atol=1e-5)


def test_images_and_seeds_mix_and_edges_are_reconstructions(files: Files, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    assert edit('mix', '--rows', files.images[0], '--rows=7', '--cols', files.images[1], '--cols=8', '--styles=1,3',
                '--network', files.network, '--outdir', out) == 0  # fmt: skip
    recon = drawn(files.G, files.G.encode(images.to_float(picture(Path(files.images[0])))[None]))[0]
    assert (picture(out / 'picture0-picture0.png').int() - recon.int()).abs().max() <= 1
    mixed = arrays(out / 'mixed.npz')
    assert mixed['names'].tolist() == ['picture0-picture1', 'picture0-8', '7-picture1', '7-8']
    plus = mixed['y_plus']
    np.testing.assert_array_equal(plus[0][[1, 3]], plus[2][[1, 3]])
    np.testing.assert_array_equal(plus[0][[0, 2]], plus[1][[0, 2]])
    assert not np.allclose(plus[0][0], plus[0][1])
    for name, img in zip(mixed['names'], drawn(files.G, plus)):
        assert (picture(out / f'{name}.png').int() - img.int()).abs().max() <= 1


def test_the_grid_has_originals_outside_and_mixtures_inside(files: Files, tmp_path: Path) -> None:
    assert edit('mix', '--rows', files.images[0], '--cols=8,9', '--styles=0', '--network', files.network, '--outdir',
                tmp_path) == 0  # fmt: skip
    grid, step = picture(tmp_path / 'grid.png'), 128 + sheets.GAP
    left = grid.shape[2] - (4 * step - sheets.GAP)

    def tile(row: int, column: int) -> torch.Tensor:
        return grid[:, sheets.LINE + row * step :, left + column * step :][:, :128:8, :128:8]

    assert torch.equal(tile(1, 0), picture(Path(files.images[0])))
    for row, column, name in ((1, 1, 'picture0-picture0'), (0, 2, '8-8'), (0, 3, '9-9'), (1, 3, 'picture0-9')):
        assert torch.equal(tile(row, column), picture(tmp_path / f'{name}.png'))


def test_several_sets_of_layers_have_a_folder_each_and_are_compared(files: Files, tmp_path: Path) -> None:
    assert edit('mix', '--rows=1', '--cols=2', '--styles=0-1', '--styles=each', '--network', files.network, '--outdir',
                tmp_path) == 0  # fmt: skip
    layers = [f'styles_{i}' for i in range(files.G.num_ws)]
    assert names(tmp_path) == {'1-1.png', '2-2.png', 'styles.png', 'results.json', 'styles_0-1', *layers}
    one, two = arrays(tmp_path / 'styles_0-1' / 'mixed.npz'), arrays(tmp_path / 'styles_1' / 'mixed.npz')
    np.testing.assert_array_equal(one['y_plus'][0, 1], two['y_plus'][0, 1])
    assert not np.allclose(one['y_plus'][0, 0], two['y_plus'][0, 0])
    assert json.loads((tmp_path / 'results.json').read_text())['styles'] == ['0-1', *map(str, range(files.G.num_ws))]
    assert names(tmp_path / 'styles_3') == {'1-2.png', 'grid.png', 'mixed.npz'}


def test_an_input_in_rows_and_columns_is_itself_and_repeats_count_once(files: Files, tmp_path: Path) -> None:
    assert edit('mix', '--rows=1,1', '--cols=1', '--network', files.network, '--outdir', tmp_path) == 0
    assert names(tmp_path) == {'1-1.png', 'grid.png', 'mixed.npz', 'results.json'}
    y = files.G.mapping.z_to_y(torch.from_numpy(np.random.RandomState(1).randn(1, 16)).float())
    np.testing.assert_allclose(arrays(tmp_path / 'mixed.npz')['y_plus'][0], y.expand(files.G.num_ws, -1), atol=1e-6)


def test_different_images_of_one_name_stay_apart(files: Files, tmp_path: Path) -> None:
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'picture0.png').write_bytes(Path(files.images[1]).read_bytes())
    out = tmp_path / 'out'
    assert edit('mix', '--rows', files.images[0], '--cols', other / 'picture0.png', '--network', files.network,
                '--outdir', out) == 0  # fmt: skip
    assert {'picture0-picture0_2.png', 'picture0-picture0.png', 'picture0_2-picture0_2.png'} < names(out)


def test_classes_mix_where_layers_do_not_ask_for_them(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    c = torch.eye(3)[[0, 2]]
    np.savez(tmp_path / 'two.npz', y=torch.randn([2, 16]).numpy(), c=c.numpy(), names=np.array(['a', 'b']))
    rows, columns = f'{tmp_path / "two.npz"}:a', f'{tmp_path / "two.npz"}:b'
    out = tmp_path / 'out'
    assert edit('mix', '--rows', rows, '--cols', columns, '--network', files.conditional, '--outdir', out) == 0
    np.testing.assert_array_equal(arrays(out / 'mixed.npz')['c'], [[1, 0, 0]])
    capsys.readouterr()
    torch.manual_seed(0)
    deep = Generator(
        z_dim=16, c_dim=3, w_dim=16, img_resolution=16, img_channels=3,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=8), base_kwargs=dict(num_layers=2)),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
    ).eval().requires_grad_(False)  # fmt: skip
    network = save_pickle(tmp_path / 'deep.pkl', deep)
    refused(capsys, edit('mix', '--rows', rows, '--cols', columns, '--network', network, '--outdir', tmp_path / 'no'),
            'of several classes', tmp_path / 'no')  # fmt: skip


def test_w_out_of_files_has_no_class_and_mixes_with_seeds_that_have_one(files: Files, tmp_path: Path) -> None:
    network = save_pickle(tmp_path / 'stock.pkl', make_stock(c_dim=2))
    w = torch.randn([1, 1, 8]).repeat([1, 6, 1])
    np.savez(tmp_path / 'projected_w.npz', w=w.numpy())
    assert edit('mix', '--rows', tmp_path / 'projected_w.npz', '--rows=3', '--cols=4,5', '--styles=0', '--class=1',
                '--network', network, '--outdir', tmp_path / 'out') == 0  # fmt: skip
    mixed = arrays(tmp_path / 'out' / 'mixed.npz')
    assert mixed['names'].tolist() == ['projected_w-4', 'projected_w-5', '3-4', '3-5'] and 'c' not in mixed
    np.testing.assert_array_equal(mixed['w'][0, 1:], w[0, 1:])


def test_what_is_refused(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    base: list[Any] = ['--network', files.network, '--outdir', out]
    for args, words in (
        (['--rows=1'], '--cols'),
        (['--rows=1', '--cols=2', '--styles=0-99'], 'this network has the layers 0 to'),
        (['--rows=1', '--cols=2', '--styles=coarse'], 'is no list of numbers'),
        (['--rows=1', '--cols', str(tmp_path / 'none.png')], '--cols'),
    ):
        refused(capsys, edit('mix', *args, *base), words, out)


def test_a_bad_image_is_left_out_and_counted(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'bad.png').write_bytes(b'no image')
    assert edit('mix', '--rows', files.images[0], '--rows', tmp_path / 'bad.png', '--cols=3', '--network',
                files.network, '--outdir', tmp_path / 'out') == 1  # fmt: skip
    assert 'bad.png' in capsys.readouterr().err and (tmp_path / 'out' / 'picture0-3.png').exists()


def test_mixtures_of_all_layers_are_said_to_be_the_columns(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ('--rows=1', '--cols=2', '--network', files.network, '--outdir', tmp_path)
    assert edit('mix', *args) == 0
    assert '--styles=0-5: are all layers' in capsys.readouterr().err
    assert edit('mix', *args, '--styles=0-4') == 0
    assert not capsys.readouterr().err


def test_grids_too_large_to_look_at_are_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ('--rows=0-799', '--cols=0-799', '--network', files.network, '--outdir', tmp_path / 'out', '--styles=0')
    refused(capsys, edit('mix', *args), '800 x 800 pictures are too large for one grid', tmp_path / 'out')


def test_the_comparison_shows_as_many_pairs_as_have_room(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, 'MAX_PIXELS', 700_000)
    args = ('--rows=1-2', '--cols=3-5', '--network', files.network, '--outdir', tmp_path)
    assert edit('mix', *args, '--styles=0-2', '--styles=3-5') == 0
    fit = sheets.most_rows(4, 16)
    assert f'styles.png: has room for the first {fit} of 6 pairs' in capsys.readouterr().err and 0 < fit < 6
    assert picture(tmp_path / 'styles.png').shape[1] == sheets.LINE + fit * (128 + sheets.GAP) - sheets.GAP


def test_small_tiles_show_the_files_in_their_places(files: Files, tmp_path: Path) -> None:
    assert edit('mix', '--rows', files.images[0], '--rows=1', '--cols=2-4', '--styles=0-2', '--tile=8', '--batch=4',
                '--network', files.network, '--outdir', tmp_path) == 0  # fmt: skip
    step = 8 + sheets.GAP
    grid = picture(tmp_path / 'grid.png')[:, -(2 * step - sheets.GAP) :, -(3 * step - sheets.GAP) :]
    for row, name in enumerate(('picture0', '1')):
        for i, column in enumerate('234'):
            expected = sheets.shrunk(picture(tmp_path / f'{name}-{column}.png'), 8)
            assert torch.equal(grid[:, row * step : row * step + 8, i * step : i * step + 8], expected)
