"""`edit directions`: what it learns of pictures whose attribute is plain to see, what it writes and refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from editing_files import Files, edit, refused

from lia_plugin import manipulation
from lia_plugin.codes import read_inputs
from lia_plugin.directions import Direction, load_directions
from lia_plugin.network_hash import generator_hash

LEVELS = {'dark': 60, 'medium': 128, 'bright': 200}


class Labelled(Files):
    """Beside the networks: pictures of three brightnesses, of twelve people, and tables of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        random = np.random.RandomState(0)
        self.set, self.val = folder / 'set', folder / 'val'
        lines = ['split,file,tone,person,two,number']
        for split, place, count in (('train', self.set, 48), ('val', self.val, 12)):
            place.mkdir()
            for i in range(count):
                tone = list(LEVELS)[i % 3]
                pixels = np.clip(LEVELS[tone] + 20 * random.randn(16, 16, 3), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(place / f'{i:03d}.png')
                lines.append(f'{split},{i:03d}.png,{tone},p{i // 3 % 12},{int(tone == "bright")},{i}.5')
        self.table = folder / 'labels.csv'
        self.table.write_text('\n'.join(lines) + '\n')
        self.train_only = folder / 'train.csv'
        rows = [line.split(',', 1)[1] for line in lines if not line.startswith('val')]
        self.train_only.write_text('\n'.join(rows) + '\n')
        for tone in LEVELS:
            (folder / tone).mkdir()
        for i in range(48):
            picture = PIL.Image.open(self.set / f'{i:03d}.png')
            picture.save(folder / list(LEVELS)[i % 3] / f'{i:03d}.png')
        self.folder = folder


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return Labelled(tmp_path_factory.mktemp('directions'))


def learn(files: Labelled, out: Path, *args: Any) -> list[Direction]:
    assert edit('directions', '--network', files.network, '--outdir', out, '--show=0', *args) == 0
    return load_directions(str(out / 'directions.npz'), files.G)


def told(out: Path) -> dict[str, Any]:
    return {one['name']: one for one in json.loads((out / 'directions.json').read_text())['directions']}


def side(files: Labelled, direction: Direction, tone: str) -> torch.Tensor:
    """Distances of all pictures of one tone."""
    codes = read_inputs([str(files.folder / tone)], files.G, '')
    return manipulation.distance(files.G, codes.code, codes.c, direction)


@pytest.mark.parametrize('space', ['y', 'z'])
def test_two_values_make_one_direction_with_its_figures(
    files: Labelled, tmp_path: Path, space: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = learn(files, tmp_path, '--method=labels', '--space', space, '--data', files.set, '--labels',
                     files.train_only, '--attribute=tone', '--values=bright,dark,bright')  # fmt: skip
    assert found.name == 'tone=dark' and 'from bright (-) to dark (+)' in found.meaning and found.space == space
    assert found.network_hash == generator_hash(files.G) and 'train.csv' in found.source
    assert (side(files, found, 'dark') > 0).all() and (side(files, found, 'bright') < 0).all()
    figures = told(tmp_path)['tone=dark']
    assert figures['n'] + figures['train_n'] == 32 and figures['n'] in (6, 7) and figures['accuracy'] == 1
    assert figures['change'] > 0 and figures['change_at'] == 3 and found.figures['change'] == figures['change']
    assert figures['majority'] <= 0.6 and figures['auc'] == 1 and 'random share of 0.2' in figures['held_out_by']
    assert found.figures['n'] == figures['n'], 'the file carries them, too'
    inside = torch.cat([side(files, found, tone) for tone in ('dark', 'bright')])
    assert float(inside.std()) == pytest.approx(found.scale, rel=0.2)
    assert PIL.Image.open(tmp_path / 'sheet.png').width > 7 * 128
    assert 'tone=dark' in (tmp_path / 'index.html').read_text()
    assert 'accuracy' in capsys.readouterr().out


def test_a_validation_set_is_what_is_judged_by(files: Labelled, tmp_path: Path) -> None:
    found = learn(files, tmp_path, '--method=labels', '--data', files.set, '--val', files.val, '--labels', files.table,
                  '--attribute=tone', '--attribute=two', '--attribute=tone')  # fmt: skip
    assert [one.name for one in found] == ['tone=bright', 'tone=dark', 'tone=medium', 'two=1']
    for figures in told(tmp_path).values():
        assert (figures['n'], figures['train_n'], figures['n_positive']) == (12, 48, 4)
        assert figures['held_out_by'] == f'--val={files.val}'
    assert told(tmp_path)['tone=bright']['accuracy'] == told(tmp_path)['two=1']['accuracy'] == 1
    torch.testing.assert_close(found[0].vector, found[3].vector)


def test_groups_are_held_out_whole_and_columns_that_make_no_classes_passed_over(
    files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split(',') for line in files.train_only.read_text().splitlines()]
    table = tmp_path / 'table.csv'
    table.write_text('\n'.join(','.join([row[0], *row[2:]]) for row in rows))  # file, person, two, number
    found = learn(files, tmp_path, '--method=labels', '--data', files.set, '--labels', table, '--group-column=person',
                  '--holdout=0.25')  # fmt: skip
    assert [one.name for one in found] == ['two=1']
    assert told(tmp_path)['two=1']['n'] == 12, 'three of twelve people with four pictures'
    assert told(tmp_path)['two=1']['held_out_by'] == 'groups of person'
    said = capsys.readouterr().err
    assert said.count('Not learned: number (has 48 values among 48 images, too few of each)\n') == 1


def test_class_numbers_of_the_data_set(files: Labelled, tmp_path: Path) -> None:
    labels = [[f'{i:03d}.png', i % 3] for i in range(48)]
    copy = tmp_path / 'set'
    copy.mkdir()
    for path in files.set.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / 'dataset.json').write_text(json.dumps({'labels': labels}))
    found = learn(files, tmp_path / 'out', '--method=labels', '--data', copy)
    assert [one.name for one in found] == ['class=0', 'class=1', 'class=2']
    assert (side(files, found[2], 'bright') > 0).all()


def test_a_column_may_say_what_is_held_out(files: Labelled, tmp_path: Path) -> None:
    rows = [line.split(',') for line in files.train_only.read_text().splitlines()]  # file, tone, person, two, number
    held_out = ('p10', 'p11')
    lines = ['file,two,subset', *(f'{row[0]},{row[3]},{"test" if row[2] in held_out else "train"}' for row in rows[1:])]
    table = tmp_path / 'marked.csv'
    table.write_text('\n'.join(lines))
    learn(files, tmp_path / 'out', '--method=labels', '--data', files.set, '--labels', table, '--attribute=two')
    figures = told(tmp_path / 'out')['two=1']
    assert (figures['n'], figures['train_n'], figures['held_out_by']) == (6, 42, 'column subset')


def test_rows_of_one_split_alone(files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that stand in both splits are only told apart when the split is said."""
    args = ['--method=labels', '--data', files.set, '--labels', files.table, '--attribute=two']
    code = edit('directions', '--network', files.network, '--outdir', tmp_path / 'no', *args)
    refused(capsys, code, 'a column "split" (train, val) may tell them apart', tmp_path / 'no')
    learn(files, tmp_path / 'out', *args, '--splits=train')
    assert told(tmp_path / 'out')['two=1']['n'] in (9, 10)


def test_codes_out_of_a_file_serve_networks_without_an_encoder(files: Labelled, tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    w = random.randn(60, 8).astype(np.float32)
    np.savez(tmp_path / 'latents.npz', w=w[:, None], names=np.array([f'img{i}' for i in range(60)]))
    rows = [f'img{i}.png,{"yes" if w[i, 2] > 0.3 else "no"}' for i in range(60)]
    (tmp_path / 'labels.csv').write_text('\n'.join(['file,answer', *rows]))
    assert edit('directions', '--network', files.stock, '--method=labels', '--data', tmp_path / 'latents.npz',
                '--labels', tmp_path / 'labels.csv', '--outdir', tmp_path / 'out', '--holdout=0.25',
                '--fit=plane') == 0  # fmt: skip
    (found,) = load_directions(str(tmp_path / 'out' / 'directions.npz'))
    assert found.space == 'w' and found.name == 'answer=yes' and found.vector[2] > 0.9
    assert found.bias is not None and -found.bias / float(found.vector[2]) == pytest.approx(0.3, abs=0.3)


def test_logistic_regression_judges_beside_whatever_the_direction_is(files: Labelled, tmp_path: Path) -> None:
    args = ['--method=labels', '--data', files.set, '--val', files.val, '--labels', files.table, '--attribute=tone']
    means, plane = (learn(files, tmp_path / fit, *args, *more) for fit, more in (('', []), ('p', ['--fit=plane'])))
    for one, other in zip(means, plane):
        assert one.figures['fit'] == 'means' and other.figures['fit'] == 'plane' and one.name == other.name
        for key in ('accuracy', 'balanced_accuracy', 'auc'):
            assert one.figures[f'plane_{key}'] == other.figures[f'plane_{key}'] == other.figures[key]
    medium = [next(one for one in found if one.name == 'tone=medium') for found in (means, plane)]
    assert not torch.allclose(medium[0].vector, medium[1].vector, atol=1e-2), 'what lies between is no way to go'


@pytest.mark.parametrize('fit', ['plane', 'means'])
def test_two_sets_of_images(files: Labelled, tmp_path: Path, fit: str) -> None:
    (found,) = learn(files, tmp_path, '--method=sets', f'--fit={fit}', '--positive', files.folder / 'bright',
                     '--negative', files.folder / 'dark', '--layers=0-2')  # fmt: skip
    assert found.name == 'bright' and found.layers == (0, 1, 2) and found.figures['fit'] == fit
    assert (side(files, found, 'bright') > 0).all() and (side(files, found, 'dark') < 0).all()


def test_without_labels(files: Labelled, tmp_path: Path) -> None:
    found = learn(files, tmp_path / 'pca', '--method=pca', '--count=3', '--samples=500')
    figures = told(tmp_path / 'pca')
    assert [one.name for one in found] == ['pc0', 'pc1', 'pc2'] and found[0].bias is None
    assert figures['pc0']['scale'] == pytest.approx(figures['pc0']['variance'] ** 0.5)
    assert figures['pc0']['explained_variance'] >= figures['pc1']['explained_variance'] > 0
    (bright,) = learn(files, tmp_path / 'z', '--method=pca', '--space=z', '--count=1', '--data', files.set)
    assert bright.space == 'z' and side(files, bright, 'bright').mean() != side(files, bright, 'dark').mean()
    found = learn(files, tmp_path / 'sefa', '--method=sefa', '--layers=1-2')
    assert [one.name for one in found] == [f'sefa{k}' for k in range(8)] and found[0].layers == (1, 2)
    assert edit('directions', '--network', files.stock, '--method=sefa', '--count=2', '--outdir', tmp_path / 's') == 0
    assert load_directions(str(tmp_path / 's' / 'directions.npz'))[0].space == 'w'


@pytest.mark.parametrize('method', ['sefa', 'pca'])
def test_fewer_than_asked_for_are_told_of(
    files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    found = learn(files, tmp_path, f'--method={method}', '--count=1000')
    told = capsys.readouterr().err
    assert len(found) < 1000 and f'--count=1000: there are {len(found)}, as codes have dimensions' in told
    learn(files, tmp_path, f'--method={method}', f'--count={len(found)}')
    assert '--count' not in capsys.readouterr().err


def test_a_bad_image_is_passed_over_and_counted(
    files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bright = tmp_path / 'bright'
    bright.mkdir()
    for path in (files.folder / 'bright').iterdir():
        (bright / path.name).write_bytes(path.read_bytes())
    (bright / 'bad.png').write_bytes(b'nonsense')
    assert edit('directions', '--network', files.network, '--method=sets', '--positive', bright, '--negative',
                files.folder / 'dark', '--outdir', tmp_path / 'out', '--show=0') == 1  # fmt: skip
    assert '1 images could not be used' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'directions.npz').exists()


@pytest.mark.parametrize('args, words', [
    (['--method=labels'], '--method=labels: needs --data'),
    (['--method=sets', '--positive=0-9'], '--method=sets: needs --positive and --negative'),
    (['--method=sefa', '--attribute=tone'], '--attribute: only with --method=labels'),
    (['--method=pca', '--space=z'], '--space=z: the prior varies alike'),
    (['--method=sefa', '--layers=9'], '--layers: this network has 0 to 5, not 9'),
    (['--method=labels', '--data=SET', '--labels=TABLE', '--attribute=shade'], '--attribute=shade: no such column'),
    (['--method=labels', '--data=SET', '--labels=TABLE', '--attribute=tone', '--values=dark,pink'],
     '--values: no image has tone=pink'),
    (['--method=labels', '--data=SET', '--labels=TABLE', '--values=dark,bright'], '--values: takes two or more values'),
    (['--method=labels', '--data=SET', '--labels=TABLE', '--attribute=number'], '48 values among 48 images'),
    (['--method=labels', '--data=SET', '--labels=TABLE', '--group-column=x'], "no column 'x'"),
    (['--method=labels', '--data=SET', '--val=SET', '--holdout=0.3'], '--holdout: not with --val'),
    (['--method=labels', '--data=SET'], 'dataset.json'),
    (['--method=labels', '--data=SET', '--labels=nowhere.csv'], '--labels=nowhere.csv: cannot be read'),
    (['--method=sets', '--positive=0-1', '--negative=2-3'], 'nothing could be learned: 0-1 (2 images to learn from'),
    (['--method=sets', '--positive=0-19', '--negative=2-5'], 'nothing could be learned: 0-19 (3 other images'),
    (['--method=sets', '--positive=nowhere/', '--negative=2-5'], '--positive=nowhere/: no such file'),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    args = [arg.replace('SET', str(files.set)).replace('TABLE', str(files.train_only)) for arg in args]
    code = edit('directions', '--network', files.network, '--outdir', tmp_path / 'out', *args)
    refused(capsys, code, words, tmp_path / 'out')


def test_a_conditional_network_needs_a_class_to_be_shown(
    files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ['--network', files.conditional, '--method=sefa', '--count=1', '--space=z', '--outdir', tmp_path / 'out']
    refused(capsys, edit('directions', *args), '--class: this network needs one', tmp_path / 'out')
    assert edit('directions', *args, '--class=2') == 0


def test_a_stock_network_has_no_z(files: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = edit('directions', '--network', files.stock, '--method=sefa', '--space=z', '--outdir', tmp_path / 'out')
    refused(capsys, code, 'it has no φ', tmp_path / 'out')
