"""A run's directory: which there are, what was asked for, how far it has come, and who is at work in it.

Files: training_options.json (`options` as the user gave them, then the training loop's arguments per stage),
progress.json (stages begun and finished), running.json (the process at work). All of them are replaced atomically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from lia_plugin.host import UserError, atomic_write
from lia_plugin.options import Options

OPTIONS_FILE = 'training_options.json'
PROGRESS_FILE = 'progress.json'
RUNNING_FILE = 'running.json'
STATE_FILE = 'training-state.pt'
ENCODER_INIT_FILE = 'encoder-init.pkl'
ATTACHED_FILE = 'attached.pkl'  # What --resume named, with φ attached.

# Options that may differ when a run goes on: they change how long it runs, by how many processes and what it reports,
# not what it computes.
MAY_CHANGE = ('kimg', 'enc_kimg', 'snap', 'tick', 'metrics', 'workers', 'cache', 'gpus', 'batch_gpu', 'keep_memory',
              'cuda_graphs')


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory."""

    path: str

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def recorded(self) -> dict[str, Any]:
        """training_options.json. UserError if it can't be read."""
        return _read(self.file(OPTIONS_FILE))

    @property
    def options(self) -> dict[str, Any] | None:
        """What the user said, field by field of Options; None in a run of another program.

        A run of an earlier version had what it could not name yet at today's defaults, as far as anybody can say.
        """
        then = self.recorded.get('options')
        if not isinstance(then, dict):
            return None
        defaults = {f.name: f.default for f in dataclasses.fields(Options) if f.default is not dataclasses.MISSING}
        return {**defaults, **then}

    def write_options(self, config: Mapping[str, Any]) -> None:
        _write(self.file(OPTIONS_FILE), config)

    @property
    def gpus(self) -> int:
        """How many processes the run began with: the automatic batch and what hangs on it follow them."""
        recorded = self.recorded
        return int(recorded.get('first_gpus') or recorded['options']['gpus'])

    @property
    def progress(self) -> dict[str, Any]:
        """Stage → dict(kimg, snapshot) if it has finished, dict() if it has only begun; no entry before that."""
        return _read(self.file(PROGRESS_FILE)) if os.path.exists(self.file(PROGRESS_FILE)) else {}

    def note_begun(self, stage: str) -> None:
        _write(self.file(PROGRESS_FILE), {**self.progress, stage: {}})

    def note_finished(self, stage: str, kimg: float, snapshot: str) -> None:
        """`kimg` is the length of this stage alone."""
        entry = dict(kimg=kimg, snapshot=os.path.relpath(snapshot, self.path))
        _write(self.file(PROGRESS_FILE), {**self.progress, stage: entry})

    def has_begun(self, stage: str) -> bool:
        return stage in self.progress

    def has_finished(self, stage: str, kimg: float) -> bool:
        """Whether the stage has been trained to this length or further."""
        return self.progress.get(stage, {}).get('kimg', -1) >= kimg

    def is_complete(self) -> bool:
        """Whether all stages have been trained to the length that was last asked for."""
        recorded = self.recorded
        return all(self.has_finished(s, recorded[s]['total_kimg']) for s in ('gan', 'encoder') if recorded[s])

    def has_trained(self) -> bool:
        """Whether a tick has ended here: then there is something to look at, or to go on from."""
        stats = glob.glob(os.path.join(glob.escape(self.path), '**', 'stats.jsonl'), recursive=True)
        return any(os.path.getsize(path) > 0 for path in stats)

    def snapshot(self, stage: str) -> str:
        """Path of the last snapshot of a finished stage."""
        return self.file(self.progress[stage]['snapshot'])

    def encoder_source(self) -> str | None:
        """The network in this directory that stage 2 of --resume goes on from; None if it still needs the original."""
        own = self.file(ENCODER_INIT_FILE if self.has_begun('encoder') else ATTACHED_FILE)
        return own if os.path.exists(own) else None

    def worker(self) -> int | None:
        """Number of the process that is at work in this run on this machine, or None."""
        try:
            noted = _read(self.file(RUNNING_FILE)) if os.path.exists(self.file(RUNNING_FILE)) else {}
            alive = noted.get('host') == socket.gethostname() and _born(int(noted['pid'])) == noted['born']
        except (UserError, KeyError, ValueError):
            return None
        return int(noted['pid']) if alive else None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Notes this process as the one at work here. UserError if another one is."""
        other = self.worker()
        if other is not None and other != os.getpid():
            raise UserError(f'{self.path}: process {other} is at work here; wait for it, or add --new-run')
        _write(self.file(RUNNING_FILE), dict(pid=os.getpid(), born=_born(os.getpid()), host=socket.gethostname()))
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.file(RUNNING_FILE))


def list_runs(outdir: str) -> list[Run]:
    """All runs of a folder, the newest first."""
    names = os.listdir(outdir) if os.path.isdir(outdir) else []
    matches = [m for m in (re.match(r'(\d{5,})-', name) for name in names) if m]
    matches.sort(key=lambda m: int(m[1]), reverse=True)
    runs = [Run(os.path.join(outdir, m.string)) for m in matches]
    return [run for run in runs if os.path.isfile(run.file(OPTIONS_FILE))]


def newest_of(outdir: str, options: Mapping[str, Any]) -> Run | None:
    """The newest run of exactly these options, or else the newest that differs only in what MAY_CHANGE.

    --resume=latest records what it changed, and the command that began the run must still find it.
    """
    similar = None
    for run in list_runs(outdir):
        with contextlib.suppress(UserError):  # What can't be read isn't a run to go on with.
            then = run.options
            if then == options:
                return run
            if similar is None and then is not None and _lasting(then) == _lasting(options):
                similar = run
    return similar


def next_path(outdir: str, description: str) -> str:
    """Where the next run of a folder would be: <outdir>/NNNNN-<description>."""
    names = os.listdir(outdir) if os.path.isdir(outdir) else []
    numbers = [int(m[1]) for m in (re.match(r'(\d+)(-|$)', name) for name in names) if m]
    # What a user types, and data sets are called, isn't always good for a file name.
    safe = re.sub(r'[^\w.,=+-]+', '_', description)
    return os.path.join(outdir, f'{max(numbers, default=-1) + 1:05d}-{safe}')


def create(outdir: str, description: str) -> Run:
    """Makes the next run directory; two commands that do so at once get one each. UserError if it can't be made."""
    try:
        os.makedirs(outdir, exist_ok=True)
        while True:
            path = next_path(outdir, description)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
                return Run(path)
    except OSError as error:
        raise UserError(f'--outdir: {outdir}: {error.strerror or error}') from error


def first_difference(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """The first option that a run was not started with, those in MAY_CHANGE left out."""
    return next((k for k, v in now.items() if k not in MAY_CHANGE and k in then and then[k] != v), None)


def _lasting(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in MAY_CHANGE}


def _born(pid: int) -> float | None:
    # Numbers of processes are used again; a number together with its time of birth is not.
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding='utf-8') as f:
            data = json.load(f)
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: can\'t be read ({error}); start afresh with --new-run') from error
    if not isinstance(data, dict):
        raise UserError(f'{path}: isn\'t what a run writes there; start afresh with --new-run')
    return data


def _write(path: str, data: Mapping[str, Any]) -> None:
    # A path that is no UTF-8 holds surrogates, for which JSON has an escape.
    with atomic_write(path, 'w', encoding='utf-8', errors='backslashreplace') as f:
        json.dump(data, f, indent=2, ensure_ascii=False)
        f.write('\n')
