"""`edit variations`: what is near and what is far, figures that are true of the files, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing_files import Files, arrays, drawn, edit, picture, refused

from lia_plugin import editing, images, prior, sheets, spaces


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('variations'))


def told(folder: Path) -> Any:
    return json.loads((folder / 'results.json').read_text())


def seed_z(seed: int, dim: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(1, dim)).float()


def test_files_codes_and_figures_belong_together(files: Files, tmp_path: Path) -> None:
    assert edit('variations', files.images[0], '5', '--num=3', '--rho=0.9', '--rho=0.2', '--network', files.network,
                '--outdir', tmp_path) == 0  # fmt: skip
    stored = arrays(tmp_path / 'variations.npz')
    assert stored['names'].tolist() == [f'{name}_rho{rho}_{k:02d}' for rho in (0.9, 0.2)
                                        for name in ('picture0', 'seed0005') for k in range(3)]  # fmt: skip
    for name, img in zip(stored['names'], drawn(files.G, stored['y'])):
        assert (picture(tmp_path / f'{name}.png').int() - img.int()).abs().max() <= 1
    _image, seed = told(tmp_path)['inputs']
    row = stored['names'].tolist().index('seed0005_rho0.2_01')
    y, z = (torch.from_numpy(stored[key][row : row + 1]) for key in ('y', 'z'))
    figures = next(entry for entry in seed['variations'] if entry['name'] == 'seed0005_rho0.2_01')
    start = seed_z(5)
    assert figures['moved_z'] == pytest.approx(float((z - start).square().mean().sqrt()), rel=1e-3)
    moved_y = (y - files.G.mapping.z_to_y(start)) / spaces.code_statistics(files.G).std
    assert figures['moved_y'] == pytest.approx(float(moved_y.square().mean().sqrt()), rel=1e-3)
    assert figures['log_prob'] == pytest.approx(float(prior.log_prob(files.G, y)), rel=1e-3)
    assert figures['typicality'] == pytest.approx(float(prior.typicality(z)), rel=1e-2)
    a, b = picture(tmp_path / 'seed0005.png'), picture(tmp_path / 'seed0005_rho0.2_01.png')
    assert figures['mse'] == pytest.approx(float(((a.float() - b.float()) / 127.5).square().mean()), rel=1e-4)


def test_a_smaller_rho_goes_further(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edit('variations', '5', '--num=12', '--rho=0.99', '--rho=0.5', '--network', files.network, '--outdir',
                tmp_path) == 0  # fmt: skip
    entries = told(tmp_path)['inputs'][0]['variations']
    near, far = (np.mean([entry['moved_z'] for entry in part]) for part in (entries[:12], entries[12:]))
    assert near == pytest.approx(math.sqrt(2 - 1.98), rel=0.2) and far == pytest.approx(1, rel=0.2)
    assert 'mean of 12, rho 0.99' in capsys.readouterr().out


def test_one_kind_has_short_names_and_the_seed_decides(files: Files, tmp_path: Path) -> None:
    assert edit('variations', '5', '--num=2', '--seed=3', '--network', files.network, '--outdir', tmp_path) == 0
    start = files.G.mapping.z_to_y(seed_z(5))
    expected = editing.vary(files.G, start, None, 2, editing.Variation(0.9), torch.Generator().manual_seed(3))
    np.testing.assert_allclose(arrays(tmp_path / 'variations.npz')['y'], expected[0], atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {
        'seed0005.png', 'seed0005_00.png', 'seed0005_01.png', 'variations.npz', 'variations.png', 'results.json'}
    assert told(tmp_path)['kinds'] == {
        'rho0.9': dict(rho=0.9, share=1.0, coords=None, layers=None, each_layer=False)}


def test_some_coordinates_are_drawn_anew_and_the_others_stay(files: Files, tmp_path: Path) -> None:
    start = seed_z(5).numpy()
    args = ('5', '--network', files.network, '--num=6', '--outdir')
    assert edit('variations', *args, tmp_path / 'coords', '--coords=7,0-2') == 0
    changed = np.abs(arrays(tmp_path / 'coords' / 'variations.npz')['z'] - start) > 1e-3
    assert changed.all(axis=0).nonzero()[0].tolist() == [0, 1, 2, 7] == changed.any(axis=0).nonzero()[0].tolist()
    assert edit('variations', *args, tmp_path / 'share', '--resample=0.25') == 0
    changed = np.abs(arrays(tmp_path / 'share' / 'variations.npz')['z'] - start) > 1e-3
    assert changed.sum(axis=1).tolist() == [4] * 6 and changed.any(axis=0).sum() > 8
    assert told(tmp_path / 'share')['kinds']['rho0']['share'] == 0.25


def test_some_layers_change_and_the_others_stay(files: Files, tmp_path: Path) -> None:
    assert edit('variations', '5', '--network', files.network, '--num=2', '--outdir', tmp_path, '--layers=1-2') == 0
    plus = arrays(tmp_path / 'variations.npz')['y_plus']
    y = files.G.mapping.z_to_y(seed_z(5)).numpy()
    np.testing.assert_allclose(plus[:, [0, 3]], np.broadcast_to(y, [2, 2, 16]), atol=1e-6)
    assert np.abs(plus[:, 1:3] - y).max() > 0.01


def test_the_picture_has_originals_reconstructions_and_variations(files: Files, tmp_path: Path) -> None:
    assert edit('variations', '5', files.images[0], '--num=2', '--network', files.network, '--outdir', tmp_path) == 0
    sheet, step = picture(tmp_path / 'variations.png'), 128 + sheets.GAP
    left = sheet.shape[2] - (4 * step - sheets.GAP)
    expected = {(1, 0): picture(Path(files.images[0])), (0, 1): picture(tmp_path / 'seed0005.png'),
                (1, 1): picture(tmp_path / 'picture0.png'), (1, 3): picture(tmp_path / 'picture0_01.png')}  # fmt: skip
    for (row, column), img in expected.items():
        shown = sheet[:, sheets.LINE + row * step :, left + column * step :][:, :128:8, :128:8]
        assert torch.equal(shown, img)
    many = tmp_path / 'many'
    assert edit('variations', '5', '--num=13', '--network', files.network, '--outdir', many) == 0
    assert picture(many / 'variations.png').shape[1] == sheets.LINE + 2 * step - sheets.GAP, 'two rows'


def test_names_of_variations_never_hide_inputs(files: Files, tmp_path: Path) -> None:
    twin = tmp_path / 'in'
    twin.mkdir()
    for name, source in (('a.png', files.images[0]), ('a_00.png', files.images[1])):
        (twin / name).write_bytes(Path(source).read_bytes())
    assert edit('variations', twin, '--num=1', '--network', files.network, '--outdir', tmp_path / 'out') == 0
    assert arrays(tmp_path / 'out' / 'variations.npz')['names'].tolist() == ['a_00_2', 'a_00_00']


def test_variations_go_back_into_the_full_picture(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = torch.randint(0, 256, [3, 32, 64], generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images.save_png(full, tmp_path / 'full.png')
    out = tmp_path / 'out'
    assert edit('variations', tmp_path / 'full.png', '--num=2', '--rho=0', '--network', files.network, '--outdir', out,
                '--paste') == 0  # fmt: skip
    pasted = [picture(out / f'full_0{k}_pasted.png') for k in range(2)]
    for img in pasted:
        assert torch.equal(img[:, :, :16], full[:, :, :16]) and torch.equal(img[:, :, 48:], full[:, :, 48:])
    assert not torch.equal(*pasted)
    stored = arrays(out / 'variations.npz')
    assert stored['placement.size'].tolist() == [[64, 32]] * 2
    capsys.readouterr()
    refused(capsys, edit('variations', '5', '--network', files.network, '--outdir', tmp_path / 'no', '--paste'),
            '--paste: seed 5', tmp_path / 'no')  # fmt: skip


def test_classes_stay(files: Files, tmp_path: Path) -> None:
    assert edit('variations', '5', '--class=2', '--num=2', '--network', files.conditional, '--outdir', tmp_path) == 0
    np.testing.assert_array_equal(arrays(tmp_path / 'variations.npz')['c'], [[0, 0, 1]] * 2)


def test_what_is_refused(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    for network, args, words in (
        (files.stock, ['5'], 'has no φ, so its codes have no z to vary'),
        (files.network, ['5', '--coords=16,3'], '--coords=3,16: z has the coordinates 0 to 15'),
        (files.network, ['5', '--layers=99'], '--layers=99: this network has the layers 0 to'),
        (files.network, ['5', '--rho=1.5'], '--rho'),
        (files.network, ['5', '--rho=nan'], '--rho'),
        (files.network, ['5', '--resample=2'], '--resample'),
        (files.network, ['5', '--num=0'], '--num'),
        (files.stage1, [files.images[0]], 'has no encoder'),
    ):
        refused(capsys, edit('variations', *args, '--network', network, '--outdir', out), words, out)


def test_a_share_changes_one_coordinate_at_least(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ('7', '--network', files.network, '--num=3', '--outdir')
    assert edit('variations', *args, tmp_path / 'few', '--resample=0.001') == 0
    with np.load(tmp_path / 'few' / 'variations.npz') as file:
        before = seed_z(7).numpy()
        assert (np.abs(file['z'] - before) > 1e-4).sum(axis=1).tolist() == [1, 1, 1]
    capsys.readouterr()
    refused(capsys, edit('variations', *args, tmp_path / 'none', '--resample=0'), '--resample', tmp_path / 'none')


def test_rows_of_several_rho_draw_the_same(files: Files, tmp_path: Path) -> None:
    """So that what stands beneath each other differs in rho alone: e = (z' - rho z) / sqrt(1 - rho^2)."""
    assert edit('variations', '5,6', '--num=2', '--rho=0.9', '--rho=0.2', '--network', files.network, '--outdir',
                tmp_path) == 0  # fmt: skip
    z = torch.from_numpy(arrays(tmp_path / 'variations.npz')['z']).unflatten(0, [2, 2, 2])
    old = torch.cat([seed_z(5), seed_z(6)])[:, None]
    near, far = ((z[i] - rho * old) / math.sqrt(1 - rho**2) for i, rho in enumerate((0.9, 0.2)))
    torch.testing.assert_close(near, far, atol=1e-3, rtol=1e-3)


def test_the_sheet_shows_as_many_inputs_as_have_room(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, 'MAX_PIXELS', 300_000)
    assert edit('variations', '1-5', '--num=1', '--network', files.network, '--outdir', tmp_path) == 0
    assert 'room for the first 3 of 5 inputs' in capsys.readouterr().err
    sheet = picture(tmp_path / 'variations.png')
    assert sheet.shape[1] == sheets.LINE + 3 * (128 + sheets.GAP) - sheets.GAP
    assert len(arrays(tmp_path / 'variations.npz')['z']) == 5


def test_small_tiles_leave_files_and_figures_as_they_are(files: Files, tmp_path: Path) -> None:
    """Of what is larger than its tile only small copies are kept; of two inputs the sheet has rows of its own."""
    args = (files.images[0], '5', '--num=3', '--batch=2', '--network', files.network, '--outdir')
    for tile in (8, 16):
        assert edit('variations', *args, tmp_path / str(tile), f'--tile={tile}') == 0
    small, whole = (told(tmp_path / str(tile)) for tile in (8, 16))
    assert small == whole
    for name in ('picture0.png', 'picture0_02.png', 'seed0005_01.png'):
        assert torch.equal(picture(tmp_path / '8' / name), picture(tmp_path / '16' / name))
    step = 8 + sheets.GAP
    sheet = picture(tmp_path / '8' / 'variations.png')[:, sheets.LINE :, -(5 * step - sheets.GAP) :]
    for row, names in enumerate((['picture0', 'picture0_00', 'picture0_01', 'picture0_02'],
                                 ['seed0005', 'seed0005_00', 'seed0005_01', 'seed0005_02'])):  # fmt: skip
        for i, name in enumerate(names, 1):
            expected = sheets.shrunk(picture(tmp_path / '16' / f'{name}.png'), 8)
            assert torch.equal(sheet[:, row * step : row * step + 8, i * step : i * step + 8], expected)
