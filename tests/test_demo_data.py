"""The demo data set that ships with the project, and the script that makes it."""

import csv
import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import click.testing
import numpy as np
import PIL.Image
import pytest

from dnnlib.util import UserError
from training.dataset import ImageFolderDataset

DEMO = Path(__file__).resolve().parents[1] / 'demo'


@pytest.fixture(scope='module')
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location('make_demo_data', DEMO / 'make_demo_data.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


def read_split(split: str) -> tuple[np.ndarray, list[int]]:
    data = ImageFolderDataset(str(DEMO / f'people64{"_val" if split == "val" else ""}.zip'), use_labels=True)
    return np.stack([data[i][0] for i in range(len(data))]), [int(data.get_label(i).argmax()) for i in range(len(data))]


def read_table(path: Path, split: str) -> list[dict[str, str]]:
    with open(path, encoding='utf-8', newline='') as file:
        return [row for row in csv.DictReader(file) if row['split'] == split]


@pytest.mark.parametrize('split, num', [('train', 804), ('val', 90)])
def test_pictures_and_labels(script: ModuleType, split: str, num: int) -> None:
    images, labels = read_split(split)
    rows = read_table(DEMO / 'people_labels.csv', split)
    assert images.shape == (num, 3, 64, 64) and len(rows) == num
    assert [list(script.SKIN_TONES)[label] for label in labels] == [row['skin_tone'] for row in rows]
    corner = np.median(images[:, :, 0, 0], axis=0)
    assert corner.tolist() == list(script.BACKGROUND)
    assert len({image.tobytes() for image in images}) == num  # None stands twice.


def test_whole_persons_are_held_out() -> None:
    persons = {split: {(row['look'], row['gender']) for row in read_table(DEMO / 'people_labels.csv', split)}
               for split in ('train', 'val')}
    assert len(persons['train']) == 134 and len(persons['val']) == 15 and not persons['train'] & persons['val']


def test_held_out_pictures_have_no_twin_among_the_others() -> None:
    train, val = (read_split(split)[0].astype(np.float64).reshape(-1, 3 * 64 * 64) for split in ('train', 'val'))
    squares = (val ** 2).mean(1)[:, None] + (train ** 2).mean(1) - 2 * val @ train.T / train.shape[1]
    nearest = np.sqrt(squares.min(axis=1))  # RMSE in grey levels.
    assert nearest.min() > 15 and np.median(nearest) > 30


def test_licences_are_told() -> None:
    notice = (DEMO / 'NOTICE').read_text()
    assert all(words in notice for words in ('Apache License', 'SIL Open Font License', 'not photographs', 'Google'))


def test_script_writes_what_its_table_says(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = script.identities()
    assert len({(p.look, p.gender) for p in people}) == len(people) == 149
    assert len({p.emoji(tone) for p in people for tone in script.SKIN_TONES}) == 6 * 149
    assert {(p.look, p.gender) for p in people if p.held_out} == script.HELD_OUT
    monkeypatch.setattr(script, 'load_font', lambda path: None)
    monkeypatch.setattr(script, 'identities', lambda: people[:8])
    monkeypatch.setattr(script, 'render', lambda emoji, _, size: PIL.Image.new('RGB', (size, size), (len(emoji), 0, 0)))
    result = click.testing.CliRunner().invoke(script.make_demo_data, [f'--outdir={tmp_path}', '--size=32'])
    assert result.exit_code == 0, result.output
    for split, stem, num in [('train', 'people32', 7), ('val', 'people32_val', 1)]:
        data = ImageFolderDataset(str(tmp_path / f'{stem}.zip'))
        rows = read_table(tmp_path / 'people_labels.csv', split)
        assert len(data) == len(rows) == 6 * num
        for i, row in enumerate(rows):
            assert data.image_name(i) == row['file'] and data[i][0][0, 0, 0] == len(row['emoji'])
        with zipfile.ZipFile(tmp_path / f'{stem}.zip') as archive:
            assert [label for _, label in json.loads(archive.read('dataset.json'))['labels']] == list(range(6)) * num


def test_missing_and_wrong_fonts(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='install fonts-noto-color-emoji'):
        script.load_font(str(tmp_path / 'gone.ttf'))
    if script.PIL.features.check('raqm'):
        (tmp_path / 'bad.ttf').write_bytes(b'no font')
        with pytest.raises(UserError, match='not a build of Noto Color Emoji'):
            script.load_font(str(tmp_path / 'bad.ttf'))


def test_rendering(script: ModuleType) -> None:
    if not Path(script.FONT).is_file() or not script.PIL.features.check('raqm'):
        pytest.skip('needs fonts-noto-color-emoji and libraqm')
    font = script.load_font(script.FONT)
    person = next(p for p in script.identities() if (p.look, p.gender) == ('red hair', 'woman'))
    pictures = [np.asarray(script.render(person.emoji(tone), font, 64)) for tone in ('light', 'dark')]
    assert pictures[0].shape == (64, 64, 3) and pictures[0][0, 0].tolist() == list(script.BACKGROUND)
    # The same person: hair and clothes stay, the face does not.
    same = (pictures[0] == pictures[1]).all(axis=2)
    assert same.mean() > 0.4 and not same[36, 32]
    with pytest.raises(UserError, match='has no single picture'):
        script.render(person.emoji('light') * 2, font, 64)
