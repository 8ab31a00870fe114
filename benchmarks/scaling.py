"""How much faster several processes are: training, encoder steps, features of metrics, inversion of a folder.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --size=B --processes=1,2,4 --device=cuda

The same work for any number of processes, by the loops that the commands run: the batch stays the total, and so does
the number of images. On a CPU each process has one thread (--threads), or else one process would take all cores and
there would be nothing to share. Times are without starts, loading and saving, but with the wait for the slowest.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import common
from common import PROJECT, SIZES

if PROJECT not in sys.path:
    sys.path.insert(0, PROJECT)

ITERATIONS = 16  # As many as have each regularisation at least once.
BATCH = 8  # Of inversion and of metrics, for each process.
WORK = {'training': 'training iteration', 'encoder': 'encoder iteration', 'features': 'calc_metrics fid50k_full',
        'invert': 'invert a folder'}


class Measured(NamedTuple):
    images: int
    seconds: float
    talking: float  # Of these, in all_reduce of the first process.


class Place(NamedTuple):
    """Where the benchmark's files are, and its size; sent to all processes."""

    folder: str
    size: str
    device: str
    threads: int
    images: int

    @property
    def numbers(self) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(common.DIMENSIONS, SIZES[self.size])))

    def file(self, name: str) -> str:
        return os.path.join(self.folder, name)


# ---------------------------------------------------------------------------------------------------------------------
# In each process


class Clock:
    """The time at each iteration's begin, and what all_reduce has taken by then."""

    def __init__(self) -> None:
        self.talking = 0.0
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> bool:
        """As a training loop's abort_fn: asked before each iteration, never stops it."""
        self.marks.append((time.perf_counter(), self.talking))
        return False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        import torch

        plain = torch.distributed.all_reduce

        def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.talking += time.perf_counter() - began

        def all_reduce(*args: Any, **kwargs: Any) -> Any:
            work = timed(plain, *args, **kwargs)
            return None if work is None else SimpleNamespace(wait=lambda *more: timed(work.wait, *more))

        torch.distributed.all_reduce = all_reduce
        try:
            yield
        finally:
            torch.distributed.all_reduce = plain


def loop_arguments(place: Place, stage: str) -> dict[str, Any]:
    """Arguments of the training loop for ITERATIONS and two more, of which the first and the last don't count."""
    numbers = place.numbers
    channels = dict(channel_base=numbers.channel_base, channel_max=numbers.channel_max)
    total = numbers.batch * (ITERATIONS + 2) / 1000
    adam = dict(class_name='torch.optim.Adam', lr=0.002, betas=[0, 0.99], eps=1e-8)
    return dict(
        training_set_kwargs=dict(class_name='training.dataset.ImageFolderDataset', path=place.file('images')),
        G_kwargs=dict(class_name='lia_plugin.networks.Generator', z_dim=numbers.latent, w_dim=numbers.latent,
                      synthesis_kwargs=channels),
        D_kwargs=dict(class_name='training.networks.Discriminator', epilogue_kwargs=dict(mbstd_group_size=4),
                      **channels),
        G_opt_kwargs=adam, D_opt_kwargs=adam, loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss', r1_gamma=1),
        batch_size=numbers.batch, total_kimg=total, kimg_per_tick=total, image_snapshot_ticks=None,
        network_snapshot_ticks=None, stage=stage, device=place.device,
    )  # fmt: skip


def train(rank: int, world_size: int, place: Place, stage: str) -> Measured:
    """Iterations of a stage in the commands' own loop."""
    from training.training_loop import training_loop

    arguments = loop_arguments(place, stage)
    if stage == 'encoder':
        init = place.file('init.pkl')
        arguments.update(
            G_kwargs=dict(arguments['G_kwargs'], encoder_kwargs=dict(arguments['G_kwargs']['synthesis_kwargs'])),
            loss_kwargs=dict(class_name='lia_plugin.loss.EncoderLoss', percep='disc', percep_network=init,
                             adv_weight=0.1),
            G_reg_interval=None, resume_pkl=init,
        )  # fmt: skip
    run_dir = place.file(f'run-{stage}')
    os.makedirs(run_dir, exist_ok=True)
    clock = Clock()
    with clock.listening(), open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        training_loop(**arguments, run_dir=run_dir, num_gpus=world_size, rank=rank, abort_fn=clock.mark,
                      batch_gpu=arguments['batch_size'] // world_size)  # fmt: skip
    (begin, before), (end, after) = clock.marks[1], clock.marks[1 + ITERATIONS]
    return Measured(ITERATIONS * arguments['batch_size'], end - begin, after - before)


def features(rank: int, world_size: int, place: Place) -> Measured:
    """Features of real and of generated images, and their distance."""
    from lia_plugin import host
    from metrics import metric_main

    device = host.own_device(place.device, rank)
    G = host.load_network_pkl(place.file('init.pkl'))['G_ema'].eval().requires_grad_(False).to(device)
    os.environ['DNNLIB_CACHE_DIR'] = tempfile.mkdtemp(dir=place.folder) if rank == 0 else place.folder
    clock = Clock()
    with clock.listening():
        clock.mark()
        metric_main.calc_metric(
            'fid50k_full', G=G, dataset_kwargs=loop_arguments(place, 'gan')['training_set_kwargs'], rank=rank,
            num_gpus=world_size, device=device, detector='random:0', num=place.images, batch=BATCH,
        )  # fmt: skip
        clock.mark()
    return _between(clock, 2 * place.images)


def invert(rank: int, world_size: int, place: Place) -> Measured:
    """A folder from files to files; a first call has read and warmed up what is there."""
    from lia_plugin.invert_options import InvertOptions
    from lia_plugin.invert_shares import invert_share
    from lia_plugin.targets import collect

    items = collect([place.file('images')])[: place.images]
    clock = Clock()
    for count in (BATCH * world_size, len(items)):
        asked = InvertOptions(place.file('init.pkl'), (), outdir=place.file(f'out{world_size}'), batch=BATCH,
                              lpips_source='none', check_alignment=False)  # fmt: skip
        clock.marks.clear()
        with clock.listening(), open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
            clock.mark()
            invert_share(rank, world_size, asked, items[:count], place.device)
            clock.mark()
    return _between(clock, len(items))


def _between(clock: Clock, images: int) -> Measured:
    (begin, before), (end, after) = clock.marks
    return Measured(images, end - begin, after - before)


def work(rank: int, world_size: int, place: Place, name: str) -> Measured:
    import torch

    if torch.device(place.device).type == 'cpu':
        torch.set_num_threads(place.threads)
    if name in ('training', 'encoder'):
        return train(rank, world_size, place, {'training': 'gan'}.get(name, name))
    return {'features': features, 'invert': invert}[name](rank, world_size, place)


# ---------------------------------------------------------------------------------------------------------------------
# In the first


def prepare(place: Place) -> None:
    """Images, and a network with an encoder."""
    import numpy as np
    import PIL.Image

    from lia_plugin.stages import prepare_encoder_stage

    os.makedirs(place.file('images'))
    side = place.numbers.resolution
    for i in range(max(place.images, place.numbers.batch)):
        pixels = np.random.RandomState(i).randint(0, 256, [side, side, 3], dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(place.file(f'images/{i:04d}.png'))
    train(0, 1, place, 'gan')
    snapshot = next(name for name in os.listdir(place.file('run-gan')) if name.endswith('.pkl'))
    numbers = place.numbers
    channels = dict(channel_base=numbers.channel_base, channel_max=numbers.channel_max)
    prepare_encoder_stage(place.file(f'run-gan/{snapshot}'), place.file('init.pkl'), channels, device=place.device)


def measure(place: Place, names: list[str], counts: list[int], rounds: int) -> dict[tuple[str, int], list[Measured]]:
    """All works in turn, each round with all numbers of processes, in changing order."""
    from torch_utils import distributed

    found: dict[tuple[str, int], list[Measured]] = {}
    for number in range(rounds):
        for name in names:
            for count in counts if number % 2 == 0 else counts[::-1]:
                got = distributed.spawn(work, count, (place, name), device=place.device)
                found.setdefault((name, count), []).append(got)
                print(f'{name}, {count}: {got.images / got.seconds:.1f} images/s', file=sys.stderr, flush=True)
    return found


def table(found: dict[tuple[str, int], list[Measured]], counts: list[int]) -> list[str]:
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        alone = [one.images / one.seconds for one in found[name, counts[0]]]
        for count in counts:
            rates = [one.images / one.seconds for one in found[name, count]]
            ratios = [rate / first for rate, first in zip(rates, alone, strict=True)]
            talks = statistics.median(one.talking / one.seconds for one in found[name, count])
            rows.append([WORK[name], str(count), common.number(statistics.median(rates)),
                         f'{statistics.median(ratios):.2f}', '{:.2f}–{:.2f}'.format(*common.quartiles(ratios)),
                         f'{statistics.median(ratios) * counts[0] / count:.0%}', f'{talks:.0%}'])  # fmt: skip
    head = ['work', 'processes', 'images/s', 'times faster', 'quartiles', 'efficiency', 'in all_reduce']
    return common.markdown(head, rows)


@click.command(context_settings={'show_default': True})
@click.option('--size', type=click.Choice(list(SIZES)), default='A')
@click.option('--processes', default='', metavar='LIST', help='[default: 1, 2, 4 … up to the cores or GPUs]')
@click.option('--only', default=','.join(WORK), help='With commas')
@click.option('--rounds', type=click.IntRange(min=1), default=3)
@click.option('--threads', type=click.IntRange(min=1), default=1, help='Of each process, on a CPU')
@click.option('--images', type=click.IntRange(min=8), default=256, help='Of features and invert')
@common.device_option()
def main(size: str, processes: str, only: str, rounds: int, threads: int, images: int, device: str) -> None:
    """Measure how work scales over processes."""
    common.stop_on_sigterm()
    os.environ['OMP_NUM_THREADS'] = str(threads)  # Of the processes to come, too, before OpenMP is loaded.
    device = common.pick_device(device)
    import torch

    units = torch.cuda.device_count() if device == 'cuda' else common.cores() // threads
    most = [2**i for i in range(10) if 2**i <= max(units, 1)]
    counts = [int(part) for part in processes.split(',')] if processes else most
    names = only.split(',')
    if unknown := set(names) - set(WORK):
        raise click.UsageError(f'--only: {unknown.pop()!r} is none of {", ".join(WORK)}')
    if wrong := next((count for count in counts if SIZES[size][3] % count), None):
        raise click.UsageError(f'--processes: {wrong} can\'t share a batch of {SIZES[size][3]}')
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder, size, device, threads, images)
        prepare(place)
        found = measure(place, names, counts, rounds)
    limit = '' if max(counts) * threads <= common.cores() or device == 'cuda' else '; more threads than cores'
    each = f', {threads} thread{"s" * (threads != 1)} a process, of {common.cores()} cores{limit}'
    print('\n'.join([common.here(device, f', size {size}{each if device == "cpu" else ""}'), '',
                     *table(found, counts)]))  # fmt: skip


if __name__ == '__main__':
    main()
