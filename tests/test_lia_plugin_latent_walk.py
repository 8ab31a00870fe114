"""Walks that end where they began: keyframes, smoothness, spaces; and the video command."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import make_generator, save_pickle
from test_lia_plugin_refinement import make_stock
from test_lia_plugin_sampling import make_deep, noisy
from test_lia_plugin_video import read_mp4
from test_networks_stylegan3 import make_generator as make_stylegan3

from lia_plugin import cli, codes, latent_walk, paths, sampling, spaces
from lia_plugin.host import UserError
from lia_plugin.images import grid


def keyframes(count: int = 5, cells: int = 2, dim: int = 7) -> torch.Tensor:
    return torch.randn([count, cells, dim], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# Seeds


def test_a_place_takes_seeds_that_follow_each_other() -> None:
    assert latent_walk.place_seeds(range(6), cells=2) == [[0, 3], [1, 4], [2, 5]]
    assert latent_walk.place_seeds([7, 8], cells=2, num_keyframes=2) == [[7, 7], [8, 8]], 'they begin again'


def test_shuffled_seeds_are_numpys() -> None:
    mixed = np.arange(8)
    np.random.RandomState(3).shuffle(mixed)
    assert latent_walk.place_seeds(range(8), cells=2, shuffle_seed=3) == mixed.reshape(2, 4).T.tolist()


@pytest.mark.parametrize('count, cells, keys, option', [(5, 2, None, '--seeds: 5 seeds are no multiple of the 2'),
                                                        (2, 2, None, 'needs 4 at least'),
                                                        (3, 2, 4, '--num-keyframes: .* 8 seeds, no multiple of the 3'),
                                                        (9, 1, 3, '--num-keyframes')])
def test_seeds_that_do_not_go_round(count: int, cells: int, keys: int | None, option: str) -> None:
    with pytest.raises(UserError, match=option):
        latent_walk.place_seeds(range(count), cells, keys)


# Paths


@pytest.mark.parametrize('kind', ['cubic', 'linear'])
@pytest.mark.parametrize('spherical', [False, True])
def test_keyframes_are_passed_and_parts_are_the_whole(kind: str, spherical: bool) -> None:
    walk = paths.Walk(keyframes(), 6, kind, True, spherical)
    whole = walk.at(0, len(walk))
    torch.testing.assert_close(whole[::6], walk.keys)
    torch.testing.assert_close(torch.cat([walk.at(0, 7), walk.at(7, 8), walk.at(8, len(walk))]), whole)


def test_the_end_leads_to_the_beginning_without_a_break() -> None:
    """Value, slope and curvature, by finite differences across the seam, against those at any other keyframe."""
    steps = 1000
    walk = paths.Walk(keyframes(), steps, 'cubic', True)
    last, first = walk.at(len(walk) - 3, len(walk)), walk.at(0, 3)
    seam = torch.cat([last, first])
    assert (first[0] - last[-1]).abs().max() < 10 / steps, 'no jump'
    slopes = seam.diff(dim=0) * steps
    assert slopes.diff(dim=0).abs().max() < 50 / steps, 'no kink'
    bends = slopes.diff(dim=0) * steps
    inside = walk.at(0, 2 * steps).diff(n=2, dim=0) * steps**2
    assert bends.diff(dim=0).abs().max() < 3 * inside.diff(dim=0).abs().max() + 1e-6


def test_arcs_keep_between_the_lengths_of_their_ends() -> None:
    walk = paths.Walk(keyframes(3, 1, 64), 4, 'linear', True, True)
    lengths = walk.at(0, 12).norm(dim=2)[:, 0]
    ends = walk.keys.norm(dim=2)[:, 0]
    expected = torch.cat([ends[k] + (ends[(k + 1) % 3] - ends[k]) * torch.arange(4) / 4 for k in range(3)])
    torch.testing.assert_close(lengths, expected)


# Frames


@pytest.mark.parametrize('make', [make_generator, make_stock, make_stylegan3, lambda: make_deep(num_layers=2)],
                         ids=['lia', 'stylegan2', 'stylegan3', 'y is not w'])
@pytest.mark.parametrize('space', latent_walk.SPACES)
def test_keyframes_are_the_seeds_pictures(make: Any, space: str) -> None:
    G = make().eval().requires_grad_(False)
    if space == 'y' and not spaces.has_prior(G):
        with pytest.raises(UserError, match='--space=y'):
            latent_walk.Film(G, [[0], [1]], None, space=space)
        return
    torch.nn.init.normal_(G.mapping.w_avg)
    film = latent_walk.Film(G, [[0, 2], [1, 3]], None, 0.7, space, steps=3)
    frames = list(film.frames(columns=2, batch=3))
    assert len(frames) == 6 and frames[0].shape == (3, 16, 32)
    images = G(codes.seeds_to_z([0, 2, 1, 3], G.z_dim), None, truncation_psi=0.7, noise_mode='const')
    for frame, pair in ((0, images[:2]), (3, images[2:])):
        assert (frames[frame].int() - grid(pair, 2).int()).abs().max() <= 1


def test_between_keyframes_z_goes_along_arcs_and_y_along_lines() -> None:
    G = make_generator()
    z = codes.seeds_to_z([0, 1], 16)
    middle = torch.stack([paths.slerp(z[0], z[1], torch.tensor([0.5]))[0], z.mean(dim=0)])
    assert (middle[0] - middle[1]).norm() > 0.5
    in_z, in_y = (latent_walk.Film(G, [[0], [1]], None, 1, space, 2, 'linear').ws(1, 2)[0] for space in 'zy')
    torch.testing.assert_close(in_z, G.mapping(middle[:1], None)[0])
    torch.testing.assert_close(in_y, G.mapping.y_to_ws(G.mapping.z_to_y(z).mean(dim=0, keepdim=True))[0])


@pytest.mark.parametrize('mode', ['const', 'random'])
def test_batches_make_no_difference(mode: str) -> None:
    G = noisy(make_stock())
    film = latent_walk.Film(G, [[0, 2], [1, 3]], None, steps=3)
    one, many = (torch.stack(list(film.frames(1, batch, mode))).int() for batch in (1, 5))
    assert (one - many).abs().max() <= 1


def test_no_more_is_drawn_than_a_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more of the path is made: the memory that it takes has nothing to do with its length."""
    G = make_generator()
    film = latent_walk.Film(G, [[0, 2], [1, 3]], None, steps=500)
    asked: list[int] = []
    monkeypatch.setattr(sampling, 'render', lambda G, ws, *_: asked.append(len(ws)) or torch.zeros([len(ws), 3, 4, 4]))
    frames = film.frames(2, batch=6)
    for _ in range(4):
        next(frames)
    assert asked == [6, 6]


# The command


def film(network: str, *args: str) -> int:
    return cli.run(cli.load_command('video'), ['--device=cpu', f'--network={network}', *args])


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator(c_dim=2))


def test_a_video_has_all_its_frames(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ['--seeds=0-5', '--grid=3x1', '--w-frames=4', '--class=1', '--space=z']
    assert film(network, *args, f'--output={tmp_path}/walk.mp4') == 0
    meta, frames = read_mp4(tmp_path / 'walk.mp4')
    assert len(frames) == 8 and meta['size'] == (48, 16) and meta['fps'] == 60
    assert '8 frames' in capsys.readouterr().out
    assert film(network, *args, f'--output={tmp_path}/walk.gif') == 0
    with PIL.Image.open(tmp_path / 'walk.gif') as picture:
        assert picture.n_frames == 8 and picture.info['loop'] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['walk.gif', 'walk.mp4']


@pytest.mark.parametrize('args, reason', [
    (['--seeds=0-4', '--grid=2x1'], 'no multiple of the 2'),
    (['--seeds=0-3', '--class=1', '--grid=2000x1', '--num-keyframes=2', '--output=walk.mp4'], 'too large for mp4'),
    (['--seeds=0', '--class=1', '--num-keyframes=999999999'], '--num-keyframes: .* more than 100000'),
    (['--seeds=0-3'], '--class'),
    (['--seeds=0-3', '--class=2'], '0 to 1; got 2'),
    (['--seeds=0-3', '--class=1', '--grid=2'], "'4x3'"),
    (['--seeds=3-0', '--class=1'], 'ascending'),
    (['--seeds=0-3', '--class=1', '--output=walk.avi'], r'end in \.mp4, \.gif or \.webp'),
    (['--seeds=0-3', '--class=1', '--output=nowhere/walk.gif'], 'no folder'),
    (['--seeds=0-3', '--class=1', '--output=walk.gif', '--fps=60'], '50 frames a second'),
    (['--seeds=0-3', '--class=1', '--trunc=nan'], 'not a finite number'),
])
def test_bad_input_is_one_line_and_writes_nothing(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    args: list[str], reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = args if any(arg.startswith('--output') for arg in args) else [*args, '--output=walk.gif']
    assert film(network, *given) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and re.search(reason, err), err
    assert not list(tmp_path.iterdir())
