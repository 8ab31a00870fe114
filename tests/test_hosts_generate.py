"""The same pickle and the same seeds in NVIDIA's scripts and in ours: the same pictures, to a grey level.

Needs clones of both hosts, see `hosts`; runs on the CPU.
"""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import PIL.Image
import pytest
import torch
from test_hosts_out import make_images, make_pickle
from test_lia_plugin_video import read_mp4
from test_networks_stylegan3 import calibrate, make_generator, stir

from lia_plugin import cli
from torch_utils import network_pickle
from training import networks

ADA, SG3 = hosts.NAMES
pytestmark = pytest.mark.slow


def make_stylegan3(path: Path) -> str:
    G = calibrate(stir(make_generator(resolution=32))).requires_grad_(False)
    torch.nn.init.normal_(G.mapping.w_avg)
    D = networks.Discriminator(c_dim=0, img_resolution=32, img_channels=3, channel_base=128, channel_max=8).eval()
    data = dict(training_set_kwargs=None, G=G, D=D.requires_grad_(False), G_ema=G, augment_pipe=None)
    network_pickle.save(path, data)
    return str(path)


@pytest.fixture(scope='module')
def pickles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('generate')
    images = make_images(folder / 'images')
    return {
        'lia': make_pickle(folder / 'lia.pkl', images, 0),
        'labels': make_pickle(folder / 'labels.pkl', images, 3, mapping_kwargs=dict(num_layers=2)),
        'stylegan3': make_stylegan3(folder / 'stylegan3.pkl'),
    }


def ours(command: str, *args: str) -> None:
    assert cli.run(cli.load_command(command), ['--device=cpu', *args]) == 0


def read(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def assert_same_pictures(one: Path, other: Path, count: int) -> None:
    names = sorted(path.name for path in one.glob('*.png'))
    assert names == sorted(path.name for path in other.glob('*.png')) and len(names) == count
    for name in names:
        assert np.abs(read(one / name) - read(other / name)).max() <= 1, name


@pytest.mark.parametrize('host, script, name, args', [
    (ADA, 'generate.py', 'lia', ['--seeds=0,3,4,5', '--trunc=0.5', '--noise-mode=none']),
    (ADA, 'generate.py', 'labels', ['--seeds=2-5', '--trunc=0.5', '--class=2']),
    (SG3, 'gen_images.py', 'labels', ['--seeds=0,3-5', '--class=1']),
    (SG3, 'gen_images.py', 'stylegan3', ['--seeds=0,3-5', '--trunc=0.5']),
    (SG3, 'gen_images.py', 'stylegan3', ['--seeds=0,3-5', '--translate=0.3,-0.1', '--rotate=40']),
])
def test_pictures_of_seeds(
    pickles: dict[str, str], tmp_path: Path, host: str, script: str, name: str, args: list[str]
) -> None:
    hosts.check(hosts.run(host, script, f'--network={pickles[name]}', f'--outdir={tmp_path}/theirs', *args))
    ours('generate', f'--network={pickles[name]}', f'--outdir={tmp_path}/ours', *args)
    assert_same_pictures(tmp_path / 'ours', tmp_path / 'theirs', 4)


@pytest.mark.parametrize('name', ['lia', 'labels'])
def test_pictures_of_stored_w(pickles: dict[str, str], tmp_path: Path, name: str) -> None:
    """What a projector writes; and what ours stores, in theirs."""
    label = ['--class=1'] if name == 'labels' else []
    ours('generate', f'--network={pickles[name]}', '--seeds=0-2', f'--outdir={tmp_path}/seeds', '--save-latents',
         *label)  # fmt: skip
    with np.load(tmp_path / 'seeds' / 'latents.npz') as file:
        np.savez(tmp_path / 'w.npz', w=file['w'])
    for path in ('w.npz', 'seeds/latents.npz'):
        hosts.check(hosts.run(ADA, 'generate.py', f'--network={pickles[name]}', f'--projected-w={tmp_path}/{path}',
                              f'--outdir={tmp_path}/theirs', *label))  # fmt: skip
        for i in range(3):
            stored = read(tmp_path / 'seeds' / f'seed000{i}.png')
            assert np.abs(read(tmp_path / 'theirs' / f'proj0{i}.png') - stored).max() <= 1
    ours('generate', f'--network={pickles[name]}', f'--projected-w={tmp_path}/w.npz', f'--outdir={tmp_path}/ours')
    assert_same_pictures(tmp_path / 'ours', tmp_path / 'theirs', 3)


@pytest.mark.parametrize('host', hosts.NAMES)
def test_our_commands_inside_their_checkouts(pickles: dict[str, str], tmp_path: Path, host: str) -> None:
    """With their own networks, out of the source inside the pickle."""
    name = 'lia' if host == ADA else 'stylegan3'
    given = [f'--network={pickles[name]}', '--device=cpu', '--seeds=0-1', '--trunc=0.5']
    hosts.check(hosts.run(host, '-m', 'lia_plugin', 'generate', *given, '--noise-mode=random',
                          f'--outdir={tmp_path}/theirs', plugin=True))  # fmt: skip
    ours('generate', f'--network={pickles[name]}', '--seeds=0-1', '--trunc=0.5', '--noise-mode=random',
         f'--outdir={tmp_path}/ours')  # fmt: skip
    assert_same_pictures(tmp_path / 'ours', tmp_path / 'theirs', 2)
    hosts.check(hosts.run(host, '-m', 'lia_plugin', 'video', *given, '--w-frames=2', f'--output={tmp_path}/walk.gif',
                          plugin=True))  # fmt: skip
    with PIL.Image.open(tmp_path / 'walk.gif') as picture:
        assert picture.n_frames == 4


@pytest.mark.parametrize('args', [
    ['--seeds=0-15', '--grid=2x2', '--trunc=0.7', '--shuffle-seed=3'],
    ['--seeds=0-3', '--grid=2x1', '--num-keyframes=4'],
])
def test_walks(pickles: dict[str, str], tmp_path: Path, args: list[str]) -> None:
    """Their spline is only nearly periodic, and both films are compressed: they are as near as a quarter of a step."""
    both: list[Any] = []
    given = [f'--network={pickles["stylegan3"]}', '--w-frames=2', *args]
    hosts.check(hosts.run(SG3, 'gen_video.py', *given, f'--output={tmp_path}/theirs.mp4'))
    ours('video', *given, f'--output={tmp_path}/ours.mp4')
    for name in ('theirs.mp4', 'ours.mp4'):
        meta, frames = read_mp4(tmp_path / name)
        both.append(np.stack(frames).astype(int))
        assert meta['fps'] == 60
    theirs, our = both
    assert theirs.shape == our.shape and len(our) == 8
    assert np.abs(theirs - our).mean() < np.abs(our - np.roll(our, 1, axis=0)).mean() / 4
