"""Several machines, played by processes: a folder or file that isn't the same on all is told in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lia_plugin import host, machines
from torch_utils import distributed


def own_copy(folder: str, rank: int) -> str:
    return os.path.join(folder, f'machine{rank}')


def look(rank: int, world_size: int, folder: str) -> list[str]:
    """What is said of shared and of other places, in order."""
    host.processes_here = lambda processes: 1  # type: ignore[assignment]
    machines.PATIENCE = 0.5
    machines.socket.gethostname = lambda: f'node{rank}'  # type: ignore[assignment]
    own = own_copy(folder, rank)
    checks = [
        lambda: machines.check_folder('--outdir', folder),
        lambda: machines.check_folder('--outdir', own),
        lambda: machines.check_files({'--data': os.path.join(own, 'same'), '--val': None}),
        lambda: machines.check_files({'--data': os.path.join(own, 'more')}),
        lambda: machines.check_files({'--network': os.path.join(own, 'net.pkl')}),
        lambda: machines.check_files({'--network': os.path.join(own, 'first.pkl')}),
    ]
    said = []
    for check in checks:
        try:
            check()
            said.append('')
        except host.UserError as error:
            said.append(str(error).replace(own, 'OWN'))
    return said


def test_what_is_not_the_same_on_all_machines(tmp_path: Path) -> None:
    for rank in (0, 1):
        own = Path(own_copy(str(tmp_path), rank))
        for name, count in (('same', 2), ('more', 2 + rank)):
            (own / name).mkdir(parents=True)
            for i in range(count):
                (own / name / f'{i}.png').touch()
        (own / 'net.pkl').write_bytes(b'0' * 9 + bytes([rank]))
    (tmp_path / 'machine0' / 'first.pkl').touch()
    said = distributed.spawn(look, 2, (str(tmp_path),), device='cpu')
    assert said == [
        '',
        '--outdir: OWN on node1 is not that of node0: several machines need a shared file system, with the same path '
        'on all',
        '',
        '--data: OWN/more on node1 is not that of node0: 3 files, not 2',
        '--network: OWN/net.pkl on node1 is not that of node0',
        '--network: OWN/first.pkl is not there on node1, but on node0; put it where all machines have it',
    ]
    assert not [name for name in os.listdir(tmp_path) if name.startswith('.seen')], 'nothing is left'


def test_one_machine_is_not_looked_at(tmp_path: Path) -> None:
    machines.check_folder('--outdir', str(tmp_path / 'nowhere'))
    machines.check_files({'--data': str(tmp_path / 'nowhere')})
    assert not machines.several()


@pytest.mark.parametrize('size', [0, 10, machines.ENDS + 5, 3 * machines.ENDS])
def test_contents_differ_by_either_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / 'file'
    seen = set()
    for data in (bytes(size), b'1' + bytes(size), bytes(size) + b'1'):
        path.write_bytes(data)
        seen.add(machines.content(str(path)))
    assert len(seen) == (3 if size else 2) and machines.content(str(tmp_path / 'none')) is None
