"""`edit paste` and `--paste`: from files and codes to full pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, save_pickle

from lia_plugin import cli, images, paste_back
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator())


def save_wide(path: Path, seed: int, mode: str = 'RGB', **options: Any) -> np.ndarray:
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    pixels = np.random.RandomState(seed).randint(0, 255, [RESOLUTION, 40, bands], dtype=np.uint8)
    PIL.Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels, mode).save(path, **options)
    return pixels


@pytest.fixture
def inverted(network: str, tmp_path: Path) -> Path:
    """Two wide pictures a and b, b with transparency, and what invert.py made of them."""
    (tmp_path / 'in').mkdir()
    save_wide(tmp_path / 'in' / 'a.png', 0)
    save_wide(tmp_path / 'in' / 'b.png', 1, 'RGBA')
    args = ['--device=cpu', f'--network={network}', f'--target={tmp_path / "in"}', f'--outdir={tmp_path / "inv"}']
    assert cli.run(cli.load_command('invert'), args) == 0
    return tmp_path


def paste(folder: Path, *args: str) -> int:
    return cli.run(cli.load_command('edit'), ['paste', f'--outdir={folder / "out"}', *args])


def pixels(path: Path) -> torch.Tensor:
    return images.read_image(path, alpha=True).pixels


def save_edit(folder: Path, name: str, change: int) -> Path:
    """The reconstruction, brighter."""
    recon = images.read_image(folder / 'inv' / f'{name[0]}_recon.png').pixels
    images.save_png((recon.int() + change).clamp(0, 255).to(torch.uint8), folder / f'{name}.png')
    return folder / f'{name}.png'


def test_an_edit_without_a_change_gives_the_pictures_back(inverted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edits = [save_edit(inverted, f'{name}_same', 0) for name in 'ab']
    assert paste(inverted, *(f'--edited={edit}' for edit in edits), f'--latents={inverted}/inv/latents.npz') == 0
    results = [inverted / 'out' / f'{name}_same_pasted.png' for name in 'ab']
    assert capsys.readouterr().out.split() == [str(path) for path in results]
    for path, name in zip(results, 'ab'):
        assert torch.equal(pixels(path), pixels(inverted / 'in' / f'{name}.png'))


def test_a_replaced_crop_is_the_edit_and_transparency_stays(inverted: Path) -> None:
    edit = save_edit(inverted, 'b_bright', 40)
    assert paste(inverted, f'--edited={edit}', f'--latents={inverted}/inv/b.npz', '--paste-mode=replace',
                 '--feather=0') == 0  # fmt: skip
    before, after = pixels(inverted / 'in' / 'b.png'), pixels(inverted / 'out' / 'b_bright_pasted.png')
    assert torch.equal(after[:3, :, 12:28], pixels(edit)) and torch.equal(after[3], before[3])
    assert torch.equal(after[:, :, :12], before[:, :, :12]) and torch.equal(after[:, :, 28:], before[:, :, 28:])


def test_a_picture_that_has_moved_and_one_that_lies_on_its_side(inverted: Path, network: str) -> None:
    (inverted / 'in' / 'a.png').rename(inverted / 'elsewhere.png')
    edit = save_edit(inverted, 'a_bright', 40)
    args = [f'--edited={edit}', f'--latents={inverted}/inv/a.npz']
    assert paste(inverted, *args) == 2 and not (inverted / 'out').exists()
    assert paste(inverted, *args, f'--picture={inverted / "elsewhere.png"}') == 0
    turned = PIL.Image.open(inverted / 'elsewhere.png')
    exif = turned.getexif()
    exif[0x0112] = 6  # To be shown turned by a quarter.
    turned.transpose(PIL.Image.Transpose.ROTATE_90).save(inverted / 'turned.png', exif=exif)
    assert paste(inverted, *args, f'--picture={inverted / "turned.png"}', '--outdir', str(inverted / 'again')) == 0
    upright = pixels(inverted / 'again' / 'a_bright_pasted.png')
    assert torch.equal(upright, pixels(inverted / 'out' / 'a_bright_pasted.png'))


def test_relative_paths_are_those_of_the_folder_where_invert_was_run(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'in').mkdir()
    save_wide(tmp_path / 'in' / 'a.png', 0)
    monkeypatch.chdir(tmp_path)
    args = ['--device=cpu', f'--network={network}', '--target=in/a.png', '--outdir=inv']
    assert cli.run(cli.load_command('invert'), args) == 0
    edit = save_edit(tmp_path, 'a_same', 0)
    call = (f'--edited={edit}', f'--latents={tmp_path}/inv/projected_w.npz')
    monkeypatch.chdir(tmp_path / 'in')
    assert paste(tmp_path, *call) == 2
    assert 'in/a.png: no such file, seen from this folder; be where invert.py was run' in capsys.readouterr().err
    session = Session.open(network, str(tmp_path / 'x'), 'cpu')
    with pytest.raises(UserError, match='its picture in/a.png is not there, seen from this folder'):
        paste_back.CodePaster(session, session.read([f'{tmp_path}/inv/projected_w.npz']))
    monkeypatch.chdir(tmp_path)
    assert paste(tmp_path, *call) == 0


def test_colour_profiles_go_on(network: str, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    save_wide(tmp_path / 'a.png', 0, icc_profile=profile)
    session = Session.open(network, str(tmp_path / 'out'), 'cpu')
    codes = session.read([str(tmp_path / 'a.png')])
    paste_back.CodePaster(session, codes).save(0, session.render(codes.code)[0], str(tmp_path / 'b.png'))
    with PIL.Image.open(tmp_path / 'b.png') as picture:
        assert picture.info['icc_profile'] == profile and picture.size == (40, RESOLUTION)


def test_codes_of_images_and_of_files_paste_alike(inverted: Path, network: str) -> None:
    session = Session.open(network, str(inverted / 'out'), 'cpu')
    shifted = []
    for source in (inverted / 'in' / 'a.png', inverted / 'inv' / 'latents.npz'):
        codes = session.read([str(source)])
        edited = session.render(codes.code + 0.5)[0]
        shifted.append(paste_back.CodePaster(session, codes)(0, edited))
    assert (shifted[0].int() - shifted[1].int()).abs().max() <= 1
    assert not torch.equal(shifted[0], pixels(inverted / 'in' / 'a.png'))


def test_seeds_have_no_picture(network: str, tmp_path: Path) -> None:
    session = Session.open(network, str(tmp_path), 'cpu')
    with pytest.raises(UserError, match='--paste: seed 7: is not cut out of a picture'):
        paste_back.CodePaster(session, session.read(['7']))


def test_edits_of_one_name_in_two_folders_belong_to_the_same_picture(inverted: Path) -> None:
    """Results take their folders' names; b/a_bright.png is still an edit of a."""
    edit = save_edit(inverted, 'a_same', 0)
    copies = [inverted / folder / edit.name for folder in 'bc']
    for copy in copies:
        copy.parent.mkdir()
        copy.write_bytes(edit.read_bytes())
    assert paste(inverted, *(f'--edited={copy}' for copy in copies), f'--latents={inverted}/inv/latents.npz') == 0
    for folder in ('b', 'c'):
        result = pixels(inverted / 'out' / f'{folder}_a_same_pasted.png')
        assert torch.equal(result, pixels(inverted / 'in' / 'a.png'))


def test_sixteen_bits_that_become_eight_are_told_once(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'in').mkdir()
    deep = np.random.RandomState(0).randint(0, 2**16, [RESOLUTION, 40]).astype(np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / 'in' / 'a.png')
    args = ['--device=cpu', f'--network={network}', f'--target={tmp_path / "in"}', f'--outdir={tmp_path / "inv"}']
    assert cli.run(cli.load_command('invert'), args) == 0
    capsys.readouterr()
    edits = [save_edit(tmp_path, name, 9) for name in ('a_1', 'a_2')]
    assert paste(tmp_path, *(f'--edited={edit}' for edit in edits), f'--latents={tmp_path}/inv/projected_w.npz') == 0
    assert capsys.readouterr().err.count('a.png: 16 bits reduced to 8') == 1


def test_names_match_whole_words() -> None:
    known: Any = {'a': 1, 'a_1': 2, 'a10': 3}
    assert [paste_back.match(stem, known, 'x')[1] for stem in ('a', 'a_old', 'a_1_old', 'a10.x')] == [1, 1, 2, 3]
    with pytest.raises(UserError, match='ab: begins with no name in x'):
        paste_back.match('ab', known, 'x')


@pytest.mark.parametrize('args, complaint', [
    (['--latents={}/inv/b.npz'], 'there is no .*b_recon.png; name the reconstruction'),
    (['--latents={}/inv/none.npz'], 'none.npz: no such file; invert.py writes one'),
    (['--latents={}/inv/latents.npz:c'], 'has no place of that name; it has a, b'),
    (['--latents={}/plain.npz'], 'plain.npz: does not say where its images were cut out'),
    (['--latents={}/inv/a.npz', '--picture={}/in'], 'in: '),
    (['--latents={}/inv/a.npz', '--picture={}/other.png'], 'has 8x8 pixels, but the crop was cut from .* 40x16'),
    (['--latents={}/inv/a.npz', '--reconstruction={}/other.png'], '--reconstruction: .*other.png: has 8x8 pixels'),
    (['--latents={}/inv/a.npz', '--reconstruction={}/other.png', '--paste-mode=replace'], '--reconstruction: only'),
    (['--latents={}/inv/latents.npz', '--picture={}/other.png'], '--picture: is of one image'),
    (['--latents={}/inv/a.npz', '--edited={}/other.png'], None),
])
def test_bad_calls_are_one_line(
    inverted: Path, args: list[str], complaint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    np.savez(inverted / 'plain.npz', y=np.zeros([1, 16], np.float32))
    PIL.Image.new('RGB', (8, 8)).save(inverted / 'other.png')
    (inverted / 'inv' / 'b_recon.png').unlink()
    edit = save_edit(inverted, 'a_bright', 40)
    capsys.readouterr()
    code = paste(inverted, f'--edited={edit}', *(arg.format(inverted) for arg in args))
    told = capsys.readouterr().err.strip().splitlines()
    if complaint is None:  # One of two can be used.
        assert code == 1 and 'other.png: has 8x8 pixels, but the crop has 16x16' in told[0]
    else:
        assert code == 2 and len(told) == 1 and re.search(complaint, told[0]), told
        assert not (inverted / 'out').exists()


def test_pictures_inside_zips_are_found_again(network: str, tmp_path: Path) -> None:
    import zipfile

    save_wide(tmp_path / 'a.png', 0)
    with zipfile.ZipFile(tmp_path / 'in.zip', 'w') as file:
        file.write(tmp_path / 'a.png', 'sub/a.png')
    args = ['--device=cpu', f'--network={network}', f'--target={tmp_path / "in.zip"}', f'--outdir={tmp_path / "inv"}']
    assert cli.run(cli.load_command('invert'), args) == 0
    edit = save_edit(tmp_path, 'a_same', 0)
    assert paste(tmp_path, f'--edited={edit}', f'--latents={tmp_path}/inv/projected_w.npz') == 0
    assert torch.equal(pixels(tmp_path / 'out' / 'a_same_pasted.png'), pixels(tmp_path / 'a.png'))
