"""Processes that decode: what they write, how they fail, and that none stays."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from dnnlib.util import UserError
from training import decode_pool, decode_worker
from training.decode_pool import DecodePool
from training.image_memory import ImageMemory
from training.image_reader import ImageReader


@pytest.fixture(scope='module')
def reader(tmp_path_factory: pytest.TempPathFactory) -> ImageReader:
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.RandomState(0)
    for i in range(4):
        PIL.Image.fromarray(rng.randint(0, 256, [8, 8, 3], dtype=np.uint8)).save(folder / f'{i}.png')
    (folder / '3.png').write_bytes(b'no image')
    return ImageReader(str(folder))


@pytest.mark.parametrize('workers', [0, 2])
def test_images_come_to_their_places_and_a_bad_one_is_named(reader: ImageReader, workers: int) -> None:
    first, second = ImageMemory(2, reader.image_shape), ImageMemory(3, reader.image_shape)
    pool = DecodePool(reader, [first, second], workers)
    for future in [pool.submit([(0, 0, 1), (1, 1, 0)]), pool.submit([(2, 1, 2)])]:
        assert future.result(20) is None
    assert first.present.tolist() == [0, 1] and second.present.tolist() == [1, 0, 1]
    for raw, image in ((0, first.images[1]), (1, second.images[0]), (2, second.images[2])):
        assert np.array_equal(image, reader.read(raw))
    with pytest.raises(UserError, match='3.png: not an image'):
        pool.submit([(3, 0, 0)]).result(20)
    assert pool.submit([(2, 0, 0)]).result(20) is None, 'it goes on with the next'
    processes = list(pool._processes)
    pool.close()
    assert all(process.poll() == 0 for process in processes), 'ended by themselves, and waited for'


def test_a_process_that_is_killed_fails_its_task_alone(reader: ImageReader) -> None:
    pool = DecodePool(reader, [ImageMemory(4, reader.image_shape)], 1)
    pool._processes[0].kill()
    with pytest.raises(UserError, match='--workers: a process that reads images has died'):
        pool.submit([(0, 0, 0)]).result(20)
    pool.close()


def test_processes_that_cannot_be_started_are_one_line(reader: ImageReader, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = decode_pool._start

    def once() -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(11, 'Resource temporarily unavailable')
        started.append(start())
        return started[0]

    monkeypatch.setattr(decode_pool, '_start', once)
    with pytest.raises(UserError, match='--workers: 2 processes .* temporarily unavailable'):
        DecodePool(reader, [ImageMemory(4, reader.image_shape)], 2)
    assert started[0].poll() is not None, 'the first one has not stayed'


def test_messages_arrive_whole_or_not_at_all() -> None:
    stream = io.BytesIO()
    decode_worker.send(stream, [1, 'two'])
    decode_worker.send(stream, None)
    stream.seek(0)
    assert decode_worker.receive(stream) == [1, 'two'] and decode_worker.receive(stream) is None
    with pytest.raises(EOFError):
        decode_worker.receive(io.BytesIO(stream.getvalue()[:12]))


def test_workers_import_no_torch() -> None:
    code = 'import sys, training.decode_worker; sys.exit("torch" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=pathlib.Path(__file__).parents[1])
