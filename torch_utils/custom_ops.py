"""Compiled kernels: C++ and CUDA without torch's headers, built once into a cache and called through ctypes.

Sources lie in `ops/csrc`. Their entry points are `extern "C"` and take raw pointers, int64 sizes and, on CUDA, a
stream: they depend on no ABI and compile in seconds. OpenMP is compiled in but not linked: its symbols are found in
the runtime that torch has loaded, so that kernels share torch's threads, and never bring a second pool.

Environment: `LIA_KERNELS` is auto (default), off, or required (what can't be built is an error); `LIA_CACHE_DIR` is
where built libraries are kept (else $XDG_CACHE_HOME/lia, else ~/.cache/lia); `LIA_CPU_FEATURES=-amx,-avx512` takes
away what begins so in /proc/cpuinfo's list of the CPU's instructions, to see what there is on another one.
"""

import contextlib
import ctypes
import functools
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from dnnlib.util import UserError, atomic_write, file_hash

from . import distributed

SOURCE_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ops', 'csrc')
MODES = ('auto', 'off', 'required')
KINDS = {False: ('CPU', 30), True: ('CUDA', 60)}  # By whether it is CUDA; seconds that building all takes.
# How a build tells that it was stopped, or that memory or a disk was full: no fault of sources and compiler.
PASSING = ('interrupted by user', 'Killed', 'Terminated', 'signal 9 ', 'signal 15 ', 'out of memory',
           'annot allocate memory', 'memory exhausted', 'No space left', 'quota exceeded')

# What the two newest levels of x86-64 add, by the names in /proc/cpuinfo: named one by one, for older compilers don't
# know -march=x86-64-v3.
LEVEL_3 = {'avx2': 'avx2', 'fma': 'fma', 'f16c': 'f16c', 'bmi1': 'bmi', 'bmi2': 'bmi2', 'movbe': 'movbe',
           'abm': 'lzcnt', 'popcnt': 'popcnt'}
LEVEL_4 = {name: name for name in ('avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl')}
EXTRAS = {'avx512_bf16': 'avx512bf16', 'amx_tile': 'amx-tile', 'amx_bf16': 'amx-bf16'}  # Beside level 4.

# No fast arithmetic: it rounds otherwise and loses NaN. A host compiler newer than nvcc knows mostly does.
CUDA_FLAGS = ('-std=c++17', '-O3', '-Xcompiler', '-fPIC', '-allow-unsupported-compiler')

_loaded: dict[tuple[str, str], ctypes.CDLL | None] = {}
_said: set[str] = set()


class _Unavailable(Exception):
    """Why there is no library, in a few words."""


class _Recipe(NamedTuple):
    compiler: str
    flags: tuple[str, ...]  # Of each source.
    link: tuple[str, ...]


def load(name: str, sources: Sequence[str], cuda: bool = False) -> ctypes.CDLL | None:
    """The library made of `sources`, file names in ops/csrc; None if it can't be had, or is turned off.

    Built at most once for each state of the sources, compiler and CPU (or GPU), whatever the number of processes, and
    loaded once. A failure is remembered with its reason, on disk too, and said once on stderr. Raises UserError
    instead if LIA_KERNELS is 'required', and for a LIA_KERNELS that is unknown.
    """
    mode = os.environ.get('LIA_KERNELS', 'auto')
    if (name, mode) not in _loaded:
        _loaded[name, mode] = _load_as(mode, name, sources, cuda)
    return _loaded[name, mode]


def _load_as(mode: str, name: str, sources: Sequence[str], cuda: bool) -> ctypes.CDLL | None:
    if mode not in MODES:
        raise UserError(f'LIA_KERNELS: got {mode!r}, expected one of {", ".join(MODES)}')
    if mode == 'off':
        return None
    try:
        return _built(name, sources, _cuda_recipe() if cuda else _cpu_recipe(), cuda)
    except (_Unavailable, UserError, OSError) as error:
        reason = _cache_trouble(error) if isinstance(error, OSError) and error.strerror else str(error)
        if mode == 'required':
            raise UserError(f'LIA_KERNELS=required, but there are no {name} kernels: {reason}') from error
        # Without the name: what keeps one library away mostly keeps them all, and is one line then.
        say_once(f'No {KINDS[cuda][0]} kernels, PyTorch\'s slower operators serve: {reason}')
        return None


def _cache_trouble(error: OSError) -> str:
    return f'{_cache_dir()}: {error.strerror}; LIA_CACHE_DIR=DIR keeps them elsewhere'


def works(name: str, trouble: Callable[[], str | None]) -> bool:
    """Whether a loaded library can be used: not if `trouble` gives a reason, which is then said once.

    Raises UserError instead if LIA_KERNELS is 'required'.
    """
    reason = trouble()
    if reason is not None and os.environ.get('LIA_KERNELS') == 'required':
        raise UserError(f'LIA_KERNELS=required, but the {name} kernels do not run here: {reason}')
    if reason is not None:
        say_once(f'The {name} kernels do not run here, PyTorch\'s slower operators serve: {reason}')
    return reason is None


def say_once(line: str) -> None:
    """On stderr, by the first process; what was said already is not said again."""
    if line not in _said and distributed.rank() == 0:
        print(line, file=sys.stderr, flush=True)
    _said.add(line)


# ---------------------------------------------------------------------------------------------------------------------
# How to compile


def _cpu_recipe() -> _Recipe:
    if os.name != 'posix':
        raise _Unavailable('they are made for Linux and macOS')
    _share_openmp()
    compiler = _find(os.environ.get('CXX'), 'c++', 'g++', 'clang++')
    if compiler is None:
        raise _Unavailable('no C++ compiler (c++, or what CXX names)')
    if sys.platform == 'darwin':  # Apple's clang has OpenMP, but no option for it.
        openmp, link = ('-Xclang', '-fopenmp'), ('-shared', '-undefined', 'dynamic_lookup')
    else:
        # Its own libstdc++, or a process that has loaded an older one could not take it.
        openmp, link = ('-fopenmp',), ('-shared', '-static-libstdc++', '-static-libgcc')
    # Without traps and errno loops vectorise; sums keep their order, NaN and infinity their meaning.
    common = ('-std=c++17', '-O3', '-fPIC', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast')
    return _Recipe(compiler, (*common, *openmp, *_known(compiler, _cpu_flags())), link)


def _cpu_flags() -> list[str]:
    """Options for the instructions that this CPU has: x86-64's level 3 or 4 as a whole, and some extras."""
    if platform.machine() not in ('x86_64', 'AMD64'):
        return []
    has = _cpu_features()
    levels = [level for level in (LEVEL_3, LEVEL_3 | LEVEL_4) if has.issuperset(level)]
    if not levels:
        return []
    flags = [f'-m{option}' for option in levels[-1].values()]
    if len(levels) == 2:  # Left to itself, GCC keeps to half the width.
        flags += ['-mprefer-vector-width=512'] + [f'-m{option}' for name, option in EXTRAS.items() if name in has]
    return flags


def cpu_has(feature: str) -> bool:
    """Whether the CPU has what /proc/cpuinfo calls by this name; False where there is no such file."""
    return feature in _cpu_features()


def _cpu_features() -> frozenset[str]:
    return _cpu_features_but(os.environ.get('LIA_CPU_FEATURES', ''))


@functools.cache  # Asked by each convolution.
def _cpu_features_but(taken: str) -> frozenset[str]:
    """Less what LIA_CPU_FEATURES takes away. UserError for words that say nothing of the kind."""
    words = [word.strip() for word in taken.split(',') if word.strip()]
    wrong = next((word for word in words if not word.startswith('-') or word == '-'), None)
    if wrong is not None:
        raise UserError(f'LIA_CPU_FEATURES: got {wrong!r}, expected instructions to do without, such as -amx,-avx512')
    removed = tuple(word[1:] for word in words)
    return frozenset(feature for feature in _own_cpu_features() if not removed or not feature.startswith(removed))


@functools.cache
def _own_cpu_features() -> set[str]:
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as f:
        for line in f:
            if line.startswith('flags'):
                return set(line.split(':', 1)[1].split())
    return set()


def _known(compiler: str, flags: list[str]) -> list[str]:
    """The flags that this compiler understands."""
    def understands(*some: str) -> bool:
        command = [compiler, *some, '-x', 'c++', '-E', os.devnull, '-o', os.devnull]
        return subprocess.run(command, capture_output=True).returncode == 0
    return flags if understands(*flags) else [flag for flag in flags if understands(flag)]


def _cuda_recipe() -> _Recipe:
    if os.name != 'posix':
        raise _Unavailable('they are made for Linux')
    if torch.version.cuda is None or not torch.cuda.is_available():
        raise _Unavailable('no CUDA device')
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    installed = _installed('bin/nvcc')
    named = os.path.join(home, 'bin', 'nvcc') if home else None
    found = _find(named, 'nvcc', *installed, '/usr/local/cuda/bin/nvcc')
    if found is None:
        raise _Unavailable('no nvcc (in CUDA_HOME, on the path, in the Python package nvidia-cuda-nvcc or in '
                           '/usr/local/cuda)')
    compiler = os.path.realpath(found)
    names = [os.environ.get(name) for name in ('NVCC_CCBIN', 'CUDAHOSTCXX', 'CXX')]
    for_host = _find(*names, 'g++', 'c++', 'clang++')  # nvcc itself would look for gcc alone.
    if for_host is None:
        raise _Unavailable('no C++ compiler beside nvcc (g++, or what CXX names)')
    include, link = [], []
    if compiler in map(os.path.realpath, installed):  # Packages lie apart from each other, where nvcc doesn't look.
        include = [f'-I{os.path.dirname(path)}' for path in _installed('include/cuda_runtime.h')]
        include += [f'-I{os.path.dirname(os.path.dirname(path))}' for path in _installed('include/nv/target')]
        link = [f'-L{os.path.dirname(path)}' for path in _installed('lib*/libcudart_static.a')]
    cards = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    common = ('-ccbin', for_host, *_targets(compiler, {10 * major + minor for major, minor in cards}))
    return _Recipe(compiler, (*CUDA_FLAGS, *common, *include), ('-shared', *common, *link))


def _targets(compiler: str, cards: set[int]) -> list[str]:
    """Options for machine code for each kind of card, by ten times its compute capability.

    A card newer than nvcc gets the code of the newest that nvcc knows, from which the card's driver makes its own.
    """
    told = subprocess.run([compiler, '--list-gpu-arch'], capture_output=True, text=True).stdout
    known = sorted({int(number) for number in re.findall(r'compute_(\d+)\b', told)} or cards)  # nvcc 10 can't tell.
    nearest = {max((number for number in known if number <= card), default=0) for card in cards} - {0}
    if not nearest:
        raise _Unavailable(f'{compiler} makes code for compute capability {known[0] / 10} and newer, this card has '
                           f'{max(cards) / 10}; an older CUDA toolkit would do')
    return [word for number in sorted(nearest)
            for word in ('-gencode', f'arch=compute_{number},code=[sm_{number},compute_{number}]')]


def _installed(file: str) -> list[str]:
    """Where NVIDIA's Python packages have a file, of those that this process could import."""
    return sorted({path for folder in sys.path for path in glob.glob(
        os.path.join(glob.escape(os.path.join(folder, 'nvidia')), '*', file))})


def _find(*commands: str | None) -> str | None:
    """The first of these programs that there is, by its real path unless it goes by the name that it is called by."""
    found = next(filter(None, (shutil.which(command) for command in commands if command)), None)
    if found is None:
        return None
    real = os.path.realpath(found)  # But of ccache, and of a clang++ that is one file with clang.
    return real if '++' in os.path.basename(real) else os.path.abspath(found)


# ---------------------------------------------------------------------------------------------------------------------
# OpenMP


class _SymbolInfo(ctypes.Structure):
    """What dladdr(3) gives."""

    _fields_ = [('file', ctypes.c_char_p), ('base', ctypes.c_void_p), ('name', ctypes.c_char_p),
                ('address', ctypes.c_void_p)]


def _share_openmp() -> None:
    """Makes the OpenMP runtime that torch uses visible to libraries that name none."""
    ending = 'dylib' if sys.platform == 'darwin' else 'so'
    try:
        own = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), 'lib', f'libtorch_cpu.{ending}'))
        symbol = own.omp_get_max_threads  # Looked for in torch's own dependencies, in the loader's order.
        info = _SymbolInfo()
        if not ctypes.CDLL(None).dladdr(ctypes.cast(symbol, ctypes.c_void_p), ctypes.byref(info)):
            raise _Unavailable("torch's OpenMP runtime has no file")
        ctypes.CDLL(os.fsdecode(info.file), mode=ctypes.RTLD_GLOBAL)
    except (OSError, AttributeError) as error:
        raise _Unavailable(f'this torch brings no OpenMP runtime to share ({error})') from error


# ---------------------------------------------------------------------------------------------------------------------
# Building


def _built(name: str, sources: Sequence[str], recipe: _Recipe, cuda: bool) -> ctypes.CDLL:
    """From the cache if it is there and whole; else built into it."""
    stem = os.path.join(_cache_dir(), f'{name}-{_key(sources, recipe)}')
    record = _read_record(stem)
    if not _is_whole(record, stem):  # Or it may be a folder that others have filled, and nobody can write to.
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        with _lock(f'{stem}.lock'):
            record = _read_record(stem)
            if not _is_whole(record, stem):
                say_once('Building {} kernels (once, about {} s) …'.format(*KINDS[cuda]))  # A line for all libraries.
                record = _build(stem, sources, recipe)
                with atomic_write(f'{stem}.json', 'w', encoding='utf-8') as f:
                    json.dump(record, f)
    if 'failure' in record:
        raise _Unavailable(f'{record["failure"]} (delete {stem}.json to try again)')
    return ctypes.CDLL(f'{stem}.so')


def _build(stem: str, sources: Sequence[str], recipe: _Recipe) -> dict[str, Any]:
    """Compiles and tries the library, puts it in place, and gives its record: its digest, or its failure.

    Raises _Unavailable for what may go better another time, and is not to be remembered.
    """
    with tempfile.TemporaryDirectory(dir=os.path.dirname(stem)) as folder:
        library = os.path.join(folder, 'library.so')
        with open(os.path.join(folder, 'build.ninja'), 'w', encoding='utf-8') as f:
            f.write(_ninja_rules(sources, recipe))
        english = {**os.environ, 'LC_ALL': 'C'}
        done = subprocess.run([_ninja(), '-C', folder], capture_output=True, text=True, env=english)
        if done.returncode:
            told = done.stdout + done.stderr
            if done.returncode < 0 or any(sign in told for sign in PASSING):
                raise _Unavailable(f'the build was broken off: {_first_error(told)}')
            return {'failure': _first_error(told)}
        try:
            ctypes.CDLL(library)
        except OSError as error:
            return {'failure': f'the library does not load: {error}'}
        digest = _digest(library)
        os.replace(library, f'{stem}.so')
        return {'digest': digest}


def _ninja_rules(sources: Sequence[str], recipe: _Recipe) -> str:
    def quoted(*words: str) -> str:
        return ' '.join("'" + word.replace('$', '$$').replace("'", "'\\''") + "'" for word in words)

    def path(name: str) -> str:
        return name.replace('$', '$$').replace(' ', '$ ').replace(':', '$:')

    lines = [f'rule compile\n  command = {quoted(recipe.compiler, *recipe.flags)} -c $in -o $out',
             f'rule link\n  command = {quoted(recipe.compiler)} $in {quoted(*recipe.link)} -o $out']
    for index, source in enumerate(sources):
        lines.append(f'build {index}.o: compile {path(os.path.join(SOURCE_DIR, source))}')
    lines.append(f'build library.so: link {" ".join(f"{index}.o" for index in range(len(sources)))}\n')
    return '\n'.join(lines)


def _ninja() -> str:
    found = _find('ninja', os.path.join(os.path.dirname(sys.executable), 'ninja'))
    if found is None:
        raise _Unavailable('no ninja (pip install ninja)')
    return found


def _first_error(output: str) -> str:
    """The line of a build's output that says why, not those which say that it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(('ninja: build stopped', 'FAILED: ', 'collect2: '))]
    signs = (r'\berror\b|cannot find|undefined reference', r'not found|no such file', r'\bfatal\b')
    found = (line for sign in signs for line in lines if re.search(sign, line, re.IGNORECASE))
    return next(found, lines[-1] if lines else 'the build failed')


def _cache_dir() -> str:
    root = os.environ.get('LIA_CACHE_DIR')
    if not root:
        home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
        root = os.path.join(home, 'lia')
    return os.path.join(os.path.abspath(root), 'kernels')


def _key(sources: Sequence[str], recipe: _Recipe) -> str:
    """Of all that the library depends on: sources and headers, the compiler's file, the flags, which tell the CPU."""
    compiler = os.stat(recipe.compiler)
    digest = hashlib.sha256(repr((recipe, compiler.st_size, compiler.st_mtime_ns, platform.machine())).encode())
    headers = [os.path.basename(path) for pattern in ('*.h', '*.cuh')
               for path in sorted(glob.glob(os.path.join(glob.escape(SOURCE_DIR), pattern)))]
    for name in [*sources, *headers]:
        with open(os.path.join(SOURCE_DIR, name), 'rb') as f:
            digest.update(name.encode() + b'\0' + hashlib.sha256(f.read()).digest())
    return digest.hexdigest()[:16]


def _digest(path: str) -> str | None:
    """Of a file's content; None if there is none. A library cut short would kill the process that loads it."""
    return file_hash(path) if os.path.isfile(path) else None


def _is_whole(record: dict[str, Any], stem: str) -> bool:
    """Whether a record tells of a failure, or of the library that is there."""
    return 'failure' in record or record.get('digest', '') == _digest(f'{stem}.so')


def _read_record(stem: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError), open(f'{stem}.json', encoding='utf-8') as f:
        record = json.load(f)
        return record if isinstance(record, dict) else {}
    return {}


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """Lets one process at a time build. Where files can't be locked, two may do the work; the result is the same."""
    import fcntl

    with open(path, 'w', encoding='utf-8') as f:
        with contextlib.suppress(OSError):
            fcntl.flock(f, fcntl.LOCK_EX)
        yield
