"""Whether training in another precision comes to the same: equal runs but for it, of several seeds, side by side.

    python dataset_tool.py --source=photos/ --dest=faces32.zip --resolution=32x32 --transform=center-crop
    python benchmarks/convergence.py --data=faces32.zip --out=convergence

Trains both stages with `train.py` for each precision and seed, one after the other, and measures the results with
`calc_metrics.py`, everything in float32 there, on images that training held out. Prints a table of losses and metrics:
the mean of each precision, what they differ by, and what the seeds of one precision differ by among themselves. A
difference within that says nothing against a precision; training is chaotic, so that more than the same distribution
can't be asked for. The same call goes on where it stopped. 20 minutes of one core; `--threads` for more.
"""

from __future__ import annotations

import glob
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import click
import common

# Of small photographs of faces; a narrow network, which a CPU trains in minutes.
CONFIGURATION = ('--batch=16', '--cbase=1024', '--cmax=64', '--latent-dim=128', '--gamma=0.02', '--aug=noaug',
                 '--mirror', '--val=0.1', '--workers=0', '--metrics=none', '--device=cpu')
LOSSES = {'gan': {'Loss/G/loss': 'G loss', 'Loss/D/loss': 'D loss', 'Loss/r1_penalty': 'R1 penalty',
                  'Loss/pl_penalty': 'path length penalty', 'Loss/scores/real': "D's score of real images"},
          'encoder': {'Loss/E/pixel': 'encoder, pixel loss', 'Loss/E/prior': 'encoder, prior loss'}}
SAID = {'swd': 'SWD', 'recon_mse': 'held-out MSE', 'recon_psnr': 'held-out PSNR',
        'recon_swd': 'held-out SWD', 'latent_fd': 'latent FD', 'cycle_z': 'cycle in z'}
METRICS = {'gan': ('--metrics=swd',),
           'encoder': ('--metrics=recon_mse,recon_psnr,recon_swd,latent_fd,cycle_z',)}
QUARTERS = (1, 2, 3, 4)

Values = dict[str, float]  # Of one run: row → number.


def train(data: str, folder: str, precision: str, seed: int, lengths: tuple[float, float], env: dict[str, str]) -> str:
    """Trains both stages, or what is left of them; gives the run directory."""
    kimg, enc_kimg = lengths
    pattern = os.path.join(glob.escape(folder), '0*', f'network-snapshot-{round(sum(lengths)):06d}.pkl')
    if finished := glob.glob(pattern):
        return os.path.dirname(finished[0])
    command = [sys.executable, os.path.join(common.PROJECT, 'train.py'), f'--data={data}', f'--outdir={folder}',
               f'--kimg={kimg:g}', f'--enc-kimg={enc_kimg:g}', f'--seed={seed}', f'--precision={precision}',
               f'--tick={min(lengths) / 16:g}', *CONFIGURATION]
    with open(os.path.join(folder, 'train.log'), 'a', encoding='utf-8') as log:
        if subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise click.ClickException(f'training failed, see {log.name}')
    return os.path.dirname(glob.glob(pattern)[0])


def losses(run: str, lengths: tuple[float, float]) -> Values:
    """Means over each quarter of a stage."""
    with open(os.path.join(run, 'stats.jsonl'), encoding='utf-8') as f:
        ticks = [json.loads(line) for line in f]
    values = {}
    for stage, start, length in (('gan', 0.0, lengths[0]), ('encoder', lengths[0], lengths[1])):
        for name, said in LOSSES[stage].items():
            for quarter in QUARTERS:
                share = [t[name] for t in ticks if t['stage'] == stage and name in t and t[name]['num'] and 0
                         <= quarter - (t['Progress/kimg']['mean'] - start) / length * 4 < 1]
                total = sum(moments['num'] for moments in share)
                key = f'{said}, {start + length * (quarter - 1) / 4:g}–{start + length * quarter / 4:g} kimg'
                values[key] = sum(m['mean'] * m['num'] for m in share) / total if total else float('nan')
    return values


def measure(data: str, run: str, lengths: tuple[float, float], num: int, env: dict[str, str]) -> Values:
    """What the networks of both stages' ends are worth."""
    values = {}
    for stage, at in (('gan', lengths[0]), ('encoder', sum(lengths))):
        path = os.path.join(run, f'convergence-{stage}.json')
        if not os.path.exists(path):
            network = os.path.join(run, f'network-snapshot-{round(at):06d}.pkl')
            command = [sys.executable, os.path.join(common.PROJECT, 'calc_metrics.py'), f'--network={network}',
                       *METRICS[stage], f'--num={num}', '--device=cpu', '--precision=fp32', f'--json={path}',
                       '--verbose=false']
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        with open(path, encoding='utf-8') as f:
            found = {name: value for result in json.load(f) for name, value in result['results'].items()}
        values.update({said: found[name] for name, said in SAID.items() if name in found})
    return values


def speeds(run: str) -> Values:
    """Seconds a kimg, the median over ticks."""
    with open(os.path.join(run, 'stats.jsonl'), encoding='utf-8') as f:
        ticks = [json.loads(line) for line in f]
    return {f'{stage}: seconds a kimg': statistics.median(
        t['Timing/sec_per_kimg']['mean'] for t in ticks if t['stage'] == stage) for stage in LOSSES}


def rows(results: dict[str, list[Values]], names: Sequence[str]) -> list[list[str]]:
    """Per quantity: the precisions' means, the difference, what seeds differ by, and the first over the second."""
    table = []
    for name in names:
        columns = {p: [run[name] for run in runs if name in run] for p, runs in results.items()}
        if not all(columns.values()):
            continue
        means = [statistics.mean(values) for values in columns.values()]
        apart = [max(values) - min(values) for values in columns.values()]
        scatter = max(apart)
        difference = means[-1] - means[0]
        ratio = f'{abs(difference) / scatter:.1f}' if scatter > 0 else '–'
        table.append([name, *(common.number(mean) if mean >= 0 else f'-{common.number(-mean)}' for mean in means),
                      f'{difference:+.2g}', *(f'{value:.2g}' for value in apart), ratio])
    return table


@click.command(context_settings={'show_default': True})
@click.option('--data', required=True, type=click.Path(exists=True), help='Data set of dataset_tool.py')
@click.option('--out', default='convergence', metavar='DIR', help='Where runs are kept')
@click.option('--precisions', default='fp32,bf16', metavar='NAME,NAME', help='The two to compare')
@click.option('--seeds', default=2, type=click.IntRange(min=2), help='Runs of each')
@click.option('--kimg', default=16.0, type=click.FloatRange(min=0.1), help='Length of stage 1')
@click.option('--enc-kimg', default=10.0, type=click.FloatRange(min=0.1), help='Length of stage 2')
@click.option('--num', default=2048, type=click.IntRange(min=2), help='Images that metrics are taken on')
@click.option('--threads', default=1, type=click.IntRange(min=1), help='Of each run')
def main(data: str, out: str, precisions: str, seeds: int, kimg: float, enc_kimg: float, num: int,
         threads: int) -> None:
    """Compare trainings that differ in their precision alone, beside the scatter of seeds."""
    names = precisions.split(',')
    if len(names) != 2:
        raise click.UsageError('--precisions: two of fp32, bf16, fp16')
    lengths = (kimg, enc_kimg)
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    results: dict[str, list[Values]] = {name: [] for name in names}
    timed: dict[str, list[Values]] = {name: [] for name in names}
    began = time.monotonic()
    for seed in range(seeds):
        for name in names:
            folder = os.path.join(out, f'{name}-{seed}')
            os.makedirs(folder, exist_ok=True)
            run = train(os.path.abspath(data), folder, name, seed, lengths, env)
            results[name].append({**losses(run, lengths), **measure(data, run, lengths, num, env)})
            timed[name].append(speeds(run))
            print(f'{name}, seed {seed}: {time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)
    head = ['quantity', *names, 'difference', *(f'between seeds, {name}' for name in names), 'difference / seeds']
    quantities = list(results[names[0]][0])
    print(f'Both stages of {" ".join(CONFIGURATION[:6])} on {os.path.basename(data)}, {kimg:g} + {enc_kimg:g} kimg, '
          f'{seeds} seeds; metrics of {num} images, in float32. {common.here(extra=f", {threads} threads trained")}\n')
    print('\n'.join(common.markdown(head, rows(results, quantities))))
    ratios = sorted(float(row[-1]) for row in rows(results, quantities) if row[-1] != '–')
    print(f'\nThe difference is within what seeds differ by in {sum(r <= 1 for r in ratios)} of {len(ratios)} rows; '
          f'median of the ratios {statistics.median(ratios):.1f}, largest {ratios[-1]:.1f}.\n')
    print('\n'.join(common.markdown(head, rows(timed, list(timed[names[0]][0])))))


if __name__ == '__main__':
    main()
