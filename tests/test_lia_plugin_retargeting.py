"""An edit of one image applied to others: as a function, and as the command `edit retarget`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from editing_files import Files, arrays, drawn, edit, picture, refused

from lia_plugin import spaces
from lia_plugin.retargeting import apply_edit, learn_edit


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('retarget'))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('space', ['y', 'y+', 'z'])
@pytest.mark.parametrize('layered', [False, True])
def test_applied_to_its_own_source_the_edit_gives_its_result(files: Files, space: str, layered: bool) -> None:
    G = files.G
    shape = (1, G.num_ws, 16) if layered else (1, 16)
    before, after = draw(*shape, seed=1), draw(*shape, seed=2)
    found = learn_edit(G, before, after, None, None, space)
    there = apply_edit(G, before, None, found)
    expected = after if space != 'y' or not layered else before + (after - before)[:, :1]
    torch.testing.assert_close(spaces.fit_code(G, there, True), spaces.fit_code(G, expected, True), rtol=0, atol=2e-5)
    back = apply_edit(G, there, None, found, strength=-1)
    torch.testing.assert_close(spaces.fit_code(G, back, True), spaces.fit_code(G, before, True), rtol=0, atol=2e-5)
    assert there.ndim == (2 if not layered and space != 'y+' else 3)


def test_only_the_layers_named_change(files: Files) -> None:
    G = files.G
    found = learn_edit(G, draw(1, 16, seed=1), draw(1, 16, seed=2), None, None, 'z')
    code = draw(3, 16)
    moved = apply_edit(G, code, None, found, 0.5, layers=[1, 4])
    whole = apply_edit(G, code, None, found, 0.5)
    copies = spaces.fit_code(G, code, plus=True)
    assert torch.equal(moved[:, [0, 2, 3, 5]], copies[:, [0, 2, 3, 5]])
    torch.testing.assert_close(moved[:, 4], whole)


def test_the_command(files: Files, tmp_path: Path) -> None:
    assert edit('retarget', '--network', files.network, '--before', files.images[0], '--after', files.images[1],
                '--strength=0.5', '--strength=1', '--images', '--outdir', tmp_path, files.images[0],
                7) == 0  # fmt: skip
    found = arrays(tmp_path / 'edited.npz')
    assert found['names'].tolist() == ['picture0_00', 'picture0_01', 'seed0007_00', 'seed0007_01']
    y = files.G.encode(torch.stack([picture(Path(path)).float() / 127.5 - 1 for path in files.images[:2]]))
    np.testing.assert_allclose(found['y'][1], y[1], atol=1e-5)
    np.testing.assert_allclose(found['y'][3] - found['y'][2], 0.5 * (y[1] - y[0]), atol=1e-5)
    told = json.loads((tmp_path / 'results.json').read_text())
    assert told['length'] == pytest.approx(float((y[1] - y[0]).norm()), rel=1e-4) and told['space'] == 'y'
    assert [row['strength'] for row in told['images']] == [0.5, 1, 0.5, 1]
    assert all(row['mse'] > 0 and 'log_prob' in row for row in told['images'])
    for name, img in zip(found['names'], drawn(files.G, found['y'])):
        assert (picture(tmp_path / f'{name}.png').int() - img.int()).abs().max() <= 1
    with PIL.Image.open(tmp_path / 'strip.png') as strip:
        assert strip.height > 4 * 128, 'a row for each of the two images, and of two targets'
        assert 4 * 128 < strip.width < 5.5 * 128, 'original, as it is, and two strengths'
    assert edit('retarget', '--network', files.network, '--before=1', '--after=2', '--outdir', tmp_path / 'b', 7) == 0
    with PIL.Image.open(tmp_path / 'b' / 'strip.png') as strip:
        assert 2 * 128 < strip.width < 3.5 * 128, 'seeds have no originals'


def test_results_go_back_into_full_pictures(files: Files, tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full([20, 30, 3], 90, np.uint8)).save(tmp_path / 'wide.png')
    assert edit('retarget', '--network', files.network, '--before=1', '--after=2', '--paste', '--outdir',
                tmp_path / 'out', tmp_path / 'wide.png') == 0  # fmt: skip
    pasted = picture(tmp_path / 'out' / 'wide_pasted.png')
    assert pasted.shape == (3, 20, 30) and (pasted[:, :, :5] == 90).all() and (pasted[:, :, 5:25] != 90).any()


def test_in_z_and_with_what_other_commands_wrote(files: Files, tmp_path: Path) -> None:
    args = ['--network', files.network, '--space=z', '--before=1', '--after=2']
    assert edit('retarget', *args, '--outdir', tmp_path / 'a', 1) == 0
    assert edit('retarget', *args, '--strength=-1', '--outdir', tmp_path / 'b', tmp_path / 'a' / 'edited.npz') == 0
    for folder, seed in (('a', 2), ('b', 1)):
        found = arrays(tmp_path / folder / 'edited.npz')['z'][0]
        np.testing.assert_allclose(found, np.random.RandomState(seed).randn(16), atol=1e-4)


@pytest.mark.parametrize('args, words', [
    (['--before=1', '--after=1', '5'], '--after=1: has the same code as --before'),
    (['--before=1-2', '--after=1', '5'], '--before=1-2: names 2 images; one is wanted'),
    (['--before=1', '--after=2', '--layers=6', '5'], '--layers: this network has the layers 0 to 5, not 6'),
    (['--before=1', '--after=nowhere.png', '5'], '--after=nowhere.png: no such file'),
    (['--before=1', '--after=2'], 'INPUT'),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[Any], words: str
) -> None:
    code = edit('retarget', '--network', files.network, '--outdir', tmp_path / 'out', *args)
    refused(capsys, code, words, tmp_path / 'out')


def test_a_stock_network_has_no_z(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ['--network', files.stock, '--before=1', '--after=2']
    code = edit('retarget', *args, '--space=z', '--outdir', tmp_path / 'out', 5)
    refused(capsys, code, 'it has no φ', tmp_path / 'out')
    assert edit('retarget', *args, '--outdir', tmp_path / 'w', 5) == 0
