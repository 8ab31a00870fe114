"""The plugin inside NVIDIA's own checkouts: their loops, networks, metrics and data sets, unmodified."""

from __future__ import annotations

import json
import pathlib
import zipfile

import hosts
import numpy as np
import PIL.Image
import pytest
import torch

import legacy
from lia_plugin import cli

NARROW = ['--cbase=256', '--cmax=8', '--latent-dim=16', '--batch=4', '--gamma=0.1', '--aug=noaug', '--workers=0',
          '--fp32']
SHORT = ['--kimg=0.02', '--enc-kimg=0.02', '--tick=0.01', '--snap=1']


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zip of 12 images of 16x16 with two classes."""
    path = tmp_path_factory.mktemp('data') / 'tiny.zip'
    stream = np.random.RandomState(0)
    with zipfile.ZipFile(path, 'w') as archive:
        names = [f'00000/img{i:08d}.png' for i in range(12)]
        for name in names:
            with archive.open(name, 'w') as file:
                PIL.Image.fromarray(stream.randint(0, 255, [16, 16, 3], dtype=np.uint8)).save(file, format='PNG')
        archive.writestr('dataset.json', json.dumps({'labels': [[name, i % 2] for i, name in enumerate(names)]}))
    return str(path)


def lia(host: str, *args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m lia_plugin …` in the checkout."""
    done = hosts.run(host, '-m', 'lia_plugin', *map(str, args), plugin=True)
    return done.returncode, done.stdout, done.stderr


def trained(host: str, outdir: pathlib.Path, data: str, *more: str) -> tuple[pathlib.Path, str]:
    """Run directory and output of a training."""
    code, out, err = lia(host, 'train', f'--outdir={outdir}', f'--data={data}', *NARROW, *more)
    assert code == 0, out[-1500:] + err[-3000:]
    (run,) = outdir.iterdir()
    return run, out


@pytest.mark.parametrize('host, processes', [
    ('stylegan2-ada-pytorch', 1), ('stylegan2-ada-pytorch', 2), ('stylegan3', 2),
])  # fmt: skip
def test_both_stages_metrics_inversion(
    host: str, processes: int, data: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their loops end by comparing every tensor of all ranks: what stage 2 freezes must be the same on each."""
    metrics = '--metrics=recon_mse,latent_fd'
    recipe = ['--enc-adv=0.1', '--enc-latent=0.1', '--enc-adv-start=0']
    if processes > 1:  # And once all that waits for its time, or is asked more than once.
        recipe = ['--enc-adv=0.1', '--enc-latent=0.1', '--enc-adv-start=0.4', '--enc-space=y+', '--enc-iters=2']
    run, out = trained(host, tmp_path / 'runs', data, '--cond', f'--gpus={processes}', metrics, *recipe, *SHORT)
    first, second = run / 'gan-part00', run / 'encoder-part00'
    snapshot = second / 'network-snapshot-000000.pkl'
    assert first.joinpath('fakes000000.png').is_file() and second.joinpath('recon000000.png').is_file()
    assert first.joinpath('stats.jsonl').stat().st_size and 'eta' in out
    lines = [json.loads(line) for line in second.joinpath('metric-recon_mse.jsonl').read_text().splitlines()]
    assert len(lines) >= 2 and lines[-1]['results']['recon_mse_n'] == 12
    source = hosts.find(host).joinpath('training', 'training_loop.py').read_text()
    assert 'Training for' in source and 'Training for' in out  # Their loop's own words.

    assert b'Copyright (c) 2021, NVIDIA' in snapshot.read_bytes()  # The source of their networks, not of ours.

    # Measured afterwards, there and here, the network gives the same number.
    arguments = [f'--network={snapshot}', '--metrics=recon_mse', f'--data={data}']
    code, there, err = lia(host, 'calc_metrics', *arguments)
    assert code == 0, err
    capsys.readouterr()
    assert cli.main(['calc_metrics', '--device=cpu', *arguments]) == 0
    here = capsys.readouterr().out
    found = [json.loads(text.splitlines()[-1])['results']['recon_mse'] for text in (there, here)]
    assert found[0] == pytest.approx(found[1], rel=1e-5) == pytest.approx(lines[-1]['results']['recon_mse'], rel=1e-5)

    code, table, err = lia(host, 'invert', f'--network={snapshot}', f'--target={data}', f'--outdir={tmp_path / "out"}')
    assert code == 0 and 'mean of 12' in table, err
    assert len(json.loads((tmp_path / 'out' / 'results.json').read_text())['images']) == 12


# A narrow network of the checkout's own classes, as it pickles itself.
MAKE_NETWORK = """
import importlib.util, pickle, sys
import dnnlib, torch
make = dnnlib.util.construct_class_by_name
is_ada = importlib.util.find_spec('training.networks_stylegan2') is None
module = 'training.networks' if is_ada else 'training.networks_stylegan2'
torch.manual_seed(0)
image = dict(c_dim=3 if sys.argv[2] == 'labels' else 0, img_resolution=16, img_channels=3)
widths = dict(channel_base=256, channel_max=8)
common = dict(z_dim=16, w_dim=16, mapping_kwargs=dict(num_layers=2), **image)
if sys.argv[2] == 'alias-free':
    G = make(class_name='training.networks_stylegan3.Generator', num_layers=6, margin_size=4, **widths, **common)
else:
    options = dict(synthesis_kwargs=widths) if is_ada else dict(widths, fused_modconv_default='inference_only')
    G = make(class_name=module + '.Generator', **options, **common)
D = make(class_name=module + '.Discriminator', **widths, **image)
for network in (G, D):
    network.eval().requires_grad_(False)
with open(sys.argv[1], 'wb') as f:
    pickle.dump(dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None), f)
"""


@pytest.mark.parametrize('host, kind', [
    ('stylegan2-ada-pytorch', 'plain'), ('stylegan3', 'plain'), ('stylegan3', 'alias-free'),
])  # fmt: skip
def test_stage_2_with_their_frozen_generator(host: str, kind: str, data: str, tmp_path: pathlib.Path) -> None:
    """A network of theirs without φ gets one on the way; its synthesis network comes out as it went in."""
    source = tmp_path / 'theirs.pkl'
    hosts.check(hosts.run(host, '-c', MAKE_NETWORK, str(source), kind))
    args = ['train', '--stage=encoder', f'--resume={source}', f'--data={data}', f'--outdir={tmp_path / "runs"}']
    short = ['--enc-kimg=0.02', '--tick=0.01', '--snap=1', '--batch=4', '--workers=0', '--metrics=recon_mse']
    code, out, err = lia(host, *args, *short)
    assert code == 0 and 'has no φ' in out, out[-1500:] + err[-3000:]
    (snapshot,) = tmp_path.glob('runs/*/encoder-part00/network-snapshot-*.pkl')
    before, after = (legacy.load_network_pkl(str(path))['G_ema'] for path in (source, snapshot))
    assert after.encoder is not None and after.mapping.phi is not None
    own, theirs = after.synthesis.state_dict(), before.synthesis.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_pickle_of_the_other_host_keeps_its_options(tmp_path: pathlib.Path) -> None:
    """stylegan3's defaults differ from stylegan2-ada-pytorch's: they must not change on the way."""
    theirs, ours = tmp_path / 'theirs.pkl', tmp_path / 'phi.pkl'
    hosts.check(hosts.run('stylegan3', '-c', MAKE_NETWORK, str(theirs), 'plain'))
    code, _out, err = lia('stylegan2-ada-pytorch', 'attach', f'--network={theirs}', f'--out={ours}', '--steps=0')
    assert code == 0, err[-3000:]
    before, after = (legacy.load_network_pkl(str(path))['G_ema'].synthesis for path in (theirs, ours))
    assert after.b16.conv1.conv_clamp == before.b16.conv1.conv_clamp == 256
    assert after.num_fp16_res == sum(getattr(before, f'b{res}').use_fp16 for res in before.block_resolutions) == 2
    assert torch.equal(before.b16.conv1.weight, after.b16.conv1.weight)


@pytest.mark.parametrize('host', hosts.NAMES)
def test_detectors_and_data_that_attach_cannot_use(host: str, data: str, tmp_path: pathlib.Path) -> None:
    source, junk = tmp_path / 'theirs.pkl', tmp_path / 'junk.zip'
    junk.write_bytes(b'PK junk')
    hosts.check(hosts.run(host, '-c', MAKE_NETWORK, str(source), 'labels'))
    bad = ['--detector=none-there.pkl', f'--detector={junk}', f'--data={junk}']
    for args in bad:
        code, _out, err = lia(host, 'attach', f'--network={source}', f'--out={tmp_path / "x.pkl"}', '--steps=0', args)
        said = [line for line in err.splitlines() if line.startswith('Error: ')]
        assert code == 2 and len(said) == 1 and args.split('=')[0] in said[0] and 'Traceback' not in err, err[-2000:]
    assert not (tmp_path / 'x.pkl').exists()


@pytest.mark.slow
def test_a_longer_run_goes_on_from_the_newest_snapshot(data: str, tmp_path: pathlib.Path) -> None:
    host, outdir = 'stylegan2-ada-pytorch', tmp_path / 'runs'
    run, _out = trained(host, outdir, data, '--stage=gan', '--metrics=none', '--tick=1', '--kimg=1')
    code, out, err = lia(host, 'train', f'--outdir={outdir}', '--resume=latest', '--kimg=1.02')
    assert code == 0, err
    assert 'optimisers start afresh' in out and 'gan-part00/network-snapshot-000001.pkl' in out
    assert (run / 'gan-part01' / 'stats.jsonl').is_file() and 'Training for 0.02' in out


@pytest.mark.parametrize('host, words', [
    ('stylegan2-ada-pytorch', "InfiniteSampler doesn't work with PyTorch"),
    ('stylegan3', "pip install 'setuptools<80' brings it"),
])  # fmt: skip
def test_what_todays_libraries_break_is_told(host: str, words: str, data: str, tmp_path: pathlib.Path) -> None:
    args = ['-m', 'lia_plugin', 'train', f'--data={data}', f'--outdir={tmp_path / "runs"}']
    done = hosts.run(host, *args, plugin=True, env={'LIA_LEAVE_BREAKS': '1'})
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('host', hosts.NAMES)
@pytest.mark.parametrize('args, words', [
    (['train', '--data=DATA', '--cfg=auto'], "--cfg: is this checkout's own business"),
    (['train', '--data=DATA', '--cache=1GB'], '--cache: this loop decodes images each time it shows them'),
    (['train', '--data=DATA', '--val=0.1'], '--val: this loop measures on what it trains on'),
    (['train', '--data=DATA', '--detector=random:0'], '--detector: this loop has its own'),
    (['train', '--data=missing.zip'], '--data: missing.zip'),
    (['train', '--data=DATA', '--metrics=foo'], '--metrics: foo: unknown; there are fid50k_full'),
    (['train', '--data=DATA', '--stage=encoder', '--resume=none.pkl'], 'none.pkl: no such file'),
    (['calc_metrics', '--network=DATA', '--metrics=recon_mse'], 'not a network pickle that this checkout can read'),
    (['calc_metrics', '--network=DATA', '--metrics=recon_mse', '--batch=3'], '--batch: metrics of'),
    (['invert', '--network=none.pkl', '--target=DATA'], 'none.pkl: no such file'),
    (['dataset_tool', '--source=DATA', '--dest=x.zip'], 'use its own dataset_tool.py'),
])  # fmt: skip
def test_bad_input_is_one_line(host: str, args: list[str], words: str, data: str, tmp_path: pathlib.Path) -> None:
    where = [f'--outdir={tmp_path / "runs"}'] if args[0] in ('train', 'invert') else []
    code, _out, err = lia(host, *[arg.replace('DATA', data) for arg in args], *where)
    said = [line for line in err.splitlines() if line.startswith('Error: ')]
    assert code == 2 and len(said) == 1 and words in said[0] and 'Traceback' not in err, err[-2000:]
    assert not (tmp_path / 'runs').exists()
