"""Read-only view of a data set: a folder or zip of images with an optional `dataset.json` of labels.

Both may come from strangers, so that sizes, names and labels are checked before anything is believed.
Format: `dataset.json` in the root is {"labels": [[name, label], …] or null}; a label is a class number or a vector.
"""

import io
import json
import os
import posixpath
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import PIL.Image

from dnnlib.util import UserError
from training.image_decode import IMAGE_FORMATS, has_image_extension, one_line
from training.zip_members import Members

Label = int | list[float]

LABEL_FILE = 'dataset.json'
MAX_IMAGE_BYTES = 2**29  # An uncompressed PNG of the largest picture that is decoded.
MAX_LABEL_BYTES = 2**16  # Per image; a vector of some thousand numbers.
MAX_CLASSES = 100_000  # One-hot vectors beyond this are a mistake: ids that were never renumbered.

_HEAD_BYTES = 2**16  # Where most formats have told size and mode; a long colour profile may come before them.
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # By colour type, but for palettes: their transparency stands further on.


class ImageHeader(NamedTuple):
    """What the start of an image file tells of the picture."""

    width: int
    height: int
    channels: int | None  # 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; None = only decoding tells.


class ImageArchive:
    """Images and labels of a folder (recursive) or a zip.

    Attributes:
        names: Sorted names of all images, as stored ('/'-separated in folders).
        ignored: Names of the other files.

    Raises:
        UserError: Missing, not a zip, no images, or a zip with unsafe or repeated names.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._is_folder = os.path.isdir(self.path)
        self._zip: zipfile.ZipFile | None = None
        self._members: Members | None = None
        self._zip_owner = 0  # Process that opened it: a forked worker must not share its file position.
        self._lock = threading.Lock()
        if not self._is_folder and not os.path.isfile(self.path):
            raise UserError(f'{one_line(self.path)}: no such file or folder')
        files = sorted(_folder_files(self.path) if self._is_folder else self._zip_files())
        self.names = [name for name in files if has_image_extension(name) and not _is_finder_debris(name)]
        self.has_label_file = LABEL_FILE in files
        self.ignored = sorted(set(files) - set(self.names) - {LABEL_FILE})
        if not self.names:
            raise UserError(f'{one_line(self.path)}: no images found in it')

    def where(self, name: str) -> str:
        """How errors call a file of this archive."""
        return f'{one_line(self.path)}: {one_line(name)}'

    def read(self, name: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """Content of one file. UserError if it is missing, damaged, encrypted or larger than `max_bytes`."""
        try:
            data = self._read_file(name, max_bytes) if self._is_folder else self._read_member(name, max_bytes)
        except UserError:
            raise
        except Exception as error:  # Each compression method raises errors of its own over damaged data.
            raise UserError(f'{self.where(name)}: can\'t be read ({one_line(error)})') from error
        if len(data) > max_bytes:
            raise UserError(f'{self.where(name)}: larger than the {max_bytes} bytes that are read')
        return data

    def read_head(self, name: str, size: int) -> bytes:
        """The first `size` bytes of one file, without the cost and the checks of reading it all."""
        try:
            if self._is_folder:
                with open(os.path.join(self.path, *name.split('/')), 'rb') as plain:
                    return plain.read(size)
            with self._open_zip().open(name) as member:
                return member.read(size)
        except Exception as error:  # As in `read`.
            raise UserError(f'{self.where(name)}: can\'t be read ({one_line(error)})') from error

    def header(self, name: str) -> ImageHeader | None:
        """Size and channels of one image, not decoded. None if only decoding tells.

        Raises:
            UserError: The file can't be read, or is empty.
        """
        start = self.read_head(name, 26)
        if not start:
            raise UserError(f'{self.where(name)}: is empty')
        if start.startswith(b'\x89PNG\r\n\x1a\n'):
            return _png_header(start)
        head = self.read_head(name, _HEAD_BYTES)
        found = _pillow_header(head)
        # TIFF, for one, may keep its header at the end.
        return _pillow_header(self.read(name)) if found is None and len(head) == _HEAD_BYTES else found

    def labels(self) -> dict[str, Label] | None:
        """Image name → label of all entries in `dataset.json`; None without labels.

        Raises:
            UserError: The file is no valid label table (see `parse_labels`).
        """
        if not self.has_label_file:
            return None
        data = self.read(LABEL_FILE, max_bytes=2**20 + MAX_LABEL_BYTES * len(self.names))
        return parse_labels(data, self.where(LABEL_FILE))

    def label_array(self) -> np.ndarray | None:
        """Labels of `names` in order: int64 [N] class numbers or float32 [N, D] vectors; None without labels."""
        labels = self.labels()
        if labels is None:
            return None
        keys = [name.replace('\\', '/') for name in self.names]
        missing = [key for key in keys if key not in labels]
        if missing:
            raise UserError(f'{self.where(LABEL_FILE)}: no label for {one_line(missing[0])} '
                            f'({len(missing)} of {len(keys)} images have none)')
        return stack_labels([labels[key] for key in keys], self.where(LABEL_FILE))

    def close(self) -> None:
        """Closes the zip; the next read opens it again."""
        if self._zip is not None and self._zip_owner == os.getpid():
            self._zip.close()
        self._zip = self._members = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ('_zip', '_members', '_lock')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _zip=None, _members=None, _lock=threading.Lock())

    def _open_zip(self) -> zipfile.ZipFile:
        with self._lock:
            if self._zip is None or self._zip_owner != os.getpid():
                try:
                    self._zip = zipfile.ZipFile(self.path)
                except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
                    raise UserError(f'{one_line(self.path)}: not a zip, or a damaged one '
                                    f'({one_line(error)}); give a folder or a zip of images') from error
                self._zip_owner, self._members = os.getpid(), Members(self._zip)
            return self._zip

    def _zip_files(self) -> list[str]:
        files = [info.filename for info in self._open_zip().infolist() if not info.is_dir()]
        seen: set[str] = set()
        for name in files:
            plain = posixpath.normpath(name.replace('\\', '/'))
            if plain.startswith(('/', '../')) or plain == '..' or re.match('[A-Za-z]:', plain):
                raise UserError(f'{self.where(name)}: unsafe name that points out of the archive; refused')
            if plain in seen:
                raise UserError(f'{self.where(name)}: stands twice in the archive; refused')
            seen.add(plain)
        return files

    def _read_member(self, name: str, max_bytes: int) -> bytes:
        archive = self._open_zip()
        member = archive.getinfo(name)
        if member.file_size > max_bytes:  # Said before unpacking: what is declared bounds what is unpacked.
            raise UserError(f'{self.where(name)}: {member.file_size} bytes are declared, '
                            f'more than the {max_bytes} that are read')
        members = self._members
        data = None if members is None else members.read(member)
        if data is not None:
            return data
        with archive.open(member) as file:
            return file.read()

    def _read_file(self, name: str, max_bytes: int) -> bytes:
        file: IO[bytes]
        with open(os.path.join(self.path, *name.split('/')), 'rb') as file:
            return file.read(max_bytes + 1)


def _png_header(start: bytes) -> ImageHeader | None:
    if len(start) < 26:
        return None
    width, height, _depth, colour_type = struct.unpack_from('>IIBB', start, 16)
    return ImageHeader(width, height, _PNG_CHANNELS.get(colour_type))


def _pillow_header(data: bytes) -> ImageHeader | None:
    PIL.Image.init()
    formats = [image_format for image_format in IMAGE_FORMATS if image_format in PIL.Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with PIL.Image.open(io.BytesIO(data), formats=formats) as image:
                return ImageHeader(image.width, image.height, _mode_channels(image))
    except Exception:  # As wherever files are decoded; decoding says better what is wrong.
        return None


def _mode_channels(image: PIL.Image.Image) -> int | None:
    """Channels that decoding will give. None where it depends on what is read later, or is refused."""
    if image.mode in ('P', 'I', 'F'):
        return None
    is_grey = image.mode in ('1', 'L', 'LA', 'La') or image.mode.startswith('I;16')
    has_alpha = image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info
    return (1 if is_grey else 3) + has_alpha


def _folder_files(path: str) -> Iterator[str]:
    for folder, _, files in os.walk(path):
        prefix = os.path.relpath(folder, path).replace(os.sep, '/')
        yield from (name if prefix == '.' else f'{prefix}/{name}' for name in files)


def _is_finder_debris(name: str) -> bool:
    """macOS adds `__MACOSX/._name.png` to zips: not images, whatever their names say."""
    return name.startswith('__MACOSX/') or posixpath.basename(name).startswith('._')


def _refuse_constant(text: str) -> float:
    raise ValueError(f'{text} is not a number')


def parse_labels(data: bytes, where: str) -> dict[str, Label] | None:
    """Content of a `dataset.json` → image name → label.

    Raises:
        UserError: Not JSON, not the expected structure, a name twice, or a label that is no class number
            (whole, from 0 to MAX_CLASSES - 1) and no vector of finite numbers.
    """
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not valid JSON ({one_line(error)})') from error
    if not isinstance(content, dict) or 'labels' not in content:
        raise UserError(f'{where}: must be {{"labels": [[name, label], …]}} or {{"labels": null}}')
    if content['labels'] is None:
        return None
    if not isinstance(content['labels'], list):
        raise UserError(f'{where}: "labels" must be a list of [name, label] or null')
    labels: dict[str, Label] = {}
    for entry in content['labels']:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise UserError(f'{where}: {one_line(entry)[:80]} is not [name, label]')
        if entry[0] in labels:
            raise UserError(f'{where}: {one_line(entry[0])} stands twice')
        labels[entry[0]] = _check_label(entry[1], f'{where}: label of {one_line(entry[0])}')
    return labels


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_label(value: Any, where: str) -> Label:
    if isinstance(value, list) and value and all(map(_is_number, value)):
        # Above float32's range a number would silently become infinite.
        if not all(abs(number) <= float(np.finfo(np.float32).max) for number in value):
            raise UserError(f'{where}: a number is not finite in float32')
        return [float(number) for number in value]
    if not _is_number(value) or (isinstance(value, float) and not value.is_integer()):
        raise UserError(f'{where} is {one_line(value)[:40]}: neither a whole class number nor a vector of numbers')
    if not 0 <= value < MAX_CLASSES:
        raise UserError(f'{where} is {one_line(value)[:40]}: class numbers go from 0 to {MAX_CLASSES - 1}; renumber')
    return int(value)


def stack_labels(labels: Sequence[Label], where: str) -> np.ndarray:
    """Labels of all images as one array: int64 [N] or float32 [N, D]. UserError if kinds or lengths differ."""
    lengths = {len(label) if isinstance(label, list) else 0 for label in labels}
    if len(lengths) > 1:
        raise UserError(f'{where}: labels are mixed: class numbers and vectors, or vectors of different lengths')
    return np.array(labels, dtype=np.int64 if lengths == {0} else np.float32)
