"""How cost grows with resolution, batch and the networks' width: time and memory of G, an iteration, an encoder step.

    python benchmarks/growth.py --host=stylegan2-ada-pytorch
    python benchmarks/growth.py --device=cuda --resolutions=64,128,256,512,1024 --batches=4,8,16,32 --batch=8

Prints a Markdown table for each of the three, with exponents fitted to it: cost ∝ (what changes)^exponent. Every point
is measured in fresh processes, this project and the original in turns; `peak` is the most memory that the work took on
top of what networks and libraries take before it; below a few MB chance decides.
"""

from __future__ import annotations

import statistics
from typing import Any

import click
import common
from common import number
from iteration import with_iteration
from turns import OURS, THEIRS, measure, start

WORK = ('G eval', 'iteration', 'encoder step')
SWEEPS = {'resolution': 'pixels along a side', 'batch': 'images', 'channels': 'channel_max, channel_base 32 times that'}
Point = dict[str, list[float]]  # Work → seconds an image, 'peak' → MB; one a side.


def measure_point(config: dict[str, Any], host: str | None, rounds: int, seconds: float) -> Point:
    with start(config, host) as sides:
        before = []
        for side in sides:
            side.ask('reset_peak')
            before.append(side.ask('peak'))
            side.ask('warm_up')
        names = [name for name in sides[0].ask('facts')['work'] if all(name in s.ask('facts')['work'] for s in sides)]
        results = with_iteration(measure(sides, names, rounds, seconds))
        point = {name: [statistics.median(times) / config['batch'] for times in zip(*(r[name] for r in results))]
                 for name in WORK if name in results[0]}
        point['peak'] = [max(side.ask('peak') - start, 1.0) for side, start in zip(sides, before)]
    return point


def table(sweep: str, points: dict[int, Point]) -> list[str]:
    """A row a value, then the fitted exponents."""
    names = [OURS, THEIRS][: len(next(iter(points.values()))['peak'])]
    works = [work for work in (*WORK, 'peak') if all(work in point for point in points.values())]
    head = [f'{sweep} ({SWEEPS[sweep]})']
    for work in works:
        head += [f'{work}, {"MB" if work == "peak" else "ms an image"}', *names[1:]]
        head += ['times less'] * (len(names) - 1)
    rows, last = [], ['exponent']
    for value, point in points.items():
        row = [str(value)]
        for work in works:
            costs = point[work]
            row += [number(cost if work == 'peak' else cost * 1e3) for cost in costs]
            row += [f'{costs[1] / costs[0]:.2f}'] if len(costs) == 2 else []
        rows.append(row)
    for work in works:
        columns = zip(*(point[work] for point in points.values()))
        last += [f'{common.exponent(list(points), costs):.2f}' for costs in columns]
        last += [''] * (len(names) - 1)
    return common.markdown(head, [*rows, last])


def check_numbers(ctx: Any, param: Any, value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(',') if part]
    except ValueError:
        raise click.UsageError(f'--{param.name}: {value!r} is no list of whole numbers') from None


@click.command(context_settings={'show_default': True})
@common.host_option()
@common.device_option()
@click.option('--resolutions', callback=check_numbers, default='32,64,128,256', help='To go through; empty = none')
@click.option('--batches', callback=check_numbers, default='2,4,8,16,32', help='To go through; empty = none')
@click.option('--channels', callback=check_numbers, default='32,64,128,256', help='To go through; empty = none')
@click.option('--resolution', type=click.IntRange(min=8), default=32, help='While others change')
@click.option('--batch', type=click.IntRange(min=1), default=4, help='While others change')
@click.option('--width', type=click.IntRange(min=1), default=64, help='channel_max while others change')
@click.option('--latent', type=click.IntRange(min=2), default=256, help='Of z and w')
@click.option('--rounds', type=click.IntRange(min=1), default=3, help='Measurements of each piece, at most')
@click.option('--seconds', type=click.FloatRange(min=0), default=15.0, help='Begin no round that may end after so long')
def main(host: str | None, device: str, resolutions: list[int], batches: list[int], channels: list[int],
         resolution: int, batch: int, width: int, latent: int, rounds: int, seconds: float) -> None:
    """Measure how cost grows."""
    device = common.pick_device(device)
    base = dict(device=device, precision='fp16' if device.startswith('cuda') else 'fp32', latent=latent)
    print(f'Resolution {resolution}, batch {batch}, channel_max {width}, channel_base 32 times that, latents {latent}, '
          f'unless it says otherwise. {common.here(device)}', flush=True)
    for sweep, values in {'resolution': resolutions, 'batch': batches, 'channels': channels}.items():
        points: dict[int, Point] = {}
        for value in values:
            own = {'resolution': resolution, 'batch': batch, 'channels': width, sweep: value}
            config = dict(base, resolution=own['resolution'], batch=own['batch'], channel_max=own['channels'],
                          channel_base=32 * own['channels'])
            try:
                points[value] = measure_point(config, host, rounds, seconds)
            except click.ClickException as error:  # Out of memory, say: what is smaller still counts.
                print(f'\n{sweep} {value}: {error.message}', flush=True)
                break
        if points:
            print('\n' + '\n'.join(table(sweep, points)), flush=True)


if __name__ == '__main__':
    main()
