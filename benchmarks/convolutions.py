"""Times 3×3 convolutions of the sizes' layers and their gradients by every algorithm that there is, in turns.

    python benchmarks/convolutions.py --size=A,B,C
    LIA_CPU_FEATURES=-amx,-avx512 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/convolutions.py

Prints a Markdown table on stdout: GFLOP/s of the definition's arithmetic, and errors against float64. The second
command is what there is on a CPU without AVX-512.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import common
from common import SIZES, number

Call = Callable[[], Any]


def shapes(sizes: list[str]) -> Iterator[tuple[int, int, int]]:
    """Images, channels and resolution of the layers of stride 1, each once."""
    seen = set()
    for size in sizes:
        resolution, base, most, batch, _ = SIZES[size]
        while resolution >= 4:
            shape = batch, min(base // resolution, most), resolution
            if shape not in seen:
                yield shape
            seen.add(shape)
            resolution //= 2


def algorithms(n: int, channels: int, size: int) -> dict[str, dict[str, Call]]:
    """What there is to time, by work and then by algorithm; PyTorch's comes first, once in each memory format."""
    import torch

    from torch_utils.ops import amx_conv, winograd_conv

    pads, last = (1, 1), torch.channels_last
    tensors = [torch.randn(n, channels, size, size), torch.randn(channels, channels, 3, 3),
               torch.randn(n, channels, size, size)]
    x, w, g = (t.contiguous(memory_format=last) for t in tensors)
    kept = w.clone(memory_format=torch.contiguous_format)  # As parameters lie.
    parameter = torch.nn.Parameter(kept, requires_grad=False)

    def theirs(x: Any, w: Any, g: Any) -> list[Call]:
        def backward(which: int) -> Call:
            mask = [which == 0, which == 1, False]
            return lambda: torch.ops.aten.convolution_backward(
                g, x, w, None, [1, 1], pads, [1, 1], False, [0, 0], 1, mask)[which]
        return [lambda: torch.nn.functional.conv2d(x, w, None, 1, pads), backward(0), backward(1)]

    found = {'PyTorch, NHWC': theirs(x, w, g), 'PyTorch, NCHW': theirs(*tensors)}
    if amx_conv.available():
        found['tiles'] = [lambda: amx_conv.conv2d(x, kept, 1, pads),
                          lambda: amx_conv.conv_transpose2d(g, kept, 1, pads),
                          lambda: amx_conv.weight_gradient(g, x, (3, 3), 1, pads)]
    if winograd_conv.available():
        found['Winograd'] = [lambda: winograd_conv.conv2d(x, kept, pads),
                             lambda: winograd_conv.conv_transpose2d(g, kept, pads),
                             lambda: winograd_conv.weight_gradient(g, x, pads)]
        packed = [None, None]
        with torch.no_grad():  # Asked for twice.
            for _ in range(2):
                packed = [winograd_conv.kept_weights(parameter, transpose) for transpose in (False, True)]
        found['weights kept'] = [lambda: winograd_conv.conv2d(x, kept, pads, packed[0]),
                                 lambda: winograd_conv.conv_transpose2d(g, kept, pads, packed[1])]
    works = ['forward', 'input gradient', 'weight gradient']
    return {work: {name: calls[i] for name, calls in found.items() if i < len(calls)} for i, work in enumerate(works)}


def exact(n: int, channels: int, size: int, seed: int) -> dict[str, Any]:
    """The same in float64."""
    import torch

    torch.manual_seed(seed)
    x, w, g = (torch.randn(shape).double() for shape in
               [(n, channels, size, size), (channels, channels, 3, 3), (n, channels, size, size)])
    y = torch.nn.functional.conv2d(x, w, None, 1, 1)
    gradients = torch.ops.aten.convolution_backward(
        g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    return {'forward': y, 'input gradient': gradients[0], 'weight gradient': gradients[1]}


def errors(channels: int, size: int) -> dict[str, dict[str, float]]:
    """‖a − b‖ / ‖b‖ to float64, of two images."""
    import torch

    expected = exact(2, channels, size, 0)
    torch.manual_seed(0)
    return {work: {name: float((call() - expected[work]).norm() / expected[work].norm())
                   for name, call in calls.items()} for work, calls in algorithms(2, channels, size).items()}


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


@click.command(context_settings={'show_default': True})
@click.option('--size', default='A,B,C', help=f'Of the networks, with commas: {", ".join(SIZES)}')
@click.option('--batch', type=click.IntRange(min=1), help="Images, instead of the size's")
@click.option('--rounds', type=click.IntRange(min=1), default=7, help='Measurements of each')
def main(size: str, batch: int | None, rounds: int) -> None:
    """Time convolutions and their gradients."""
    if unknown := set(size.split(',')) - set(SIZES):
        raise click.UsageError(f'--size: {unknown.pop()!r} is none of {", ".join(SIZES)}')
    common.settle()
    names = ['PyTorch, NHWC', 'PyTorch, NCHW', 'tiles', 'Winograd', 'weights kept']
    print(f'Convolutions 3×3, GFLOP/s (error); {rounds} rounds. {common.here()}\n')
    head = ['images, channels, pixels', 'work', *names, 'best over NHWC']
    table = []
    for n, channels, resolution in shapes(size.split(',')):
        n = batch or n
        wrong = errors(channels, resolution)
        for work, calls in algorithms(n, channels, resolution).items():
            times = in_turns(calls, rounds)
            flops = 2 * n * resolution ** 2 * channels ** 2 * 9
            cells = [f'{number(flops / statistics.median(times[name]) / 1e9)} ({wrong[work][name]:.0e})'
                     if name in times else '–' for name in names]
            best = min(times, key=lambda name: statistics.median(times[name]))
            cells.append(common.ratio_cells(times[best], times['PyTorch, NHWC'])[0])
            table.append([f'{n}, {channels}, {resolution}²', work, *cells])
    print('\n'.join(common.markdown(head, table, text_columns=2)))


if __name__ == '__main__':
    main()
