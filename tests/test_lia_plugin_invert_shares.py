"""Several processes write what one writes: the same files, numbers and order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures

from lia_plugin.invert_options import InvertOptions
from lia_plugin.invert_shares import invert_share, share_places
from lia_plugin.targets import Target, collect
from torch_utils import distributed

CLOCKS = ('ms', 'seconds')
CASES: dict[str, dict[str, Any]] = {
    'plain': dict(batch=2),
    'random': dict(batch=2, noise_mode='random', seed=3),
    'refine': dict(batch=2, refine=3, lpips_source='none'),
    'tune': dict(batch=3, tune=3, lpips_source='none', percep='none'),
}


@pytest.mark.parametrize('count, batch, size', [(0, 2, 3), (1, 4, 3), (7, 2, 2), (100, 8, 4), (64, 64, 4), (13, 3, 1)])
def test_shares_are_whole_batches_in_turn_and_equal(count: int, batch: int, size: int) -> None:
    places = share_places(count, batch, size)
    assert sorted(place for share in places for place in share) == list(range(count))
    lengths = [len(share) for share in places]
    assert max(lengths) - min(lengths) <= 1
    for number in range(count // (batch * size) * size):  # In the batches of one process.
        share = places[number % size]
        begin = number // size * batch
        assert share[begin : begin + batch] == list(range(number * batch, (number + 1) * batch))


def work(rank: int, world_size: int, folder: str, items: list[Target]) -> list[int | None]:
    """All cases, one after the other."""
    torch.set_num_threads(1)
    network, codes = os.path.join(folder, 'lia.pkl'), []
    for name, options in CASES.items():
        out = os.path.join(folder, f'{name}{world_size}')
        asked = InvertOptions(network, (), outdir=out, **options)
        codes.append(invert_share(rank, world_size, asked, items, 'cpu'))
    one = InvertOptions(network, (), outdir=os.path.join(folder, f'single{world_size}'))
    return [*codes, invert_share(rank, world_size, one, items[:1], 'cpu')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures, of which one is broken and two are not square, inverted by one process and by two."""
    folder = tmp_path_factory.mktemp('shares')
    os.environ['DNNLIB_CACHE_DIR'] = str(folder / 'cache')
    save_pickle(folder / 'lia.pkl', make_generator())
    pictures = save_pictures(folder / 'in', 11)
    save_pictures(folder / 'in' / 'wide', 2, side=20)
    data = (pictures / 'picture5.png').read_bytes()
    (pictures / 'picture5.png').write_bytes(data[: len(data) // 2])
    items = collect([str(pictures)])
    assert len(items) == 13
    for size in (1, 2):
        codes = distributed.spawn(work, size, (str(folder), items), device='cpu')
        assert codes == [1] * len(CASES) + [0], 'one image could not be used'
    del os.environ['DNNLIB_CACHE_DIR']
    return folder


def told(path: Path) -> dict[str, Any]:
    """results.json without what a clock says."""
    found = json.loads((path / 'results.json').read_text())
    for row in [found['mean'], *found['images']]:
        for name in CLOCKS:
            row.pop(name, None)
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == pytest.approx(b, rel=1e-3, abs=1e-4) if isinstance(a, float) else a == b


@pytest.mark.parametrize('case', CASES)
def test_two_processes_write_what_one_writes(folder: Path, case: str) -> None:
    one, two = folder / f'{case}1', folder / f'{case}2'
    assert sorted(os.listdir(one)) == sorted(os.listdir(two))
    a, b = told(one), told(two)
    assert [row['image'] for row in a['images']] == [row['image'] for row in b['images']]
    if case != 'random':  # Its noise is the batch's.
        assert same(a, b)
    for name in os.listdir(one):
        if not name.endswith('.npz'):
            continue
        with np.load(one / name) as first, np.load(two / name) as second:
            assert first.files == second.files
            for key in first.files:
                if first[key].dtype.kind == 'f':
                    np.testing.assert_allclose(first[key], second[key], rtol=1e-3, atol=1e-4, err_msg=key)
                else:
                    assert np.array_equal(first[key], second[key]), key


def test_the_batches_of_one_process_give_its_codes_to_the_bit(folder: Path) -> None:
    """Up to the broken picture, after which batches are filled from further on."""
    with np.load(folder / 'plain1' / 'latents.npz') as one, np.load(folder / 'plain2' / 'latents.npz') as two:
        assert np.array_equal(one['y'][:4], two['y'][:4]) and np.array_equal(one['w'][:4], two['w'][:4])
    a, b = told(folder / 'random1')['images'], told(folder / 'random2')['images']
    assert a[:4] == b[:4], 'noise is drawn by place'


def test_fewer_images_than_processes(folder: Path) -> None:
    assert (folder / 'single2' / 'projected_w.npz').exists() and told(folder / 'single2')['n'] == 1
