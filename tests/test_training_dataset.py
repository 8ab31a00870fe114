"""Contracts of the data set reader: pixels, labels, splits, worker safety, and one clear line for every bad input."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from dnnlib.util import UserError
from training import image_decode
from training.dataset import ImageFolderDataset, split_indices
from training.image_archive import parse_labels
from training.image_decode import decode_image


def encode(pixels: np.ndarray, image_format: str = 'PNG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def random_pixels(seed: int, size: int = 8, channels: int = 3) -> np.ndarray:
    shape = (size, size, channels) if channels > 1 else (size, size)
    return np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)


def write_zip(path: Path, files: dict[str, bytes | str]) -> str:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def make_zip(path: Path, num: int = 10, labels: Any = None, extra: dict[str, bytes | str] | None = None) -> str:
    files: dict[str, bytes | str] = {f'00000/img{i:08d}.png': encode(random_pixels(i)) for i in range(num)}
    if labels is not None:
        files['dataset.json'] = labels if isinstance(labels, str) else json.dumps({'labels': labels})
    return write_zip(path, {**files, **(extra or {})})


def name(i: int) -> str:
    return f'00000/img{i:08d}.png'


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))


# ---- items ----


def test_items_are_the_stored_pixels(tmp_path: Path) -> None:
    data = ImageFolderDataset(make_zip(tmp_path / 'faces.zip'), resolution=8)
    assert (data.name, len(data), data.image_shape) == ('faces', 10, [3, 8, 8])
    assert (data.num_channels, data.resolution) == (3, 8)
    for i in range(len(data)):
        image, label = data[i]
        np.testing.assert_array_equal(image, random_pixels(i).transpose(2, 0, 1))
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        assert label.shape == (0,) and label.dtype == np.float32
    assert data.image_name(3) == name(3)


def test_folder_equals_zip(tmp_path: Path) -> None:
    path = make_zip(tmp_path / 'a.zip', labels=[[name(i), i % 3] for i in range(10)])
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / 'folder')
    zipped, folder = (ImageFolderDataset(str(p), use_labels=True) for p in (path, tmp_path / 'folder'))
    for (image, label), (other_image, other_label) in zip(zipped, folder, strict=True):  # type: ignore[misc]
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(label, other_label)


def test_grey_and_other_formats(tmp_path: Path) -> None:
    grey = random_pixels(1, channels=1)
    data = ImageFolderDataset(write_zip(tmp_path / 'a.zip', {'B.PNG': encode(grey), 'a.bmp': encode(grey, 'BMP')}))
    assert data.image_shape == [1, 8, 8] and len(data) == 2
    np.testing.assert_array_equal(data[0][0], data[1][0])
    np.testing.assert_array_equal(data[0][0][0], grey)


def test_finder_debris_is_no_image(tmp_path: Path) -> None:
    debris: dict[str, bytes | str] = {'__MACOSX/00000/._img00000000.png': b'x', 'sub/._x.png': b'x', 'a.txt': b'x'}
    assert len(ImageFolderDataset(make_zip(tmp_path / 'a.zip', extra=debris))) == 10


def test_xflip_and_max_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / 'a.zip')
    data = ImageFolderDataset(path, max_size=4, xflip=True, random_seed=3)
    # The host's subset: a seeded shuffle, cut, sorted.
    order = np.arange(10)
    np.random.RandomState(3).shuffle(order)
    expected = sorted(order[:4].tolist())
    assert [data.get_details(i).raw_idx for i in range(8)] == expected * 2
    assert [data.get_details(i).xflip for i in range(8)] == [False] * 4 + [True] * 4
    for i in range(4):
        np.testing.assert_array_equal(data[i][0][:, :, ::-1], data[i + 4][0])


@pytest.mark.parametrize('arguments, expected', [
    (dict(max_size=0), 'max_size: got 0'),
    (dict(split='test'), "split: got 'test'"),
    (dict(split='val'), 'val_share=0'),
    (dict(split='train', val_share=0.99), 'leaves none to train on'),
    (dict(val_share=1.0), 'val_share: got 1.0'),
    (dict(resolution=16), '8x8 pixels, but resolution 16'),
])
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        ImageFolderDataset(make_zip(tmp_path / 'a.zip'), **arguments)


# ---- splits ----


@pytest.mark.parametrize('share, num_val', [(0.0, 0), (0.001, 1), (0.07, 7), (0.1, 10), (0.105, 11), (0.5, 50)])
def test_split_sizes_partition_and_determinism(share: float, num_val: int) -> None:
    train = split_indices(100, 'train', share, 5)
    val = split_indices(100, 'val', share, 5) if num_val else np.zeros(0, np.int64)
    assert len(val) == num_val
    assert sorted([*train, *val]) == list(range(100))
    assert list(train) == sorted(train)
    np.testing.assert_array_equal(train, split_indices(100, 'train', share, 5))
    if 1 < num_val < 50:
        assert list(val) != list(split_indices(100, 'val', share, 6))


def test_split_comes_before_flips_subsets_and_labels(tmp_path: Path) -> None:
    path = make_zip(tmp_path / 'a.zip', labels=[[name(i), i] for i in range(10)])
    common: dict[str, Any] = dict(val_share=0.3, xflip=True, use_labels=True, max_size=5)
    train = ImageFolderDataset(path, split='train', **common)
    val = ImageFolderDataset(path, split='val', **common)
    assert (len(train), len(val)) == (10, 3)
    assert not {train.get_details(i).raw_idx for i in range(10)} & {val.get_details(i).raw_idx for i in range(3)}
    assert train.label_dim == val.label_dim == 10  # One network serves both.


# ---- labels ----


def test_class_numbers_become_one_hot(tmp_path: Path) -> None:
    labels = [[name(i), [4, 0, 2.0][i % 3]] for i in range(10)] + [['gone.png', 7]]
    data = ImageFolderDataset(make_zip(tmp_path / 'a.zip', labels=labels), use_labels=True)
    assert data.has_labels and data.has_onehot_labels and data.label_shape == [5] and data.label_dim == 5
    np.testing.assert_array_equal(data.get_label(0), np.eye(5, dtype=np.float32)[4])
    assert data.get_label(0).dtype == np.float32
    assert data.get_details(2).raw_label == 2
    ignoring = ImageFolderDataset(str(tmp_path / 'a.zip'))
    assert not ignoring.has_labels and ignoring.label_dim == 0


def test_vector_labels(tmp_path: Path) -> None:
    vectors = np.random.RandomState(0).randn(10, 3)
    labels = [[name(i), vectors[i].tolist()] for i in range(10)]
    data = ImageFolderDataset(make_zip(tmp_path / 'a.zip', labels=labels), use_labels=True)
    assert not data.has_onehot_labels and data.label_dim == 3
    np.testing.assert_array_equal(data.get_label(7), vectors[7].astype(np.float32))


def test_backslash_names_find_their_labels(tmp_path: Path) -> None:
    path = write_zip(tmp_path / 'a.zip', {'x': b''})
    with zipfile.ZipFile(path, 'w') as archive:
        info = zipfile.ZipInfo('sub/x.png')
        info.filename = 'sub\\x.png'
        archive.writestr(info, encode(random_pixels(0)))
        archive.writestr('dataset.json', '{"labels": [["sub/x.png", 1]]}')
    assert ImageFolderDataset(path, use_labels=True).get_label(0).tolist() == [0, 1]


@pytest.mark.parametrize('content', ['{"labels": null}', None])
def test_no_labels(tmp_path: Path, content: str | None) -> None:
    data = ImageFolderDataset(make_zip(tmp_path / 'a.zip', labels=content), use_labels=True)
    assert not data.has_labels and data.get_label(0).shape == (0,)


@pytest.mark.parametrize('label, expected', [
    ('NaN', 'not valid JSON'),
    ('[1.0, Infinity]', 'not valid JSON'),
    ('[1e39]', 'not finite in float32'),
    ('[1e999]', 'not finite in float32'),
    ('1e999', 'neither a whole class number'),
    ('1.5', 'neither a whole class number'),
    ('true', 'neither a whole class number'),
    ('"3"', 'neither a whole class number'),
    ('[]', 'neither a whole class number'),
    ('[[1]]', 'neither a whole class number'),
    ('null', 'neither a whole class number'),
    ('-1', 'class numbers go from 0'),
    ('100000', 'class numbers go from 0'),
    ('1' + '0' * 400, 'class numbers go from 0'),
    ('1' + '0' * 5000, 'not valid JSON'),
    ('1e17', 'class numbers go from 0'),
])
def test_bad_label_values(label: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        parse_labels(f'{{"labels": [["a.png", {label}]]}}'.encode(), 'x.zip: dataset.json')
    message = str(caught.value)
    assert message.startswith('x.zip: dataset.json') and '\n' not in message and len(message) < 250


@pytest.mark.parametrize('content, expected', [
    ('', 'not valid JSON'),
    ('[' * 100_000, 'not valid JSON'),
    ('\xff', 'not valid JSON'),
    ('[]', 'must be'),
    ('{"label": []}', 'must be'),
    ('{"labels": {"a.png": 1}}', 'must be a list'),
    ('{"labels": [1]}', r'is not \[name, label\]'),
    ('{"labels": [[1, 1]]}', r'is not \[name, label\]'),
    ('{"labels": [["a.png", 1], ["a.png", 2]]}', 'stands twice'),
])
def test_bad_label_files(content: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_labels(content.encode('latin1'), 'dataset.json')


@pytest.mark.parametrize('labels, expected', [
    ([[name(i), 0] for i in range(9)], r'no label for 00000/img00000009.png \(1 of 10'),
    ([[name(i), 0 if i else [1.0]] for i in range(10)], 'labels are mixed'),
    ([[name(i), [1.0] * (1 + i % 2)] for i in range(10)], 'labels are mixed'),
    ('{"labels": null' + ' ' * 2_000_000 + '}', 'more than the'),
])
def test_labels_that_do_not_fit(tmp_path: Path, labels: Any, expected: str) -> None:
    data = ImageFolderDataset(make_zip(tmp_path / 'a.zip', labels=labels), use_labels=True)
    with pytest.raises(UserError, match=expected):
        _ = data.label_dim


# ---- archives from strangers ----


@pytest.mark.parametrize('bad', ['../x.png', '/x.png', 'a/../../x.png', '..\\x.png', 'C:\\x.png', 'C:/x.png'])
def test_unsafe_names(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError, match='unsafe name'):
        ImageFolderDataset(make_zip(tmp_path / 'a.zip', extra={bad: b''}))


@pytest.mark.parametrize('first, second', [('dataset.json', 'dataset.json'), ('a/x.png', 'a\\x.png')])
def test_names_that_stand_twice(tmp_path: Path, first: str, second: str) -> None:
    path = make_zip(tmp_path / 'a.zip')
    with zipfile.ZipFile(path, 'a') as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr('warnings.warn', lambda *args, **kwargs: None)
        for member in (first, second):
            archive.writestr(member, '{"labels": null}')
    with pytest.raises(UserError, match='stands twice'):
        ImageFolderDataset(path)


def test_missing_empty_truncated_foreign(tmp_path: Path) -> None:
    path = Path(make_zip(tmp_path / 'a.zip'))
    (tmp_path / 'cut.zip').write_bytes(path.read_bytes()[:-30])
    (tmp_path / 'foreign.zip').write_bytes(b'PK\x03\x04 no')
    (tmp_path / 'empty').mkdir()
    write_zip(tmp_path / 'none.zip', {'a.txt': b''})
    for bad, expected in [('gone.zip', 'no such file'), ('cut.zip', 'not a zip'), ('foreign.zip', 'not a zip'),
                          ('empty', 'no images'), ('none.zip', 'no images')]:
        with pytest.raises(UserError, match=f'{bad}: {expected}'):
            ImageFolderDataset(str(tmp_path / bad))


def test_wrong_crc_names_the_member(tmp_path: Path) -> None:
    path = Path(make_zip(tmp_path / 'a.zip'))
    data = ImageFolderDataset(str(path))
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(name(5)).header_offset
    content = bytearray(path.read_bytes())
    content[offset + 80] ^= 0xFF  # Inside the stored PNG.
    data.close()
    path.write_bytes(bytes(content))
    data[4]
    with pytest.raises(UserError, match='a.zip: 00000/img00000005.png: can\'t be read .*CRC'):
        data[5]


def huge_png() -> bytes:
    return png_header(60000, 60000) + png_chunk(b'IDAT', zlib.compress(b'')) + png_chunk(b'IEND', b'')


@pytest.mark.parametrize('make, expected', [
    (huge_png, '(60000x60000|3600000000) pixels'),
    (lambda: encode(random_pixels(0))[:-60], 'damaged or unreadable'),
    (lambda: encode(random_pixels(0))[:60], 'damaged or unreadable'),
    (lambda: b'', 'not an image'),
    (lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n', 'not an image'),
    (lambda: encode(random_pixels(0, channels=4)), 'has an alpha channel'),
    (lambda: encode(random_pixels(0, size=4)), '4x4 with 3 channels, but the first image is 8x8 with 3 channels'),
    (lambda: encode(random_pixels(0, channels=1)), '8x8 with 1 channel, but the first'),
    (lambda: encode(np.zeros((8, 8), np.int32), 'TIFF'), 'no fixed range'),
])
@pytest.mark.parametrize('fast', [True, False])
def test_bad_images_are_named(
    tmp_path: Path, make: Callable[[], bytes], expected: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(image_decode, 'pyspng', None)
    data = ImageFolderDataset(make_zip(tmp_path / 'a.zip', num=2, extra={'z.png': make()}))
    with pytest.raises(UserError, match=f'a.zip: z.png: .*{expected}') as caught:
        data[2]
    assert '\n' not in str(caught.value)


def test_not_square(tmp_path: Path) -> None:
    path = write_zip(tmp_path / 'a.zip', {'a.png': encode(random_pixels(0)[:4])})
    with pytest.raises(UserError, match='a.zip: a.png: 8x4 is not square'):
        ImageFolderDataset(path)


def test_zip_bomb_is_refused_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.png', bytes(2**21))
    monkeypatch.setattr('training.image_archive.ImageArchive.read.__defaults__', (2**20,))
    with pytest.raises(UserError, match='2097152 bytes are declared, more than the 1048576'):
        ImageFolderDataset(str(path))


# ---- decoding ----


def test_fast_path_agrees_with_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('pyspng')
    for channels in (1, 3, 4):
        data = encode(random_pixels(2, channels=channels))
        fast = decode_image(data, 'x')
        assert image_decode._decode_plain_png(data, 'x') is not None
        with monkeypatch.context() as patch:
            patch.setattr(image_decode, 'pyspng', None)
            np.testing.assert_array_equal(fast, decode_image(data, 'x'))
        np.testing.assert_array_equal(fast, random_pixels(2, channels=channels).reshape(8, 8, channels))


def test_sixteen_bits_are_rounded() -> None:
    values = np.array([[0, 128, 129, 257, 65535 - 129, 65535 - 128, 65535, 32768]], np.uint16)
    decoded = decode_image(encode(values), 'x')
    np.testing.assert_array_equal(decoded[0, :, 0], np.rint(values[0] / 257))
    np.testing.assert_array_equal(decode_image(encode(values, 'TIFF'), 'x'), decoded)


def test_palette_bilevel_and_cmyk() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = (200, 10, 60)
    image = PIL.Image.fromarray(pixels)
    for converted, options, expected in [
        (image.quantize(4), dict(format='PNG'), pixels),
        (image.convert('L').point(lambda v: 255 * (v > 0)).convert('1'), dict(format='PNG'),
         np.where(pixels[:, :, :1] > 0, 255, 0)),
        (image.convert('CMYK'), dict(format='TIFF'), pixels),
    ]:
        buffer = io.BytesIO()
        converted.save(buffer, **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), 'x'), expected)


def test_transparency_is_seen() -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(random_pixels(0)).quantize(4).save(buffer, format='PNG', transparency=0)
    assert decode_image(buffer.getvalue(), 'x').shape == (8, 8, 4)
    key = encode(np.full((8, 8, 3), 9, np.uint8), transparency=(9, 9, 9))
    assert decode_image(key, 'x')[0, 0].tolist() == [9, 9, 9, 0]


@pytest.mark.parametrize('image_format', ['PNG', 'TIFF', 'WEBP'])
def test_exif_rotation_is_applied(image_format: str) -> None:
    pixels = random_pixels(0)[:4]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Turn clockwise to see it upright.
    data = encode(pixels, image_format, exif=exif, **(dict(lossless=True) if image_format == 'WEBP' else {}))
    np.testing.assert_array_equal(decode_image(data, 'x'), np.rot90(pixels, -1))


# ---- workers ----


def test_pickles_and_workers(tmp_path: Path) -> None:
    path = make_zip(tmp_path / 'a.zip', num=32, labels=[[name(i), i] for i in range(32)])
    data = ImageFolderDataset(path, use_labels=True)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[5][0], data[5][0])
    data.close()
    data[1]  # Opened again.
    # Forked workers inherit an open zip: each must use a file position of its own.
    for _ in range(2):
        loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
        images, labels = (torch.cat(parts).numpy() for parts in zip(*loader, strict=True))
        np.testing.assert_array_equal(images, np.stack([data[i][0] for i in range(32)]))
        np.testing.assert_array_equal(labels, np.eye(32))


def test_headers_are_compared_without_decoding(tmp_path: Path) -> None:
    for i, side in enumerate((16, 16, 32)):
        PIL.Image.new('L', (side, side)).save(tmp_path / f'{i}.png')
    with pytest.raises(UserError, match='2.png: 32x32 with 1 channel, but the first image is 16x16 with'):
        ImageFolderDataset(str(tmp_path)).check_headers()
    (tmp_path / '2.png').write_bytes(b'')
    with pytest.raises(UserError, match='2.png: is empty'):
        ImageFolderDataset(str(tmp_path)).check_headers()
    PIL.Image.new('L', (16, 16)).save(tmp_path / '2.png')
    ImageFolderDataset(str(tmp_path)).check_headers()


@pytest.mark.parametrize('mode, file_name, options, complaint', [
    ('L', 'b.png', {}, 'b.png: 16x16 with 1 channel, but the first image is 16x16 with 3 channels.*--color'),
    ('LA', 'b.png', {}, 'b.png: has an alpha channel'),
    ('RGBA', 'b.png', {}, 'b.png: has an alpha channel'),
    ('RGBA', 'b.webp', {'lossless': True}, 'b.webp: has an alpha channel'),
    ('L', 'b.jpg', {}, 'b.jpg: 16x16 with 1 channel'),
    ('L', 'b.jpg', {'exif': b'Exif\0\0' + bytes(60_000), 'comment': bytes(60_000)}, 'b.jpg: 16x16 with 1 channel'),
    ('L', 'b.tif', {}, 'b.tif: 16x16 with 1 channel'),
    ('P', 'b.png', {}, None),
    ('P', 'b.gif', {}, None),
    ('CMYK', 'b.jpg', {}, None),
])
@pytest.mark.parametrize('zipped', [False, True])
def test_headers_tell_channels(
    tmp_path: Path, mode: str, file_name: str, options: dict[str, Any], complaint: str | None, zipped: bool
) -> None:
    folder = tmp_path / 'set'
    folder.mkdir()
    PIL.Image.new('RGB', (16, 16)).save(folder / 'a.png')
    PIL.Image.new(mode, (16, 16)).save(folder / file_name, **options)
    files: dict[str, bytes | str] = {path.name: path.read_bytes() for path in folder.iterdir()}
    data = ImageFolderDataset(write_zip(tmp_path / 'set.zip', files) if zipped else str(folder))
    if complaint is None:
        data.check_headers()
        assert data[1][0].shape == (3, 16, 16)  # What headers let pass can be read.
    else:
        with pytest.raises(UserError, match=complaint):
            data.check_headers()
        with pytest.raises(UserError, match=complaint):  # Reading says the same, only later.
            data[1]
