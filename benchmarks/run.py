"""All CPU benchmarks in one call of at most 25 minutes, into one dated file of tables.

    python benchmarks/run.py --host=stylegan2-ada-pytorch
    OUT=results HOST=stylegan2-ada-pytorch python benchmarks/run.py --only=iteration,ops --minutes=10

Leave the machine alone meanwhile. Each step has a limit of its own and what it printed before that is kept; a failed
one doesn't stop the others. The exit code is 0 only if all steps succeeded.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import click
import common
from common import FOLDER, PROJECT


class Step(NamedTuple):
    name: str
    title: str
    limit: int  # Seconds.
    command: str  # Script and its options; {host} and {network} are filled in.


STEPS = [
    *(Step(f'iteration-{size}', f'Iteration {size}, in one process', limit,
           f'iteration.py --one-process --size={size} --rounds=9 --seconds={seconds} --gradients --limits --memory '
           '{host}')
      for size, seconds, limit in [('A', 40, 150), ('B', 50, 230), ('C', 130, 420)]),
    Step('ops', 'Operators', 100, 'ops.py --rounds=7 --seconds=40 {host}'),
    Step('convolutions', 'Convolutions', 120, 'convolutions.py --rounds=5'),
    Step('processes', 'Iteration, a process each, and with kernels off', 130,
         'iteration.py --size=A,B --kernels-off --rounds=5 --seconds=25 {host}'),
    Step('keep-memory', 'Iteration, freed memory kept', 60,
         'iteration.py --size=A --keep-memory --rounds=7 --seconds=25 {host}'),
    Step('profile', 'Profile', 60, 'iteration.py --size=A --rounds=1 --profile {host}'),
    Step('network', 'A network for what follows', 130,
         '../train.py --data=demo/people64.zip --val=demo/people64_val.zip --cbase=2048 --cmax=64 --latent-dim=64 '
         '--batch=16 --kimg=2.4 --enc-kimg=1.6 --gamma=0.1 --glr=0.0025 --dlr=0.0025 --metrics=none --mirror=true '
         '--device=cpu --outdir={work}'),
    Step('inversion', 'Inversion', 150, 'inversion.py --network={network} --num=3 {host}'),
    Step('data-path', 'Data path', 240,
         'data_path.py --kinds=png,jpg --workers=0,3 --rounds=1 --seconds=0.5 {host}'),
    Step('scaling', 'Over processes', 240, 'scaling.py --size=A --rounds=3 --images=128'),
    Step('inference', 'Inference', 150, 'inference.py --size=B,C --seconds=5 --folder=96 {host}'),
    Step('growth', 'Growth', 240,
         'growth.py --rounds=1 --seconds=5 --resolutions=32,64,128,256 --batches=2,8,32 --channels=32,64,128 {host}'),
]
ONLY_WORK = ('network',)  # Their output is no result.


def run_step(step: Step, words: dict[str, str], limit: float, log: str) -> tuple[str, str]:
    """Stdout, and 'ok' or what went wrong. All that the step has started ends with it."""
    command = [sys.executable] + [os.path.join(FOLDER, word) if i == 0 else word
                                  for i, word in enumerate(step.command.format(**words).split())]
    with tempfile.TemporaryFile('w+') as out, open(log, 'a', encoding='utf-8') as errors:
        errors.write(f'== {step.name}\n')
        errors.flush()
        process = subprocess.Popen(command, cwd=PROJECT, stdout=out, stderr=errors, start_new_session=True,
                                   env=common.environment())
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        text = out.read()
        errors.write(text)
    return text, 'ok' if code == 0 else f'ran out of time ({limit:.0f} s)' if code is None else f'failed ({code})'


def facts() -> list[str]:
    def said(*command: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip().split('\n')[0]
        return 'none'

    code = ('import torch, numpy; found = getattr(torch.cpu, "get_capabilities", dict)(); '
            'print("torch", torch.__version__, "numpy", numpy.__version__, "with", '
            '", ".join(k for k, v in found.items() if v is True and k.startswith(("avx5", "amx", "avx2"))))')
    memory = 0.0
    with contextlib.suppress(ValueError, OSError):
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    names = (*common.THREADING, 'OMP_NUM_THREADS')
    settings = {name: value for name, value in common.environment().items() if name in names}
    return [f'{common.cpu_name()}, {common.cores()} cores, {memory:.0f} GB of memory, {platform.system()} '
            f'{platform.release()}', f'Python {platform.python_version()}, {said(sys.executable, "-c", code)}',
            f'compiler: {said("c++", "--version")}', ' '.join(f'{k}={v}' for k, v in settings.items()),
            f'commit {common.commit() or "?"}, {datetime.datetime.now():%Y-%m-%d %H:%M}, load average '
            f'{os.getloadavg()[0]:.1f} at the start']


def ending(ends: list[list[str]]) -> list[str]:
    rows = [[name, end, seconds] for name, seconds, end in ends]
    return ['', '## Steps', '', *common.markdown(['step', 'result', 'seconds'], rows, text_columns=2)]


def newest_network(folder: str) -> str:
    found = sorted(glob.glob(os.path.join(folder, '*', 'network-snapshot-*.pkl')), key=os.path.getmtime)
    return found[-1] if found else ''


def report(parts: list[str], path: str, hide: dict[str, str]) -> None:
    """No paths of the machine in what is kept."""
    text = '\n'.join(parts) + '\n'
    for place, name in hide.items():
        text = text.replace(place, name)
    with open(path, 'w', encoding='utf-8') as f:
        f.write(re.sub(r'\n{3,}', '\n\n', text))


@click.command(context_settings={'show_default': True})
@common.host_option(envvar='HOST')
@click.option('--out', type=click.Path(file_okay=False), envvar='OUT', default=os.path.join(FOLDER, 'results'),
              help='Where DATE-cpu-speed.md and its log go; also $OUT')
@click.option('--network', type=click.Path(exists=True, dir_okay=False),
              help='With an encoder; none = train a small one')
@click.option('--only', default='', help=f'Steps, with commas, of {", ".join(step.name for step in STEPS)}')
@click.option('--minutes', type=click.FloatRange(min=0), default=25.0,
              help='For everything; what comes last may fall out')
def main(host: str | None, out: str, network: str | None, only: str, minutes: float) -> None:
    """Run all CPU benchmarks."""
    chosen = set(filter(None, only.split(',')))
    if unknown := chosen - {step.name for step in STEPS}:
        raise click.UsageError(f'--only: {unknown.pop()!r} is no step')
    common.stop_on_sigterm()
    os.makedirs(out, exist_ok=True)
    stem = os.path.join(os.path.abspath(out), f'{datetime.date.today()}-cpu-speed')
    open(f'{stem}.log', 'w').close()
    head = [f'# Measured on a CPU, {datetime.date.today()}', '', 'Written by `benchmarks/run.py`; what the tables mean '
            'is in `benchmarks/README.md`.', '', '```', *facts(), '```']
    body: list[str] = []
    ends: list[list[str]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        hide = {work: '.', **({host: 'stylegan2-ada-pytorch'} if host else {}), PROJECT + os.sep: '', PROJECT: '.'}
        for step in STEPS:
            if (chosen and step.name not in chosen) or (step.name == 'network' and network):
                continue
            trained = newest_network(work) if ['network', 'ok'] in [[end[0], end[-1]] for end in ends] else ''
            words = dict(host=f'--host={host}' if host else '', work=work, network=network or trained)
            limit = min(step.limit, minutes * 60 - (time.monotonic() - began))
            if limit < 5 or ('{network}' in step.command and not words['network']):
                ends.append([step.name, '0', 'no time left' if limit < 5 else 'no network'])
                continue
            print(f'== {step.name}, at most {limit:.0f} s', file=sys.stderr, flush=True)
            start = time.monotonic()
            text, end = run_step(step, words, limit, f'{stem}.log')
            ends.append([step.name, f'{time.monotonic() - start:.0f}', end])
            print(f'== {step.name}: {end} after {ends[-1][1]} s', file=sys.stderr, flush=True)
            if step.name not in ONLY_WORK:
                line = step.command.replace('{host}', '--host=stylegan2-ada-pytorch' if host else '')
                line = line.replace('{network}', 'network-snapshot.pkl')
                body += ['', f'## {step.title}', '', f'`python benchmarks/{line.strip()}`', '', text.strip()]
            report([*head, *body, *ending(ends)], f'{stem}.md', hide)  # Kept, come what may.
        report([*head, *body, *ending(ends)], f'{stem}.md', hide)
    print(f'{stem}.md')
    sys.exit(0 if all(end[-1] == 'ok' for end in ends) else 1)


if __name__ == '__main__':
    main()
