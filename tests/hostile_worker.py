"""Reads the pickles of a folder under watch, and prints as JSON what each of them led to.

    python hostile_worker.py FOLDER

FOLDER/good.pkl, an honest file, is read first, so that whatever reading imports is there; from then on an audit hook
notes what no reading should do, and the address space may grow by little more than a multiple of the largest file.
"""

import codecs
import contextlib
import json
import os
import sys
import time
import warnings
from typing import Any

import torch

import legacy
from dnnlib.util import UserError

MARGIN = 256 << 20  # Of the address space, over eight times the largest file.
HARMFUL = (
    'exec',
    'compile',
    'os.',
    'subprocess.',
    'socket.',
    'shutil.',
    'ctypes.',
    'pickle.',
    'marshal.',
    'pty.',
    'code.',
    'import',
    'urllib.',
    'webbrowser.',
    'tempfile.',
    'ftplib.',
    'smtplib.',
    'sys.',
    'object.',
    'builtins.',
    'cpython.',
)
HARMLESS = ('builtins.id', 'os.listdir', 'os.scandir', 'sys._getframe', 'sys._current_frames', 'object.__getattr__')
events: list[str] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook: any of the events above, and opening a file to write."""
    if event == 'open':
        flags = args[2] if isinstance(args[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            events.append(f'open to write: {args[0]}')
    elif event.startswith(HARMFUL) and event not in HARMLESS:
        events.append(f'{event} {str(args)[:100]}')


def limit_memory(folder: str) -> None:
    """Linux only: elsewhere the limits of the address space mean nothing."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        with open('/proc/self/statm', encoding='ascii') as file:
            now = int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
        largest = max(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
        resource.setrlimit(resource.RLIMIT_AS, (now + MARGIN + 8 * largest, resource.RLIM_INFINITY))


def read(path: str) -> dict[str, Any]:
    started = time.process_time()
    del events[:]
    try:
        outcome = sorted(legacy.load_network_pkl(path))
        result: dict[str, Any] = dict(kind='dict', message=str(outcome))
    except UserError as error:
        result = dict(kind='UserError', message=str(error))
    except BaseException as error:
        result = dict(kind=type(error).__name__, message=str(error)[:500])
    return dict(result, seconds=time.process_time() - started, events=list(events))


def main(folder: str) -> None:
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith('.pkl')]
    for name in ('good.pkl', 'refused.pkl'):
        read(os.path.join(folder, name))
    for codec in ('ascii', 'latin-1', 'utf-8', 'raw-unicode-escape', 'unicode-escape'):
        codecs.lookup(codec)  # Python imports a codec as it meets the first text in it: old text opcodes have some.
    limit_memory(folder)
    sys.addaudithook(watch)
    results = {os.path.basename(path): read(path) for path in paths}
    print(json.dumps(results))


if __name__ == '__main__':
    main(sys.argv[1])
