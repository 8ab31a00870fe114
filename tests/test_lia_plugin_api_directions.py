"""Directions in the Python API: found, kept, gone along; kinds in are kinds out; the commands' results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lia_plugin_api import KINDS, R, as_pixels, check_kind, kinds
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures
from test_lia_plugin_refinement import make_stock

from lia_plugin import cli
from lia_plugin.api import Lia, load
from lia_plugin.directions import Direction, make_direction

DIM, COUNT = 16, 80


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp('in'), 3)


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator())


@pytest.fixture
def lia(network: str) -> Lia:
    return load(network, device='cpu', batch=16)


@pytest.fixture
def axis() -> Direction:
    """Along the first number of y, with its plane at 0.5."""
    return make_direction('axis', torch.eye(DIM)[0], 'y', bias=-0.5, scale=2.0)


def labelled(lia: Lia) -> tuple[Any, np.ndarray]:
    """Codes, and whether the sum of their first three numbers is above its median."""
    y = lia.interpolate(range(COUNT), steps=1, out='latents').y
    along = y[:, :3].sum(axis=1)
    return y, along > np.median(along)


# Moving


@pytest.mark.parametrize('kind', KINDS)
def test_amounts_are_an_axis_and_kinds_stay(lia: Lia, axis: Direction, folder: Path, kind: str) -> None:
    several = kinds(folder)[kind]
    moved = lia.manipulate(several, axis, [-1, 0, 1])
    check_kind(kind, moved, (3, 3))
    np.testing.assert_array_equal(as_pixels(moved)[:, 1], as_pixels(lia.reconstruct(folder)))
    check_kind(kind, lia.manipulate(several, axis, 1), (3,))
    check_kind(kind, lia.retarget(several[:1], several[1:2], several, [0, 1])
               if kind not in ('folder', 'pattern') else lia.manipulate(several, axis, [1, 2]), (3, 2))  # fmt: skip
    if kind in ('paths', 'pil', 'numpy', 'torch', 'floats'):
        check_kind(kind, lia.manipulate(several[0], axis, [-1, 1]), (2,))
        check_kind(kind, lia.manipulate(several[0], axis, 1), ())
        check_kind(kind, lia.retarget(several[0], several[1], several[2]), ())


@pytest.mark.parametrize('unit, length', [('std', 2.0), ('raw', 1.0)])
def test_a_move_is_as_long_as_it_says(lia: Lia, axis: Direction, folder: Path, unit: str, length: float) -> None:
    y = lia.encode(folder)
    moved = lia.manipulate(folder, axis, [-1.5, 3], unit, out='latents')
    assert moved.lead == (3, 2)
    change = moved.y.reshape(3, 2, DIM) - y[:, None]
    np.testing.assert_allclose(change[..., 0], np.tile(np.array([-1.5, 3]) * length, [3, 1]), atol=1e-5)
    assert not change[..., 1:].any()
    np.testing.assert_allclose(lia.distance(folder, axis), y[:, 0] - 0.5, atol=1e-6)


def test_a_move_to_a_distance(lia: Lia, axis: Direction) -> None:
    for unit, length in (('std', 2.0), ('raw', 1.0)):
        moved = lia.manipulate([1, 2], axis, [0, 1.5], unit, mode='distance', out='latents')
        np.testing.assert_allclose(lia.distance(moved, axis), [0, 1.5 * length] * 2, atol=1e-5)


def test_conditions_stay_as_they_are(lia: Lia, axis: Direction) -> None:
    other = make_direction('other', torch.ones(DIM), 'y', bias=0.0, scale=1.0)
    for given in (other, [other], {'other': other}):
        moved = lia.manipulate([1, 2], axis, 2, conditions=given, out='latents')
        np.testing.assert_allclose(lia.distance(moved, other), lia.distance([1, 2], other), atol=1e-5)
        assert (lia.distance(moved, axis) - lia.distance([1, 2], axis) > 1).all()


def test_layers_and_directions_in_z(lia: Lia, axis: Direction) -> None:
    moved = lia.manipulate(3, axis, 1, layers=[2], out='latents').y_plus[0]
    changed = np.abs(moved - lia.interpolate(3, 3, steps=1, out='latents').y[0]).max(axis=1) > 0
    assert changed.tolist() == [layer == 2 for layer in range(lia.num_ws)]
    inside = make_direction('inside', torch.eye(DIM)[1], 'z', scale=1.0)
    z = lia.manipulate(3, inside, [0, 2], out='latents').z
    np.testing.assert_allclose(z[1] - z[0], 2 * np.eye(DIM)[1], atol=1e-4)


def test_typical_images_stay_typical(lia: Lia, axis: Direction) -> None:
    p = 0.05
    start = lia.typicality(range(8)).p
    moved = lia.manipulate(range(8), axis, [-9, 9], 'raw', stay_typical=p, out='latents')
    assert (lia.typicality(moved).p >= np.minimum(p, start.repeat(2)) * 0.99).all()
    free = lia.manipulate(range(8), axis, [-9, 9], 'raw', out='latents')
    assert (lia.typicality(free).p < p * 0.5).all(), 'or nothing would be kept from anything'


def test_the_command_moves_alike(
    lia: Lia, network: str, axis: Direction, folder: Path, tmp_path: Path
) -> None:
    lia.save_directions(tmp_path / 'd.npz', {'axis': axis})
    command = cli.load_command('edit')
    args = [f'--network={network}', '--device=cpu', f'--outdir={tmp_path / "out"}', str(folder)]
    move = ['manipulate', f'--direction={tmp_path / "d.npz"}', '--from=-2', '--to=2', '--steps=3']
    assert cli.run(command, [*move, *args]) == 0
    moved = lia.manipulate(folder, str(tmp_path / 'd.npz'), [-2, 0, 2], out='latents')
    with np.load(tmp_path / 'out' / 'edited.npz') as stored:
        np.testing.assert_allclose(moved.y, stored['y'], atol=1e-5)
    pictures = sorted(str(path) for path in folder.iterdir())
    ends = [f'--before={pictures[0]}', f'--after={pictures[1]}']
    assert cli.run(command, ['retarget', *ends, *args[:2], f'--outdir={tmp_path / "re"}', pictures[2]]) == 0
    with np.load(tmp_path / 're' / 'edited.npz') as stored:
        np.testing.assert_allclose(lia.retarget(*pictures, out='latents').y, stored['y'], atol=1e-5)


@pytest.mark.parametrize('space', ['y', 'z', 'y+'])
def test_a_change_applied_where_it_was_learned(lia: Lia, space: str) -> None:
    a, b = (lia.interpolate(seed, seed, steps=1, out='latents').y[:1] for seed in (1, 2))
    made = lia.retarget(a, b, a, [0, 1], space, out='latents')
    np.testing.assert_allclose(made.y, np.concatenate([a, b]), atol=1e-4)


# Finding


def test_labels_at_hand(lia: Lia) -> None:
    y, positive = labelled(lia)
    found = lia.directions_from_labels(y, positive, 'sum', fit='plane')
    assert list(found) == ['sum=True']
    one = found['sum=True']
    wanted = torch.zeros(DIM)
    wanted[:3] = 3**-0.5
    assert float(one.vector @ wanted) > 0.8 and one.figures['balanced_accuracy'] > 0.8 and one.figures['n'] == 16
    distances = lia.distance(y, one)
    assert ((distances > 0) == positive).mean() > 0.9
    told = repr(found).splitlines()
    assert len(told) == 2 and f'{one.figures["balanced_accuracy"]:.3f}' in told[1]
    words = np.where(positive, 'b', 'a')
    again = lia.directions_from_labels(y, {'sum': list(words)}, fit='plane')
    np.testing.assert_array_equal(again['sum=b'].vector, one.vector)
    turned = lia.directions_from_labels(y, words, 'sum', values=['b', 'a'], fit='plane')
    np.testing.assert_allclose(turned['sum=a'].vector, -one.vector, atol=1e-3)
    three = [None if i == 0 else 'abc'[i % 3] for i in range(COUNT)]
    assert list(lia.directions_from_labels(y, three, 'third', fit='means')) == ['third=a', 'third=b', 'third=c']


def test_two_sets_and_z(lia: Lia) -> None:
    y, positive = labelled(lia)
    for fit, least in (('plane', 0.85), ('means', 0.6)):
        found = lia.directions_from_sets(y[positive], y[~positive], 'sum', fit=fit)
        assert list(found) == ['sum'] and ((lia.distance(y, found['sum']) > 0) == positive).mean() > least
    z = lia.to_z(y)
    inside = lia.directions_from_sets(y[z[:, 0] > 0], y[z[:, 0] <= 0], space='z')['direction']
    assert inside.space == 'z' and float(inside.vector[0]) > 0.7


def test_a_table_of_files(lia: Lia, tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / 'in', 40)
    sides = [i % 2 for i in range(40)]
    table = ''.join(f'picture{i}.png,{"right" if side else "left"}\n' for i, side in enumerate(sides))
    (tmp_path / 'labels.csv').write_text('file,side\n' + table)
    found = lia.directions_from_labels(pictures, tmp_path / 'labels.csv', 'side', seed=3)
    order = sorted(range(40), key=lambda i: f'picture{i}.png')
    same = lia.directions_from_labels(pictures, ['right' if sides[i] else 'left' for i in order], 'side', seed=3)
    assert list(found) == list(same) == ['side=right']
    np.testing.assert_allclose(found['side=right'].vector, same['side=right'].vector, atol=1e-4)
    rows = [f'{split},{row}' for split in ('train', 'test') for row in table.splitlines()]
    (tmp_path / 'splits.csv').write_text('\n'.join(['split,file,side', *rows]))
    with pytest.raises(ValueError, match='two rows'):
        lia.directions_from_labels(pictures, tmp_path / 'splits.csv', 'side', fit='means')
    assert list(lia.directions_from_labels(pictures, tmp_path / 'splits.csv', 'side', split='train', fit='means'))


def test_without_labels(lia: Lia) -> None:
    y = labelled(lia)[0]
    found = lia.pca(3, y)
    _, values, rows = np.linalg.svd(y - y.mean(axis=0))
    for k, one in enumerate(found.values()):
        assert abs(float(one.vector @ torch.from_numpy(rows[k]))) == pytest.approx(1, abs=1e-3)
        assert one.scale == pytest.approx(values[k] / (COUNT - 1) ** 0.5, rel=1e-3)
        assert 'tmp' not in one.source
    assert list(lia.pca(2, samples=100)) == ['pc0', 'pc1']
    sefa = lia.sefa(3, layers=[0, 1])
    assert list(sefa) == ['sefa0', 'sefa1', 'sefa2'] and sefa['sefa0'].layers == (0, 1)
    assert lia.manipulate(3, sefa['sefa0'], [1, 2], out='latents').y_plus.shape == (2, lia.num_ws, DIM)


def test_directions_are_kept(lia: Lia, axis: Direction, tmp_path: Path) -> None:
    lia.save_directions(tmp_path / 'd.npz', {'axis': axis, **lia.sefa(2)})
    found = lia.directions(tmp_path / 'd.npz')
    with pytest.raises(KeyError, match=f'nobody; there are {", ".join(found)}'):
        found['nobody']
    assert list(found) == ['axis', 'sefa0', 'sefa1'] and torch.equal(found['axis'].vector, axis.vector)
    by_name = lia.manipulate(3, f'{tmp_path / "d.npz"}:axis', 1, out='numpy')
    np.testing.assert_array_equal(by_name, lia.manipulate(3, axis, 1, out='numpy'))
    np.save(tmp_path / 'published.npy', 7 * axis.vector[None].numpy())
    given = [lia.manipulate(3, one, 1, 'raw', out='numpy')
             for one in (str(tmp_path / 'published.npy'), axis.vector, 3 * axis.vector.numpy())]  # fmt: skip
    for picture in given:
        np.testing.assert_array_equal(picture, lia.manipulate(3, axis, 1, 'raw', out='numpy'))


def test_stock_networks() -> None:
    stock = Lia(dict(G_ema=make_stock()), 'stock.pkl', torch.device('cpu'))
    one = stock.pca(1, samples=50)['pc0']
    assert one.space == 'w'
    moved = stock.manipulate([1, 2], one, [-1, 0, 1], out='latents')
    assert moved.z is None and moved.lead == (2, 3)
    with pytest.raises(ValueError, match='stay_typical: stock.pkl is no LIA network'):
        stock.manipulate(1, one, 1, stay_typical=0.1)
    with pytest.raises(ValueError, match='no φ'):
        stock.sefa(space='z')


def test_what_cannot_be_is_named(lia: Lia, axis: Direction, tmp_path: Path) -> None:
    lia.save_directions(tmp_path / 'd.npz', lia.sefa(2))
    other = make_direction('other', torch.ones(5), 'y')
    nowhere = make_direction('nowhere', torch.ones(DIM), 'y')
    y = labelled(lia)[0]
    for call, complaint in (
        (lambda: lia.manipulate(1, 'smile'), 'smile: no such file'),
        (lambda: lia.manipulate(1, str(tmp_path / 'd.npz')), 'holds sefa0, sefa1; FILE:NAME'),
        (lambda: lia.manipulate(1, 3), 'direction: expected .* got int'),
        (lambda: lia.manipulate(1, other), r'\[5\], this network takes \[16\]'),
        (lambda: lia.manipulate(1, np.zeros(DIM)), 'finite numbers that are not all 0'),
        (lambda: lia.manipulate(1, axis, 'far'), 'amounts|could not convert'),
        (lambda: lia.manipulate(1, axis, [[1]]), 'amounts: expected'),
        (lambda: lia.manipulate(1, axis, float('nan')), 'amounts: expected'),
        (lambda: lia.manipulate(1, axis, unit='mm'), "'mm'"),
        (lambda: lia.manipulate(1, axis, mode='at'), "'at'"),
        (lambda: lia.manipulate(1, nowhere, mode='distance'), 'nowhere leads to no boundary'),
        (lambda: lia.manipulate(1, axis, layers=[9]), 'layers: expected some of 0 to 5'),
        (lambda: lia.manipulate(1, axis, layers=[2], stay_typical=0.1), 'layers: typicality'),
        (lambda: lia.manipulate(1, axis, stay_typical=2), 'stay_typical: expected more than 0 and less than 1, got 2'),
        (lambda: lia.manipulate(1, axis, conditions=axis), 'nothing is left'),
        (lambda: lia.retarget([1, 2], 3, 4), 'one image each, got 2 and 1'),
        (lambda: lia.retarget(1, 2, 3, space='w'), "got 'w'"),
        (lambda: lia.directions_from_labels(y, ['a', 'b']), f'labels: expected {COUNT} values of label'),
        (lambda: lia.directions_from_labels(y, ['a'] * COUNT, 'same'), 'only the value a'),
        (lambda: lia.directions_from_labels(y, 'labels.csv'), 'expected a folder, zip or .npz'),
        (lambda: lia.directions_from_labels(y, ['a'] * COUNT, val='x.zip'), 'only with the file of a table'),
        (lambda: lia.directions_from_sets(y[:3], y[3:]), 'are the least'),
        (lambda: lia.directions_from_sets(y, y, fit='curve'), "'curve'"),
        (lambda: lia.sefa(layers=[9]), 'layers: expected'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            call()
    assert lia.manipulate(1, axis, 1).size == (R, R)
