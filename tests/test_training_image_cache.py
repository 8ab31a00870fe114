"""Images kept in memory: shared between processes, within a budget, the same bytes as decoding gives."""

import gc
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest

from dnnlib.util import EasyDict, UserError
from training import image_cache
from training.dataset import ImageFolderDataset
from training.image_memory import ImageMemory

COUNT, IMAGE = 10, 8 * 8 * 3


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.RandomState(0)
    for i in range(COUNT):
        PIL.Image.fromarray(rng.randint(0, 256, [8, 8, 3], dtype=np.uint8)).save(folder / f'{i}.png')
    return str(folder)


@pytest.fixture
def dataset(pictures: str) -> Iterator[ImageFolderDataset]:
    opened = ImageFolderDataset(pictures)
    yield opened
    image_cache.release(opened)


def test_another_process_sees_what_is_written_and_the_other_way_round() -> None:
    memory = ImageMemory(3, [3, 8, 8])
    memory.put(1, np.full([3, 8, 8], 7, np.uint8))
    code = ('import sys, numpy as np; from training.image_memory import ImageMemory; '
            'm = ImageMemory(3, [3, 8, 8], sys.argv[1]); m.put(2, m.images[1] + 1); '
            'assert m.present.tolist() == [0, 1, 1]; assert "torch" not in sys.modules')
    subprocess.run([sys.executable, '-c', code, memory.handle], check=True)
    assert memory.present.tolist() == [0, 1, 1] and (memory.images[2] == 8).all() and (memory.images[0] == 0).all()


def test_memory_goes_with_who_looks_at_it() -> None:
    def mapped() -> int:
        return pathlib.Path('/proc/self/maps').read_text().count('images-')

    if not os.path.exists('/proc/self/maps'):
        pytest.skip('no /proc')
    gc.collect()
    before, files = mapped(), len(os.listdir('/proc/self/fd'))
    memory = ImageMemory(100, [3, 8, 8])
    view = memory.images[5]
    memory.close()
    memory.close()
    view[:] = 1  # Stays valid.
    assert mapped() == before + 1
    with pytest.raises(OSError):
        ImageMemory(100, [3, 8, 8], memory.handle)
    del memory, view
    gc.collect()
    assert mapped() == before and len(os.listdir('/proc/self/fd')) == files


def test_a_handle_that_means_another_file_is_refused(tmp_path: pathlib.Path) -> None:
    memory, other = ImageMemory(2, [1, 8, 8]), ImageMemory(2, [1, 8, 8])
    if ':' not in memory.handle:
        pytest.skip('names without a place')
    wrong = memory.handle.split(':')[0] + ':' + other.handle.split(':', 1)[1]
    with pytest.raises(OSError):
        ImageMemory(2, [1, 8, 8], wrong)


@pytest.mark.parametrize(
    'limit, kept', [('off', 0), ('auto', COUNT), (10**6, COUNT), (4 * IMAGE + 5, 4), (IMAGE - 1, 0)]
)
def test_items_are_the_same_bytes_within_any_budget(
    dataset: ImageFolderDataset, pictures: str, limit: str | int, kept: int
) -> None:
    expected = [dataset[i][0] for i in range(COUNT)]
    line = image_cache.keep(dataset, limit, rank=0)
    again = ImageFolderDataset(pictures)  # Whoever opens the files reads through the same memory.
    for _ in range(2):
        assert all(np.array_equal(again[i][0], expected[i]) for i in range(COUNT))
    cache = image_cache.recall(again.reader)
    assert (0 if cache is None else int(cache.memory.present.sum())) == kept
    assert ('kept in memory' in line) == (kept > 0) and ('%' in line) == (0 < kept < COUNT)
    image_cache.release(dataset)
    assert image_cache.recall(again.reader) is None


def test_auto_takes_half_of_what_is_free_and_held_out_images_come_last(
    pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ImageFolderDataset(pictures, split='train', val_share=0.3)
    for free, kept in ((2 * COUNT * IMAGE, COUNT), (2 * 7 * IMAGE, 7), (2 * 7 * IMAGE - 2, 0)):
        monkeypatch.setattr(image_cache.memory, 'free_bytes', lambda free=free: free)
        image_cache.keep(train, 'auto', rank=0)
        cache = image_cache.recall(train.reader)
        assert (0 if cache is None else len(cache.memory.images)) == kept
        assert cache is None or (cache.slots[train.places(range(7))[0]] >= 0).all()
        image_cache.release(train)


def test_more_than_there_is_and_nonsense_are_refused(
    dataset: ImageFolderDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache.memory, 'free_bytes', lambda: 1000)
    with pytest.raises(UserError, match='--cache: 2 kB are to be kept in memory, 1 kB are free'):
        image_cache.keep(dataset, 10**9, rank=0)
    with pytest.raises(UserError, match="got 'all'"):
        image_cache.keep(dataset, 'all', rank=0)


def test_ranks_of_one_machine_share_and_those_of_two_containers_halve(
    dataset: ImageFolderDataset, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache.memory, 'free_bytes', lambda: 4 * COUNT * IMAGE)
    here, elsewhere = image_cache._machine(), ('other', '')
    answers: list[list[object]] = []
    monkeypatch.setattr(image_cache.distributed, 'gather_objects', lambda value: answers.pop(0)
                        if answers and answers[0] is not None else [value])

    # Rank 2 on a machine of its own kind with rank 1; rank 0 is elsewhere. It takes what rank 1 offers, by its handle.
    numbers = np.arange(COUNT)
    first = image_cache.ImageCache(numbers, dataset.reader)
    offer = image_cache._Offer(here, first.memory.handle, numbers, 'shared')
    asking = [image_cache._Offer(machine) for machine in (elsewhere, here, here)]
    answers[:] = [asking, [image_cache._Offer(elsewhere), offer, None]]
    assert image_cache.keep(dataset, 'auto', rank=2) == 'shared'
    pixels = dataset[3][0]
    assert first.memory.present.tolist() == [i == 3 for i in range(COUNT)]
    assert np.array_equal(first.memory.images[3], pixels)

    # Two containers of this machine, each for itself: half of what is free each, and of that half.
    offers = image_cache._offer(dataset, 'auto', here, sharers=2)
    assert offers.numbers is not None and len(offers.numbers) == COUNT
    assert image_cache._offer(dataset, 'auto', here, sharers=3).handle is None


def test_a_rank_without_access_says_so_and_decodes(
    dataset: ImageFolderDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = image_cache._machine()
    gone = image_cache._Offer(here, 'images-0:/proc/0/fd/0' if os.name == 'posix' else 'x', np.arange(COUNT), 'kept')
    answers = [[image_cache._Offer(here)] * 2, [gone, None]]
    monkeypatch.setattr(image_cache.distributed, 'gather_objects', lambda value: answers.pop(0))
    image_cache.keep(dataset, 'auto', rank=1)
    assert image_cache.recall(dataset.reader) is None and 'Rank 1 decodes' in capsys.readouterr().err


def test_data_sets_with_code_of_their_own_are_left_alone(pictures: str) -> None:
    class Inverted(ImageFolderDataset):
        def _load_raw_image(self, raw_idx: int) -> np.ndarray:
            return 255 - super()._load_raw_image(raw_idx)

    assert ImageFolderDataset(pictures).is_plain and not Inverted(pictures).is_plain
    for dataset in (Inverted(pictures), EasyDict()):
        assert 'own code' in image_cache.keep(dataset, 'auto', rank=0)
        image_cache.release(dataset)
