"""Files that are never half written, where the host has no function for it."""

import os
from pathlib import Path

import pytest

from lia_plugin import files


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / 'network.pkl'
    with files.write_then_rename(str(path)) as file:
        file.write(b'old')
        assert not path.exists()
    with pytest.raises(RuntimeError), files.write_then_rename(str(path)) as file:
        file.write(b'half of the new')
        raise RuntimeError
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['network.pkl']


@pytest.mark.skipif(os.name == 'nt', reason='permissions')
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.write_then_rename(str(tmp_path / 'network.pkl')) as file:
            file.write(b'content')
    finally:
        os.umask(before)
    assert (tmp_path / 'network.pkl').stat().st_mode & 0o777 == 0o640
