"""Members of a zip by two reads each, without a lock or a shared position: half of zipfile's time for small images.

Only what is plain in every respect is read here; whatever is odd, damaged or refused is left to zipfile, which says
what is wrong with it. Format: PKWARE's APPNOTE, sections 4.3.7 (local header) and 4.4.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

_LOCAL_HEADER = struct.Struct('<4s5H3I2H')
_SIGNATURE = b'PK\x03\x04'
_UTF8 = 0x800
_PLAIN_FLAGS = 0x6 | 0x8 | _UTF8  # How hard deflate tried, sizes that follow the data, UTF-8: no encryption, no patch.


class Members:
    """Reads members of an open zip. Threads and forked processes may do so at once.

    Args:
        archive: Stays the caller's, who closes it.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        starts = sorted(info.header_offset for info in archive.infolist())
        self._ends = dict(zip(starts, [*starts[1:], archive.start_dir], strict=True))
        self._file = archive.fp

    def read(self, member: zipfile.ZipInfo) -> bytes | None:
        """The content, of the declared length and checksum. None = leave it to zipfile."""
        if not _is_plain(member) or self._file is None or self._file.closed or not hasattr(os, 'pread'):
            return None
        fd, offset = self._file.fileno(), member.header_offset
        name = member.orig_filename.encode('utf-8' if member.flag_bits & _UTF8 else 'cp437')
        head = os.pread(fd, _LOCAL_HEADER.size + len(name), offset)
        if len(head) < _LOCAL_HEADER.size + len(name):
            return None
        signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack_from(head)
        begin = offset + _LOCAL_HEADER.size + name_length + extra_length
        if (signature, name_length, head[_LOCAL_HEADER.size :]) != (_SIGNATURE, len(name), name):
            return None
        if begin + member.compress_size > self._ends[offset]:  # Into the next one: newer zipfiles refuse that.
            return None
        return _unpacked(os.pread(fd, member.compress_size, begin), member)


def _is_plain(member: zipfile.ZipInfo) -> bool:
    if member.flag_bits & ~_PLAIN_FLAGS:
        return False
    if member.compress_type == zipfile.ZIP_STORED:
        return member.compress_size == member.file_size
    # What can't be compressed grows by five bytes in each 16 kB; more than that isn't worth the memory.
    grown = member.file_size + member.file_size // 1000 + 64
    return member.compress_type == zipfile.ZIP_DEFLATED and member.compress_size <= grown


def _unpacked(data: bytes, member: zipfile.ZipInfo) -> bytes | None:
    if len(data) != member.compress_size:
        return None
    if member.compress_type == zipfile.ZIP_DEFLATED and member.file_size:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.file_size)
        except zlib.error:
            return None
    return data if len(data) == member.file_size and zlib.crc32(data) == member.CRC else None
