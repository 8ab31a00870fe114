"""Times the pieces of a training iteration, of this project alone or against a stylegan2-ada-pytorch checkout.

    python benchmarks/iteration.py --size=B
    python benchmarks/iteration.py --size=A,B,C --host=stylegan2-ada-pytorch --gradients --memory --limits

Prints Markdown tables on stdout. Both code bases have the same weights and inputs and are measured in turns, piece by
piece, so that both meet the same drift of a busy machine: each in a process of its own (`turns.py`), or, with
`--one-process`, in one.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import click
import common
from common import DIMENSIONS, SIZES, number
from turns import OURS, THEIRS, Rounds, measure, start

ITERATION = {'Gmain': 1.0, 'Greg': 1 / 4, 'Dmain': 1.0, 'Dreg': 1 / 16, 'update': 1.0}  # How often each is done.
TOLERANCE = {'fp32': 1e-3, 'fp16': 5e-2, 'bf16': 2e-1}  # Of the standard deviation: more is another network.
MEMORY = {'G eval': ['G eval'], 'iteration': list(ITERATION), 'encoder step': ['encoder step']}


def disagreement(sides: list[Any]) -> dict[str, float]:
    """Per output, the largest difference between two sides in units of its standard deviation."""
    prints = [side.ask('fingerprint') for side in sides]
    differences = {}
    for key, ours in prints[0].items():
        largest = max((abs(a - b) for other in prints[1:] for a, b in zip(ours, other[key], strict=True)), default=0.0)
        differences[key] = largest / max(statistics.pstdev(ours), 1e-12)
    return differences


def with_iteration(results: Rounds) -> Rounds:
    """Adds to each round the iteration that its pieces make up, with lazy regularisation."""
    sides = range(len(results[0]['Gmain']))
    return [{**r, 'iteration': [sum(share * r[name][i] for name, share in ITERATION.items()) for i in sides]}
            for r in results]


def table(results: Rounds, batch: int, names: list[str] | None = None) -> list[str]:
    """Medians over the rounds, and of the ratios within each round the median and the quartiles, in Markdown.

    names: of the sides; this project is the first one, and with two of them the second is the original.
    """
    names = names or [OURS, THEIRS][: len(results[0]['Gmain'])]
    head = ['work', f'{names[0]}, ms']
    for name in names[1:]:
        head += [f'{name}, ms', 'times faster', 'quartiles']
    rows = []
    for work in results[0]:
        sides = list(zip(*(r[work] for r in results)))
        row = [work, f'{statistics.median(sides[0]) * 1e3:.1f}']
        for other in sides[1:]:
            row += [f'{statistics.median(other) * 1e3:.1f}', *common.ratio_cells(sides[0], other)]
        row += ['–'] * (len(head) - len(row))  # What only this project does.
        if len(names) == 1:
            row.append('{:.1f}–{:.1f}'.format(*(1e3 * t for t in common.quartiles(sides[0]))))
        rows.append(row)
    speeds = [batch / statistics.median(times) for times in zip(*(r['iteration'] for r in results))]
    last = ['images per second', f'{speeds[0]:.1f}']
    for speed in speeds[1:]:
        last += [f'{speed:.1f}', '', '']
    rows.append(last + [''] * (len(names) == 1))
    return common.markdown(head + ['quartiles'] * (len(names) == 1), rows)


def kimg_row(results: Rounds, batch: int) -> str:
    """Seconds that 1000 images take, of each side, as training logs give it."""
    seconds = [statistics.median(times) * 1000 / batch for times in zip(*(r['iteration'] for r in results))]
    return f'sec/kimg: {", ".join(number(s) for s in seconds)}.'


# ---------------------------------------------------------------------------------------------------------------------
# Further tables


def gradient_tables(config: dict[str, Any], host: str, keep_memory: bool, batches: int, seconds: float) -> list[str]:
    """How far outputs and gradients are from the original's and from float64, beside how far the original's are."""
    import gradients

    with tempfile.TemporaryDirectory() as folder, start(config, host, keep_memory=keep_memory) as sides:
        return gradients.tables(gradients.measure(sides, folder, batches, seconds))


def memory_table(config: dict[str, Any], host: str | None, keep_memory: bool) -> list[str]:
    """Most memory of each side, every row in a fresh process that does nothing else."""
    kind = 'tensors on the GPU' if config['device'].startswith('cuda') else 'resident, fresh process'
    names = [OURS] + [THEIRS] * bool(host)
    rows = []
    for row, pieces in {'networks only': [], **MEMORY}.items():
        with start(config, host, keep_memory=keep_memory) as sides:
            peaks = []
            for side in sides:
                if set(pieces) <= set(side.ask('facts')['work']):
                    side.ask('reset_peak')
                    if pieces:
                        side.ask('warm_up', *pieces)
                    peaks.append(side.ask('peak'))
            if len(peaks) == len(sides):
                rows.append([row, *(f'{p:.0f}' for p in peaks)] + ([f'{peaks[1] / peaks[0]:.2f}'] if host else []))
    return common.markdown([f'peak memory, MB ({kind})', *names] + ['times less'] * bool(host), rows)


def count_flops(config: dict[str, Any]) -> dict[str, float]:
    """Of this project's arithmetic, counted where PyTorch does it all."""
    with start(dict(config, precision='fp32'), None, plain=True) as sides:
        counts = sides[-1].ask('count_flops')
    return {**counts, 'iteration': sum(share * counts[name] for name, share in ITERATION.items())}


def limits_table(config: dict[str, Any], results: Rounds, names: list[str]) -> list[str]:
    """Counted arithmetic over measured times, beside the peaks of the machine."""
    import peaks

    flops, best = count_flops(config), peaks.measure_peaks(config['device'])
    peak = best[f'conv {config["precision"]}']
    head = ['work', 'GFLOP', *(f'{name}, GFLOP/s' for name in names), 'ours / best convolution']
    rows = []
    for work in results[0]:
        if flops.get(work):
            rates = [flops[work] / statistics.median(times) / 1e9 for times in zip(*(r[work] for r in results))]
            cells = [number(rate) for rate in rates] + ['–'] * (len(names) - len(rates))
            rows.append([work, number(flops[work] / 1e9), *cells, f'{rates[0] / peak:.0%}'])
    return [*common.markdown(head, rows), '', f"PyTorch's best in the same run: {peaks.said(best)}. GFLOP without "
            "filters, of this project's formulas for both, so that the original's rate is that of useful work."]


def profile_tables(sides: list[Any], top: int = 12) -> list[str]:
    """The costliest operators of one iteration (all phases once), before (the original) and after."""
    lines: list[str] = []
    for side in sides[::-1]:
        rows = side.ask('profile', list(ITERATION), 1000)
        total = sum(row[1] for row in rows)
        cells = [[f'`{key[:60]}`', f'{ms:.1f}', f'{ms / total:.0%}', str(count)] for key, ms, count in rows[:top]]
        lines += [f'Profile of the phases once each, {side.name}, {total:.0f} ms in all:', '']
        lines += [*common.markdown(['operator', 'ms of its own', 'share', 'calls'], cells), '']
    return lines[:-1]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def headline(size: str, config: dict[str, Any], keep_memory: bool, one_process: bool, facts: dict[str, Any],
             rounds: int) -> str:
    names = {'fp32': 'float32', 'fp16': 'float16 layers', 'bf16': 'bfloat16 layers here'}
    precision = names[config['precision']] + ', TF32 here' * config['tf32'] + ', CUDA graphs here' * config['graphs']
    precision += ', channels_last here' * config['nhwc']
    extra = ', freed memory kept' * keep_memory + ', one process' * one_process
    what = ('Size {}: {resolution}×{resolution}, channel_base {channel_base}, channel_max {channel_max}, '
            'latents {latent}, batch {batch}, {}; {} rounds. ').format(size, precision, rounds, **config)
    return what + common.machine(facts['gpu'], facts['threads'], facts['torch'], extra)


def remarks(sides: list[Any], config: dict[str, Any], differences: dict[str, float]) -> list[str]:
    """What a reader must know of the numbers above."""
    lines = []
    if config['device'].startswith('cuda'):
        peaks = [f'{side.name} {side.ask("peak"):.0f} MB' for side in sides]
        lines.append(f'Peak GPU memory: {", ".join(peaks)}.')
    if len(sides) > 1:
        worst = ', '.join(f'{key} {value:.0e}' for key, value in differences.items())
        lines.append(f'Largest difference of the outputs, in standard deviations: {worst}.')
    for side in sides:
        lines += [f'{side.name} can\'t do the {name}: {why}.' for name, why in side.ask('facts')['missing'].items()]
    return lines


def compare(size: str, config: dict[str, Any], host: str | None, options: dict[str, Any]) -> Iterator[list[str]]:
    """Everything that was asked for of one size, as it comes."""
    keep_memory, one_process = options['keep_memory'], options['one_process']
    with start(config, host, keep_memory=keep_memory, plain=options['kernels_off'], one_process=one_process) as sides:
        differences = disagreement(sides)
        if not max(differences.values()) < TOLERANCE[config['precision']]:
            raise click.ClickException(f'the sides give different outputs ({differences}): nothing to compare')
        for side in sides:
            side.ask('warm_up')
        facts = [side.ask('facts') for side in sides]
        shared = [name for name in facts[0]['work'] if all(name in other['work'] for other in facts)]
        results = measure(sides, shared, options['rounds'], options['seconds'])
        for name in [name for name in facts[0]['work'] if name not in shared]:
            for r in results:
                r[name] = [sides[0].ask('measure', name)]
        results, batch, names = with_iteration(results), config['batch'], [side.name for side in sides]
        lines = [headline(size, config, keep_memory, one_process, facts[0], len(results)), '']
        lines += [*table(results, batch, names), '', *remarks(sides, config, differences), kimg_row(results, batch)]
        yield lines
        if options['profile']:
            yield profile_tables(sides[: 1 + bool(host)])
    if options['limits']:
        yield limits_table(config, results, names)
    if options['gradients']:
        yield gradient_tables(config, host or common.PROJECT, keep_memory, options['batches'], options['seconds'])
    if options['memory']:
        yield memory_table(config, host, keep_memory)


def check_sizes(ctx: Any, param: Any, value: str) -> list[str]:
    sizes = value.split(',')
    if unknown := [size for size in sizes if size not in SIZES]:
        raise click.UsageError(f'--size: {unknown[0]!r} is none of {", ".join(SIZES)}')
    return sizes


@click.command(context_settings={'show_default': True})
@common.host_option()
@click.option('--size', 'sizes', callback=check_sizes, default='A', metavar='NAME,…',
              help=f'Networks and batches: {", ".join(SIZES)}; D to G are for GPUs, S for tests')
@common.device_option()
@click.option('--precision', type=click.Choice(['auto', *TOLERANCE]), default='auto',
              help='What this project computes with; auto = float16 layers on CUDA, else fp32. The original, which has '
                   'no bf16: fp32, on CUDA float16 layers unless fp32 is asked for')
@click.option('--tf32', is_flag=True, help='Let this project round to TF32; on a CPU: take half the products')
@click.option('--graphs', is_flag=True, help='Replay recorded phases of this project (CUDA graphs)')
@click.option('--nhwc', is_flag=True, help="This project's half-precision layers in channels_last, as train.py --nhwc")
@click.option('--keep-memory', is_flag=True, help="Let glibc's allocator keep freed memory, on all sides")
@click.option('--one-process', is_flag=True, help='All in one process instead of one each')
@click.option('--kernels-off', is_flag=True, help='This project with LIA_KERNELS=off as one more side')
@click.option('--gradients', is_flag=True, help="Also compare gradients with the original's and with float64's")
@click.option('--batches', type=click.IntRange(min=1), default=3, help='Of --gradients: as many, if --seconds allow it')
@click.option('--memory', is_flag=True, help='Also take memory peaks, in processes of their own')
@click.option('--limits', is_flag=True, help="Also compare with the machine's peaks")
@click.option('--profile', is_flag=True, help='Also list the costliest operators')
@click.option('--batch', type=click.IntRange(min=1), help="Images of a batch, instead of the size's")
@click.option('--rounds', type=click.IntRange(min=1), default=15, help='Measurements of each piece, at most')
@click.option('--seconds', type=click.FloatRange(min=0), default=120.0,
              help='Begin no round that may end after so long; of each size')
def main(host: str | None, sizes: list[str], device: str, precision: str, tf32: bool, batch: int | None,
         graphs: bool, nhwc: bool, **options: Any) -> None:
    """Time G, D, the phases of training, the amortised iteration and a step of the encoder."""
    if options['one_process'] and (options['kernels_off'] or tf32):
        raise click.UsageError('--one-process: not with --kernels-off or --tf32, which are for a whole process')
    if options['one_process']:
        common.settle(options['keep_memory'])
    device = common.pick_device(device)
    if (graphs or nhwc) and not device.startswith('cuda'):
        raise click.UsageError('--graphs, --nhwc: for CUDA only')
    if precision == 'auto':
        precision = 'fp16' if device.startswith('cuda') else 'fp32'
    if precision == 'fp16' and not device.startswith('cuda'):
        raise click.UsageError('--precision=fp16: for CUDA only')
    for size in sizes:
        config = dict(zip(DIMENSIONS, SIZES[size]), device=device, precision=precision, tf32=tf32, graphs=graphs,
                      nhwc=nhwc)
        config['batch'] = batch or config['batch']
        for lines in compare(size, config, host, options):
            print('\n'.join(lines) + '\n', flush=True)


if __name__ == '__main__':
    main()
