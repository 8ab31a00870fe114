"""How much faster several processes are: training, encoder steps, features of metrics, inversion of a folder.

    python benchmarks/scaling.py                                                # five minutes on two idle cores
    python benchmarks/scaling.py --size=D --device=cuda --processes=1,2,4,8 --only=training,encoder

The loops that the commands run, each time in fresh processes. The same work for any number of processes: the batch
stays the total, and so does the number of images. Training is measured once more with the whole batch in each process.
On a CPU processes share the cores, and one process is measured with all of them and with one thread. Times are without
starts, loading and saving, but with the wait for the slowest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import common
from common import PROJECT, SIZES
from process_clock import PARTS, Clock, Measured

if PROJECT not in sys.path:
    sys.path.insert(0, PROJECT)

ITERATIONS = 16  # As many as have each regularisation at least once.
BATCH = 8  # Of inversion and of metrics, for each process.
WORK = {'training': 'training', 'weak': 'training, the batch in each process', 'encoder': 'encoder training',
        'features': 'calc_metrics fid50k_full', 'invert': 'invert a folder'}


class Setting(NamedTuple):
    processes: int
    threads: int = 1  # Of each, on a CPU.

    def __str__(self) -> str:
        return f'{self.processes} × {self.threads}'


Found = dict[tuple[str, Setting], list[Measured]]


class Place(NamedTuple):
    """Where the benchmark's files are, and its size; sent to all processes."""

    folder: str
    size: str
    device: str
    images: int
    batches: int = 1  # How many of the size's batches a training iteration has.

    @property
    def numbers(self) -> SimpleNamespace:
        numbers = SimpleNamespace(**dict(zip(common.DIMENSIONS, SIZES[self.size])))
        numbers.batch *= self.batches
        return numbers

    def file(self, name: str) -> str:
        return os.path.join(self.folder, name)


# ---------------------------------------------------------------------------------------------------------------------
# In each process


def loop_arguments(place: Place, stage: str, iterations: int = ITERATIONS) -> dict[str, Any]:
    """Of the training loop, for two iterations more."""
    numbers = place.numbers
    channels = dict(channel_base=numbers.channel_base, channel_max=numbers.channel_max)
    total = numbers.batch * (iterations + 2) / 1000
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


def train(rank: int, world_size: int, place: Place, stage: str, iterations: int = ITERATIONS) -> Measured:
    """Iterations of a stage in the commands' own loop; the one before them and the one after don't count."""
    from training.training_loop import training_loop

    arguments = loop_arguments(place, stage, iterations)
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
    with contextlib.ExitStack() as stack:
        stack.enter_context(clock.listening())
        stack.enter_context(clock.watching())
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
        training_loop(**arguments, run_dir=run_dir, num_gpus=world_size, rank=rank, abort_fn=clock.mark,
                      batch_gpu=arguments['batch_size'] // world_size)  # fmt: skip
    return clock.between(1, 1 + iterations, iterations * arguments['batch_size'])


def features(rank: int, world_size: int, place: Place) -> Measured:
    """Features of real and of generated images, and their distance; a first call has warmed up what is there."""
    from lia_plugin import host
    from metrics import metric_main

    device = host.own_device(place.device, rank)
    G = host.load_network_pkl(place.file('init.pkl'))['G_ema'].eval().requires_grad_(False).to(device)
    clock = Clock()
    for count in (BATCH * world_size, place.images):
        os.environ['DNNLIB_CACHE_DIR'] = tempfile.mkdtemp(dir=place.folder) if rank == 0 else place.folder
        clock.marks.clear()
        with clock.listening():
            clock.mark()
            metric_main.calc_metric(
                'fid50k_full', G=G, dataset_kwargs=loop_arguments(place, 'gan')['training_set_kwargs'], rank=rank,
                num_gpus=world_size, device=device, detector='random:0', num=count, batch=BATCH,
            )  # fmt: skip
            clock.mark()
    return clock.between(0, 1, 2 * place.images)


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
    return clock.between(0, 1, len(items))


def work(rank: int, world_size: int, place: Place, name: str) -> Measured:
    if name == 'weak':
        place = place._replace(batches=world_size)
    if name in ('training', 'weak', 'encoder'):
        return train(rank, world_size, place, 'encoder' if name == 'encoder' else 'gan')
    return {'features': features, 'invert': invert}[name](rank, world_size, place)


# ---------------------------------------------------------------------------------------------------------------------
# In the first


def started(setting: Setting, place: Place, function: Callable[..., Any], *more: Any) -> Any:
    """What the function gives in the first of so many fresh processes."""
    from torch_utils import distributed

    os.environ['OMP_NUM_THREADS'] = str(setting.threads)
    if setting.processes > 1:
        return distributed.spawn(function, setting.processes, (place, *more), device=place.device)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, 0, 1, place, *more).result()


def prepare(_rank: int, _world_size: int, place: Place) -> None:
    """Images, and a network with an encoder."""
    import numpy as np
    import PIL.Image

    from lia_plugin.stages import prepare_encoder_stage

    os.makedirs(place.file('images'))
    side = place.numbers.resolution
    for i in range(max(place.images, place.numbers.batch)):
        pixels = np.random.RandomState(i).randint(0, 256, [side, side, 3], dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(place.file(f'images/{i:04d}.png'))
    train(0, 1, place, 'gan', iterations=1)
    snapshot = next(name for name in os.listdir(place.file('run-gan')) if name.endswith('.pkl'))
    numbers = place.numbers
    channels = dict(channel_base=numbers.channel_base, channel_max=numbers.channel_max)
    with contextlib.redirect_stdout(sys.stderr):
        prepare_encoder_stage(place.file(f'run-gan/{snapshot}'), place.file('init.pkl'), channels, device=place.device)


def settings_of(counts: list[int], cores: int) -> list[Setting]:
    """Processes that share the cores, and one process with one thread: of a CPU."""
    shared = [Setting(count, max(cores // count, 1)) for count in counts]
    return list(dict.fromkeys([Setting(1, cores), Setting(1, 1), *shared]))


def measure(place: Place, names: list[str], settings: list[Setting], rounds: int, cores: int) -> Found:
    """All works in turn, each round in all settings, in changing order."""
    found: Found = {}
    for number in range(rounds):
        for name in names:
            for setting in settings[:: 1 if number % 2 == 0 else -1]:
                if name == 'weak' and not 1 < setting.processes <= cores:
                    continue  # It would be training itself, or take too long.
                got = started(setting, place, work, name)
                found.setdefault((name, setting), []).append(got)
                print(f'{name}, {setting}: {got.rate:.1f} images/s', file=sys.stderr, flush=True)
    return found


def table(found: Found, cores: int | None) -> list[str]:
    """Ratios within each round. cores: of a CPU; None = one GPU a process."""
    rows = []
    all_threads, single = Setting(1, cores or 1), Setting(1, 1)
    for name, setting in found:
        base = 'training' if name == 'weak' else name
        used = setting.processes * setting.threads
        row = [WORK[name], str(setting) if cores else str(setting.processes),
               common.number(statistics.median(one.rate for one in found[name, setting]))]
        for other in dict.fromkeys([all_threads, single]):
            pairs = zip(found[name, setting], found.get((base, other), []))
            ratios = [mine.rate / theirs.rate for mine, theirs in pairs]
            row.append(f'{statistics.median(ratios):.2f}' if ratios else '–')
        # The last column of ratios is that to one thread, or to one GPU.
        share = f'{statistics.median(ratios) / min(used, cores or used):.0%}' if ratios else '–'
        talks = statistics.median(one.talking / one.seconds for one in found[name, setting])
        rows.append([*row, share, f'{talks:.0%}'])
    threads = [f'with {cores} threads', 'with 1 thread'] if cores and cores > 1 else ['']
    head = ['work', 'processes × threads' if cores else 'processes', 'images/s',
            *(f'to one {other}'.strip() for other in threads), 'efficiency', 'in all_reduce']
    return common.markdown(head, rows)


def parts_table(found: Found) -> list[str]:
    """CPU milliseconds of the first process in an iteration, by what it does."""
    rows = []
    for (name, setting), measured in found.items():
        if name in ('training', 'weak', 'encoder'):
            spent = {part: 1e3 / ITERATIONS * statistics.median(one.parts[part] for one in measured)
                     for part in (*PARTS, 'all')}
            rest = spent['all'] - sum(spent[part] for part in PARTS)
            rows.append([WORK[name], str(setting), *(f'{ms:.1f}' for ms in (*spent.values(), rest))])
    return common.markdown(['work', 'processes × threads', *PARTS.values(), 'all', 'the rest'], rows) if rows else []


@click.command(context_settings={'show_default': True})
@click.option('--size', type=click.Choice(list(SIZES)), default='A')
@click.option('--processes', default='', metavar='LIST', help='[default: 1, 2, 4; on CUDA up to the GPUs]')
@click.option('--only', default='training,weak,features,invert', help=f'Of {", ".join(WORK)}')
@click.option('--rounds', type=click.IntRange(min=1), default=2)
@click.option('--images', type=click.IntRange(min=8), default=256, help='Of features and invert')
@common.device_option()
def main(size: str, processes: str, only: str, rounds: int, images: int, device: str) -> None:
    """Measure how work scales over processes."""
    common.stop_on_sigterm()
    for name in common.THREADING:  # Processes would inherit the one core that OpenMP has bound this one to.
        os.environ.pop(name, None)
    device = common.pick_device(device)
    import torch

    on_cpu = device == 'cpu'
    most = [1, 2, 4] if on_cpu else [2**i for i in range(10) if 2**i <= max(torch.cuda.device_count(), 1)]
    counts = [int(part) for part in processes.split(',')] if processes else most
    names = only.split(',')
    if unknown := set(names) - set(WORK):
        raise click.UsageError(f'--only: {unknown.pop()!r} is none of {", ".join(WORK)}')
    if wrong := next((count for count in counts if SIZES[size][3] % count), None):
        raise click.UsageError(f'--processes: {wrong} can\'t share a batch of {SIZES[size][3]}')
    cores = common.cores()
    settings = settings_of(counts, cores) if on_cpu else [Setting(count) for count in dict.fromkeys([1, *counts])]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder, size, device, images)
        started(settings[0], place, prepare)
        found = measure(place, names, settings, rounds, cores if on_cpu else max(counts))
    what = f', size {size}{f", on {cores} cores" if on_cpu else ""}, rounds: {rounds}'
    lines = [common.here(device, what), '', *table(found, cores if on_cpu else None)]
    if on_cpu and (parts := parts_table(found)):
        lines += ['', 'CPU milliseconds of the first process in an iteration, all its threads together:', '', *parts]
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
