"""Times operators with their derivatives, as a share of what the machine can do, beside the original's.

    python benchmarks/ops.py --host=stylegan2-ada-pytorch
    python benchmarks/ops.py --device=cuda --dtype=float16 --host=stylegan2-ada-pytorch

Prints a Markdown table on stdout. On CUDA the original's own kernels must have loaded; on a CPU it has only its
reference operators.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from typing import Any

import click
import common
from common import number
from turns import OURS, THEIRS, measure, start


def differences(paths: list[str]) -> dict[str, float]:
    """Per piece of work, the largest of ‖a − b‖ / ‖b‖ over its tensors, first file against second."""
    import torch

    ours, theirs = (torch.load(path, weights_only=True) for path in paths)
    return {name: max(float((a - b).norm() / b.norm()) for a, b in zip(ours[name], theirs[name], strict=True))
            for name in theirs}


def rows(results: Any, moved: dict[str, float], flops: dict[str, float], apart: dict[str, float],
         best: dict[str, float], peak: str) -> list[list[str]]:
    """One a piece of work; sides: this project, the original or nothing, kernels off."""
    table = []
    for name in results[0]:
        sides = [list(times) for times in zip(*(r[name] for r in results))]
        ours, plain = statistics.median(sides[0]), statistics.median(sides[-1])
        theirs = ['–'] * 3
        if len(sides) == 3:
            theirs = [number(statistics.median(sides[1]) * 1e3), *common.ratio_cells(sides[0], sides[1])]
        amount, unit, limit = flops[name], 'GFLOP/s', best[peak]
        if name in moved:
            amount, unit, limit = moved[name], 'GB/s', best['copy']
        rate = amount / ours / 1e9
        table.append([name, number(ours * 1e3), *theirs, number(plain * 1e3), number(plain / ours),
                      f'{number(rate)} {unit}', f'{rate / limit:.0%}', f'{apart[name]:.0e}' if name in apart else '–'])
    return table


@click.command(context_settings={'show_default': True})
@common.host_option()
@common.device_option()
@click.option('--batch', type=click.IntRange(min=1), help='Images  [default: 8; 16 on CUDA]')
@click.option('--channels', type=click.IntRange(min=1), default=128, help='In and out')
@click.option('--resolution', type=click.IntRange(min=4), help="Of the inputs  [default: 32; 128 on CUDA]")
@click.option('--dtype', type=click.Choice(['float32', 'float16', 'bfloat16']), default='float32')
@click.option('--layout', type=click.Choice(['own', 'nchw', 'nhwc']), default='own',
              help='Of tensors; own = as each trains: float32 on CUDA and the original on a CPU NCHW, else NHWC')
@click.option('--rounds', type=click.IntRange(min=1), default=7, help='Measurements of each piece, at most')
@click.option('--seconds', type=click.FloatRange(min=0), default=60.0, help='Begin no round that may end after so long')
def main(host: str | None, device: str, batch: int | None, channels: int, resolution: int | None, dtype: str,
         layout: str, rounds: int, seconds: float) -> None:
    """Time bias_act, upfirdn2d, convolutions, layers and filtered_lrelu, forward, backward and double backward."""
    device = common.pick_device(device)
    cuda = device.startswith('cuda')
    half = dtype != 'float32'
    last = {'own': {OURS: half or not cuda, THEIRS: half}, 'nchw': {OURS: False, THEIRS: False},
            'nhwc': {OURS: True, THEIRS: True}}[layout]
    config = dict(device=device, batch=batch or (16 if cuda else 8), channels=channels, dtype=dtype, last=last,
                  resolution=resolution or (128 if cuda else 32))
    with start(config, host, plain=True, script='ops_worker.py') as sides, tempfile.TemporaryDirectory() as folder:
        facts = [side.ask('facts') for side in sides]
        shared = [name for name in facts[0]['work'] if all(name in other['work'] for other in facts)]
        paths = [os.path.join(folder, str(i)) for i in range(2)]
        for side, path in zip(sides, paths):  # Alone, this project's kernels are compared with PyTorch's operators.
            side.ask('results', path)
        apart = differences(paths)
        moved, flops = sides[0].ask('moved'), sides[-1].ask('count_flops')
        results = measure(sides, shared, rounds, seconds)
        for name in [name for name in facts[0]['work'] if name not in shared]:
            for r in results:
                r[name] = [side.ask('measure', name) for side in (sides[0], sides[-1])]
        for r in results:
            r.update({name: r.pop(name) for name in facts[0]['work']})
    import peaks  # After the sides have ended, so that they don't share the machine.

    best = peaks.measure_peaks(device)
    peak = {'float32': 'matmul fp32', 'float16': 'matmul fp16', 'bfloat16': 'matmul bf16'}[dtype]
    head = ['operator', f'{OURS}, ms', f'{THEIRS}, ms', 'times faster', 'quartiles', 'kernels off, ms', 'times faster',
            'rate', 'of copy or matmul', 'difference']
    print(f'Operators on [{config["batch"]}, {channels}, {config["resolution"]}, {config["resolution"]}], {dtype}, '
          f'layout {layout}; {len(results)} rounds. '
          + common.machine(facts[0]['gpu'], facts[0]['threads'], facts[0]['torch']) + '\n')
    print('\n'.join(common.markdown(head, rows(results, moved, flops, apart, best, peak))))
    print(f"\nPyTorch's best in the same run: {peaks.said(best)}. Rates count what must be read and written, or the "
          f'arithmetic. Differences are relative, to {"the original" if host else "kernels off"}.')
    sys.stdout.flush()


if __name__ == '__main__':
    main()
