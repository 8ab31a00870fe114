"""Where images to convert come from: folder, zip, LSUN lmdb, CIFAR-10 tarball, MNIST. Every source may be hostile."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from typing import Any, ClassVar, Protocol

import numpy as np

from dnnlib.util import UserError, is_url, open_url
from training.image_archive import ImageArchive, Label
from training.image_decode import decode_image, one_line

MAX_TAR_BYTES = 2**30  # CIFAR-10 unpacks to 180 MB.
MAX_MNIST_BYTES = 2**31

_MNIST_IMAGES, _MNIST_LABELS = '-images-idx3-ubyte.gz', '-labels-idx1-ubyte.gz'


class Source(Protocol):
    """Numbered images. Picklable, and safe to use in forked processes."""

    labels: list[Label] | None  # One for each image.
    ignored: list[str]  # Files that are no images.

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """How errors call an image."""
        ...

    def name(self, index: int) -> str:
        """What a list of images calls one: its name within the source; its number where images have no names."""
        ...

    def load(self, index: int) -> np.ndarray:
        """uint8 [height, width, channels], channels 1 … 4 as of `decode_image`. UserError if it can't be read."""
        ...


def open_source(path: str) -> Source:
    """Recognises a source by its name and content.

    Args:
        path: Folder of images, folder with an lmdb's data.mdb, *.zip, *cifar-10-python.tar.gz or
            *-images-idx3-ubyte.gz with its labels beside it. A URL of a zip or tarball is downloaded and kept.

    Raises:
        UserError: Missing, of another type, or damaged.
    """
    if is_url(path, allow_file_urls=True):
        path = str(open_url(path, return_filename=True))
    if not os.path.exists(path):
        raise UserError(f'{one_line(path)}: no such file or folder')
    if os.path.isdir(path):
        is_lmdb = os.path.basename(os.path.abspath(path)).endswith('_lmdb') or 'data.mdb' in os.listdir(path)
        return LmdbSource(path) if is_lmdb else ArchiveSource(path)
    if path.endswith('cifar-10-python.tar.gz'):
        return read_cifar10(path)
    if path.endswith(_MNIST_IMAGES):
        return read_mnist(path)
    if path.lower().endswith('.zip'):
        return ArchiveSource(path)
    raise UserError(f'{one_line(path)}: not a known source; give a folder, a .zip, an LSUN *_lmdb folder, '
                    f'cifar-10-python.tar.gz or train{_MNIST_IMAGES}')


class ArchiveSource:
    """Images of a folder (recursive) or zip, in order of their names, with the labels of its dataset.json."""

    def __init__(self, path: str) -> None:
        self._archive = ImageArchive(path)
        self._archive.label_array()  # Says what is wrong with the labels before any work is done.
        table = self._archive.labels()
        names = (name.replace('\\', '/') for name in self._archive.names)
        self.labels = None if table is None else [table[name] for name in names]
        self.ignored = self._archive.ignored

    def __len__(self) -> int:
        return len(self._archive.names)

    def where(self, index: int) -> str:
        return self._archive.where(self._archive.names[index])

    def name(self, index: int) -> str:
        return self._archive.names[index]

    def load(self, index: int) -> np.ndarray:
        return decode_image(self._archive.read(self._archive.names[index]), self.where(index))


class LmdbSource:
    """LSUN: an lmdb whose values are encoded image files (webp, jpg)."""

    labels: list[Label] | None = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._environment: Any = None
        self._owner = 0
        self.ignored: list[str] = []
        with self._begin() as transaction:
            self._keys = list(transaction.cursor().iternext(keys=True, values=False))
        if not self._keys:
            raise UserError(f'{one_line(path)}: no images found in it')
        self._close()  # Open across a fork, lmdb would refuse to open it again in the child.

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__, _environment=None)

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, index: int) -> str:
        return f'{one_line(self._path)}: {one_line(self.name(index))}'

    def name(self, index: int) -> str:
        return self._keys[index].decode('utf-8', 'backslashreplace')

    def load(self, index: int) -> np.ndarray:
        with self._begin() as transaction:
            return decode_image(transaction.get(self._keys[index]), self.where(index))

    def _close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _begin(self) -> Any:
        """A read transaction. An environment must not outlive a fork: each process opens its own."""
        try:
            import lmdb
        except ImportError:
            raise UserError(f'{one_line(self._path)}: an lmdb needs the package lmdb: pip install lmdb') from None
        try:
            if self._environment is None or self._owner != os.getpid():
                self._environment = lmdb.open(self._path, create=False, readonly=True, lock=False, readahead=False)
                self._owner = os.getpid()
            return self._environment.begin(write=False)
        except lmdb.Error as error:
            raise UserError(f'{one_line(self._path)}: not a readable lmdb ({one_line(error)})') from error


class ArraySource:
    """Images that came as one array: uint8 [N, height, width, channels]."""

    def __init__(self, path: str, images: np.ndarray, labels: list[Label]) -> None:
        self._path = path
        self._images = images
        self.labels: list[Label] | None = labels
        self.ignored: list[str] = []

    def __len__(self) -> int:
        return len(self._images)

    def where(self, index: int) -> str:
        return f'{one_line(self._path)}: image {index}'

    def name(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> np.ndarray:
        return self._images[index]


# ---- Some of a source's images ----


class ListedSource:
    """Those images of another source whose names a list has, in the source's order, with their labels."""

    def __init__(self, source: Source, indices: list[int]) -> None:
        self._source, self._indices = source, indices
        self.labels = None if source.labels is None else [source.labels[index] for index in indices]
        self.ignored = source.ignored

    def __len__(self) -> int:
        return len(self._indices)

    def where(self, index: int) -> str:
        return self._source.where(self._indices[index])

    def name(self, index: int) -> str:
        return self._source.name(self._indices[index])

    def load(self, index: int) -> np.ndarray:
        return self._source.load(self._indices[index])


def _plain_name(name: str) -> str:
    return name.replace('\\', '/').removeprefix('./')


def read_names(path: str) -> dict[str, int]:
    """A list of images, one name a line → name → its line. Empty lines and those that begin with # are passed over.

    A name that begins with # is written ./#name; one that is not UTF-8 stands there as it is, byte by byte. UserError
    if the list can't be read, or is empty.
    """
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape') as file:
            text = file.read()
    except OSError as error:
        raise UserError(f'--include={one_line(path)}: can\'t be read ({error.strerror})') from error
    if '\0' in text or text.startswith(('\udcff\udcfe', '\udcfe\udcff')):  # As Windows' tools write: UTF-16.
        raise UserError(f'--include={one_line(path)}: can\'t be read (not UTF-8 text)')
    lines = text.split('\n')
    names = {_plain_name(line): number for number, line in enumerate(lines, 1) if line and not line.startswith('#')}
    if not names:
        raise UserError(f'--include={one_line(path)}: names no image')
    return names


def listed(source: Source, source_path: str, list_path: str) -> Source:
    """The images of a source that the file `list_path` names (see `read_names`). UserError for names it hasn't got."""
    names = read_names(list_path)
    indices = {_plain_name(source.name(index)): index for index in range(len(source))}
    unknown = [name for name in names if name not in indices]
    if unknown:
        more = f' ({len(unknown)} of {len(names)} names are unknown)' if len(unknown) > 1 else ''
        raise UserError(f'--include={one_line(list_path)}: line {names[unknown[0]]}: no image {one_line(unknown[0])} '
                        f'in {one_line(source_path)}{more}')
    return ListedSource(source, sorted(indices[name] for name in names))


# ---- CIFAR-10 ----


class _ArrayRecord:
    """Stands for a NumPy array in a pickle: keeps what the file says of it, and lets NumPy run nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _record_array(*_: Any) -> _ArrayRecord:
    return _ArrayRecord()


def _latin1_bytes(text: Any, encoding: Any = 'latin1') -> bytes:
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError('unexpected encoded data')
    return text.encode('latin1')


# Python's own implementation: the C one reserves as much memory as the file says.
class _CifarUnpickler(pickle._Unpickler):
    """Reads dicts, lists, numbers and records of uint8 arrays; every other name in the file is refused."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ('numpy.core.multiarray', '_reconstruct'): _record_array,
        ('numpy._core.multiarray', '_reconstruct'): _record_array,
        ('numpy', 'ndarray'): _ArrayRecord,
        ('numpy', 'dtype'): _record_array,
        ('_codecs', 'encode'): _latin1_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {one_line(module)}.{one_line(name)}')
        return self._ALLOWED[module, name]


def _parse_cifar_batch(data: bytes) -> tuple[np.ndarray, list[int]]:
    """One data_batch file → uint8 [N, 32, 32, 3] and N class numbers."""
    batch = _CifarUnpickler(io.BytesIO(data), encoding='latin1').load()
    content = batch['data'].state[-1]  # Last of version, shape, dtype, order, bytes; Python 2's come as text.
    content = content.encode('latin1') if isinstance(content, str) else content
    images = np.frombuffer(content, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = batch['labels']
    if not isinstance(labels, list) or len(labels) != len(images):
        raise ValueError('there must be one label for each image')
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError('labels must be from 0 to 9')
    return images, labels


def read_cifar10(path: str) -> ArraySource:
    """The five training batches of the python version of CIFAR-10. Runs no code of the pickles in it."""
    wanted = [f'cifar-10-batches-py/data_batch_{number}' for number in range(1, 6)]
    found: dict[str, tuple[np.ndarray, list[int]]] = {}
    try:
        with tarfile.open(path, 'r:gz') as tar:
            total = 0
            for member in tar:
                total += member.size
                if total > MAX_TAR_BYTES:
                    raise ValueError(f'unpacks to more than {MAX_TAR_BYTES} bytes')
                file = tar.extractfile(member) if member.name in wanted and member.isfile() else None
                if file is not None:
                    found[member.name] = _parse_cifar_batch(file.read())
        batches = [found[name] for name in wanted]
    except KeyError as error:
        raise UserError(f'{one_line(path)}: not CIFAR-10, python version: no {one_line(error.args[0])}') from error
    except Exception as error:  # A hostile pickle can drive the unpickler into any error.
        raise UserError(f'{one_line(path)}: not CIFAR-10, python version, or damaged ({one_line(error)})') from error
    images = np.concatenate([batch for batch, _ in batches])
    return ArraySource(path, images, [label for _, labels in batches for label in labels])


# ---- MNIST ----


def _read_idx(path: str, num_axes: int) -> np.ndarray:
    """A gzipped idx file of unsigned bytes (http://yann.lecun.com/exdb/mnist: magic 0x08, number of axes, sizes)."""
    try:
        with gzip.open(path, 'rb') as file:
            header = file.read(4 + 4 * num_axes)
            magic, *sizes = struct.unpack(f'>{1 + num_axes}I', header)
            if magic != 0x800 + num_axes:
                raise ValueError(f'its magic number is {magic:#x}, expected {0x800 + num_axes:#x}')
            count = int(np.prod([int(size) for size in sizes], dtype=object))
            if count > MAX_MNIST_BYTES:
                raise ValueError(f'{count} values are declared')
            values = np.frombuffer(file.read(count + 1), np.uint8)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f'{one_line(path)}: not a gzipped idx file, or damaged ({one_line(error)})') from error
    if len(values) != count:
        raise UserError(f'{one_line(path)}: its header declares {count} values, but it has '
                        f'{"more" if len(values) > count else len(values)}')
    return values.reshape(sizes)


def read_mnist(path: str) -> ArraySource:
    """MNIST and its relatives. 28x28 images get a black border of 2 pixels, as 32 is a power of two."""
    label_path = path[:-len(_MNIST_IMAGES)] + _MNIST_LABELS
    if not os.path.isfile(label_path):
        raise UserError(f'{one_line(label_path)}: no such file; the labels must lie beside the images')
    images, labels = _read_idx(path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(f'{one_line(path)}: {len(images)} images, but {len(labels)} labels')
    if images.shape[1:] == (28, 28):
        images = np.pad(images, [(0, 0), (2, 2), (2, 2)])
    return ArraySource(path, images[:, :, :, np.newaxis], [int(label) for label in labels])
