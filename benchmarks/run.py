"""All CPU benchmarks in one call, into one dated file of tables. Half an hour on two idle cores.

    python benchmarks/run.py --host=stylegan2-ada-pytorch
    OUT=results HOST=stylegan2-ada-pytorch python benchmarks/run.py --only=iteration-A,ops --minutes=10
    python benchmarks/run.py --smoke --out=smoke --host=stylegan2-ada-pytorch      # all in miniature, a few minutes

Leave the machine alone meanwhile. Each step has a limit of its own and what it printed before that is kept; a failed
one doesn't stop the others. The exit code is 0 only if all steps succeeded.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import itertools
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

MARGIN = 3  # A step's limit, in times of what it usually takes: other machines, other work.


class Step(NamedTuple):
    name: str
    title: str
    usual: int  # Seconds on two idle cores.
    command: str  # Script and its options; {host}, {network} and {work} are filled in.
    small: str | None  # Options that make it a miniature; of two the last one counts. None = left out there.

    @property
    def limit(self) -> int:
        return MARGIN * self.usual


TINY = '--size=S --rounds=1 --seconds=1'
STEPS = [
    *(Step(f'iteration-{size}', f'Iteration {size}, in one process', usual,
           f'iteration.py --one-process --size={size} --rounds=9 --seconds={seconds} --limits {more}{{host}}', small)
      for size, seconds, usual, more, small in [('A', 40, 115, '--gradients --batches=2 ', TINY),
                                                ('B', 50, 275, '--gradients --batches=1 ', None),
                                                ('C', 90, 230, '', None)]),
    Step('ops', 'Operators', 50, 'ops.py --rounds=7 --seconds=40 {host}',
         '--batch=2 --channels=4 --resolution=8 --rounds=1 --seconds=1'),
    Step('convolutions', 'Convolutions', 45, 'convolutions.py --rounds=5', '--size=S --rounds=1'),
    Step('processes', 'Iteration, a process each, and with kernels off', 50,
         'iteration.py --size=A --kernels-off --rounds=5 --seconds=25 {host}', TINY),
    Step('keep-memory', 'Iteration, freed memory kept', 45,
         'iteration.py --size=A --keep-memory --rounds=7 --seconds=25 {host}', TINY),
    Step('memory', 'Memory', 65, 'iteration.py --size=A --rounds=1 --seconds=1 --memory {host}', TINY),
    Step('profile', 'Profile', 30, 'iteration.py --size=A --rounds=1 --profile {host}', TINY),
    Step('network', 'A network for what follows', 130,
         '../train.py --data=demo/people64.zip --val=demo/people64_val.zip --cbase=2048 --cmax=64 --latent-dim=64 '
         '--batch=16 --kimg=2.4 --enc-kimg=1.6 --gamma=0.1 --glr=0.0025 --dlr=0.0025 --metrics=none --mirror=true '
         '--device=cpu --outdir={work}', '--cbase=512 --cmax=16 --latent-dim=16 --kimg=0.032 --enc-kimg=0.032'),
    Step('inversion', 'Inversion', 125, 'inversion.py --network={network} --num=3 {host}',
         '--num=1 --steps=3 --refine=1,2'),
    Step('data-path', 'Data path', 160, 'data_path.py --workers=0,1 --rounds=2 --seconds=0.3 --step-ms=40 {host}',
         '--resolutions=16 --workers=0 --rounds=1 --seconds=0.05 --step-ms=5'),
    Step('scaling', 'Over processes', 160, 'scaling.py --size=A --rounds=1 --images=128',
         '--size=S --processes=1,2 --images=16'),
    Step('inference', 'Inference', 165, 'inference.py --size=B,C --seconds=5 --folder=96 {host}',
         '--size=S --seconds=0.2 --folder=8'),
    Step('growth', 'Growth', 165,
         'growth.py --rounds=1 --seconds=5 --resolutions=32,64,128,256 --batches=2,8,32 --channels=32,64,128 {host}',
         '--resolutions=8,16 --batches=2,4 --channels=4,8 --width=4 --latent=8'),
]
ONLY_WORK = ('network',)  # Their output is no result.
UNBOUND = ('data-path', 'scaling')  # OpenMP binds a process to a core, and processes that it starts with it.


def settings(name: str, smoke: bool) -> dict[str, str]:
    """A step's environment. In a miniature threads don't spin, so that it takes minutes on a busy machine, too."""
    if smoke:
        return {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive', 'OMP_PROC_BIND': 'false'}
    left_out = common.THREADING if name in UNBOUND else ()
    return {key: value for key, value in common.environment().items() if key not in left_out}


def run_step(name: str, words: list[str], limit: float, log: str, env: dict[str, str]) -> tuple[str, str]:
    """Stdout, and 'ok' or what went wrong. All that the step has started ends with it."""
    command = [sys.executable, os.path.join(FOLDER, words[0]), *words[1:]]
    with tempfile.TemporaryFile('w+') as out, open(log, 'a', encoding='utf-8') as errors:
        errors.write(f'== {name}\n')
        errors.flush()
        process = subprocess.Popen(command, cwd=PROJECT, stdout=out, stderr=errors, start_new_session=True, env=env)
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


class Outcome(NamedTuple):
    step: Step
    seconds: float
    end: str  # 'ok', or what went wrong.


def ending(outcomes: list[Outcome]) -> list[str]:
    rows = [[one.step.name, one.end, f'{one.seconds:.0f}', str(one.step.usual)] for one in outcomes]
    head = ['step', 'result', 'seconds', 'usual on two idle cores']
    return ['', '## Steps', '', *common.markdown(head, rows, text_columns=2)]


def outlook(outcomes: list[Outcome], rest: list[Step]) -> str:
    """When all will be done, if this machine goes on as it has begun."""
    usual = sum(one.step.usual for one in outcomes if one.end == 'ok')
    pace = sum(one.seconds for one in outcomes if one.end == 'ok') / usual if usual else 1.0
    left = pace * sum(step.usual for step in rest)
    return f'all done in about {max(left / 60, 1):.0f} min, at {datetime.datetime.now() + _seconds(left):%H:%M}'


def _seconds(count: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=count)


def summary(outcomes: list[Outcome]) -> str:
    failed = [f'{one.step.name} {one.end}' for one in outcomes if one.end != 'ok']
    return f'{len(failed)} of {len(outcomes)} steps failed: {"; ".join(failed)}' if failed else 'All steps succeeded'


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


def free_stem(out: str, name: str) -> str:
    """Path without extension of files that aren't there yet."""
    stem = os.path.join(os.path.abspath(out), f'{datetime.date.today()}-{name}')
    paths = (stem + (f'-{i}' if i > 1 else '') for i in itertools.count(1))
    return next(path for path in paths if not os.path.exists(f'{path}.md'))


def fill(step: Step, words: dict[str, str], smoke: bool) -> list[str]:
    """Script and options, some of which hold paths."""
    whole = f'{step.command} {step.small}' if smoke else step.command
    return [word for part in whole.split() if (word := part.format(**words))]


@click.command(context_settings={'show_default': True})
@common.host_option(envvar='HOST')
@click.option('--out', type=click.Path(file_okay=False), envvar='OUT', default=os.path.join(FOLDER, 'results'),
              help='Where DATE-cpu-speed.md and its log go; also $OUT')
@click.option('--network', type=click.Path(exists=True, dir_okay=False),
              help='With an encoder; none = train a small one')
@click.option('--only', default='', help=f'Steps, with commas, of {", ".join(step.name for step in STEPS)}')
@click.option('--minutes', type=click.FloatRange(min=0), default=60.0,
              help='For everything; what comes last may fall out')
@click.option('--smoke', is_flag=True, help='All in miniature, to see that it runs')
def main(host: str | None, out: str, network: str | None, only: str, minutes: float, smoke: bool) -> None:
    """Run all CPU benchmarks."""
    chosen = set(filter(None, only.split(',')))
    if unknown := chosen - {step.name for step in STEPS}:
        raise click.UsageError(f'--only: {unknown.pop()!r} is no step')
    common.stop_on_sigterm()
    os.makedirs(out, exist_ok=True)
    stem = free_stem(out, 'smoke-cpu-speed' if smoke else 'cpu-speed')
    open(f'{stem}.log', 'w').close()
    steps = [step for step in STEPS if (not chosen or step.name in chosen) and not (smoke and step.small is None)
             and not (step.name == 'network' and network)]
    with tempfile.TemporaryDirectory() as work:
        outcomes = run_all(steps, host, network, work, stem, time.monotonic() + 60 * minutes, smoke)
    print(f'{summary(outcomes)}. Tables: {stem}.md', file=sys.stderr)
    print(f'{stem}.md')
    sys.exit(0 if all(one.end == 'ok' for one in outcomes) else 1)


def say(line: str) -> None:
    print(f'== {line}', file=sys.stderr, flush=True)


def run_all(
    steps: list[Step], host: str | None, network: str | None, work: str, stem: str, deadline: float, smoke: bool
) -> list[Outcome]:
    """One step after the other; the file of tables is whole after each."""
    miniature = ' (in miniature: no results)' if smoke else ''
    head = [f'# Measured on a CPU, {datetime.date.today()}{miniature}', '', 'Written by `benchmarks/run.py`; what the '
            'tables mean is in `benchmarks/README.md`.', '', '```', *facts(), '```']
    hide = {work: '.', **({host: 'stylegan2-ada-pytorch'} if host else {}), PROJECT + os.sep: '', PROJECT: '.'}
    shown = dict(host='--host=stylegan2-ada-pytorch' if host else '', work='.', network='network-snapshot.pkl')
    body: list[str] = []
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps):
        trained = newest_network(work) if 'network' in [one.step.name for one in outcomes if one.end == 'ok'] else ''
        words = dict(host=f'--host={host}' if host else '', work=work, network=network or trained)
        limit = min(step.limit, deadline - time.monotonic())
        if limit < 5 or ('{network}' in step.command and not words['network']):
            outcomes.append(Outcome(step, 0, 'had no time left' if limit < 5 else 'had no network'))
            continue
        when = '' if smoke else f'; {outlook(outcomes, steps[number:])}'
        say(f'{step.name} ({number + 1} of {len(steps)}), at most {limit:.0f} s{when}')
        start = time.monotonic()
        env = settings(step.name, smoke)
        text, end = run_step(step.name, fill(step, words, smoke), limit, f'{stem}.log', env)
        outcomes.append(Outcome(step, time.monotonic() - start, end))
        say(f'{step.name}: {end} after {outcomes[-1].seconds:.0f} s')
        if step.name not in ONLY_WORK:
            command = ' '.join(fill(step, shown, smoke))
            body += ['', f'## {step.title}', '', f'`python benchmarks/{command}`', '', text.strip()]
        report([*head, *body, *ending(outcomes)], f'{stem}.md', hide)  # Kept, come what may.
    report([*head, *body, *ending(outcomes), '', summary(outcomes) + '.'], f'{stem}.md', hide)
    return outcomes


if __name__ == '__main__':
    main()
