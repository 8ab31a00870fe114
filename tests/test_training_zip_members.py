"""Members read directly are zipfile's; what is odd or damaged is left to it, and refused with its words."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from dnnlib.util import UserError
from training.image_archive import ImageArchive
from training.zip_members import Members

NOISE = np.random.RandomState(0).bytes(3000)
CONTENTS = {'a.png': b'a' * 5000, 'ä/ü.png': NOISE, 'empty.png': b'', 'b.png': NOISE[:1000] * 3}


def write(path: pathlib.Path, compression: int, prefix: bytes = b'') -> zipfile.ZipFile:
    with open(path, 'wb') as file:
        file.write(prefix)
    with zipfile.ZipFile(path, 'a', compression) as archive:
        for name, data in CONTENTS.items():
            archive.writestr(name, data)
    return zipfile.ZipFile(path)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('prefix', [b'', b'#!self-extracting\n'])
def test_content_is_that_of_zipfile(tmp_path: pathlib.Path, compression: int, prefix: bytes) -> None:
    with write(tmp_path / 'a.zip', compression, prefix) as archive:
        members = Members(archive)
        for name, data in CONTENTS.items():
            found = members.read(archive.getinfo(name))
            assert found == data or (found is None and name == 'empty.png' and compression)


def test_other_compressions_are_left_to_zipfile(tmp_path: pathlib.Path) -> None:
    with write(tmp_path / 'a.zip', zipfile.ZIP_LZMA) as archive:
        assert Members(archive).read(archive.getinfo('a.png')) is None
    assert ImageArchive(tmp_path / 'a.zip').read('a.png') == CONTENTS['a.png']


def local_header(archive: zipfile.ZipFile, name: str, at: int, value: bytes) -> tuple[int, bytes]:
    return archive.getinfo(name).header_offset + at, value


DAMAGES: dict[str, Callable[[zipfile.ZipFile], tuple[int, bytes]]] = {
    'signature': lambda archive: local_header(archive, 'b.png', 0, b'XX'),
    'name': lambda archive: local_header(archive, 'b.png', 30, b'c'),
    'length of the name': lambda archive: local_header(archive, 'b.png', 26, b'\x04'),
    'extra field beyond the end': lambda archive: local_header(archive, 'b.png', 28, b'\xff\xff'),
    'data': lambda archive: local_header(archive, 'b.png', 100, b'\x00\x01\x02\x03'),
    'flag of encryption': lambda archive: (archive.start_dir + central_offset(archive, 'b.png') + 8, b'\x01'),
    'checksum': lambda archive: (archive.start_dir + central_offset(archive, 'b.png') + 16, b'\x00\x00'),
}


def central_offset(archive: zipfile.ZipFile, name: str) -> int:
    assert archive.fp is not None
    archive.fp.seek(archive.start_dir)
    return archive.fp.read().index(name.encode()) - 46


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_left_to_zipfile_which_refuses_it(tmp_path: pathlib.Path, compression: int, damage: str) -> None:
    path = tmp_path / 'a.zip'
    with write(path, compression) as archive:
        position, value = DAMAGES[damage](archive)
    content = bytearray(path.read_bytes())
    content[position : position + len(value)] = value
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert Members(archive).read(archive.getinfo('b.png')) is None
        assert Members(archive).read(archive.getinfo('a.png')) == CONTENTS['a.png']
    with pytest.raises(UserError, match='b.png: can\'t be read'):
        ImageArchive(path).read('b.png')


def test_a_member_that_reaches_into_the_next_is_left_to_zipfile(tmp_path: pathlib.Path) -> None:
    with write(tmp_path / 'a.zip', zipfile.ZIP_STORED) as archive:
        member = archive.getinfo('a.png')
        members = Members(archive)
        member.file_size = member.compress_size = member.compress_size + 1
        member.CRC = zlib.crc32(CONTENTS['a.png'] + b'P')  # Of the next one's signature.
        assert members.read(member) is None


def test_a_reopened_archive_reads_its_new_file(tmp_path: pathlib.Path) -> None:
    write(tmp_path / 'a.zip', zipfile.ZIP_STORED).close()
    archive = ImageArchive(tmp_path / 'a.zip')
    first = archive.read('b.png')
    archive.close()
    assert archive.read('b.png') == first == CONTENTS['b.png']
