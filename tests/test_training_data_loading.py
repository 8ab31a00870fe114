"""Batches made ahead are those of reading one by one, whatever works ahead; what fails is one line; nothing stays."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest
import torch

from dnnlib.util import UserError
from lia_plugin import host
from metrics.metric_utils import iterate_dataset
from torch_utils import misc
from training import data_loading, image_cache
from training.dataset import ImageFolderDataset
from training.staging import CudaStaging

CPU = torch.device('cpu')
COUNT, IMAGE = 12, 8 * 8 * 3


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve 8×8 pictures in a zip, PNG and JPEG, and three classes."""
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.RandomState(0)
    names = [f'{i:02d}.{"jpg" if i % 3 == 0 else "png"}' for i in range(COUNT)]
    for name in names:
        PIL.Image.fromarray(rng.randint(0, 256, [8, 8, 3], dtype=np.uint8)).save(folder / name)
    (folder / 'dataset.json').write_text(json.dumps({'labels': [[n, i % 3] for i, n in enumerate(names)]}))
    return shutil.make_archive(str(folder), 'zip', folder)


@contextlib.contextmanager
def batches(path: str, limit: Any = 'off', workers: int = 0, start: int = 0, **kwargs: Any) -> Iterator[Any]:
    dataset = ImageFolderDataset(path, use_labels=True, **kwargs)
    image_cache.keep(dataset, limit, rank=0)
    sampler = misc.InfiniteSampler(dataset, seed=1, start=start)
    try:
        with contextlib.closing(data_loading.stream(dataset, sampler, 5, CPU, workers)) as stream:
            yield stream
    finally:
        image_cache.release(dataset)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}  # Zombies too.


@pytest.mark.parametrize('limit', ['off', 'auto', 5 * IMAGE])
@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_what_reading_one_by_one_gives(pictures: str, limit: Any, workers: int) -> None:
    before = children()
    dataset = ImageFolderDataset(pictures, use_labels=True, xflip=True)
    items = list(itertools.islice(misc.InfiniteSampler(dataset, seed=1), 100))
    with batches(pictures, limit, workers, xflip=True) as stream:
        for i in range(20):
            images, labels = next(stream)
            assert images.dtype == torch.uint8 and labels.dtype == torch.float32
            for item, image, label in zip(items[5 * i :], images, labels):
                assert np.array_equal(image, dataset[item][0]) and np.array_equal(label, dataset[item][1])
        assert not stream.is_filling or limit != 'off'
    assert children() == before, 'a process stayed'


def test_resumed_order_is_exact_with_and_without_memory(pictures: str) -> None:
    def some(count: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        with batches(pictures, *args, **kwargs) as stream:
            return torch.cat([images for images, _ in itertools.islice(stream, count)])

    whole = some(8)
    assert torch.equal(whole[15:], some(5, 'auto', 1, start=15))
    assert torch.equal(whole[15:], some(5, 'off', 2, start=15))


def test_items_that_end_give_a_smaller_last_batch(pictures: str) -> None:
    dataset = ImageFolderDataset(pictures)
    for workers in (0, 1):
        stream = data_loading.stream(dataset, range(COUNT), 5, CPU, workers)
        assert [len(images) for images, _ in stream] == [5, 5, 2]
        assert next(stream, None) is None, 'an end is an end'
        stream.close()


def test_a_subclass_with_pixels_of_its_own_is_asked_for_them(pictures: str) -> None:
    class Inverted(ImageFolderDataset):
        def _load_raw_image(self, raw_idx: int) -> np.ndarray:
            return 255 - super()._load_raw_image(raw_idx)

    state = torch.get_rng_state()
    stream = data_loading.stream(Inverted(pictures), range(COUNT), 5, CPU, prefetch_factor=None)
    images = torch.cat([images for images, _ in stream])
    assert torch.equal(torch.get_rng_state(), state), 'nobody draws numbers on which training counts'
    assert np.array_equal(255 - images[7].numpy(), ImageFolderDataset(pictures)[7][0])


@pytest.mark.parametrize('limit', ['off', 'auto'])
def test_a_bad_image_is_one_line_after_the_batches_before_it(
    pictures: str, tmp_path: pathlib.Path, limit: str
) -> None:
    shutil.unpack_archive(pictures, tmp_path / 'broken')
    broken = tmp_path / 'broken' / '08.png'
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = ImageFolderDataset(str(tmp_path / 'broken'))
    image_cache.keep(dataset, limit, rank=0)
    for workers in (0, 1):
        with contextlib.closing(data_loading.stream(dataset, range(COUNT), 4, CPU, workers)) as stream:
            assert len(list(itertools.islice(stream, 2))) == 2
            with pytest.raises(UserError) as caught:
                next(stream)
            assert '08.png' in str(caught.value) and '\n' not in str(caught.value)
    image_cache.release(dataset)


def test_a_worker_that_dies_is_one_line(pictures: str) -> None:
    before = children()
    with batches(pictures, workers=2) as stream:
        next(stream)
        for pid in children() - before:
            os.kill(pid, signal.SIGTERM)  # Meant for the loop, which ends its workers itself.
        next(stream)
        os.kill(min(children() - before), signal.SIGKILL)
        with pytest.raises(UserError, match='--workers: a process that reads images has died .killed') as caught:
            for _ in range(200):
                next(stream)
        assert '\n' not in str(caught.value)
    assert children() == before


def test_workers_end_when_all_is_in_memory_and_the_rest_goes_on(
    pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_loading, '_LOOK_EVERY', 4)
    before = children()
    with batches(pictures, 'auto', workers=1) as stream:
        first = next(stream)[0].clone()
        assert stream.is_filling and len(children() - before) == 1
        for _ in range(30):
            next(stream)
        assert not stream.is_filling and children() == before
    assert first.shape == (5, 3, 8, 8)


@pytest.mark.skipif(os.name != 'posix', reason='POSIX signals')
def test_workers_follow_a_process_that_is_killed(pictures: str, tmp_path: pathlib.Path) -> None:
    code = ('import sys, time, torch\nfrom training import data_loading\nfrom training.dataset import *\n'
            'd = ImageFolderDataset(sys.argv[1])\n'
            's = data_loading.stream(d, range(12), 2, torch.device("cpu"), 1)\nnext(s)\n'
            'print(s._pool._processes[0].pid, flush=True)\ntime.sleep(60)')
    with subprocess.Popen([sys.executable, '-c', code, pictures], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.wait(timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE  # init's to bury


def test_waiting_is_counted(pictures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with batches(pictures) as stream:
        read = stream._dataset.reader.read
        monkeypatch.setattr(stream._dataset.reader, 'read', lambda idx: time.sleep(0.02) or read(idx))
        for _ in range(6):
            next(stream)
        slow, stream.waited = stream.waited, 0.0
        assert slow > 0.1
        time.sleep(0.6)  # Two batches are made meanwhile.
        next(stream)
        assert stream.waited < 0.1


def test_metrics_take_the_same_way_and_read_from_memory(pictures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageFolderDataset(pictures)
    expected = [dataset[i][0] for i in range(COUNT)]
    image_cache.keep(dataset, 'auto', rank=0)
    try:
        for _ in range(2):
            ways = iterate_dataset(dataset, list(range(COUNT)), 5, CPU), host.batches(dataset, range(COUNT), 5, CPU)
            for loaded in ways:
                assert np.array_equal(torch.cat([images for images, _ in loaded]), expected)
            monkeypatch.setattr(type(dataset.reader), 'read', None)  # All is there by now.
    finally:
        image_cache.release(dataset)


def test_processes_are_started_where_they_are_worth_it(pictures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(data_loading, 'ReadAhead', lambda *args: asked.append(args[-1]))
    monkeypatch.setattr(data_loading, 'usable_cpus', lambda: 8)
    dataset = ImageFolderDataset(pictures)
    for items in (range(COUNT), [0] * (data_loading.WORTH_A_START // IMAGE + 1)):
        dataset.stream(items, 4, CPU)
    assert asked == [0, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
def test_batches_arrive_whole_on_a_gpu_that_is_busy(pictures: str) -> None:
    device = torch.device('cuda', 0)
    dataset = ImageFolderDataset(pictures, use_labels=True)
    items = list(itertools.islice(misc.InfiniteSampler(dataset, seed=1), 300))
    stream = data_loading.stream(dataset, items, 5, device, 1)
    assert isinstance(stream, data_loading.ReadAhead) and isinstance(stream._staging, CudaStaging)
    busy = torch.randn(2048, 2048, device=device)
    sums = []
    for images, labels in stream:
        busy = busy @ busy / 2048  # The loop's own work is late, and still has to see this batch, not a later one.
        sums.append((images.double().sum() + 0 * busy[0, 0].double(), labels.argmax(1)))
        del images, labels
    stream.close()
    for i, (total, classes) in enumerate(sums):
        wanted = [dataset[item] for item in items[5 * i : 5 * i + 5]]
        assert int(total) == sum(int(image.astype(np.int64).sum()) for image, _ in wanted)
        assert classes.tolist() == [int(label.argmax()) for _, label in wanted]
