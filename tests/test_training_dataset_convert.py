"""The data set tool: what it reads, what it does to pixels; its output is whole and reproducible, or not there."""

import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import PIL.Image
import pytest

from dnnlib.util import UserError
from lia_plugin.commands.dataset_tool import dataset_tool, parse_resolution
from training import dataset_convert
from training.dataset import ImageFolderDataset
from training.dataset_convert import Options, Report, center_crop, center_crop_wide, convert, flatten_alpha, resize
from training.dataset_sources import open_source
from training.dataset_writers import encode_png
from training.image_decode import decode_image


def pixels_of(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=(height, width, channels)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format='PNG')
    return buffer.getvalue()


def make_folder(path: Path, images: dict[str, np.ndarray | bytes], labels: Any = None) -> str:
    for name, content in images.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else png(content))
    if labels is not None:
        (path / 'dataset.json').write_text(json.dumps({'labels': labels}))
    return str(path)


def run(source: str, dest: Path, **options: Any) -> Report:
    return convert(source, str(dest), Options(workers=0, **options))


def read_all(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob('*') if file.is_file()}
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        return {name: archive.read(name) for name in archive.namelist()}


# ---- output ----


@pytest.mark.parametrize('shape', [(1, 1, 1), (8, 5, 3), (2, 3, 1), (200, 150, 3)])
def test_png_encoder(shape: tuple[int, int, int]) -> None:
    pixels = pixels_of(0, *shape)  # The last one takes more than one block of DEFLATE.
    encoded = encode_png(pixels)
    np.testing.assert_array_equal(np.array(PIL.Image.open(io.BytesIO(encoded))).reshape(shape), pixels)
    np.testing.assert_array_equal(decode_image(encoded, 'x'), pixels)


@pytest.mark.parametrize('dest', ['out.zip', 'out'])
def test_names_labels_and_reading_back(tmp_path: Path, dest: str) -> None:
    images: dict[str, np.ndarray | bytes] = {f'{c}/{c}.png': pixels_of(i) for i, c in enumerate('cab')}
    source = make_folder(tmp_path / 'in', images, labels=[['a/a.png', 3], ['b/b.png', 1.0], ['c/c.png', 0]])
    report = run(source, tmp_path / dest)
    files = read_all(tmp_path / dest)
    assert sorted(files) == [f'00000/img0000000{i}.png' for i in range(3)] + ['dataset.json']
    expected = [[f'00000/img0000000{i}.png', [3, 1, 0][i]] for i in range(3)]
    assert json.loads(files['dataset.json']) == {'labels': expected}
    data = ImageFolderDataset(str(tmp_path / dest), use_labels=True)
    for i, seed in enumerate([1, 2, 0]):
        np.testing.assert_array_equal(data[i][0], pixels_of(seed).transpose(2, 0, 1))
    assert report.summary() == '3 images, 8x8 RGB, labels of 3 classes' and report.notes() == []


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    images: dict[str, np.ndarray | bytes] = {f'{i:02d}.png': pixels_of(i) for i in range(40)}
    images['20.png'] = b'broken'
    source = make_folder(tmp_path / 'in', images, labels=[[name, [i, 0.5]] for i, name in enumerate(images)])
    for dest, workers in [('a.zip', 0), ('b.zip', 2)]:
        report = convert(source, str(tmp_path / dest), Options(width=4, height=4, workers=workers, on_error='skip'))
        assert report.num_images == 39 and report.label_kind == 'label vectors of length 2'
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()


def test_zip_source_keeps_labels_and_order(tmp_path: Path) -> None:
    images: dict[str, np.ndarray | bytes] = {f'{i}.png': pixels_of(i) for i in range(5)}
    source = make_folder(tmp_path / 'in', images, [[f'{i}.png', i] for i in range(5)])
    run(source, tmp_path / 'a.zip')
    run(str(tmp_path / 'a.zip'), tmp_path / 'b.zip')
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()
    run(str(tmp_path / 'a.zip'), tmp_path / 'c', max_images=2)
    assert json.loads((tmp_path / 'c/dataset.json').read_text())['labels'] == [
        ['00000/img00000000.png', 0], ['00000/img00000001.png', 1]]


@pytest.mark.parametrize('dest', ['new/out.zip', 'old.zip', 'new/out', 'empty'])
@pytest.mark.parametrize('failure', [UserError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_nothing(
    tmp_path: Path, dest: str, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(tmp_path / 'in', {f'{i}.png': pixels_of(i) for i in range(3)})
    (tmp_path / 'old.zip').write_bytes(b'old')
    (tmp_path / 'empty').mkdir()

    def fail(pixels: np.ndarray) -> bytes:
        if np.array_equal(pixels, pixels_of(1)):
            raise failure('disk full')
        return encode_png(pixels)

    monkeypatch.setattr(dataset_convert, 'encode_png', fail)
    with pytest.raises(UserError if failure is OSError else failure, match='disk full'):
        run(source, tmp_path / dest)
    assert (tmp_path / 'old.zip').read_bytes() == b'old' and list((tmp_path / 'empty').iterdir()) == []
    left = [path.name for path in tmp_path.rglob('*') if tmp_path / 'in' not in path.parents]
    assert set(left) - {'new'} == {'in', 'old.zip', 'empty'}


@pytest.mark.parametrize('dest, expected', [
    ('', '--dest: must not be empty'),
    ('in', 'the same'),
    ('in/out', 'inside --source'),
    ('full', 'is not empty'),
    ('file.txt', 'is a file'),
    ('full.zip', 'is a folder'),
    ('file.txt/out.zip', 'can\'t be written'),
])
def test_bad_dest(tmp_path: Path, dest: str, expected: str) -> None:
    source = make_folder(tmp_path / 'in', {'a.png': pixels_of(0)})
    make_folder(tmp_path / 'full', {'a.png': pixels_of(0)})
    (tmp_path / 'full.zip').mkdir()
    (tmp_path / 'file.txt').write_text('x')
    with pytest.raises(UserError, match=expected):
        convert(source, str(tmp_path / dest) if dest else '', Options())


# ---- pixels ----


def test_center_crop() -> None:
    image = pixels_of(0, 7, 12)
    np.testing.assert_array_equal(center_crop(image, 4, 4), image[:, 2:9])
    np.testing.assert_array_equal(center_crop(image, 6, 3), image[0:6])
    np.testing.assert_array_equal(center_crop(image, 1, 7), image[:, 5:6])


def test_center_crop_wide() -> None:
    image = pixels_of(0, 6, 8)
    wide = center_crop_wide(image, 8, 4, 'box')
    assert wide is not None and wide.shape == (8, 8, 3)
    np.testing.assert_array_equal(wide[2:6], resize(image, 8, 4, 'box'))
    assert not wide[:2].any() and not wide[6:].any()
    # Twice as large: the middle half of the rows, squeezed sideways.
    image = pixels_of(0, 12, 16)
    wide = center_crop_wide(image, 8, 6, 'box')
    assert wide is not None
    np.testing.assert_array_equal(wide[1:7], resize(image[3:9], 8, 6, 'box'))
    assert center_crop_wide(image, 17, 4, 'box') is None and center_crop_wide(image, 8, 7, 'box') is None


def test_box_filter_averages_blocks() -> None:
    image = pixels_of(0, 8, 8, 1)
    expected = image.astype(float).reshape(4, 2, 4, 2, 1).mean(axis=(1, 3))
    assert np.abs(resize(image, 4, 4, 'box') - expected).max() <= 1  # Two passes, each rounded.
    assert not np.array_equal(resize(image, 4, 4, 'lanczos'), resize(image, 4, 4, 'box'))


def test_flatten_alpha() -> None:
    image = pixels_of(0, channels=4)
    color, alpha = image[:, :, :3].astype(float), image[:, :, 3:] / 255
    for background in (255, 0):
        flat, changed = flatten_alpha(image, background, 'x')
        np.testing.assert_array_equal(flat, np.rint(color * alpha + background * (1 - alpha)))
        assert changed
    with pytest.raises(UserError, match='x: has transparent pixels'):
        flatten_alpha(image, None, 'x')
    image[:, :, 3] = 255
    flat, changed = flatten_alpha(image, None, 'x')  # An alpha channel that hides nothing is no reason to refuse.
    assert not changed and np.array_equal(flat, image[:, :, :3])
    assert flatten_alpha(pixels_of(0, channels=2), 255, 'x')[0].shape == (8, 8, 1)


def test_grey_among_colour(tmp_path: Path) -> None:
    images: dict[str, np.ndarray | bytes] = {'a.png': pixels_of(0), 'b.png': pixels_of(1, channels=1)}
    source = make_folder(tmp_path / 'in', images)
    report = run(source, tmp_path / 'auto.zip')
    assert report.notes() == ['1 image grey, stored as RGB like the first']
    grey_as_rgb = ImageFolderDataset(str(tmp_path / 'auto.zip'))[1][0]
    assert grey_as_rgb.shape == (3, 8, 8) and (grey_as_rgb == pixels_of(1, channels=1)[:, :, 0]).all()
    run(source, tmp_path / 'grey.zip', color='grey')
    grey = ImageFolderDataset(str(tmp_path / 'grey.zip'))
    luma = np.array(PIL.Image.fromarray(pixels_of(0)).convert('L')).astype(int)
    assert grey.num_channels == 1 and np.abs(grey[0][0][0] - luma).max() <= 1
    reversed_order = make_folder(tmp_path / 'in2', {'a.png': images['b.png'], 'b.png': images['a.png']})
    with pytest.raises(UserError, match='b.png: in colour, but the first image is grey'):
        run(reversed_order, tmp_path / 'no.zip')
    assert run(reversed_order, tmp_path / 'rgb.zip', color='rgb').shape == (8, 8, 3)


def test_mixed_sizes_stop_or_are_scaled(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 6), (16, 16)]
    source = make_folder(tmp_path / 'in', {f'{c}.png': pixels_of(0, *size) for c, size in zip('abc', sizes)})
    with pytest.raises(UserError, match='b.png: 6x8, but the first image is 8x8'):
        run(source, tmp_path / 'out.zip')
    report = run(source, tmp_path / 'out.zip', width=16, height=16)
    assert report.num_images == 3 and report.shape == (16, 16, 3)
    assert [note[:13] for note in report.notes()] == ['2 images enla', '1 image stret']
    report = run(source, tmp_path / 'out.zip', width=6, height=6, transform='center-crop')
    assert report.notes() == ['6x6 can\'t be trained on: that takes squares with a side of 2^n (--resolution)']
    report = run(source, tmp_path / 'out.zip', width=8, height=8, transform='center-crop-wide')
    assert (report.num_images, report.notes()) == (2, ['1 image dropped: smaller than asked for'])


# ---- errors ----


def test_skip_names_each_bad_image(tmp_path: Path) -> None:
    images: dict[str, np.ndarray | bytes] = {f'{i}.png': pixels_of(i) for i in range(6)}
    images.update({'1.png': b'', '3.png': png(pixels_of(3))[:90], 'notes.txt': b'x', 'x.HEIC': b'x'})
    source = make_folder(tmp_path / 'in', images, labels=[[f'{i}.png', i] for i in range(6)])
    with pytest.raises(UserError, match=r'in: 1.png: not an image .*--on-error=skip'):
        run(source, tmp_path / 'out.zip')
    told: list[str] = []
    report = convert(source, str(tmp_path / 'out.zip'), Options(on_error='skip', max_images=3), on_skip=told.append)
    assert len(told) == 2 and 'in: 1.png: ' in told[0] and 'in: 3.png: ' in told[1] and report.skipped == told
    labels = json.loads(read_all(tmp_path / 'out.zip')['dataset.json'])['labels']
    assert [label for _, label in labels] == [0, 2, 4]  # Three images in all, each with its own label.
    assert report.notes() == ['2 images skipped: unusable', '2 other files ignored (.heic, .txt)']


def colours(*names: str) -> dict[str, np.ndarray | bytes]:
    return {name: np.full([8, 8, 3], i, np.uint8) for i, name in enumerate(names)}


@pytest.mark.parametrize('workers', [0, 1])
def test_include_takes_the_named_images_in_the_sources_order_with_their_labels(tmp_path: Path, workers: int) -> None:
    images = colours('a/0.png', 'a/1.png', 'b/2.png', '#3.png')
    source = make_folder(tmp_path / 'in', images, labels=[[name, i] for i, name in enumerate(images)])
    keep = tmp_path / 'keep.txt'
    keep.write_text('\ufeff# chosen\nb/2.png\n\na/0.png\nb/2.png\n./#3.png\n', encoding='utf-8')
    report = convert(source, str(tmp_path / 'out.zip'), Options(workers=workers, include=str(keep)))
    files = read_all(tmp_path / 'out.zip')
    assert [label for _, label in json.loads(files['dataset.json'])['labels']] == [3, 0, 2]
    first = [decode_image(files[f'00000/img0000000{i}.png'], 'x')[0, 0, 0] for i in range(3)]
    assert first == [3, 0, 2]
    assert (report.num_images, report.notes()[:1]) == (3, ['1 image left out: not in --include'])


def test_include_of_all_images_changes_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / 'in', colours('a.png', 'b.png'))
    (tmp_path / 'keep.txt').write_text('b.png\na.png\n')
    report = run(source, tmp_path / 'some.zip', include=str(tmp_path / 'keep.txt'))
    run(source, tmp_path / 'all.zip')
    assert (tmp_path / 'some.zip').read_bytes() == (tmp_path / 'all.zip').read_bytes()
    assert not any('left out' in note for note in report.notes())


def test_include_numbers_images_without_names(tmp_path: Path) -> None:
    write_idx(tmp_path / 'train-images-idx3-ubyte.gz', np.arange(3 * 32 * 32).reshape(3, 32, 32).astype(np.uint8))
    write_idx(tmp_path / 'train-labels-idx1-ubyte.gz', np.array([7, 8, 9], np.uint8))
    (tmp_path / 'keep.txt').write_text('1\n')
    run(str(tmp_path / 'train-images-idx3-ubyte.gz'), tmp_path / 'out', include=str(tmp_path / 'keep.txt'))
    assert json.loads((tmp_path / 'out' / 'dataset.json').read_text())['labels'] == [['00000/img00000000.png', 8]]


@pytest.mark.parametrize('content, expected', [
    (b'a.png\n# c\nz.png\ny.png\n', 'line 3: no image z.png in .* \\(2 of 3 names are unknown\\)'),
    (b'# nothing\n\n', 'names no image'),
    (b'\xff\xfe', 'not UTF-8 text'),
    (None, 'No such file'),
])
def test_bad_lists_are_one_line_and_leave_nothing(tmp_path: Path, content: bytes | None, expected: str) -> None:
    source = make_folder(tmp_path / 'in', colours('a.png', 'b.png'))
    if content is not None:
        (tmp_path / 'keep.txt').write_bytes(content)
    with pytest.raises(UserError, match=f'--include=.*keep.txt: .*{expected}') as caught:
        run(source, tmp_path / 'out.zip', include=str(tmp_path / 'keep.txt'))
    assert '\n' not in str(caught.value) and not (tmp_path / 'out.zip').exists()


def test_nothing_usable(tmp_path: Path) -> None:
    source = make_folder(tmp_path / 'in', {'a.png': b'', 'b.png': b''})
    with pytest.raises(UserError, match='none of its 2 images can be used'):
        run(source, tmp_path / 'out.zip', on_error='skip')
    assert not (tmp_path / 'out.zip').exists()


@pytest.mark.parametrize('options, expected', [
    (dict(width=0), '--width: got 0'),
    (dict(max_images=0), '--max-images: got 0'),
    (dict(transform='center-crop', width=8), 'say the size too'),
    (dict(transform='center-crop-wide', width=4, height=8), 'is not wide'),
    (dict(width=99999, height=99999), 'more than'),
])
def test_bad_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        run(make_folder(tmp_path / 'in', {'a.png': pixels_of(0)}), tmp_path / 'out.zip', **options)


@pytest.mark.parametrize('name, content, expected', [
    ('gone', None, 'no such file'),
    ('a.rar', b'', 'not a known source'),
    ('a.zip', b'PK', 'not a zip'),
    ('cifar-10-python.tar.gz', b'no', 'not CIFAR-10'),
    ('cifar-10-python.tar.gz', gzip.compress(bytes(10240), mtime=0), 'no cifar-10-batches-py/data_batch_1'),
    ('train-images-idx3-ubyte.gz', b'no', 'labels-idx1-ubyte.gz: no such file'),
])
def test_bad_sources(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        open_source(str(tmp_path / name))
    assert '\n' not in str(caught.value)


# ---- CIFAR-10 ----


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and NumPy 1 wrote it: byte strings, protocol 2."""
    rows = images.transpose(0, 3, 1, 2).tobytes()
    shape = b'K' + bytes([len(images)]) + b'M\x00\x0c\x86'
    array = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01' + shape
             + b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T'
             + struct.pack('<I', len(rows)) + rows + b'tb')
    numbers = b''.join(b'K' + bytes([label]) for label in labels)
    return b'\x80\x02}(U\x04data' + array + b'U\x06labels](' + numbers + b'eu.'


def python3_batch(images: np.ndarray, labels: list[int]) -> bytes:
    data = dict(data=images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels=labels, batch_label='x')
    return pickle.dumps(data, protocol=2)


def make_cifar(path: Path, batches: list[bytes]) -> str:
    with tarfile.open(path, 'w:gz') as tar:
        for number, batch in enumerate(batches):
            info = tarfile.TarInfo(f'cifar-10-batches-py/data_batch_{number + 1}')
            info.size = len(batch)
            tar.addfile(info, io.BytesIO(batch))
    return str(path)


@pytest.mark.parametrize('make_batch', [python2_batch, python3_batch])
def test_cifar10(tmp_path: Path, make_batch: Any) -> None:
    images = np.random.RandomState(0).randint(256, size=(10, 32, 32, 3)).astype(np.uint8)
    batches = [make_batch(images[i:i + 2], [i, 9 - i]) for i in range(0, 10, 2)]
    assert pickle.loads(batches[1], encoding='latin1')['labels'] == [2, 7]  # The batch is what unpickling reads.
    source = make_cifar(tmp_path / 'cifar-10-python.tar.gz', batches)
    run(source, tmp_path / 'out.zip')
    data = ImageFolderDataset(str(tmp_path / 'out.zip'), use_labels=True)
    for i in range(10):
        np.testing.assert_array_equal(data[i][0], images[i].transpose(2, 0, 1))
        assert data.get_label(i).argmax() == (i if i % 2 == 0 else 10 - i)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ('raise SystemExit("code of the file ran")',)


@pytest.mark.parametrize('batch, expected', [
    (pickle.dumps(dict(data=Hostile(), labels=[])), 'asks for builtins.exec'),
    (pickle.dumps(dict(data=np.testing.assert_equal, labels=[])), 'asks for numpy.testing'),
    (b'\x80\x02cnumpy\nndarray.tofile\n.', 'asks for numpy.ndarray.tofile'),
    (python2_batch(np.zeros((2, 32, 32, 3), np.uint8), [1]), 'one label for each'),
    (python2_batch(np.zeros((1, 32, 32, 3), np.uint8), [10]), 'from 0 to 9'),
    (pickle.dumps({}), 'no data'),
    (pickle.dumps([])[:-1], 'not CIFAR-10'),
    (b'\x80\x02K\x01r\xff\xff\xff\x7f0.', 'not CIFAR-10'),
])
def test_hostile_cifar10(tmp_path: Path, batch: bytes, expected: str) -> None:
    source = make_cifar(tmp_path / 'cifar-10-python.tar.gz', [batch] * 5)
    with pytest.raises(UserError, match=expected) as caught:
        open_source(source)
    assert '\n' not in str(caught.value)


# ---- MNIST ----


def write_idx(path: Path, values: np.ndarray, magic: int | None = None, extra: bytes = b'') -> None:
    header = struct.pack(f'>{1 + values.ndim}I', magic or 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes() + extra))


def test_mnist(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(256, size=(4, 28, 28)).astype(np.uint8)
    write_idx(tmp_path / 'train-images-idx3-ubyte.gz', images)
    write_idx(tmp_path / 'train-labels-idx1-ubyte.gz', np.array([3, 0, 9, 1], np.uint8))
    run(str(tmp_path / 'train-images-idx3-ubyte.gz'), tmp_path / 'out.zip')
    data = ImageFolderDataset(str(tmp_path / 'out.zip'), use_labels=True)
    assert data.image_shape == [1, 32, 32] and data.label_dim == 10
    np.testing.assert_array_equal(data[2][0][0, 2:30, 2:30], images[2])
    assert data[2][0].sum() == images[2].sum() and data.get_label(2).argmax() == 9


@pytest.mark.parametrize('options, num_labels, expected', [
    (dict(magic=0x801), 2, 'magic number is 0x801, expected 0x803'),
    (dict(extra=b'x'), 2, 'it has more'),
    (dict(), 1, '2 images, but 1 labels'),
])
def test_bad_mnist(tmp_path: Path, options: dict[str, Any], num_labels: int, expected: str) -> None:
    write_idx(tmp_path / 'train-images-idx3-ubyte.gz', np.zeros((2, 28, 28), np.uint8), **options)
    write_idx(tmp_path / 'train-labels-idx1-ubyte.gz', np.zeros(num_labels, np.uint8))
    with pytest.raises(UserError, match=expected):
        open_source(str(tmp_path / 'train-images-idx3-ubyte.gz'))


def test_mnist_that_declares_too_much(tmp_path: Path) -> None:
    header = struct.pack('>4I', 0x803, 2**31, 2**31, 2**31)
    (tmp_path / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(header))
    write_idx(tmp_path / 'train-labels-idx1-ubyte.gz', np.zeros(1, np.uint8))
    with pytest.raises(UserError, match='values are declared'):
        open_source(str(tmp_path / 'train-images-idx3-ubyte.gz'))


# ---- LSUN ----


def test_lsun(tmp_path: Path) -> None:
    lmdb = pytest.importorskip('lmdb')
    environment = lmdb.open(str(tmp_path / 'cat_lmdb'), map_size=2**20)
    with environment.begin(write=True) as transaction:
        for i in range(20):
            buffer = io.BytesIO()
            PIL.Image.fromarray(pixels_of(i)).save(buffer, format='WEBP', lossless=True)
            transaction.put(f'key{i:02d}'.encode(), b'broken' if i == 3 else buffer.getvalue())
    environment.close()
    told: list[str] = []
    options = Options(on_error='skip', workers=2, max_images=18)
    convert(str(tmp_path / 'cat_lmdb'), str(tmp_path / 'out.zip'), options, on_skip=told.append)
    data = ImageFolderDataset(str(tmp_path / 'out.zip'), use_labels=True)
    assert len(data) == 18 and not data.has_labels and len(told) == 1 and 'cat_lmdb: key03: ' in told[0]
    np.testing.assert_array_equal(data[3][0], pixels_of(4).transpose(2, 0, 1))


def test_lsun_without_lmdb_or_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'cat_lmdb').mkdir()
    (tmp_path / 'cat_lmdb/data.mdb').write_bytes(b'no lmdb' * 100)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'lmdb', None)
        with pytest.raises(UserError, match='pip install lmdb'):
            open_source(str(tmp_path / 'cat_lmdb'))
    pytest.importorskip('lmdb')
    with pytest.raises(UserError, match='not a readable lmdb'):
        open_source(str(tmp_path / 'cat_lmdb'))


# ---- command ----


def invoke(*args: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(dataset_tool, [*args, '--workers=0'], standalone_mode=False)


def test_command(tmp_path: Path) -> None:
    source = make_folder(tmp_path / 'in', {'a.png': pixels_of(0, 16, 12), 'b.png': b''})
    dest = tmp_path / 'out.zip'
    paths = f'--source={source}', f'--dest={dest}'
    result = invoke(*paths, '--resolution=8x8', '--transform=center-crop', '--on-error=skip')
    assert result.return_value == 1  # Done, but not with everything.
    assert result.stdout == f'{dest}: 1 image, 8x8 RGB, no labels\n'
    assert f'Skipped: {source}: b.png' in result.stderr
    assert isinstance(invoke(*paths).exception, UserError)
    both = invoke(*paths, '--resolution=8x8', '--width=8')
    assert isinstance(both.exception, click.UsageError) and 'not both' in both.exception.message


@pytest.mark.parametrize('text, expected', [(None, (None, None)), ('8', (8, 8)), ('512X384', (512, 384))])
def test_resolution(text: str | None, expected: tuple[int | None, int | None]) -> None:
    assert parse_resolution(text) == expected


@pytest.mark.parametrize('text', ['', 'x', '8x', '8x8x8', '-8', '8.0', '٣', '1' * 30])
def test_bad_resolution(text: str) -> None:
    with pytest.raises(click.BadParameter, match='expected WIDTHxHEIGHT'):
        parse_resolution(text)
