"""Our pickles in NVIDIA's untouched checkouts, with no plugin there: every tool of theirs opens and runs them.

Needs clones of both, see `hosts`; runs on the CPU: `host_shim` replaces devices and known breaks, and nothing else.
"""

import hashlib
import json
import math
import pickle
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import PIL.Image
import pytest
import stand_in_detector
import torch

import lia_plugin.networks
import training.networks
from torch_utils import network_pickle

SIDE = 32
ADA, SG3 = hosts.NAMES
GENERATE = {ADA: 'generate.py', SG3: 'gen_images.py'}
DETECTORS = {
    ADA: 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{}.pt',
    SG3: 'https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics/{}.pkl',
}
pytestmark = pytest.mark.slow

# What a user of theirs does by hand: pictures and logits of a pickle, in full precision.
RUN = """
import sys, torch, legacy
assert 'lia_plugin' not in sys.modules or sys.modules['lia_plugin'] is None
results = {}
for path in sys.argv[2:]:
    with open(path, 'rb') as file:
        data = legacy.load_network_pkl(file)
    inputs = torch.load(path + '.inputs')
    results[path] = {
        'const': data['G_ema'](inputs['z'], inputs['c'], truncation_psi=0.7, noise_mode='const'),
        'none': data['G'](inputs['z'], inputs['c'], noise_mode='none'), 'D': data['D'](inputs['img'], inputs['c']),
        'kinds': sorted(type(part).__module__[:17] for part in data['G_ema'].modules())[-1]}
torch.save(results, sys.argv[1])
"""

# Their metrics, of fewer images: a metric registered as theirs are, then their program.
METRICS = """
import runpy, sys
from metrics import frechet_inception_distance, metric_main

@metric_main.register_metric
def fid60(opts):
    return dict(fid60=frechet_inception_distance.compute_fid(opts, max_real=None, num_gen=60))

sys.argv = ['calc_metrics.py'] + sys.argv[1:]
runpy.run_path('calc_metrics.py', run_name='__main__')
"""


def make_images(folder: Path) -> Path:
    """24 pictures of noise, of three classes in turn."""
    folder.mkdir()
    dice = np.random.RandomState(0)
    for index in range(24):
        pixels = dice.randint(0, 256, [SIDE, SIDE, 3]).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f'{index:02d}.png')
    labels = [[f'{index:02d}.png', index % 3] for index in range(24)]
    (folder / 'dataset.json').write_text(json.dumps(dict(labels=labels)), encoding='utf-8')
    return folder


def make_pickle(path: Path, images: Path, c_dim: int, **options: Any) -> str:
    """A snapshot of LIA as its training writes it, noise and w_avg included; inputs for it beside it."""
    torch.manual_seed(c_dim)
    image = dict(c_dim=c_dim, img_resolution=SIDE, img_channels=3)
    width = dict(channel_base=256, channel_max=16)
    G = lia_plugin.networks.Generator(z_dim=8, w_dim=8, synthesis_kwargs=width, **image, **options)
    D = training.networks.Discriminator(**image, **width)
    with torch.no_grad():
        for name, tensor in [*G.named_parameters(), *G.named_buffers(), *D.named_parameters()]:
            if name.endswith(('bias', 'noise_strength', 'w_avg')):
                tensor.add_(torch.randn_like(tensor) * 0.2)
    kwargs = dict(
        class_name='training.dataset.ImageFolderDataset',
        path=str(images),
        use_labels=c_dim > 0,
        max_size=None,
        xflip=False,
        resolution=SIDE,
    )
    nets = {key: net.eval().requires_grad_(False) for key, net in dict(G=G, D=D, G_ema=G).items()}
    network_pickle.save(path, dict(training_set_kwargs=kwargs, augment_pipe=None, **nets))
    torch.save(
        dict(z=torch.randn([3, 8]), c=torch.eye(3)[:, :c_dim], img=torch.randn([3, 3, SIDE, SIDE])), f'{path}.inputs'
    )
    return str(path)


@pytest.fixture(scope='module')
def pickles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('out')
    images = make_images(folder / 'images')
    width = dict(channel_base=256, channel_max=16)
    return {
        'gan': make_pickle(folder / 'gan.pkl', images, 0),
        'encoder': make_pickle(folder / 'encoder.pkl', images, 0, encoder_kwargs=width),
        'labels': make_pickle(folder / 'labels.pkl', images, 3, mapping_kwargs=dict(num_layers=2)),
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins where their downloads would have been cached."""
    folder = tmp_path / 'cache' / 'downloads'
    folder.mkdir(parents=True)
    scripted = torch.jit.script(stand_in_detector.ScriptedDetector())
    for name in ('inception-2015-12-05', 'vgg16'):
        scripted.save(str(folder / _cached(DETECTORS[ADA].format(name))))
    with open(folder / _cached(DETECTORS[SG3].format('inception-2015-12-05')), 'wb') as file:
        pickle.dump(stand_in_detector.Detector().eval(), file)
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))


def _cached(url: str) -> str:
    return f'{hashlib.md5(url.encode()).hexdigest()}_{url.rsplit("/", 1)[1]}'


def ours(path: str) -> dict[str, Any]:
    return network_pickle.load(path)


def pixels(img: torch.Tensor) -> np.ndarray:
    """One picture [1, 3, H, W], as their tools write it: levels rounded down."""
    return (img[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy().astype(int)


def same_picture(path: Path, img: torch.Tensor) -> bool:
    """Within a level: a number that is almost whole may fall to either side."""
    with PIL.Image.open(path) as image:
        return int(np.abs(np.asarray(image).astype(int) - pixels(img)).max()) <= 1


def latent(seed: int) -> torch.Tensor:
    """As their tools draw it."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, 8))


@pytest.mark.parametrize('host', hosts.NAMES)
def test_pictures_and_logits_are_ours(host: str, pickles: dict[str, str], tmp_path: Path) -> None:
    hosts.check(hosts.run(host, '-c', RUN, str(tmp_path / 'results.pt'), *pickles.values()))
    results = torch.load(tmp_path / 'results.pt', weights_only=True)
    for path in pickles.values():
        theirs, data, inputs = results[path], ours(path), torch.load(f'{path}.inputs')
        expected = {
            'const': data['G_ema'](inputs['z'], inputs['c'], truncation_psi=0.7, noise_mode='const'),
            'none': data['G'](inputs['z'], inputs['c'], noise_mode='none'),
            'D': data['D'](inputs['img'], inputs['c']),
        }
        for key, value in expected.items():
            assert float((theirs[key] - value).abs().max() / value.std()) < 1e-4, (path, key)
        assert theirs['kinds'].startswith(('torch.nn', 'torch_utils.persi'))  # Their persistence made the classes.


@pytest.mark.parametrize('host', hosts.NAMES)
@pytest.mark.parametrize('name', ['gan', 'encoder', 'labels'])
def test_their_generator_script(host: str, name: str, pickles: dict[str, str], tmp_path: Path) -> None:
    G = ours(pickles[name])['G_ema']
    label = ['--class=1'] if G.c_dim else []
    hosts.check(
        hosts.run(
            host,
            GENERATE[host],
            f'--network={pickles[name]}',
            '--seeds=0-2',
            '--trunc=0.6',
            f'--outdir={tmp_path}',
            *label,
        )
    )
    c = torch.eye(3)[1:2] if G.c_dim else torch.zeros([1, 0])
    for seed in range(3):
        img = G(latent(seed), c, truncation_psi=0.6, noise_mode='const')
        assert same_picture(tmp_path / f'seed{seed:04d}.png', img)


@pytest.mark.parametrize('name', ['gan', 'encoder'])
def test_their_style_mixing(name: str, pickles: dict[str, str], tmp_path: Path) -> None:
    hosts.check(
        hosts.run(
            ADA,
            'style_mixing.py',
            f'--network={pickles[name]}',
            '--rows=1,2',
            '--cols=3',
            '--styles=0-2',
            f'--outdir={tmp_path}',
        )
    )
    G = ours(pickles[name])['G_ema']
    row, column = (G.mapping(latent(seed), None) for seed in (1, 3))
    row[:, :3] = column[:, :3]
    assert same_picture(tmp_path / '1-3.png', G.synthesis(row, noise_mode='const'))


@pytest.mark.parametrize('name', ['gan', 'encoder'])
def test_their_projector(name: str, pickles: dict[str, str], tmp_path: Path, cache: None) -> None:
    G = ours(pickles[name])['G_ema']
    target = tmp_path / 'target.png'
    PIL.Image.fromarray(pixels(G(latent(5), None, noise_mode='const')).astype(np.uint8)).save(target)
    hosts.check(
        hosts.run(
            ADA,
            'projector.py',
            f'--network={pickles[name]}',
            f'--target={target}',
            '--num-steps=4',
            '--save-video=0',
            f'--outdir={tmp_path}/p',
        )
    )
    w = np.load(tmp_path / 'p' / 'projected_w.npz')['w']
    assert w.shape == (1, G.num_ws, G.w_dim) and np.isfinite(w).all() and (tmp_path / 'p' / 'proj.png').exists()
    hosts.check(
        hosts.run(
            ADA,
            'generate.py',
            f'--network={pickles[name]}',
            f'--outdir={tmp_path}/g',
            f'--projected-w={tmp_path}/p/projected_w.npz',
        )
    )
    assert same_picture(tmp_path / 'g' / 'proj00.png', G.synthesis(torch.from_numpy(w), noise_mode='const'))


@pytest.mark.parametrize('host', hosts.NAMES)
@pytest.mark.parametrize('name', ['gan', 'encoder', 'labels'])
def test_their_metrics(host: str, name: str, pickles: dict[str, str], tmp_path: Path, cache: None) -> None:
    """With their own data set and feature statistics: the data set's options come out of the pickle."""
    done = hosts.run(host, '-c', METRICS, f'--network={pickles[name]}', '--metrics=fid60')
    lines = [line for line in hosts.check(done).splitlines() if line.startswith('{')]
    result = json.loads(lines[-1])
    assert result['metric'] == 'fid60' and math.isfinite(result['results']['fid60'])
    assert result['snapshot_pkl'].endswith(f'{name}.pkl')
