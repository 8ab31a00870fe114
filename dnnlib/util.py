"""The host's utility functions, and the few that keep files whole and errors readable. Imports no torch."""

import contextlib
import glob
import hashlib
import importlib
import io
import os
import re
import sys
import tempfile
import time
import types
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any


class UserError(ValueError):
    """A mistake of the person at the keyboard, told in one line: the file or option, what is wrong, what to do."""


def without_traceback(error: UserError) -> UserError:
    """The mistake in one line: a data loader's worker sends its traceback in front of the message."""
    return UserError(re.sub(r'^\S*UserError: ', '', str(error).strip().splitlines()[-1]))


def usable_cpus() -> int:
    """How many CPUs this process may run on, which a scheduler or a container may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def loader_workers(num_items: int) -> int:
    """Processes that read so many images of a data set, beside the one that uses them.

    They take about a second to start: not worth it for a few images.
    """
    return 0 if num_items < 4096 else min(3, usable_cpus())


class EasyDict(dict[str, Any]):
    """A dict whose keys are attributes too. Its name and place stand in every snapshot, so neither may change."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f'{type(self).__name__} has no entry {name!r}')

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f'{type(self).__name__} has no entry {name!r}')
        del self[name]


# Logs and durations.

class _Mirror:
    """A text stream that passes everything on to `stream` and copies it into `log`."""

    def __init__(self, stream: Any, log: IO[str] | None, should_flush: bool) -> None:
        self.stream = stream
        self.log = log
        self.should_flush = should_flush

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)   # isatty, fileno, encoding, …: tqdm and friends ask for them.

    def write(self, text: str | bytes) -> int:
        text = text.decode() if isinstance(text, bytes) else text
        # Progress bars redraw one line with '\r'; a log wants the lines that stay.
        if self.log is not None and not self.log.closed and '\r' not in text:
            self.log.write(text)
        self.stream.write(text)
        if self.should_flush and text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.log is not None and not self.log.closed:
            self.log.flush()
        self.stream.flush()


class Logger:
    """Copies stdout and stderr into a file, as long as it is open; both streams still reach their own ends.

    `file_name` None only adds the flushing. Use it as a context manager, or call `close()`.
    """

    def __init__(self, file_name: str | None = None, file_mode: str = 'w', should_flush: bool = True) -> None:
        self.file = None if file_name is None else open(
            file_name, file_mode, encoding='utf-8', errors='backslashreplace')   # Names of files may hold anything.
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self._out = _Mirror(self.stdout, self.file, should_flush)
        self._err = _Mirror(self.stderr, self.file, should_flush)
        sys.stdout, sys.stderr = self._out, self._err   # type: ignore[assignment]

    def __enter__(self) -> 'Logger':
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write(self, text: str | bytes) -> int:
        return self._out.write(text)

    def flush(self) -> None:
        self._out.flush()
        self._err.flush()

    def close(self) -> None:
        """Gives both streams back (unless a later logger still holds them) and closes the file."""
        self.flush()
        sys.stdout = self.stdout if sys.stdout is self._out else sys.stdout
        sys.stderr = self.stderr if sys.stderr is self._err else sys.stderr
        if self.file is not None:
            self.file.close()


def _split_time(seconds: float) -> tuple[int, int, int, int]:
    minutes, s = divmod(int(round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    return d, h, m, s


def format_time(seconds: float) -> str:
    """`59s`, `1m 05s`, `2h 03m 04s`, `1d 02h 03m`: the form the tick line has always had."""
    d, h, m, s = _split_time(seconds)
    if d:
        return f'{d}d {h:02d}h {m:02d}m'
    if h:
        return f'{h}h {m:02d}m {s:02d}s'
    return f'{m}m {s:02d}s' if m else f'{s}s'


def format_time_brief(seconds: float) -> str:
    """At most two units: `59s`, `1m 05s`, `2h 03m`, `1d 02h`."""
    return ' '.join(format_time(seconds).split()[:2])


# Names to objects.

def get_module_from_obj_name(obj_name: str) -> tuple[types.ModuleType, str]:
    """Finds the module that holds a dotted name: ('pkg.mod.Class.attr') -> (pkg.mod, 'Class.attr').

    Raises ImportError if no such object exists; an error inside an existing module comes through as it is.
    """
    full_name = re.sub(r'^np\.', 'numpy.', obj_name)
    parts = full_name.split('.')
    for cut in range(len(parts), 0, -1):
        module_name = '.'.join(parts[:cut])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as err:
            if err.name is not None and (module_name + '.').startswith(err.name + '.'):
                continue    # This prefix is no module; anything else is a broken import inside it.
            raise
        local_name = '.'.join(parts[cut:])
        try:
            get_obj_from_module(module, local_name)
        except AttributeError:
            raise ImportError(f'{obj_name}: module {module_name} has no {local_name}') from None
        return module, local_name
    raise ImportError(f'{obj_name}: no module named {parts[0]}')


def get_obj_from_module(module: types.ModuleType, obj_name: str) -> Any:
    """Follows a dotted name below a module; the empty name is the module itself."""
    found: Any = module
    for part in filter(None, obj_name.split('.')):
        found = getattr(found, part)
    return found


def get_obj_by_name(name: str) -> Any:
    """The object of a fully qualified name, such as 'training.networks.Generator'."""
    return get_obj_from_module(*get_module_from_obj_name(name))


def call_func_by_name(*args: Any, func_name: str, **kwargs: Any) -> Any:
    """Calls the function of that name. Extra arguments go to it."""
    func: Callable[..., Any] = get_obj_by_name(func_name)
    if not callable(func):
        raise TypeError(f'{func_name}: expected a function or class, got {type(func).__name__}')
    return func(*args, **kwargs)


def construct_class_by_name(*args: Any, class_name: str, **kwargs: Any) -> Any:
    """Constructs the class of that name: how every configuration of this project becomes an object."""
    return call_func_by_name(*args, func_name=class_name, **kwargs)


# Files that are never half written.

@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = 'wb', **open_kwargs: Any) -> Iterator[IO[Any]]:
    """Yields a file that takes `path`'s place when the block ends well, and disappears when it doesn't.

    The temporary file lies in the same folder, is synced to the disk and then renamed.
    Raises UserError if the folder can't be written to.
    """
    if not mode.startswith('w'):
        raise ValueError(f'mode: expected w, wb or w+b, got {mode!r}')
    target = os.path.realpath(path)
    temp = os.path.join(os.path.dirname(target), f'.{os.path.basename(target)[:100]}.{uuid.uuid4().hex[:12]}.tmp')
    try:
        file = open(temp, mode.replace('w', 'x'), **open_kwargs)
    except OSError as err:
        raise UserError(f'{os.fspath(path)}: cannot be written: {err.strerror}') from err
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temp)
        raise
    _sync_folder(os.path.dirname(target))


def _sync_folder(path: str) -> None:
    """Makes a rename survive a power cut, on systems whose folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as hex digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# URLs.

def make_cache_dir_path(*paths: str) -> str:
    """A place below `DNNLIB_CACHE_DIR`, else below `~/.cache/dnnlib`. Creates nothing."""
    root = os.environ.get('DNNLIB_CACHE_DIR')
    if root is None:
        home = os.environ.get('HOME') or os.environ.get('USERPROFILE') or tempfile.gettempdir()
        root = os.path.join(home, '.cache', 'dnnlib')
    return os.path.join(root, *paths)


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """Whether `obj` is a string that names something to download (or, if allowed, a file:// URL)."""
    if not isinstance(obj, str):
        return False
    try:
        parts = urllib.parse.urlsplit(obj)
    except ValueError:
        return False
    if parts.scheme == 'file':
        return allow_file_urls and '://' in obj
    return parts.scheme in ('http', 'https') and bool(parts.netloc)


def open_url(
    url: str,
    cache_dir: str | None = None,
    num_attempts: int = 4,
    verbose: bool = True,
    return_filename: bool = False,
    cache: bool = True,
) -> Any:
    """Opens a path, a file:// URL or a web address for reading bytes, or gives the name of the (cached) file.

    A download is kept as `<md5 of the URL>_<name>` below `cache_dir`, by default `make_cache_dir_path('downloads')`.
    Raises UserError if there is no such file, or if it can't be fetched: then with the very name to save it under.
    """
    if return_filename and not cache:
        raise ValueError('return_filename: needs cache=True, since only a cached file has a name')
    if not is_url(url):
        return _open_local(url, return_filename)
    folder = cache_dir if cache_dir is not None else make_cache_dir_path('downloads')
    prefix = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    wanted = f'{prefix}_{_safe_name(url)}'
    found = sorted(glob.glob(os.path.join(glob.escape(folder), prefix + '_*'))) if cache else []
    if not found:
        content, name = _download(url, num_attempts, verbose, os.path.join(folder, wanted))
        if not cache:
            return io.BytesIO(content)
        found = [os.path.join(folder, f'{prefix}_{_safe_name(name)}')]
        os.makedirs(folder, exist_ok=True)
        with atomic_write(found[0]) as file:
            file.write(content)
    return found[0] if return_filename else open(found[0], 'rb')


def _open_local(url: str, return_filename: bool) -> Any:
    path = url
    if url.startswith('file://'):
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
        path = path[1:] if re.match(r'/[a-zA-Z]:', path) else path  # file:///c:/x names c:/x.
    if not os.path.isfile(path):
        reason = 'is a folder, expected a file' if os.path.isdir(path) else 'no such file'
        raise UserError(f'{path}: {reason}')
    return path if return_filename else open(path, 'rb')


def _safe_name(url_or_name: str) -> str:
    """The last part of a URL or file name, with nothing in it that a file system could mind."""
    name = urllib.parse.urlsplit(url_or_name).path.rstrip('/').rsplit('/', 1)[-1] or 'index'
    return re.sub(r'[^0-9a-zA-Z._-]', '_', name)[-120:]


def _download(url: str, num_attempts: int, verbose: bool, cache_file: str) -> tuple[bytes, str]:
    """The content behind a URL, and its name. Tries again where that can help: not after a 404."""
    import requests  # Not at the top: most commands never touch the network, and it is slow to import.

    reason = ''
    for attempt in range(max(num_attempts, 1)):
        if attempt:
            time.sleep(0.2 * 2 ** attempt)
        try:
            with requests.get(url, stream=True, timeout=(10, 60)) as answer:
                if answer.status_code < 400:
                    return _read_answer(answer, url, verbose)
                reason = f'the server answers {answer.status_code} {answer.reason}'
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    break
        except (requests.RequestException, OSError) as err:
            reason = f'no connection ({type(err).__name__})' if 'onnection' in type(err).__name__ else str(err)
    folder, name = os.path.split(cache_file)
    raise UserError(f'{url}: cannot be downloaded: {reason}; fetch it elsewhere and save it as {name} in {folder}')


def _read_answer(answer: Any, url: str, verbose: bool) -> tuple[bytes, str]:
    from tqdm import tqdm

    expected = int(answer.headers.get('Content-Length', 0) or 0)
    if verbose and not sys.stderr.isatty():
        print(f'Downloading {url} …', file=sys.stderr, flush=True)
    content = bytearray()
    with tqdm(total=expected or None, unit='B', unit_scale=True, desc=_safe_name(url), leave=False,
              disable=None if verbose else True) as bar:
        for block in answer.iter_content(1 << 18):
            content += block
            bar.update(len(block))
    compressed = 'Content-Encoding' in answer.headers
    if not content or (expected and not compressed and len(content) != expected):
        raise OSError(f'the transfer broke off after {len(content)} of {expected} bytes')
    if answer.headers.get('Content-Type', '').startswith('text/html') and not url.endswith(('.html', '.htm', '/')):
        raise OSError('the server answers with a web page instead of a file')
    named = re.search(r'filename="([^"]+)"', answer.headers.get('Content-Disposition', ''))
    return bytes(content), named[1] if named else url
