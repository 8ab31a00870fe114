"""Many pictures into a folder: all of them, whole, with the first error told; grids as they fill."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from lia_plugin import images, picture_files


def flat(level: int) -> torch.Tensor:
    return torch.full([1, 4, 4], level, dtype=torch.uint8)


def test_all_are_there_at_the_end_and_nothing_else(tmp_path: Path) -> None:
    with picture_files.PictureFolder(str(tmp_path / 'out'), 'png') as folder:
        for level in range(100):
            folder.add(flat(level), f'a{level}')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {f'a{level}.png' for level in range(100)}
    assert torch.equal(images.read_image(tmp_path / 'out' / 'a57.png').pixels, flat(57)) and folder.count == 100


def test_no_folder_without_a_picture(tmp_path: Path) -> None:
    with picture_files.PictureFolder(str(tmp_path / 'out'), 'png'):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_file_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(img: torch.Tensor, path: str) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device', path)

    monkeypatch.setattr(picture_files, 'save_picture', fail)
    with pytest.raises(OSError, match='a0'), picture_files.PictureFolder(str(tmp_path), 'png') as folder:
        folder.add(flat(0), 'a0')


def test_the_work_waits_for_files_that_are_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(picture_files, 'save_picture', lambda img, path: gate.wait(10))
    with picture_files.PictureFolder(str(tmp_path), 'png') as folder:
        for level in range(picture_files.MAX_WAITING):
            folder.add(flat(level), f'a{level}')
        threading.Timer(0.2, gate.set).start()
        folder.add(flat(0), 'one more')
        assert gate.is_set() and len(folder.background.waiting) <= picture_files.MAX_WAITING


def test_grids_are_written_as_they_fill(tmp_path: Path) -> None:
    with picture_files.PictureFolder(str(tmp_path), 'png') as folder:
        sheets = picture_files.GridFolder(folder, columns=3, rows=1)
        sheets.add(torch.stack([flat(level) for level in range(4)]), ['a', 'b', 'c', 'd'])
        assert folder.count == 1 and len(sheets.pictures) == 1
        sheets.flush()
        sheets.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['grid00.png', 'grid01.png']
    assert images.read_image(tmp_path / 'grid01.png').pixels[0, 0].tolist() == [3] * 4 + [255] * 8
