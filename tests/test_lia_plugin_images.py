"""Pixels <-> floats, odd image files, grids and pages."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from lia_plugin import images, page, picture_decode
from lia_plugin.host import UserError
from training import image_decode


def gradient(width: int = 6, height: int = 4) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 40, y * 60, x * 0 + 90], axis=2).astype(np.uint8)


def read(picture: PIL.Image.Image, kind: str = 'PNG', **options: object) -> images.LoadedImage:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    buffer.seek(0)
    return images.read_image(buffer, name='picture')


# Pixels <-> floats


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = images.to_float(levels)
    assert floats[0] == -1 and floats[255] == 1
    assert torch.equal(images.to_uint8(floats), levels)


def test_to_uint8_takes_the_nearest_level_and_clips() -> None:
    nearly = images.to_float(torch.tensor([10, 200], dtype=torch.uint8)) + torch.tensor([0.45, -0.45]) / 127.5
    assert images.to_uint8(nearly).tolist() == [10, 200]
    assert images.to_uint8(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]


def test_to_float_refuses_what_are_no_pixels() -> None:
    with pytest.raises(ValueError, match='uint8'):
        images.to_float(torch.zeros(3))


def test_channels() -> None:
    grey = torch.tensor([[[10, 20]]], dtype=torch.uint8)
    assert images.with_channels(grey, 3).tolist() == [[[10, 20]]] * 3
    assert torch.equal(images.with_channels(images.with_channels(grey, 3), 1), grey)
    white = torch.ones([2, 3, 1, 1])
    torch.testing.assert_close(images.with_channels(white, 1), torch.ones([2, 1, 1, 1]))
    with pytest.raises(ValueError, match='from 2 to 3'):
        images.with_channels(torch.zeros([2, 4, 4]), 3)


# Reading


def test_plain_rgb_is_read_as_it_is() -> None:
    loaded = read(PIL.Image.fromarray(gradient()))
    assert torch.equal(loaded.pixels, torch.from_numpy(gradient().transpose(2, 0, 1).copy()))
    assert loaded.notes == ()


def test_exif_rotation_is_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show it 90 degrees clockwise.
    loaded = read(PIL.Image.fromarray(gradient(6, 4)), exif=exif)
    assert loaded.pixels.shape == (3, 6, 4)
    assert torch.equal(loaded.pixels, torch.from_numpy(np.rot90(gradient(6, 4), -1).transpose(2, 0, 1).copy()))


def test_transparency_lies_on_white() -> None:
    rgba = np.dstack([gradient(), np.full([4, 6], 255, np.uint8)])
    rgba[0, 0] = (0, 0, 0, 0)
    loaded = read(PIL.Image.fromarray(rgba))
    assert loaded.pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert torch.equal(loaded.pixels[:, 1:], torch.from_numpy(gradient().transpose(2, 0, 1).copy())[:, 1:])
    assert loaded.notes == ('transparency laid on white',)


def test_opaque_alpha_is_not_worth_a_note() -> None:
    assert read(PIL.Image.fromarray(gradient()).convert('RGBA')).notes == ()


def test_palettes_keep_their_colours() -> None:
    picture = PIL.Image.new('P', (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    assert read(picture).pixels[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]
    assert read(picture, transparency=0).pixels[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]


def test_sixteen_bit_grey_is_scaled_not_cut() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    loaded = read(PIL.Image.fromarray(values))
    assert loaded.pixels.tolist() == [[[0, 1, 128, 255]]]
    assert loaded.notes == ('16 bits reduced to 8',)


@pytest.mark.parametrize('mode, value, expected', [
    ('1', 1, [255]),
    ('L', 77, [77]),
    ('LA', (50, 0), [255]),
    ('CMYK', (0, 255, 255, 0), [255, 0, 0]),
])
def test_other_modes(mode: str, value: int | tuple[int, ...], expected: list[int]) -> None:
    loaded = read(PIL.Image.new(mode, (8, 8), value), kind='TIFF')
    assert loaded.pixels[:, 3, 3].tolist() == expected


def test_data_sets_and_targets_are_read_alike() -> None:
    """invert.py's reader and the data set's are two, since NVIDIA's hosts have only the one: they may not drift."""
    assert picture_decode.FORMATS == image_decode.IMAGE_FORMATS
    assert picture_decode.MAX_PIXELS == image_decode.MAX_PIXELS
    for mode, kind in [('1', 'PNG'), ('L', 'PNG'), ('P', 'PNG'), ('RGB', 'TIFF'), ('CMYK', 'TIFF'), ('I;16', 'PNG')]:
        values = np.random.RandomState(0).randint(0, 65536, [8, 8], dtype=np.uint16)
        picture = PIL.Image.fromarray(values if mode == 'I;16' else gradient(8, 8))
        buffer = io.BytesIO()
        (picture if mode == 'I;16' else picture.convert(mode)).save(buffer, format=kind)
        pixels = image_decode.decode_image(buffer.getvalue(), mode).transpose(2, 0, 1)
        assert np.array_equal(images.read_image(buffer).pixels.numpy(), pixels), mode


def test_fitting_crops_the_centre_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / 'wide.png'
    array = np.zeros([8, 24], np.uint8)
    array[:, 8:16] = 200
    PIL.Image.fromarray(array).save(path)
    loaded = images.read_image(path, resolution=4, channels=3)
    assert loaded.pixels.shape == (3, 4, 4) and (loaded.pixels == 200).all()
    assert loaded.notes == ('centre 8x8 cut from 24x8', 'resized from 8x8 to 4x4', 'grey turned into RGB')


def write_broken_files(folder: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 255, [64, 64, 3], dtype=np.uint8)
    whole = io.BytesIO()
    PIL.Image.fromarray(noise).save(whole, format='PNG')
    contents = {'truncated.png': whole.getvalue()[:5000], 'text.png': b'not a picture', 'empty.png': b''}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    PIL.Image.fromarray(np.ones([4, 4], np.float32)).save(folder / 'float.tif')
    (folder / 'script.eps').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n')


@pytest.mark.parametrize('name, reason', [
    ('truncated.png', 'damaged'),
    ('text.png', 'not an image'),
    ('empty.png', 'not an image'),
    ('script.eps', 'not an image'),
    ('float.tif', '32-bit'),
    ('missing.png', 'no such file'),
])
def test_bad_files_are_one_line_that_names_them(tmp_path: Path, name: str, reason: str) -> None:
    write_broken_files(tmp_path)
    path = tmp_path / name
    with pytest.raises(UserError, match=reason) as caught:
        images.read_image(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='cannot be read'):
        images.read_image(tmp_path)


def test_bombs_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_decode, 'MAX_PIXELS', 20)
    with pytest.raises(UserError, match='refused'):
        read(PIL.Image.fromarray(gradient(6, 4)))


# Arranging and writing


def test_grid_places_tiles_row_by_row() -> None:
    tiles = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 2)
    sheet = images.grid(tiles, columns=2, padding=1)
    assert sheet[0].tolist() == [
        [0, 0, 255, 1, 1],
        [0, 0, 255, 1, 1],
        [255] * 5,
        [2, 2, 255, 255, 255],
        [2, 2, 255, 255, 255],
    ]
    with pytest.raises(ValueError, match='at least one'):
        images.grid(tiles[:0], columns=2)


def test_side_by_side_magnifies_and_captions() -> None:
    black, white = torch.full([1, 16, 16], -1.0), torch.full([1, 16, 16], 1.0)
    pair = images.side_by_side([black, white], ['first', 'second'])
    assert pair.shape == (3, 128 + images.CAPTION_HEIGHT, 2 * 128 + 4)
    assert (pair[:, images.CAPTION_HEIGHT :, :128] == 0).all()
    assert (pair[:, images.CAPTION_HEIGHT :, 128:] == 255).all()
    band = pair[:, : images.CAPTION_HEIGHT]
    assert (band[:, :, :128] < 128).any() and (band[:, :, 132:] < 128).any(), 'a text over each image'
    with pytest.raises(ValueError, match='captions'):
        images.side_by_side([black, white], ['one'])


def test_a_captioned_grid_has_a_text_above_each_and_white_where_there_is_none() -> None:
    levels = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 128, 128)
    sheet = images.captioned_grid(levels, 2, ['a', 'b', 'c'])
    pitch = 128 + images.CAPTION_HEIGHT
    assert sheet.shape == (3, 2 * pitch, 2 * 128 + 4)
    assert [int(sheet[0, row, column]) for row in (60, pitch + 60) for column in (60, 192)] == [10, 20, 30, 255]
    bands = [sheet[:, row : row + images.CAPTION_HEIGHT] for row in (0, pitch)]
    texts = [bool((band[:, :, left : left + 128] < 128).any()) for band in bands for left in (0, 132)]
    assert texts == [True, True, True, False]
    with pytest.raises(ValueError, match='captions: expected 3, got 2'):
        images.captioned_grid(levels, 2, ['a', 'b'])


@pytest.mark.parametrize('kind, error', [('png', 0), ('webp', 0), ('jpg', 3)])
def test_pictures_come_back_as_they_were_written(kind: str, error: int) -> None:
    pixels = torch.from_numpy(gradient().transpose(2, 0, 1).copy())
    found = images.read_image(io.BytesIO(images.picture_bytes(pixels, kind))).pixels
    assert float((found.float() - pixels.float()).abs().mean()) <= error


def test_interpolation_strips_stack_paths() -> None:
    path = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 64, 64)
    strips = images.interpolation_strips([path, -path], ['y', 'z'])
    assert strips.shape == (3, 2 * (64 + images.CAPTION_HEIGHT), 5 * 64)
    first, last = strips[0, images.CAPTION_HEIGHT, 0], strips[0, images.CAPTION_HEIGHT, -1]
    assert (first, last) == (0, 255)


def test_png_is_lossless_and_leaves_no_draft(tmp_path: Path) -> None:
    pixels = torch.from_numpy(gradient().transpose(2, 0, 1).copy())
    images.save_png(pixels, tmp_path / 'a.png')
    assert torch.equal(images.read_image(tmp_path / 'a.png').pixels, pixels)
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    figure = page.figure(torch.zeros([1, 2, 2]), 'a < b "c"')
    part = page.table(['x'], [['<script>']])
    page.save_page(tmp_path / 'index.html', 'T & T', [page.Section('S', [page.paragraph('<p>'), figure, part])])
    text = (tmp_path / 'index.html').read_text(encoding='utf-8')
    assert '<script>' not in text and 'a &lt; b &quot;c&quot;' in text and 'T &amp; T' in text
    assert 'src="data:image/png;base64,' in text and 'http' not in text


class HalfEncoder(torch.nn.Module):
    """Stands for a generator whose reconstruction of x is x / 2."""

    encoder = True

    def encode(self, img: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return img / 2

    def decode(self, y: torch.Tensor, c: torch.Tensor, noise_mode: str) -> torch.Tensor:
        return y


def test_reconstruction_grid_has_reals_over_reconstructions(tmp_path: Path) -> None:
    for i in range(3):
        PIL.Image.fromarray(np.full([8, 8, 3], 100 * i, np.uint8)).save(tmp_path / f'{i}.png')
    data = dict(class_name='training.dataset.ImageFolderDataset', path=str(tmp_path))
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    path = images.save_reconstruction_grid(HalfEncoder(), str(run_dir), 12, torch.device('cpu'), data, num=2, batch=1)
    assert path == str(run_dir / 'recon000012.png')
    picture = images.read_image(path).pixels
    assert picture.shape == (3, 16, 16)
    assert (picture[:, :8, :8] == 0).all() and (picture[:, 8:, :8] == 64).all(), '-1 -> -1/2'
    assert images.save_reconstruction_grid(torch.nn.Linear(1, 1), str(run_dir), 1, torch.device('cpu'), data) is None
