"""Files of directions: ours there and back, those that others publish, hostile ones; and whose a direction is."""

import copy
import dataclasses
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lia_plugin_inversion import make_generator
from test_lia_plugin_refinement import make_stock

from lia_plugin import direction_files, directions, networks, spaces
from lia_plugin.directions import Direction, load_directions, make_direction, save_directions
from lia_plugin.host import UserError
from lia_plugin.network_hash import generator_hash


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def example(name: str = 'smile', **rest: Any) -> Direction:
    told: dict[str, Any] = dict(
        bias=-0.25, scale=1.5, meaning='smile: no (-) to yes (+)', network_hash='aa-bb', layers=(0, 2), source='labels',
        figures={'accuracy': 0.9, 'n': 12, 'inverse_penalty': math.nan})  # fmt: skip
    return make_direction(name, draw(16), 'y', **told | rest)


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / 'd.npz'
    plain = make_direction('layers', draw(6, 16), 'z')
    save_directions(path, [example(), plain])
    first, second = load_directions(path)
    for field in dataclasses.fields(Direction):
        if field.name not in ('vector', 'figures'):
            assert getattr(first, field.name) == getattr(example(), field.name), field.name
    assert torch.equal(first.vector, example().vector) and torch.equal(second.vector, plain.vector)
    assert first.figures == {'accuracy': 0.9, 'n': 12, 'inverse_penalty': None}, 'JSON has no NaN'
    assert second.bias is None and math.isnan(second.scale) and second.layers is None
    (named,) = load_directions(f'{path}:layers')
    assert named.per_layer and named.name == 'layers'
    with pytest.raises(UserError, match='has no direction frown; it has smile, layers'):
        load_directions(f'{path}:frown')
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(str(file['info']))['units'].startswith('vectors have unit length')
    with pytest.raises(ValueError, match='each with its own name'):
        save_directions(path, [example(), example()])


def test_a_direction_is_checked() -> None:
    with pytest.raises(ValueError, match='space: expected y, z or w'):
        Direction('a', torch.eye(4)[0], 'x')
    with pytest.raises(ValueError, match='of length 2'):
        Direction('a', torch.eye(4)[0] * 2, 'y')
    with pytest.raises(ValueError, match='not all 0'):
        make_direction('a', torch.zeros(4), 'y')
    assert directions.length(torch.eye(4)[:1].repeat([6, 1])) == pytest.approx(1), 'copies are as long as one'


# Whose it is


def test_the_hash_knows_codes_and_pictures_but_no_encoder(G: Any) -> None:
    own = generator_hash(G)
    other_encoder = copy.deepcopy(G)
    for value in other_encoder.encoder.state_dict().values():
        value.mul_(2)
    other_encoder.mapping.w_avg.add_(1)
    assert generator_hash(other_encoder) == own, 'nor the mean that truncation pulls to'
    frozen = copy.deepcopy(make_generator(encoder=False))
    before = generator_hash(frozen)
    networks.freeze(frozen.synthesis)
    assert generator_hash(frozen) == before, 'parameters or buffers'
    tuned = copy.deepcopy(G)
    tuned.synthesis.b4.conv1.weight.add_(1)
    assert generator_hash(tuned).split('-')[0] == own.split('-')[0] and generator_hash(tuned) != own
    other_phi = copy.deepcopy(G)
    next(iter(other_phi.mapping.phi.state_dict().values())).add_(1)
    assert generator_hash(other_phi).split('-')[0] != own.split('-')[0]


def test_a_foreign_networks_direction_is_refused_unless_forced(
    G: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / 'd.npz')
    save_directions(path, [example(network_hash=generator_hash(G))])
    load_directions(path, G)
    assert not capsys.readouterr().err
    save_directions(path, [example()])
    with pytest.raises(UserError, match='found with another network.*--force'):
        load_directions(path, G)
    load_directions(path, G, force=True)
    assert 'another network' in capsys.readouterr().err
    save_directions(path, [example(network_hash=generator_hash(G).split('-')[0] + '-tuned')])
    load_directions(path, G)
    assert 'mapping is the same' in capsys.readouterr().err


@pytest.mark.parametrize('direction, reason', [
    (make_direction('a', draw(8), 'y'), r'shape \[8\], this network takes \[16\] or \[6, 16\]'),
    (make_direction('a', draw(5, 16), 'y'), r'shape \[5, 16\]'),
    (make_direction('a', draw(16), 'y', layers=(0, 6)), 'moves layer 6, but this network has 0 to 5'),
])  # fmt: skip
def test_shapes_that_do_not_fit(G: Any, tmp_path: Path, direction: Direction, reason: str) -> None:
    save_directions(tmp_path / 'd.npz', [direction])
    with pytest.raises(UserError, match=reason):
        load_directions(tmp_path / 'd.npz', G)


def test_spaces_that_a_network_hasnt(tmp_path: Path) -> None:
    stock = make_stock()
    dim = stock.w_dim
    for space, reason in (('z', 'it has no φ.*--direction-space=w'), ('y', 'its codes are w')):
        save_directions(tmp_path / 'd.npz', [make_direction('a', draw(dim), space)])
        with pytest.raises(UserError, match=reason):
            load_directions(tmp_path / 'd.npz', stock)


# What others publish


def test_w_is_y_where_nothing_stands_between(G: Any, tmp_path: Path) -> None:
    save_directions(tmp_path / 'd.npz', [make_direction('a', draw(16), 'w')])
    assert load_directions(tmp_path / 'd.npz', G)[0].space == 'y'


def written(path: Path, content: Any) -> str:
    if path.suffix == '.pt':
        torch.save(content, path)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    return str(path)


V = draw(16).numpy() * 3


@pytest.mark.parametrize('name, content, space, bias', [
    ('stylegan_ffhq_age_w_boundary.npy', V[None], 'y', 0.0),  # InterFaceGAN; here w is y.
    ('stylegan_celebahq_age_boundary.npy', V[None], 'z', 0.0),
    ('boundary.npy', V, 'z', 0.0),
    ('age.pt', torch.from_numpy(V)[None], 'y', None),  # e4e
    ('pose.pt', torch.from_numpy(V), 'y', None),
    ('glasses.npy', V[None].astype(np.float16), 'y', None),
    ('smile_z.npz', {'smile': V}, 'z', None),
    ('lift_w+.npy', V[None, None].repeat(6, axis=1), 'y', None),  # StyleCLIP's [1, num_ws, dim]
])  # fmt: skip
def test_published_shapes(G: Any, tmp_path: Path, name: str, content: Any, space: str, bias: float | None) -> None:
    (found,) = load_directions(written(tmp_path / name, content), G)
    assert (found.space, found.bias) == (space, bias)
    row = found.vector[0] if found.per_layer else found.vector
    np.testing.assert_allclose(row, V / np.linalg.norm(V), atol=1e-3)
    assert found.figures['published_length'] == pytest.approx(np.linalg.norm(V), rel=1e-3)
    assert found.scale == 1.0 if space == 'z' else found.scale > 0
    assert found.per_layer == (name == 'lift_w+.npy') and found.source == name


def test_the_scale_of_a_published_direction_is_measured(G: Any, tmp_path: Path) -> None:
    (found,) = load_directions(written(tmp_path / 'a.npy', V), G)
    codes = spaces.sample_codes(G, 20_000, seed=5)[0]
    assert found.scale == pytest.approx(float((codes @ found.vector).std()), rel=0.05)
    (unknown,) = load_directions(str(tmp_path / 'a.npy'))
    assert math.isnan(unknown.scale) and unknown.space == 'w'


def test_ganspace(G: Any, tmp_path: Path) -> None:
    components, spreads = draw(4, 16).numpy(), np.array([4.0, 3.0, 2.0, 1.0])
    ours = dict(lat_comp=components[:, None], lat_stdev=spreads, lat_mean=np.zeros([1, 16]), act_comp=np.ones([4, 9]))
    copied = dict(comp=torch.from_numpy(components), std=torch.from_numpy(spreads), mean=torch.zeros(1, 16))
    for path in (written(tmp_path / 'g.npz', ours), written(tmp_path / 'ffhq_pca.pt', copied)):
        found = load_directions(path, G)
        assert [(one.name, one.scale) for one in found] == [('pc0', 4.0), ('pc1', 3.0), ('pc2', 2.0), ('pc3', 1.0)]
        np.testing.assert_allclose(found[2].vector, components[2] / np.linalg.norm(components[2]), atol=1e-6)
        assert load_directions(f'{path}:pc3', G)[0].name == 'pc3'


def test_a_stock_network_takes_w_and_the_space_may_be_said(tmp_path: Path) -> None:
    stock = make_stock()
    path = written(tmp_path / 'age_boundary.npy', draw(1, stock.w_dim).numpy())
    with pytest.raises(UserError, match='--direction-space=w'):
        load_directions(path, stock)
    assert load_directions(path, stock, space='w')[0].space == 'w'


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('kind', ['torch', 'pickle', 'numpy', 'npz'])
def test_nothing_in_a_file_runs(tmp_path: Path, kind: str) -> None:
    trace, path = tmp_path / 'ran', tmp_path / ('a.pt' if kind in ('torch', 'pickle') else 'a.npz')
    bomb = Bomb(str(trace))
    if kind == 'torch':
        torch.save({'direction': bomb}, path)
    elif kind == 'pickle':
        path.write_bytes(pickle.dumps(bomb))
    elif kind == 'numpy':
        with open(path, 'wb') as file:
            np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    else:
        np.savez(path, a=np.array([bomb], dtype=object))
    with pytest.raises(UserError, match=f'{path.name}: no file of plain numbers') as error:
        load_directions(path)
    assert '\n' not in str(error.value) and not trace.exists()


@pytest.mark.parametrize('name, content, reason', [
    ('a.npy', np.zeros([2, 3, 4]), r'has shape \[2, 3, 4\]'),
    ('a.npy', np.zeros(16), 'holds only zeros'),
    ('a.npy', np.full(16, np.nan), 'numbers that are not finite'),
    ('a.npy', np.array(['x']), 'expected numbers'),
    ('a.npz', {'info': np.array('{"format": "other"}')}, "format 'other', expected"),
    ('a.npz', {'info': np.array('nonsense')}, 'not a file of directions, or damaged'),
    ('a.pt', [1, 2], 'holds a list, expected a tensor'),
    ('a.npz', {'lat_comp': np.ones([2, 3, 4])}, r'components have shape \[2, 3, 4\]'),
])  # fmt: skip
def test_files_that_are_no_directions(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_directions(written(tmp_path / name, content))


def test_missing_damaged_large_and_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='no such file'):
        load_directions(tmp_path / 'no.npz')
    (tmp_path / 'a.txt').write_text('1 2 3')
    with pytest.raises(UserError, match='directions are read from .npz, .npy'):
        load_directions(tmp_path / 'a.txt')
    whole = Path(written(tmp_path / 'b.npz', {'a': V}))
    whole.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(UserError, match='no file of plain numbers'):
        load_directions(whole)
    np.savez_compressed(tmp_path / 'bomb.npz', a=np.zeros(10_000))
    monkeypatch.setattr(direction_files, 'MAX_BYTES', 5_000)
    with pytest.raises(UserError, match='unpacked'):
        load_directions(tmp_path / 'bomb.npz')


@pytest.mark.parametrize('name, space', [
    ('stylegan_ffhq_pose_w_boundary.npy', 'w'), ('age_boundary.npy', 'z'), ('yaw.npy', None), ('wavy.npz', None),
    ('smile-y.npy', 'y'), ('smile.pt', 'w'), ('a_wplus.npy', 'w'), ('z.npy', 'z'),
])  # fmt: skip
def test_names_tell_spaces(name: str, space: str | None) -> None:
    assert direction_files.space_of_name(f'/some/w_folder/{name}') == space


def test_names_of_files_and_directions(tmp_path: Path) -> None:
    assert directions.split_name('a.npz:smile') == ('a.npz', 'smile')
    assert directions.split_name('a.npz') == ('a.npz', None)
    assert directions.split_name('C:\\d\\a.npz') == ('C:\\d\\a.npz', None)
    assert directions.split_name('C:\\d\\a.npz:hair=a:b.npz') == ('C:\\d\\a.npz', 'hair=a:b.npz')
    assert directions.split_name('x.npz.d/b.PT:c:1') == ('x.npz.d/b.PT', 'c:1')
    odd = str(tmp_path / 'a.npz:b')
    Path(odd).write_bytes(b'')
    assert directions.split_name(odd) == (odd, None)
