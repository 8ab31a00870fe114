"""Alias-free networks and NVIDIA's stylegan3: its pickles here, and ours there without the plugin."""

import json
import math
import pathlib
import warnings
from typing import Any

import hosts
import numpy as np
import PIL.Image
import pytest
import torch

import legacy
from lia_plugin import networks as lia_networks
from torch_utils import network_pickle
from training import networks, networks_stylegan3

SMALL: dict[str, Any] = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, channel_base=256,
                             channel_max=16, num_layers=6)  # fmt: skip
R: dict[str, Any] = dict(conv_kernel=1, use_radial_filters=True)
CASES: dict[str, dict[str, Any]] = {
    't': {}, 'r': R, 't, labels': dict(c_dim=5), 'r, labels, grey': dict(R, c_dim=3, img_channels=1),
    't at 64': dict(img_resolution=64), 'r at 32': dict(R, img_resolution=32), 't, 14 layers': dict(num_layers=14),
    'kernel 5': dict(conv_kernel=5), 'radial, kernel 3': dict(use_radial_filters=True),
    'critical 0': dict(num_critical=0), 'critical 4': dict(num_critical=4),
    'margin 4': dict(margin_size=4), 'margin 0': dict(margin_size=0),
    'filter 4': dict(filter_size=4), 'lrelu 1': dict(lrelu_upsampling=1), 'lrelu 4': dict(R, lrelu_upsampling=4),
    'clamp 2': dict(conv_clamp=2), 'no clamp': dict(conv_clamp=None), 'scale 1': dict(output_scale=1),
    'beta': dict(magnitude_ema_beta=0.5), 'no fp16': dict(num_fp16_res=0),
    'bands': dict(first_cutoff=3, first_stopband=2**2.6, last_stopband_rel=2**0.5),
    'mapping': dict(mapping_kwargs=dict(num_layers=3, lr_multiplier=0.1, w_avg_beta=0.9)),
}  # fmt: skip
TURN = [[1.2 * math.cos(0.4), -1.2 * math.sin(0.4), 0.13], [1.2 * math.sin(0.4), 1.2 * math.cos(0.4), -0.21], [0, 0, 1]]

# Runs in the checkout: writes a pickle for each case, as its training loop would, and what its networks compute.
MAKE = """
import json, pickle, sys
import numpy as np, torch
from training import networks_stylegan2, networks_stylegan3
out, config = sys.argv[1], json.loads(sys.argv[2])
for number, (name, options) in enumerate(config['cases'].items()):
    torch.manual_seed(number)
    G = networks_stylegan3.Generator(**{**config['small'], **options})
    with torch.no_grad():
        for key, parameter in G.named_parameters():  # Whatever starts at zero or one.
            scale = 10 if key.startswith('mapping.fc') else 0.1 if '.input.' in key else 0.3
            parameter.add_(torch.randn_like(parameter) * scale)
        for key, buffer in G.named_buffers():
            if key.endswith('magnitude_ema'):
                buffer.copy_(torch.rand([]) * 2 + 0.2)
    G.mapping.w_avg.normal_()
    G.eval().requires_grad_(False)
    D = networks_stylegan2.Discriminator(G.c_dim, G.img_resolution, G.img_channels, channel_base=128, channel_max=8)
    data = dict(G=G, D=D.eval().requires_grad_(False), G_ema=G, augment_pipe=None, training_set_kwargs=None)
    with open(f'{out}/{number}.pkl', 'wb') as f:
        pickle.dump(data, f)
    z = torch.from_numpy(np.random.RandomState(number).randn(2, G.z_dim))
    c = torch.eye(G.c_dim)[:2] if G.c_dim else None
    found = dict(z=z, c=c, plain=G(z, c), truncated=G(z, c, 0.6, truncation_cutoff=3, noise_mode='const'))
    G.synthesis.input.transform.copy_(torch.tensor(config['turn']))
    found['turned'] = G(z, c, noise_mode='none', force_fp32=True)
    ws = G.mapping(z, c).requires_grad_()
    found['gradient'] = torch.autograd.grad(G.synthesis(ws).square().mean(), ws)[0]
    found['tracking'] = G(z, c, update_emas=True)
    found['tracked'] = {key: value for key, value in G.state_dict().items() if key.endswith(('_ema', '_avg'))}
    torch.save(found, f'{out}/{number}.pt')
"""

# Runs in the checkout: opens a pickle as its tools do, with the code inside.
OPEN = """
import sys
import torch
import legacy
with open(sys.argv[1], 'rb') as f:
    data = legacy.load_network_pkl(f, force_fp16=sys.argv[3] == 'half')
G, inputs = data['G_ema'], torch.load(sys.argv[2])
images = G(inputs['z'], inputs['c'], truncation_psi=0.7, noise_mode='const')
G.synthesis.input.transform.copy_(torch.tensor(inputs['turn']))
turned = G(inputs['z'], inputs['c'])
inverted = tuple(G.invert(inputs['img'], inputs['c'])) if hasattr(G, 'invert') else None
torch.save(dict(images=images, turned=turned, inverted=inverted, code=type(G).__mro__[1].__module__),
           sys.argv[2] + '.out')
"""


@pytest.fixture(scope='module')
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp('originals')
    config = json.dumps(dict(small=SMALL, cases=CASES, turn=TURN))
    hosts.check(hosts.run('stylegan3', '-c', MAKE, str(folder), config))
    return {name: folder / str(number) for number, name in enumerate(CASES)}


@pytest.mark.parametrize('name', CASES)
def test_its_pictures_are_ours(name: str, originals: dict[str, pathlib.Path]) -> None:
    """In standard deviations of the picture: law 6 allows 1e-4, all of these stay well below it."""
    expected = torch.load(f'{originals[name]}.pt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data = legacy.load_network_pkl(f'{originals[name]}.pkl')
    G, z, c = data['G_ema'], expected['z'], expected['c']
    assert type(G) is networks_stylegan3.Generator and type(data['D']) is networks.Discriminator
    found = dict(plain=G(z, c), truncated=G(z, c, 0.6, truncation_cutoff=3, noise_mode='const'))
    G.synthesis.input.transform.copy_(torch.tensor(TURN))
    found['turned'] = G(z, c, noise_mode='none', force_fp32=True)
    ws = G.mapping(z, c).requires_grad_()
    (found['gradient'],) = torch.autograd.grad(G.synthesis(ws).square().mean(), ws)
    found['tracking'] = G(z, c, update_emas=True)
    for key, images in found.items():
        limit = 1e-3 if key == 'gradient' else 3e-5
        error = (images.detach() - expected[key]).abs().max() / expected[key].std()
        assert error < limit, f'{key}: {error:.1e} standard deviations'
    assert (found['turned'] - found['plain']).abs().max() > 0.1 * found['plain'].std()
    tracked = {key: value for key, value in G.state_dict().items() if key.endswith(('_ema', '_avg'))}
    assert list(tracked) == list(expected['tracked'])
    for key, value in expected['tracked'].items():
        torch.testing.assert_close(tracked[key], value, rtol=1e-4, atol=1e-6, msg=key)


def save(path: pathlib.Path, G: Any) -> dict[str, Any]:
    """A snapshot of ours; gives latents, labels and images to try it with."""
    D = networks.Discriminator(c_dim=G.c_dim, img_resolution=16, img_channels=3, channel_base=128, channel_max=8)
    G = G.eval().requires_grad_(False)
    network_pickle.save(path, dict(G=G, D=D.eval().requires_grad_(False), G_ema=G, augment_pipe=None,
                                   training_set_kwargs=None))
    torch.manual_seed(1)
    c = torch.eye(G.c_dim)[:2] if G.c_dim else None
    return dict(z=torch.randn(2, 16), c=c, img=torch.rand(2, 3, 16, 16) * 2 - 1, turn=TURN)


def make(kind: str) -> Any:
    torch.manual_seed(0)
    options = {key: SMALL[key] for key in ('channel_base', 'channel_max', 'num_layers')}
    options |= R if kind.endswith('r') else {}
    sizes = dict(z_dim=16, w_dim=16, img_resolution=16, img_channels=3)
    if not kind.startswith('lia'):
        return networks_stylegan3.Generator(c_dim=3, **sizes, **options)
    options['class_name'] = 'training.networks_stylegan3.SynthesisNetwork'
    encoder = dict(channel_base=128, channel_max=8)
    return lia_networks.Generator(c_dim=0, **sizes, synthesis_kwargs=options, encoder_kwargs=encoder)


@pytest.mark.parametrize('kind, precision', [
    ('t', 'half'), ('r', 'single'), ('lia-t', 'single'), ('lia-r', 'single')])
def test_our_pickles_open_there_without_the_plugin(kind: str, precision: str, tmp_path: pathlib.Path) -> None:
    hosts.find('stylegan3')
    G = make(kind)
    inputs = save(tmp_path / 'ours.pkl', G)
    torch.save(inputs, tmp_path / 'inputs.pt')
    hosts.check(hosts.run('stylegan3', '-c', OPEN, str(tmp_path / 'ours.pkl'), str(tmp_path / 'inputs.pt'), precision))
    theirs = torch.load(tmp_path / 'inputs.pt.out')
    assert theirs['code'].startswith('_imported_module_')
    images = G(inputs['z'], inputs['c'], truncation_psi=0.7, noise_mode='const')
    torch.testing.assert_close(images, theirs['images'], rtol=0, atol=float(images.std()) * 3e-5)
    G.synthesis.input.transform.copy_(torch.tensor(TURN))
    turned = G(inputs['z'], inputs['c'])
    torch.testing.assert_close(turned, theirs['turned'], rtol=0, atol=float(turned.std()) * 3e-5)
    if kind.startswith('lia'):
        for ours, other in zip(G.invert(inputs['img']), theirs['inverted'], strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_its_gen_images_draws_our_pictures(tmp_path: pathlib.Path) -> None:
    hosts.find('stylegan3')
    G = make('lia-t')
    save(tmp_path / 'ours.pkl', G)
    hosts.check(hosts.run('stylegan3', 'gen_images.py', f'--network={tmp_path}/ours.pkl', '--seeds=3', '--trunc=0.8',
                          '--translate=0.25,0.125', '--rotate=20', f'--outdir={tmp_path}/out'))
    drawn = np.asarray(PIL.Image.open(tmp_path / 'out' / 'seed0003.png')).astype(int)
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 16))
    angle = math.radians(20)
    matrix = np.array([[math.cos(angle), math.sin(angle), 0.25], [-math.sin(angle), math.cos(angle), 0.125], [0, 0, 1]])
    G.synthesis.input.transform.copy_(torch.from_numpy(np.linalg.inv(matrix)))
    img = G(z, None, truncation_psi=0.8, noise_mode='const')
    levels = (img[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy().astype(int)
    assert np.abs(drawn - levels).max() <= 1 and levels.std() > 1
