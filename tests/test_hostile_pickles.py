"""Files that mean harm: nothing runs, nothing grows, nothing hangs, and each is refused with one line."""

import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import hostile_bombs
import hostile_pickles
import torch

import lia_plugin.networks
import training.networks
from torch_utils import network_pickle

WORKER = os.path.join(os.path.dirname(__file__), 'hostile_worker.py')
# What reads as a file, for nothing in it is believed: its networks are ours, with the weights that it has.
READABLE = {'a complete layer whose source has effects', 'tensor of a list'}


def snapshot() -> dict[str, Any]:
    """A small LIA network and its discriminator."""
    torch.manual_seed(0)
    image = dict(c_dim=0, img_resolution=8, img_channels=1)
    width = dict(channel_base=32, channel_max=4)
    G = lia_plugin.networks.Generator(z_dim=4, w_dim=4, synthesis_kwargs=width, encoder_kwargs=width, **image)
    D = training.networks.Discriminator(**image, **width)
    return dict(G_ema=G.eval().requires_grad_(False), D=D.eval().requires_grad_(False), kimg=1)


def read_all(folder: Path, files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Name → what the watched process says of that file."""
    (folder / 'refused.pkl').write_bytes(hostile_pickles.whole(b']'))
    network_pickle.save(folder / 'good.pkl', snapshot())
    names = {f'{index:05d}.pkl': name for index, name in enumerate(files)}
    for file, name in names.items():
        (folder / file).write_bytes(files[name])
    done = subprocess.run([sys.executable, WORKER, str(folder)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert results['good.pkl']['kind'] == 'dict' and not results['good.pkl']['events'], results['good.pkl']
    return {name: {**results[file], 'path': str(folder / file)} for file, name in names.items()}


def complaint(result: dict[str, Any], readable: bool = False) -> str | None:
    """What is wrong with how a file was met; None if nothing is."""
    message = result['message']
    if result['events']:
        return f'did {result["events"][:3]}'
    if result['seconds'] > 15:
        return f'took {result["seconds"]:.0f} s'
    if result['kind'] == 'dict' and readable:
        return None
    if result['kind'] != 'UserError':
        return f'gave {result["kind"]}: {message}'
    if not message.startswith(f'{result["path"]}: ') or not message.isprintable() or len(message) > 900:
        return f'has the message {ascii(message[:300])}'
    return (
        'took all memory: ' + message
        if any(word in message for word in ('MemoryError', 'into memory', 'allocate'))
        else None
    )


def test_no_way_leads_anywhere(tmp_path: Path) -> None:
    flag = tmp_path / 'flag'
    files = {**hostile_pickles.harmful(f'touch {flag}'), **dict(hostile_bombs.bombs())}
    assert len(files) > 1000
    (tmp_path / 'files').mkdir()
    results = read_all(tmp_path / 'files', files)
    wrong = {name: complaint(result, name in READABLE) for name, result in results.items()}
    assert not {name: what for name, what in wrong.items() if what} and not flag.exists()


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    """The same worker around a plain unpickler: without this the test above could pass by looking away."""
    flag = tmp_path / 'flag'
    script = '\n'.join(
        [
            'import pickle, sys, hostile_worker, legacy',
            'legacy.load_network_pkl = lambda path: pickle.load(open(path, "rb"))',
            'hostile_worker.main(sys.argv[1])',
        ]
    )
    for name, body in {
        'good': b'}',
        'refused': b'}',
        'system': hostile_pickles.call(hostile_pickles.name('posix', 'system'), hostile_pickles.text(f'touch {flag}')),
        'write': hostile_pickles.call(
            hostile_pickles.name('builtins', 'open'), hostile_pickles.text(str(flag)), hostile_pickles.text('w')
        ),
        'exec': hostile_pickles.call(hostile_pickles.name('builtins', 'exec'), hostile_pickles.text('x = 1')),
        'import': hostile_pickles.call(hostile_pickles.name('this', 's'), hostile_pickles.text('x')),
    }.items():
        (tmp_path / f'{name}.pkl').write_bytes(hostile_pickles.whole(body))
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(WORKER), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path)], capture_output=True, text=True, env=env)
    results = json.loads(done.stdout.splitlines()[-1])
    seen = {name: ' '.join(result['events']) for name, result in results.items()}
    assert 'os.system' in seen['system.pkl'] and 'open to write' in seen['write.pkl']
    assert 'exec' in seen['exec.pkl'] and 'import' in seen['import.pkl'] and flag.exists()


def test_damaged_files_do_no_worse(tmp_path: Path) -> None:
    """A real snapshot, cut off at many places, with flipped bits, and with pieces of it moved, doubled or gone."""
    whole = pickle.dumps(snapshot(), 4)
    dice = random.Random(0)
    files = {f'cut at {end}': whole[:end] for end in range(1, len(whole), max(len(whole) // 200, 1))}
    for trial in range(300):
        data = bytearray(whole)
        for _ in range(1 + trial % 3):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        files[f'bits {trial}'] = bytes(data)
    for trial in range(150):
        a, b = sorted(dice.randrange(len(whole)) for _ in range(2))
        b = min(b, a + dice.randrange(1, 300))
        piece = {0: b'', 1: whole[a:b] * 2, 2: whole[a:b][::-1], 3: bytes(b - a)}[trial % 4]
        files[f'piece {trial}'] = whole[:a] + piece + whole[b:]
    results = read_all(tmp_path, files)
    wrong = {name: complaint(result, not name.startswith('cut')) for name, result in results.items()}
    assert not {name: what for name, what in wrong.items() if what}
    assert {result['kind'] for name, result in results.items() if name[:4] == 'bits'} == {'dict', 'UserError'}


def test_files_of_other_kinds(tmp_path: Path) -> None:
    net = snapshot()['G_ema']
    torch.save(net.state_dict(), tmp_path / 'zip')
    torch.save(net.state_dict(), tmp_path / 'old', _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / 'archive', 'w') as archive:
        archive.writestr(
            'archive/data.pkl', hostile_pickles.whole(hostile_pickles.call(hostile_pickles.name('os', 'system')))
        )
    files = {name: (tmp_path / name).read_bytes() for name in ('zip', 'old', 'archive')}
    files |= {
        'empty': b'',
        'zeros': bytes(5000),
        'text': b'hello\n' * 100,
        'pickle 0': pickle.dumps({'a': 1}, 0),
        'one byte': b'\x80',
        'gzip': b'\x1f\x8b' + bytes(100),
        'safetensors': b'\x08\0\0\0\0\0\0\0{}      ',
    }
    (tmp_path / 'files').mkdir()
    results = read_all(tmp_path / 'files', files)
    assert not {name: result for name, result in results.items() if complaint(result)}
    assert 'torch.save' in results['zip']['message'] and 'is empty' in results['empty']['message']
