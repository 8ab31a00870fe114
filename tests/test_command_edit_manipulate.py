"""`edit manipulate`: codes go exactly where they were asked to, what is written says so, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from editing_files import Files, arrays, drawn, edit, make_layered, picture, refused
from test_lia_plugin_inversion import save_pickle

from lia_plugin import manipulation_run, prior
from lia_plugin.directions import make_direction, save_directions
from lia_plugin.network_hash import generator_hash


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Moved(Files):
    """Beside the networks, directions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        own = generator_hash(self.G)
        self.vectors = {name: draw(16, seed=seed) for seed, name in enumerate(('a', 'b', 'plain'), start=3)}
        self.file = str(folder / 'd.npz')
        save_directions(self.file, [
            make_direction('a', self.vectors['a'], 'y', bias=0.5, scale=2.0, network_hash=own),
            make_direction('b', self.vectors['b'], 'y', bias=0.0, scale=1.0, network_hash=own),
            make_direction('plain', self.vectors['plain'], 'y', scale=1.0, network_hash=own),
            make_direction('inz', self.vectors['b'], 'z', bias=0.1, scale=1.0, network_hash=own),
            make_direction('fine', self.vectors['b'], 'y', scale=1.0, layers=(3, 4), network_hash=own),
        ])  # fmt: skip
        self.unit = self.vectors['a'] / self.vectors['a'].norm()


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    return Moved(tmp_path_factory.mktemp('manipulate'))


def manipulate(files: Moved, out: Path, *args: Any) -> dict[str, Any]:
    assert edit('manipulate', '--network', files.network, '--outdir', out, *args) == 0
    return json.loads((out / 'results.json').read_text())


def test_by_so_many_standard_deviations(files: Moved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = manipulate(files, tmp_path, '--direction', f'{files.file}:a', '--from=-1', '--to=1', '--steps=3', '--images',
                      '--video=gif', *files.images[:2])  # fmt: skip
    y = files.G.encode(torch.stack([picture(Path(path)).float() / 127.5 - 1 for path in files.images[:2]]))
    found = arrays(tmp_path / 'edited.npz')
    assert found['names'].tolist() == [f'picture{i}_{k:02d}' for i in (0, 1) for k in (0, 1, 2)]
    expected = torch.stack([y + step * 2.0 * files.unit for step in (-1, 0, 1)], dim=1).flatten(0, 1)
    np.testing.assert_allclose(found['y'], expected, atol=1e-5)
    for name, img in zip(found['names'], drawn(files.G, found['y'])):
        assert (picture(tmp_path / f'{name}.png').int() - img.int()).abs().max() <= 1
    for i, image in enumerate(told['images']):
        start = float(y[i] @ files.unit) + 0.5
        assert image['distance'] == pytest.approx(start, abs=1e-5) and not image['stopped']
        assert [step['distance'] for step in image['steps']] == pytest.approx([start - 2, start, start + 2], abs=1e-4)
        assert [step['shift'] for step in image['steps']] == [-2, 0, 2]
        assert image['steps'][1]['mse'] == 0 < image['steps'][0]['mse']
        assert image['steps'][1]['log_prob'] == pytest.approx(image['log_prob'])
    with PIL.Image.open(tmp_path / 'strip.png') as strip, PIL.Image.open(tmp_path / 'video.gif') as video:
        assert strip.width > 4 * 128 and strip.height > 2 * 128, 'the originals, and three steps'
        assert video.n_frames > 50
    assert 'largest MSE' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['a', 'inz'])
def test_to_a_distance_whatever_the_start(files: Moved, tmp_path: Path, name: str) -> None:
    told = manipulate(files, tmp_path, '--direction', f'{files.file}:{name}', '--mode=distance', '--unit=raw',
                      '--from=-2', '--to=1', '--steps=4', '--layers=0-5', '0-2')  # fmt: skip
    for image in told['images']:
        assert [step['distance'] for step in image['steps']] == pytest.approx([-2, -1, 0, 1], abs=1e-4)
    assert told['boundary'] and told['space'] == ('z' if name == 'inz' else 'y')


def test_conditions_stay_while_the_goal_is_reached(files: Moved, tmp_path: Path) -> None:
    told = manipulate(files, tmp_path, '--direction', f'{files.file}:a', '--conditions', f'{files.file}:b',
                      '--conditions', f'{files.file}:plain', '--mode=distance', '--from=-2', '--to=2',
                      '--steps=2', '5,6')  # fmt: skip
    codes = torch.from_numpy(arrays(tmp_path / 'edited.npz')['y']).unflatten(0, [2, 2])
    for name in ('b', 'plain'):
        distances = codes @ (files.vectors[name] / files.vectors[name].norm())
        assert (distances[:, 0] - distances[:, 1]).abs().max() < 1e-5 * distances.abs().max().clamp(min=1)
    for image in told['images']:
        assert [step['distance'] for step in image['steps']] == pytest.approx([-4, 4], abs=1e-4)
    assert 0 < told['pace'] < 1


@pytest.mark.parametrize('args', [['--direction=FILE:a', '--layers=3,4'], ['--direction=FILE:fine']])
def test_only_some_layers(files: Moved, tmp_path: Path, args: list[str]) -> None:
    manipulate(files, tmp_path, *[arg.replace('FILE', files.file) for arg in args], '--from=0', '--steps=2', '1')
    still, moved = arrays(tmp_path / 'edited.npz')['y_plus']
    assert (still[[3, 4]] != moved[[3, 4]]).any(axis=1).all()
    np.testing.assert_array_equal(still[[0, 1, 2, 5]], moved[[0, 1, 2, 5]])


def test_the_way_ends_where_codes_are_no_longer_typical(files: Moved, tmp_path: Path) -> None:
    told = manipulate(files, tmp_path, '--direction', f'{files.file}:a', '--from=-40', '--to=40', '--steps=5',
                      '--stay-typical=0.1', '0-3')  # fmt: skip
    z = torch.from_numpy(arrays(tmp_path / 'edited.npz')['z']).unflatten(0, [4, 5])
    for image, codes in zip(told['images'], z):
        bound = min(0.1, image['typicality'])
        assert prior.typicality(codes).min() >= bound * 0.999
        assert [step['stopped'] for step in image['steps']] == [True, True, False, True, True] and image['stopped']
        assert image['steps'][0]['typicality'] == pytest.approx(bound, rel=2e-3)
        assert image['steps'][0]['shift'] == image['steps'][1]['shift']
    strip = picture(tmp_path / 'strip.png')
    red = (strip == torch.tensor(manipulation_run.STOPPED)[:, None, None]).all(dim=0)
    frames = 4 * 4 * (128 * 4 * 3 - 4 * 9)  # Four images, four steps each, frames 3 pixels wide.
    assert int(red.sum()) == frames


@pytest.mark.parametrize('command', ['manipulate', 'retarget'])
def test_a_strip_has_as_many_rows_as_one_can_look_at(
    files: Moved, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The others are in the files all the same, whatever the batch."""
    monkeypatch.setattr('lia_plugin.sheets.MAX_PIXELS', 30_000)
    own = ['--direction', f'{files.file}:a', '--steps=3']
    if command == 'retarget':
        own = ['--before=7', '--after=8', '--strength=-1', '--strength=0', '--strength=1']
    assert edit(command, '--network', files.network, *own, '--images', '--tile=8', '--batch=4', '--outdir', tmp_path,
                '0-4') == 0  # fmt: skip
    said = capsys.readouterr().err
    rows = int(said.split('strip.png: has room for the first ')[1].split(' of 5')[0])
    assert rows in (2, 3) and picture(tmp_path / 'strip.png').shape[1] < 20 + (rows + 3) * 20
    found = arrays(tmp_path / 'edited.npz')
    assert len(found['y']) == 15 and len(json.loads((tmp_path / 'results.json').read_text())['images']) in (5, 15)
    for name, img in zip(found['names'], drawn(files.G, found['y'])):
        assert (picture(tmp_path / f'{name}.png').int() - img.int()).abs().max() <= 1


def test_layered_codes_and_grey_images(tmp_path: Path) -> None:
    G = make_layered()
    network, target = save_pickle(tmp_path / 'plus.pkl', G), tmp_path / 'x.png'
    PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(target)
    save_directions(tmp_path / 'd.npz', [make_direction('layers', draw(6, 16), 'z', scale=1.0)])
    assert edit('manipulate', '--network', network, '--direction', tmp_path / 'd.npz', '--from=0', '--to=2',
                '--steps=2', '--outdir', tmp_path / 'out', target) == 0  # fmt: skip
    still, moved = (torch.from_numpy(code) for code in arrays(tmp_path / 'out' / 'edited.npz')['y_plus'])
    vector = draw(6, 16) / draw(6, 16).square().sum(dim=1).mean().sqrt()
    torch.testing.assert_close(G.mapping.y_to_z(moved) - G.mapping.y_to_z(still), 2 * vector, rtol=0, atol=1e-4)


def test_results_go_back_into_full_pictures(files: Moved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = np.random.RandomState(0).randint(0, 256, [24, 40, 3], np.uint8)
    PIL.Image.fromarray(full).save(tmp_path / 'wide.png')
    manipulate(files, tmp_path / 'out', '--direction', f'{files.file}:a', '--from=0', '--to=4', '--steps=2', '--paste',
               tmp_path / 'wide.png')  # fmt: skip
    still, moved = (picture(tmp_path / 'out' / f'wide_0{k}_pasted.png') for k in (0, 1))
    assert torch.equal(still, picture(tmp_path / 'wide.png')), 'an edit of nothing changes nothing'
    changed = (still != moved).any(dim=0).any(dim=0)
    assert changed[8:32].any() and not changed[:8].any() and not changed[32:].any()
    assert 'wide.png: of 40x24 pixels only the centre square is edited' in capsys.readouterr().err
    code = edit('manipulate', '--network', files.network, '--direction', f'{files.file}:a', '--paste', '--outdir',
                tmp_path / 'no', '7')  # fmt: skip
    refused(capsys, code, '--paste: seed 7: is not cut out of a picture', tmp_path / 'no')


def test_published_boundaries_move_stock_networks(files: Moved, tmp_path: Path) -> None:
    dim = 8
    np.save(tmp_path / 'age_w_boundary.npy', draw(1, dim).numpy())
    assert edit('manipulate', '--network', files.stock, '--direction', tmp_path / 'age_w_boundary.npy',
                '--mode=distance', '--unit=raw', '--steps=3', '--outdir', tmp_path / 'out', '3') == 0  # fmt: skip
    w = arrays(tmp_path / 'out' / 'edited.npz')['w'][:, 0]
    unit = draw(dim).numpy() / np.linalg.norm(draw(dim).numpy())
    np.testing.assert_allclose(w @ unit, [-3, 0, 3], atol=1e-4)


@pytest.mark.parametrize('args, words', [
    (['--direction=FILE', '1'], 'has 5 directions; name one as'),
    (['--direction=FILE:c', '1'], 'has no direction c'),
    (['--direction=no.npz', '1'], 'no.npz: no such file'),
    (['--direction=FILE:plain', '--mode=distance', '1'], '--mode=distance: plain has no boundary'),
    (['--direction=FILE:a', '--conditions=FILE:a', '1'], '--conditions: a: nothing is left'),
    (['--direction=FILE:a', '--conditions=FILE:inz', '1'], '--conditions: inz: of z and 16'),
    (['--direction=FILE:a', '--layers=7', '1'], '--layers: this network has the layers 0 to 5, not 7'),
    (['--direction=FILE:a', '--layers=1-2', '--stay-typical', '--steps=3', '1'], 'judges the base code, layer 0'),
    (['--direction=FILE:fine', '--stay-typical=0.1', '1'], '--stay-typical: judges the base code'),
    (['--direction=FILE:a', '--stay-typical=2', '1'], '--stay-typical'),
    (['--direction=FILE:a', '--steps=1', '1'], '--steps=1: one step has one place'),
    (['--direction=FILE:a', 'nowhere.png'], 'nowhere.png: no such file'),
    (['--direction=FILE:a', '--from=nan', '1'], 'not a finite number'),
    (['--direction=FILE:a'], 'INPUT'),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    files: Moved, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    args = [arg.replace('FILE', files.file) for arg in args]
    code = edit('manipulate', '--network', files.network, '--outdir', tmp_path / 'out', *args)
    refused(capsys, code, words, tmp_path / 'out')


def test_other_networks_and_networks_without_a_prior(
    files: Moved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ['manipulate', '--network', files.conditional, '--direction', f'{files.file}:a', '--class=1', '1']
    refused(capsys, edit(*other, '--outdir', tmp_path / 'a'), 'found with another network', tmp_path / 'a')
    assert edit(*other, '--force', '--steps=2', '--outdir', tmp_path / 'b') == 0
    capsys.readouterr()
    np.save(tmp_path / 'w.npy', np.ones(8))
    code = edit('manipulate', '--network', files.stock, '--direction', tmp_path / 'w.npy', '--stay-typical=0.1',
                '--outdir', tmp_path / 'c', '1')  # fmt: skip
    refused(capsys, code, 'no prior to judge by', tmp_path / 'c')
