"""Networks as folders without pickles: there and back bit for bit, and strict about what comes in."""

import copy
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import legacy
import lia_plugin.networks
import training.augment
import training.networks
from dnnlib.util import UserError
from lia_plugin import cli, export, host
from torch_utils import network_folder, network_pickle

IMAGE = dict(c_dim=2, img_resolution=16, img_channels=1)
WIDTH = dict(channel_base=64, channel_max=8)


def make_snapshot(lia: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    if lia:
        G: Any = lia_plugin.networks.Generator(
            z_dim=4,
            w_dim=4,
            synthesis_kwargs=dict(WIDTH, num_fp16_res=2, fp16_channels_last=True),
            encoder_kwargs=WIDTH,
            **IMAGE,
        )
    else:
        G = training.networks.Generator(
            z_dim=4, w_dim=4, synthesis_kwargs=dict(WIDTH, resample_filter=(1, 2, 1)), **IMAGE
        )
    D = training.networks.Discriminator(**IMAGE, **WIDTH, block_kwargs=dict(freeze_layers=2))
    pipe = training.augment.AugmentPipe(xflip=1, imgfilter_bands=(1, 0, 1, 1))
    pipe.p.fill_(0.25)
    G_ema = copy.deepcopy(G)
    with torch.no_grad():
        for tensor in [*G_ema.parameters(), *G_ema.buffers(), *D.parameters()]:
            tensor.add_(torch.randn_like(tensor) * 0.1)
    kwargs = dict(
        class_name='training.dataset.ImageFolderDataset', path='x.zip', use_labels=True, max_size=None, xflip=False
    )
    nets = dict(G=G, D=D, G_ema=G_ema, augment_pipe=pipe)
    return dict(
        training_set_kwargs=kwargs, kimg=1.5, **{key: net.eval().requires_grad_(False) for key, net in nets.items()}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network_folder.save(str(tmp_path / 'net'), make_snapshot())
    return tmp_path / 'net'


def run(*args: str) -> int:
    return cli.main(['export', *args])


def assert_same(one: Any, other: Any) -> None:
    """Two networks with the same weights, bit for bit, of the same types, and the same modes."""
    assert type(one) is type(other)
    states = one.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        twin = states[1][name]
        assert (
            tensor.dtype == twin.dtype and torch.equal(tensor, twin) and tensor.requires_grad == twin.requires_grad
        ), name
    modes = [[module.training for module in net.modules()] for net in (one, other)]
    assert modes[0] == modes[1]


@pytest.mark.parametrize('lia', [True, False])
def test_there_and_back_bit_for_bit(tmp_path: Path, lia: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = make_snapshot(lia)
    network_pickle.save(tmp_path / 'a.pkl', before)
    assert run(f'--network={tmp_path}/a.pkl', f'--outdir={tmp_path}/net') == 0
    assert sorted(os.listdir(tmp_path / 'net')) == ['README.md', 'config.json', 'model.safetensors']
    assert run(f'--network={tmp_path}/net', f'--to-pickle={tmp_path}/new/b.pkl') == 0
    after = network_pickle.load(tmp_path / 'new' / 'b.pkl')
    assert list(after)[: len(before)] == list(before) and 'Left out' not in capsys.readouterr().err
    for key in ('G', 'D', 'G_ema', 'augment_pipe'):
        assert_same(before[key], after[key])
    assert after['training_set_kwargs'] == before['training_set_kwargs'] and after['kimg'] == 1.5
    z, c = torch.randn([2, 4]), torch.eye(2)
    assert torch.equal(before['G_ema'](z, c, noise_mode='const'), after['G_ema'](z, c, noise_mode='const'))
    assert sorted(os.listdir(tmp_path)) == ['a.pkl', 'net', 'new']


def test_types_modes_and_shared_tensors_survive(tmp_path: Path) -> None:
    data = make_snapshot()
    G = data['G_ema']
    data['G'] = G  # One object under two names.
    G.mapping.encoder.train()
    G.mapping.encoder.requires_grad_(True)
    data['D'].half()
    data['D'].b8.conv0.weight = data['D'].b8.conv1.weight  # Memory that two tensors share, one of them transposed.
    data['D'].b8.conv1.weight = torch.nn.Parameter(
        data['D'].b8.conv1.weight.detach().transpose(2, 3), requires_grad=False
    )
    data['extra'] = object()
    assert network_folder.save(str(tmp_path / 'net'), data) == ['extra (object)']
    after = network_folder.load(str(tmp_path / 'net'))
    assert after['G'] is after['G_ema'] and after['D'].b4.out.weight.dtype == torch.float16
    assert_same(after['G_ema'], G)
    assert_same(after['D'], data['D'])
    after['D'].b8.conv0.weight.zero_()
    assert after['D'].b8.conv1.weight.abs().sum() > 0


def test_whatever_takes_a_network_takes_a_folder(folder: Path) -> None:
    for load in (legacy.load_network_pkl, host.load_network_pkl):
        data = load(str(folder))
        assert data['G_ema'].img_resolution == 16 and data['augment_pipe'].p == 0.25
    assert legacy.load_network_pkl(str(folder), force_fp16=True)['D'].init_kwargs.num_fp16_res == 4


def test_the_model_card_has_what_hubs_read(tmp_path: Path) -> None:
    network_pickle.save(tmp_path / 'a.pkl', make_snapshot())
    assert (
        run(f'--network={tmp_path}/a.pkl', f'--outdir={tmp_path}/net', '--license=cc-by-nc-4.0', '--title=Small\nfaces')
        == 0
    )
    card = (tmp_path / 'net' / 'README.md').read_text(encoding='utf-8')
    head, body = card.split('---\n')[1:3]
    assert 'license: "cc-by-nc-4.0"\n' in head and 'library_name: lia-plugin\n' in head and '- lia\n' in head
    assert '# Small faces\n' in body and '16×16, 1' in body and 'invert --network' in body
    assert 'license: "other"' in export.model_card(make_snapshot(False), 'x', 'other')


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise OSError('disk full')

    monkeypatch.setattr(os, 'rename', fail)
    with pytest.raises(OSError, match='disk full'):
        network_folder.save(str(tmp_path / 'net'), make_snapshot())
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == 'nt', reason='permissions')
def test_all_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        network_folder.save(str(tmp_path / 'net'), make_snapshot())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / 'net').iterdir()} == {0o640}


def test_existing_folders_are_left_alone(tmp_path: Path, folder: Path) -> None:
    for path in (folder, folder / 'config.json'):
        with pytest.raises(UserError, match='exists already'):
            network_folder.save(str(path), make_snapshot())
    (tmp_path / 'empty').mkdir()
    network_folder.save(str(tmp_path / 'empty'), make_snapshot())
    assert (tmp_path / 'empty' / 'config.json').exists()


def test_foreign_classes_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='none of this project'):
        network_folder.save(str(tmp_path / 'net'), dict(G_ema=torch.nn.Linear(1, 1)))
    data = make_snapshot()
    data['D']._init_kwargs['odd'] = float('nan')
    with pytest.raises(UserError, match='JSON does not know'):
        network_folder.save(str(tmp_path / 'net'), data)
    assert os.listdir(tmp_path) == []


# What comes in.


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        network_folder.load(str(folder))
    message = str(caught.value)
    assert message.startswith(str(folder)) and message.isprintable() and len(message) < 700
    assert 'trust-pickle' not in message
    return message


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    path = folder / 'config.json'
    config = json.loads(path.read_text(encoding='utf-8'))
    change(config)
    path.write_text(json.dumps(config), encoding='utf-8')
    return refusal(folder)


@pytest.mark.parametrize(
    'change, word',
    [
        (lambda c: c.update(format='other'), 'format'),
        (lambda c: c.update(version=2), 'version 2'),
        (lambda c: c['networks']['G'].update(class_name='os.system'), 'not one of'),
        (lambda c: c['networks']['G'].update(class_name='training.networks.torch'), 'does not have it'),
        (lambda c: c['networks']['G'].update(class_name='training.networks.Generator'), 'Generator'),
        (lambda c: c['networks']['G'].update(class_name=3), 'describes no network'),
        (lambda c: c['networks']['D']['init_kwargs'].update(channel_max=16), 'instead of'),
        (lambda c: c['networks']['D']['init_kwargs'].update(colour=16), 'colour'),
        (lambda c: c['networks']['D']['init_kwargs'].update(img_resolution=2**30), 'beyond'),
        (lambda c: c['networks']['D']['init_kwargs'].update(channel_base=2**20, channel_max=2**20), 'far more'),
        (lambda c: c['networks']['G']['init_kwargs']['synthesis_kwargs'].update(class_name='os.system'), 'not one of'),
        (lambda c: c['networks']['D'].update(requires_grad=['nothing']), 'describes no network'),
        (lambda c: c['networks'].pop('D'), 'belongs to nothing'),
        (lambda c: c['values'].pop('kimg'), 'belong to nothing'),
        (lambda c: c['networks'].update(E={'same_as': 'F'}), 'belong to nothing'),
        (lambda c: c.update(networks=[]), 'config.json'),
        (lambda c: c['values'].update(kimg={'class_name': 'os.system'}), 'not one of'),
    ],
)
def test_configs_that_lie(folder: Path, change: Callable[[dict[str, Any]], Any], word: str) -> None:
    assert word in edit(folder, change)


@pytest.mark.parametrize(
    'content, word',
    [
        (b'', 'no JSON'),
        (b'{', 'no JSON'),
        (b'[]', 'no network'),
        (b'\xff', 'no JSON'),
        (b'[' * 100_000, 'no JSON'),
        (b'{"a": NaN}', 'NaN'),
        (b' ' * (5 << 20), 'more than 4 MB'),
        (b'9' * 5000, 'no JSON'),
        (b'{"format": "lia-networks", "version": 1}', 'describes no network'),
    ],
)
def test_configs_that_are_none(folder: Path, content: bytes, word: str) -> None:
    (folder / 'config.json').write_bytes(content)
    assert word in refusal(folder)


def test_numbers_beyond_all_are_refused(folder: Path) -> None:
    text = (folder / 'config.json').read_text(encoding='utf-8')
    (folder / 'config.json').write_text(text.replace('1.5', '1e999'), encoding='utf-8')
    assert 'not finite' in refusal(folder)


@pytest.mark.parametrize(
    'change, word',
    [
        (lambda t: t.pop('G.mapping.w_avg'), 'lacks mapping.w_avg'),
        (lambda t: t.update({'G.odd': torch.ones(1)}), 'unknown odd'),
        (lambda t: t.update({'G.mapping.w_avg': torch.ones(5)}), 'instead of'),
        (lambda t: t.update({'X.odd': torch.ones(1)}), 'nothing'),
        (lambda t: t.update({'G.mapping.w_avg': torch.ones(4, dtype=torch.int64)}), 'mapping.w_avg'),
        (lambda t: t.update({'G.a\nb': torch.ones(1)}), 'unknown ?'),
    ],
)
def test_weights_must_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], word: str) -> None:
    tensors = safetensors.torch.load_file(folder / 'model.safetensors')
    change(tensors)
    safetensors.torch.save_file(tensors, folder / 'model.safetensors')
    assert word in refusal(folder)


def test_damaged_weights_are_one_line(folder: Path) -> None:
    path = folder / 'model.safetensors'
    whole = path.read_bytes()
    for content in (b'', whole[:-1], whole[:100], whole + b'x', struct.pack('<Q', 1 << 60) + whole[8:], b'\x80\x04.'):
        path.write_bytes(content)
        assert 'cannot be read' in refusal(folder)
    path.unlink()
    assert 'has no model.safetensors' in refusal(folder)


needs_any_name = pytest.mark.skipif(
    sys.platform != 'linux', reason='elsewhere file systems have names in Unicode alone')


@needs_any_name
def test_a_place_whose_name_is_not_utf8(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9')
    assert run(f'--network={folder}', f'--outdir={place}') == 0
    with open(os.path.join(place, 'README.md'), encoding='utf-8') as card:
        assert '# caf\N{REPLACEMENT CHARACTER}\n' in card.read()
    assert run(f'--network={place}', f'--to-pickle={place}.pkl') == 0
    assert capsys.readouterr().out.endswith('caf\N{REPLACEMENT CHARACTER}.pkl\n')
    assert_same(host.load_network_pkl(f'{place}.pkl')['G_ema'], host.load_network_pkl(str(folder))['G_ema'])


def test_a_place_that_will_not_do_is_told_before_the_network_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, 'load_network_pkl', lambda *args, **kwargs: pytest.fail('it was read'))
    (tmp_path / 'file').touch()
    for option in ('outdir', 'to-pickle'):
        assert run('--network=net.pkl', f'--{option}={tmp_path}/file/below') == 2
        assert 'file is no folder' in capsys.readouterr().err


def test_usage_errors_are_one_line(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'empty').mkdir()
    for args, word in (
        (['--network=x'], 'one of them'),
        (['--network=x', '--outdir=a', '--to-pickle=b'], 'one of them'),
        ([f'--network={tmp_path}/no.pkl', f'--outdir={tmp_path}/b'], 'no.pkl'),
        ([f'--network={tmp_path}/empty', f'--to-pickle={tmp_path}/b'], 'no exported network'),
        ([f'--network={folder}', f'--outdir={folder}'], 'exists already'),
    ):
        assert run(*args) == 2
        complaint = capsys.readouterr().err
        assert word in complaint and complaint.count('\n') == 1
    assert not (tmp_path / 'b').exists()
