"""Times the pieces of a training iteration, of this project alone or against a stylegan2-ada-pytorch checkout.

    python benchmarks/iteration.py --size=B
    python benchmarks/iteration.py --size=A --host=stylegan2-ada-pytorch

Prints a Markdown table on stdout. Each code base runs in a process of its own, with the same weights and inputs. They
are measured in turns, piece by piece, so that both meet the same drift of a busy machine, and the one whose turn it
isn't is stopped, so that its waiting threads take no core.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'worker.py')

SIZES = {  # Resolution, channel_base, channel_max, batch, width of z and w.
    'S': (16, 256, 16, 4, 32),  # Only to see that everything runs.
    'A': (32, 4096, 128, 16, 512),
    'B': (64, 8192, 256, 8, 512),
    'C': (64, 32768, 512, 4, 512),
    'D': (128, 16384, 512, 32, 512),  # For GPUs.
    'E': (256, 16384, 512, 32, 512),
}
ITERATION = {'Gmain': 1.0, 'Greg': 1 / 4, 'Dmain': 1.0, 'Dreg': 1 / 16, 'update': 1.0}  # How often each is done.
TOLERANCE = {False: 1e-3, True: 5e-2}  # Of the standard deviation; by whether there are float16 layers.

# What training of many tensors on a CPU depends on besides the code; the same for both sides. Values that the
# environment already has are left alone.
THREADING = {'OMP_WAIT_POLICY': 'active', 'OMP_PROC_BIND': 'true'}
KEEP_MEMORY = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '4294967296', 'MALLOC_TOP_PAD_': '134217728',
               'MALLOC_ARENA_MAX': '1'}  # glibc: freed memory is kept, which spares page faults.

Rounds = list[dict[str, list[float]]]  # Per round: work → seconds, one a side.


class Side:
    """A worker process: one code base."""

    def __init__(self, config: dict[str, Any], env: dict[str, str]) -> None:
        self.name = 'this project' if config['root'] == PROJECT else 'original'
        self.process = subprocess.Popen([sys.executable, WORKER, json.dumps(config)], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *command: str) -> Any:
        """Runs a command of worker.Worker and gives its result; the process rests before and after."""
        assert self.process.stdin is not None and self.process.stdout is not None, 'both are pipes'
        self._signal('SIGCONT')
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + '\n')
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f'{self.name}: the process ended, exit code {self.process.wait()}')
        self._signal('SIGSTOP')
        answer = json.loads(line)
        if 'error' in answer:
            raise click.ClickException(f'{self.name}: {answer["error"]}')
        return answer['result']

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            self.process.send_signal(getattr(signal, name))


@contextlib.contextmanager
def start(config: dict[str, Any], host: str | None, env: dict[str, str]) -> Iterator[list[Side]]:
    """This project's worker, and the host's if there is one; none of them survives."""
    # `timeout` and schedulers send SIGTERM, which would skip the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sides: list[Side] = []
    with tempfile.TemporaryDirectory() as folder:
        config = dict(config, weights=os.path.join(folder, 'weights.pt'))
        try:
            for root in [PROJECT] + ([host] if host else []):
                sides.append(Side(dict(config, root=root), env))
                sides[-1].ask('facts')  # Waits until it is built: the weights come from the first.
            yield sides
        finally:
            for side in sides:
                side.close()


def disagreement(sides: list[Side]) -> dict[str, float]:
    """Per output, the largest difference between two sides in units of its standard deviation."""
    prints = [side.ask('fingerprint') for side in sides]
    differences = {}
    for key, ours in prints[0].items():
        largest = max(abs(a - b) for a, b in zip(ours, prints[-1][key], strict=True))
        differences[key] = largest / max(statistics.pstdev(ours), 1e-12)
    return differences


def measure(sides: list[Side], names: list[str], rounds: int, seconds: float) -> Rounds:
    """All work in turns, `rounds` times or until no further round may fit into `seconds`; one round at least."""
    results: Rounds = []
    began = time.monotonic()
    while len(results) < rounds:
        # Who comes first changes, or the first would always meet the colder machine.
        order = sides if len(results) % 2 == 0 else sides[::-1]
        taken = {name: {id(side): side.ask('measure', name) for side in order} for name in names}
        results.append({name: [times[id(side)] for side in sides] for name, times in taken.items()})
        passed = time.monotonic() - began
        print(f'round {len(results)}, {passed:.0f} s', file=sys.stderr)
        if passed * (1 + 1 / len(results)) > seconds:
            break
    return results


def with_iteration(results: Rounds) -> Rounds:
    """Adds to each round the iteration that its pieces make up, with lazy regularisation."""
    sides = range(len(results[0]['Gmain']))
    return [{**r, 'iteration': [sum(share * r[name][i] for name, share in ITERATION.items()) for i in sides]}
            for r in results]


def table(results: Rounds, batch: int) -> list[str]:
    """Medians over the rounds, and of the ratios within each round the median and the quartiles, in Markdown."""
    compared = len(results[0]['Gmain']) == 2
    head = ['work', 'this project, ms'] + (['original, ms', 'times faster', 'quartiles'] if compared else ['quartiles'])
    rows = [head, ['---'] + ['---:'] * (len(head) - 1)]
    for name in results[0]:
        sides = list(zip(*(r[name] for r in results)))
        row = [name] + [f'{statistics.median(times) * 1e3:.1f}' for times in sides]
        if len(sides) == 2:
            ratios = [theirs / ours for ours, theirs in zip(*sides)]
            row += [f'{statistics.median(ratios):.2f}', '{:.2f}–{:.2f}'.format(*quartiles(ratios))]
        elif compared:
            row += ['–', '–', '–']
        else:
            row.append('{:.1f}–{:.1f}'.format(*(1e3 * t for t in quartiles(sides[0]))))
        rows.append(row)
    speeds = [batch / statistics.median(times) for times in zip(*(r['iteration'] for r in results))]
    rows.append(['images per second'] + [f'{s:.1f}' for s in speeds] + [''] * (len(head) - 1 - len(speeds)))
    return ['| ' + ' | '.join(row) + ' |' for row in rows]


def quartiles(values: Any) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


# ---------------------------------------------------------------------------------------------------------------------
# The command


def environment(keep_memory: bool) -> dict[str, str]:
    """Of both workers."""
    own = dict(THREADING, **(KEEP_MEMORY if keep_memory else {}))
    own['OMP_NUM_THREADS'] = str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    return {**own, **os.environ}


def pick_device(name: str) -> str:
    if name != 'auto':
        return name
    code = 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")'
    return subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.strip()


def cpu_name() -> str:
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as f:
        match = re.search(r'^model name\s*:\s*(.+)$', f.read(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def headline(size: str, half: bool, keep_memory: bool, facts: dict[str, Any], rounds: int) -> str:
    resolution, base, most, batch, latent = SIZES[size]
    machine = facts['gpu'] or f'{cpu_name()}, {facts["threads"]} threads'
    load = f', load average {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
    memory = ', freed memory kept' if keep_memory else ''
    precision = 'float16 layers' if half else 'float32'
    return (f'Size {size}: {resolution}×{resolution}, channel_base {base}, channel_max {most}, latents {latent}, '
            f'batch {batch}, {precision}. {machine}, torch {facts["torch"]}{memory}{load}; '
            f'{rounds} rounds, {datetime.date.today()}.')


def remarks(sides: list[Side], differences: dict[str, float]) -> list[str]:
    """What a reader must know of the numbers above."""
    peaks = [f'{side.name} {peak:.0f} MB' for side in sides if (peak := side.ask('peak'))]
    lines = [f'Peak GPU memory: {", ".join(peaks)}.'] if peaks else []
    if len(sides) > 1:
        worst = ', '.join(f'{key} {value:.0e}' for key, value in differences.items())
        lines.append(f'Largest difference of the outputs, in standard deviations: {worst}.')
    for side in sides:
        lines += [f'{side.name} can\'t do the {name}: {why}.' for name, why in side.ask('facts')['missing'].items()]
    return lines


@click.command(context_settings={'show_default': True})
@click.option('--host', type=click.Path(exists=True, file_okay=False), metavar='DIR',
              help='Checkout of stylegan2-ada-pytorch to compare with')
@click.option('--size', type=click.Choice(list(SIZES)), default='A',
              help='Networks and batch; D and E are for GPUs, S for tests')
@click.option('--device', default='auto', metavar='NAME', help='cpu, cuda, cuda:1; auto = the best of them')
@click.option('--fp32', is_flag=True, help='No float16 layers (there are none but on CUDA)')
@click.option('--keep-memory', is_flag=True, help="Let glibc's allocator keep freed memory, on both sides")
@click.option('--rounds', type=click.IntRange(min=1), default=15, help='Measurements of each piece, at most')
@click.option('--seconds', type=click.FloatRange(min=0), default=120.0,
              help='Begin no round that may end after so long')
def main(
    host: str | None, size: str, device: str, fp32: bool, keep_memory: bool, rounds: int, seconds: float
) -> None:
    """Time G, D, the phases of training, the amortised iteration and a step of the encoder."""
    if host and not os.path.isfile(os.path.join(host, 'torch_utils', 'custom_ops.py')):
        raise click.UsageError(f'--host: {host} is no checkout of stylegan2-ada-pytorch (no torch_utils/custom_ops.py)')
    device = pick_device(device)
    half = device.startswith('cuda') and not fp32
    names = ('resolution', 'channel_base', 'channel_max', 'batch', 'latent')
    config = dict(zip(names, SIZES[size]), device=device, half=half)
    with start(config, os.path.abspath(host) if host else None, environment(keep_memory)) as sides:
        differences = disagreement(sides)
        worst = max(differences.values())
        if not worst < TOLERANCE[half]:
            raise click.ClickException(f'the two code bases give different outputs ({differences}): nothing to compare')
        for side in sides:
            side.ask('warm_up')
        facts = [side.ask('facts') for side in sides]
        shared = [name for name in facts[0]['work'] if name in facts[-1]['work']]
        results = measure(sides, shared, rounds, seconds)
        alone = [name for name in facts[0]['work'] if name not in shared]
        for r in results:
            r.update({name: [sides[0].ask('measure', name)] for name in alone})
        print(headline(size, half, keep_memory, facts[0], len(results)) + '\n')
        print('\n'.join(table(with_iteration(results), SIZES[size][3])))
        print(''.join(f'\n{line}' for line in remarks(sides, differences)))


if __name__ == '__main__':
    main()
