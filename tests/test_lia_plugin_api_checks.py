"""The Python API's arguments: errors name them and never the commands' options; what they may be in place of."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures
from test_lia_plugin_refinement import make_stock

import lia_plugin
from lia_plugin import api_checks
from lia_plugin.api import Lia
from lia_plugin.host import UserError


@pytest.fixture(scope='module')
def lia() -> Lia:
    return Lia(dict(G_ema=make_generator()), 'lia.pkl', torch.device('cpu'))


@pytest.fixture(scope='module')
def y(lia: Lia) -> Any:
    return lia.interpolate(range(24), steps=1, out='latents').y


# Names


@pytest.mark.parametrize('told, expected', [
    ('--group-column: 1 group', 'group_column: 1 group'),
    ('--data (--labels=FILE gives a table): none', 'images (labels=FILE gives a table): none'),
    ('--method=labels: nothing could be learned', 'nothing could be learned'),
    ('--class: codes know none', 'c: codes know none'),
    ('net--work.pkl: no such file', 'net--work.pkl: no such file'),
    ('a -- b', 'a -- b'),
])  # fmt: skip
def test_options_become_arguments(told: str, expected: str) -> None:
    @api_checks.in_python
    def fail() -> None:
        raise UserError(told)

    with pytest.raises(UserError) as caught:
        fail()
    assert str(caught.value) == api_checks.argument_names(told) == expected
    assert caught.value.__suppress_context__, 'one error, not two'


def test_names_that_differ_are_arguments_there() -> None:
    methods = [method for _name, method in inspect.getmembers(Lia, inspect.isfunction)]
    known = {name for method in methods for name in inspect.signature(method).parameters}
    assert set(api_checks.ARGUMENTS.values()) <= known


def test_no_error_speaks_of_options(lia: Lia, y: Any, tmp_path: Path) -> None:
    pictures = str(save_pictures(tmp_path / 'in', 12))
    (tmp_path / 'labels.csv').write_text('file,side\n' + ''.join(f'picture{i}.png,{i % 2}\n' for i in range(12)))
    table = str(tmp_path / 'labels.csv')
    sides = [i % 2 for i in range(24)]
    image = np.zeros([16, 16, 3], np.uint8)
    stock = Lia(dict(G_ema=make_stock()), 'stock.pkl', torch.device('cpu'))
    for call in (
        lambda: lia_plugin.load('none.pkl', device='tpu'),
        lambda: lia.directions_from_labels(pictures, table, 'smile'),
        lambda: lia.directions_from_labels(pictures, table, 'side', values=['7', '8']),
        lambda: lia.directions_from_labels(pictures, table, 'side', values=['1']),
        lambda: lia.directions_from_labels(pictures, table, 'side', group_column='who'),
        lambda: lia.directions_from_labels(pictures, table, 'side', val=pictures, group_column='side'),
        lambda: lia.directions_from_labels(pictures, str(tmp_path / 'none.csv'), 'side'),
        lambda: lia.directions_from_labels(str(tmp_path / 'none.zip'), table, 'side'),
        lambda: lia.directions_from_labels(y, sides, ['a', 'b']),
        lambda: lia.directions_from_labels(y[:4], sides[:4]),
        lambda: lia.directions_from_sets(y[:2], y[2:4]),
        lambda: lia.pca(space='z'),
        lambda: stock.sefa(space='z'),
        lambda: stock.refine(image, 1, prior_weight=1),
        lambda: lia.refine(image, 1, percep='disc'),
        lambda: lia.refine(image, 1, percep='none', percep_weight=1),
        lambda: stock.refine(image, 1, start='encoder'),
        lambda: lia.save(tmp_path / 'none' / 'a.npz', y),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert not re.search(r'--[a-z]', str(caught.value)), str(caught.value)
        assert '\n' not in str(caught.value)


# Kinds of numbers


def test_layers_in_every_way(lia: Lia, y: Any) -> None:
    expected = lia.mix(y[:1], y[1:2], [1, 2], out='latents').y_plus
    for layers in ('1-2', '1,2', range(1, 3), np.array([1, 2]), (1, 2)):
        np.testing.assert_array_equal(lia.mix(y[:1], y[1:2], layers, out='latents').y_plus, expected)
    assert lia.sefa(1, layers=2)['sefa0'].layers == lia.sefa(1, layers='2')['sefa0'].layers == (2,)
    for wrong in ([], [9], [-1], 1.5, [1.5], 'all', [True], {0: 1}, '3-1'):
        for call in (lia.mix, lia.manipulate):
            with pytest.raises(ValueError, match='layers|3-1'):
                call(1, 2 if call == lia.mix else y[0], layers=wrong)


def test_seeds_of_numpy(lia: Lia) -> None:
    np.testing.assert_array_equal(lia.decode(np.arange(2), out='numpy'), lia.generate([0, 1], out='numpy'))


@pytest.mark.parametrize('labels', [
    np.arange(24) % 2, torch.arange(24) % 2, [str(i % 2) for i in range(24)], range(24)])  # fmt: skip
def test_labels_of_any_kind(lia: Lia, y: Any, labels: Any) -> None:
    if isinstance(labels, range):
        with pytest.raises(ValueError, match='24 values among 24'):
            lia.directions_from_labels(y, labels, 'side')
    else:
        assert list(lia.directions_from_labels(y, labels, 'side', fit='means')) == ['side=1']


def test_what_is_not_known_is_no_class(lia: Lia, y: Any) -> None:
    sides = np.arange(24) % 2 * 1.0
    sides[0] = np.nan
    (found,) = lia.directions_from_labels(y, sides, 'side').values()
    assert found.name == 'side=1.0' and found.figures['n'] + found.figures['train_n'] == 23


@pytest.mark.parametrize('holdout', [0, 1, -1, float('nan'), 'half'])
def test_something_is_held_out_and_something_is_not(lia: Lia, y: Any, holdout: Any) -> None:
    with pytest.raises(ValueError, match='^holdout: expected'):
        lia.directions_from_labels(y, np.arange(24) % 2, holdout=holdout)
    with pytest.raises(ValueError, match='^holdout: expected'):
        lia.directions_from_sets(y[:12], y[12:], holdout=holdout)


def test_numbers_that_cannot_be(lia: Lia, y: Any, tmp_path: Path) -> None:
    image = np.zeros([16, 16, 3], np.uint8)
    nan = float('nan')
    for call, complaint in (
        (lambda: lia.decode(y, psi=nan), 'psi: expected a finite number, got nan'),
        (lambda: lia.generate(1, psi='x'), "psi: .* got 'x'"),
        (lambda: lia.interpolate(1, 2, steps=1.5), 'steps: expected a whole number from 1 on, got 1.5'),
        (lambda: lia.variations(1, num=True), 'num: .* got True'),
        (lambda: lia.retarget(1, 2, 3, nan), 'strength: expected finite numbers'),
        (lambda: lia.refine(image, 1, prior_weight=-1), 'prior_weight: expected a finite number from 0 on, got -1'),
        (lambda: lia.sefa(0), 'count: expected a whole number from 1 on, got 0'),
        (lambda: lia.pca(-1), 'count: '),
        (lambda: lia.pca(2, y, space='w'), "space: expected 'y' or 'z', got 'w'"),
        (lambda: lia.directions_from_labels(y, np.arange(24) % 2, space='q'), "space: expected 'y' or 'z', got 'q'"),
        (lambda: lia.directions(tmp_path / 'd.npz', space='q'), "space: .* got 'q'"),
        (lambda: lia.variations(1, rho='x'), "rho: .* got 'x'"),
        (lambda: lia.variations(1, seed=-1), 'seed: expected a whole number from 0 on, got -1'),
        (lambda: lia.variations(1, coords=[99]), r'coords: expected some of 0 to 15, .* got \[99\]'),
        (lambda: lia.variations(1, coords=[]), 'coords: '),
        (lambda: lia.manipulate(1, y[0], 1, stay_typical='x'), "stay_typical: .* got 'x'"),
        (lambda: lia.direction(np.array(['a'] * 16)), 'vector of floats, got <U1'),
        (lambda: lia.paste(image, image, 3), 'placement: .* got int'),
        (lambda: lia.directions_from_labels(y, np.zeros([24, 2])), 'expected 24 values'),
        (lambda: lia.save_directions(tmp_path / 'd.npy', lia.sefa(1)), r'written as \.npz'),
        (lambda: lia_plugin.show(image).save(tmp_path / 'a.jpg'), r'written as \.png'),
        (lambda: lia_plugin.show(image, side=0), 'side: '),
        (lambda: lia_plugin.save_video(tmp_path / 'a.gif', [image], fps=0), 'fps: expected a whole number'),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()


# Things in place of what they hold


def test_paths_of_all_kinds(tmp_path: Path) -> None:
    path = Path(save_pickle(tmp_path / 'lia.pkl', make_generator()))
    lia = lia_plugin.load(path, device='cpu')
    assert lia.network == str(path)
    lia.save(tmp_path / 'codes.npz', 7)
    for given in (tmp_path / 'codes.npz', str(tmp_path / 'codes.npz')):
        np.testing.assert_array_equal(lia.decode(given, out='numpy'), lia.generate([7], out='numpy'))
    with pytest.raises(ValueError, match=r'path: latents are \.npz files'):
        lia.save(tmp_path / 'codes', 7)
    with pytest.raises(ValueError, match='network: expected a path or URL, got NoneType'):
        lia_plugin.load(None)  # type: ignore[arg-type]


def test_one_direction_among_several(lia: Lia, tmp_path: Path) -> None:
    found = lia.sefa(2)
    pictures = [lia.manipulate(1, one, 1, out='numpy') for one in (found['sefa0'], {'sefa0': found['sefa0']})]
    np.testing.assert_array_equal(*pictures)
    with pytest.raises(ValueError, match=r'expected one, got 2: sefa0, sefa1; found\[NAME\] is one'):
        lia.manipulate(1, found, 1)
    for given in (found, list(found.values()), found['sefa0']):
        lia.save_directions(tmp_path / 'd.npz', given)
        assert list(lia.directions(tmp_path / 'd.npz'))[0] == 'sefa0'
    with pytest.raises(ValueError, match='directions: expected Directions'):
        lia.save_directions(tmp_path / 'd.npz', 'sefa0')  # type: ignore[arg-type]


def test_picking(lia: Lia) -> None:
    found = lia.interpolate(range(5), steps=1, out='latents')
    for picked, rows in (
        (found.pick(1, 3), [1, 3]), (found.pick([1, 3]), [1, 3]), (found.pick(range(2)), [0, 1]),
        (found.pick(slice(3, None)), [3, 4]), (found.pick(np.array([1, 3])), [1, 3]), (found.pick([-1]), [4]),
    ):  # fmt: skip
        np.testing.assert_array_equal(picked.y, found.y[rows])
        assert picked.lead == (len(rows),)
    assert found.pick(-1).lead == () and np.array_equal(found.pick(-1).y, found.y[4:])
    with pytest.raises(IndexError):
        found.pick(5)
    for nothing in ((), ([],), (slice(0, 0),)):
        with pytest.raises(ValueError, match='at least one of 5 images'):
            found.pick(*nothing)


def test_codes_in_the_wrong_place(lia: Lia, y: Any) -> None:
    for loose in (y[0], [y[0], y[1]]):
        with pytest.raises(ValueError, match=r'batch in front, \[N, 16\], .* got \[16\]'):
            lia.decode(loose)
    found = lia.interpolate(1, 2, steps=1, out='latents')
    with pytest.raises(ValueError, match='not Latents, which are several'):
        lia.interpolate([found, found])
    with pytest.raises(ValueError, match=r'got Latents; lia\.decode'):
        lia_plugin.show(found)


# What commands can


def test_refinement_goes_on_from_codes(lia: Lia, tmp_path: Path) -> None:
    img = torch.rand([3, 3, 16, 16], generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = lia.refine(img, 2, 'y+', percep='none')
    assert torch.equal(lia.refine(img, 0, percep='none', start=first).code, first.code), 'in the space they are in'
    more = lia.refine(img, 2, percep='none', start=first)
    np.testing.assert_allclose(more.figures['start_mse'], first.figures['mse'], rtol=1e-4)
    assert (more.figures['mse'] <= more.figures['start_mse']).all() and more.y_plus is not None
    base = lia.refine(img, 0, 'y', percep='none', start=first)
    assert torch.equal(base.y, first.y) and base.y_plus is None
    seeded = lia.refine(img, 0, percep='none', start=7)
    assert all(torch.equal(row, seeded.y[0]) for row in seeded.y), 'one for all'
    np.testing.assert_allclose(seeded.y[:1], lia.interpolate(7, 7, steps=1, out='latents').y[:1], atol=1e-5)
    mean = lia.refine(img, 0, percep='none', start='mean')
    assert not torch.allclose(mean.y, lia.refine(img, 0, percep='none', start='encoder').y)
    lia.save(tmp_path / 'codes.npz', first)
    stored = lia.refine(img, 0, percep='none', start=tmp_path / 'codes.npz')
    np.testing.assert_array_equal(stored.code, first.code)
    with pytest.raises(ValueError, match='start: expected codes of one image, or of 3, got 2'):
        lia.refine(img, 1, percep='none', start=[1, 2])


def test_each_layer_varies_by_itself(lia: Lia) -> None:
    together, apart = (lia.variations(1, num=2, each_layer=each, out='latents') for each in (False, True))
    assert together.y_plus is None and apart.y_plus.shape == (2, lia.num_ws, lia.dim)
    assert len(np.unique(apart.y_plus[0], axis=0)) == lia.num_ws


def test_a_notebook_is_told_how_far_it_is(
    lia: Lia, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = list(np.zeros([3, 16, 16, 3], np.uint8))
    monkeypatch.setattr(lia, 'batch', 2)
    lia.refine(images, 2, percep='none')
    assert capsys.readouterr().err == '', 'no terminal, no bar'
    monkeypatch.setitem(sys.modules, 'ipykernel', sys)
    lia.refine(images, 2, percep='none')
    assert '6/6' in capsys.readouterr().err, 'two batches, a start and two steps each'
    lia.invert(images)
    assert 'Inverting' in capsys.readouterr().err
    lia.invert(images[0])
    assert capsys.readouterr().err == ''
