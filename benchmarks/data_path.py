"""Images a second from a data set's file to the training loop, and how long the loop waits for them.

    python benchmarks/data_path.py --host=stylegan2-ada-pytorch
    python benchmarks/data_path.py --kinds=jpg --resolutions=1024 --workers=0,3 --host=stylegan2-ada-pytorch

Pictures are smooth colours under a little noise, which compress about as photographs do. The original's side is its own
ImageFolderDataset, unchanged, in torch's DataLoader, as its loop has it; both sides get the same order, and the first
batches are compared before anything is timed. "In memory" is timed once all images are there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import click
import common
import numpy as np
import PIL.Image
import torch

sys.path.insert(0, common.PROJECT)

from torch_utils import misc  # noqa: E402
from training import data_loading, image_cache  # noqa: E402
from training.dataset import ImageFolderDataset  # noqa: E402

# 'stored' is how both projects' dataset_tool.py write PNGs: not compressed.
KINDS: dict[str, dict[str, Any]] = {
    'png': dict(format='PNG', compress_level=6),
    'stored': dict(format='PNG', compress_level=0),
    'jpg': dict(format='JPEG', quality=95),
}
BATCH_PIXELS = 2**19  # Of a batch, …
MOST, LEAST = 32, 4  # … within these numbers of images.
CPU = torch.device('cpu')

Source = Callable[[], contextlib.AbstractContextManager[Iterator[Any]]]


def batch_size(resolution: int) -> int:
    return max(min(BATCH_PIXELS // resolution**2, MOST), LEAST)


def write_zip(path: str, kind: str, resolution: int, count: int) -> None:
    rng = np.random.RandomState(resolution)
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(count):
            rough = PIL.Image.fromarray(rng.randint(0, 256, [8, 8, 3], dtype=np.uint8))
            smooth = np.asarray(rough.resize([resolution, resolution], PIL.Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = (smooth + rng.randint(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
            file = io.BytesIO()
            PIL.Image.fromarray(noisy).save(file, **KINDS[kind])
            archive.writestr(f'{i:05d}.{"jpg" if kind == "jpg" else "png"}', file.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# Sides


def host_dataset(host: str) -> Any:
    """The checkout's module of data sets, under a name of its own. It needs nothing else of the checkout but EasyDict.
    """
    spec = importlib.util.spec_from_file_location('host_dataset', os.path.join(host, 'training', 'dataset.py'))
    assert spec is not None and spec.loader is not None, 'a file has both'
    module = importlib.util.module_from_spec(spec)
    sys.modules['host_dataset'] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def original(module: Any, path: str, batch: int, workers: int) -> Iterator[Iterator[Any]]:
    dataset = module.ImageFolderDataset(path)
    dataset.close()  # Forked workers would share its open file.
    more: dict[str, Any] = dict(prefetch_factor=2) if workers else {}
    loader: Any = torch.utils.data.DataLoader(
        dataset, batch_size=batch, sampler=misc.InfiniteSampler(dataset), num_workers=workers, **more)
    yield iter(loader)
    dataset.close()


@contextlib.contextmanager
def ours(limit: str, path: str, batch: int, workers: int) -> Iterator[Iterator[Any]]:
    dataset = ImageFolderDataset(path)
    image_cache.keep(dataset, limit, rank=0)
    try:
        if limit != 'off':
            for item in range(len(dataset)):
                dataset[item]
        with contextlib.closing(data_loading.stream(
                dataset, misc.InfiniteSampler(dataset), batch, CPU, workers)) as batches:
            yield batches
    finally:
        image_cache.release(dataset)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def rate(source: Source, batch: int, seconds: float) -> float:
    """Images a second, once the first batches have come."""
    with source() as batches:
        for _ in range(data_loading.AHEAD + data_loading.READY + 1):  # What was made ahead doesn't count.
            next(batches)
        began, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds or count < 3:
            next(batches)
            count += 1
    return count * batch / passed


def waiting(source: Source, step: float, seconds: float) -> float:
    """The share of a loop's time that it waits, in percent, if a step takes `step` seconds on another device."""
    with source() as batches:
        next(batches)
        waited, began = 0.0, time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            next(batches)
            waited += time.perf_counter() - now
            time.sleep(step)
        return 100 * waited / (now - began)


def compare(sources: dict[str, Source], what: str) -> None:
    """ClickException unless all sides give the same first batches."""
    firsts = []
    for source in sources.values():
        with source() as batches:
            firsts.append(torch.cat([images for images, _labels in itertools.islice(batches, 3)]))
    if not all(torch.equal(first, firsts[0]) for first in firsts):
        raise click.ClickException(f'{what}: the sides give different images; nothing is timed')


def sides(host: Any, path: str, batch: int, workers: int) -> dict[str, Source]:
    found: dict[str, Source] = {} if host is None else {'original': lambda: original(host, path, batch, workers)}
    return {**found, 'decoding': lambda: ours('off', path, batch, workers),
            'in memory': lambda: ours('auto', path, batch, workers)}


def in_turns(
    sources: dict[str, Source], rounds: int, measure: Callable[..., float], *arguments: float
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in sources}
    for i in range(rounds):
        for name in list(sources)[:: 1 if i % 2 else -1]:
            found[name].append(measure(sources[name], *arguments))
    return found


def rate_cells(found: dict[str, list[float]]) -> list[str]:
    cells = []
    for name, rates in found.items():
        cells.append(common.number(statistics.median(rates)))
        if name != 'original' and 'original' in found:
            ratios = [mine / theirs for mine, theirs in zip(rates, found['original'], strict=True)]
            cells.append(f'{statistics.median(ratios):.2f}')
    return cells


def numbers(_ctx: Any, _param: Any, text: str) -> list[int]:
    return [int(word) for word in text.split(',')]


@click.command(context_settings={'show_default': True})
@common.host_option()
@click.option('--resolutions', default='32,128,256,1024', callback=numbers)
@click.option('--kinds', default='png,stored,jpg', help=f'Of {", ".join(KINDS)}')
@click.option('--workers', default='0,1,3', callback=numbers)
@click.option('--step-ms', type=float, default=100.0, help='Of an iteration, where waiting is measured; 0 = not')
@click.option('--rounds', type=click.IntRange(min=1), default=3)
@click.option('--seconds', type=float, default=0.6, help='Of each measurement')
def main(host: str | None, resolutions: list[int], kinds: str, workers: list[int], step_ms: float, rounds: int,
         seconds: float) -> None:
    """Measure the way of images from a zip to the training loop."""
    common.stop_on_sigterm()
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore', 'This DataLoader will create')  # More workers than cores are asked for.
    module = host_dataset(host) if host else None
    names = list(sides(module, '', 1, 0))
    head = ['images', 'workers'] + [cell for name in names for cell in
                                    ([name, '×'] if host and name != 'original' else [name])]
    rates, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind, resolution in itertools.product(kinds.split(','), resolutions):
            path, batch = os.path.join(folder, f'{kind}{resolution}.zip'), batch_size(resolution)
            write_zip(path, kind, resolution, max(min(2**22 // resolution**2, 1000), 3 * batch))
            for count in workers:
                what = [f'{kind} {resolution}², batch {batch}', str(count)]
                sources = sides(module, path, batch, count)
                compare(sources, what[0])
                rates.append([*what, *rate_cells(in_turns(sources, rounds, rate, batch, seconds))])
                if step_ms:
                    waits = in_turns(sources, rounds, waiting, step_ms / 1e3, max(seconds, step_ms / 100))
                    shares.append([*what, *(f'{statistics.median(found):.1f}' for found in waits.values())])
                print(rates[-1], file=sys.stderr, flush=True)
            os.remove(path)
    cores = f', {common.cores()} cores to decode on'
    print('\n'.join([common.here(extra=cores), '', 'Images a second:', '', *common.markdown(head, rates, 2)]))
    if step_ms:
        title = f'The share of its time that a loop waits, in percent, if a step takes {step_ms:g} ms elsewhere:'
        print('\n'.join(['', title, '', *common.markdown(['images', 'workers', *names], shares, 2)]))


if __name__ == '__main__':
    main()
