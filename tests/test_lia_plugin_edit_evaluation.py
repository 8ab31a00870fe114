"""Evaluation of edits: a network whose every pixel is known, from pictures and labels to tables; and the command."""

import csv
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import make_generator, save_pickle

from lia_plugin import cli, edit_evaluation, edit_evaluation_inputs, edit_evaluation_run
from lia_plugin.codes import image_codes
from lia_plugin.directions import make_direction, save_directions
from lia_plugin.edit_evaluation import (
    Edit,
    Measured,
    aim_of,
    candidates,
    mean_outside,
    recognised,
    shrink,
    with_conditional,
    with_reverse,
)
from lia_plugin.edit_evaluation_inputs import EvaluateOptions
from lia_plugin.edit_evaluation_page import examples
from lia_plugin.edit_evaluation_report import edit_name, pairs, save_all, short_names
from lia_plugin.edit_judges import Attribute
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError

SIDE, UPPER, LOWER = 16, (slice(2, 6), slice(2, 6)), (slice(9, 14), slice(9, 14))


class Mapping(torch.nn.Module):
    """y = 2 z: all that codes need of a mapping network with φ."""

    phi = True
    num_layers, base = 0, None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('w_avg', torch.zeros(4))

    def y_to_z(self, y: torch.Tensor, c: Any = None) -> torch.Tensor:
        return y / 2

    def z_to_y(self, z: torch.Tensor, c: Any = None) -> torch.Tensor:
        return z * 2

    def y_to_ws(self, y: torch.Tensor, c: Any = None, truncation_psi: float = 1) -> torch.Tensor:
        return y if y.ndim == 3 else y[:, None].repeat([1, 2, 1])


class Synthesis(torch.nn.Module):
    """Brightness of the upper patch is w[0], of the lower one w[1]; w[2] is that of all the rest."""

    def forward(self, ws: torch.Tensor, noise_mode: str = 'const') -> torch.Tensor:
        w = ws[:, 0]
        img = w[:, 2, None, None, None].repeat([1, 1, SIDE, SIDE])
        img[:, :, UPPER[0], UPPER[1]] = w[:, 0, None, None, None]
        img[:, :, LOWER[0], LOWER[1]] = w[:, 1, None, None, None]
        return img


class Patches(torch.nn.Module):
    """A generator whose encoder reads off what its synthesis draws."""

    z_dim = w_dim = 4
    c_dim, img_resolution, img_channels, num_ws = 0, SIDE, 1, 2
    encoder = True

    def __init__(self) -> None:
        super().__init__()
        self.mapping, self.synthesis = Mapping(), Synthesis()

    def encode(self, img: torch.Tensor, c: Any = None) -> torch.Tensor:
        parts = [img[:, 0, UPPER[0], UPPER[1]], img[:, 0, LOWER[0], LOWER[1]], img[:, 0, :2, :2]]
        known = torch.stack([part.mean(dim=(1, 2)) for part in parts], dim=1)
        return torch.cat([known, torch.zeros([len(img), 1])], dim=1)


def draw(folder: Path, n: int, seed: int) -> list[list[str]]:
    """Pictures of Patches with two independent attributes; rows of their labels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        upper, lower = i % 2, i // 2 % 2  # As often together as apart.
        rest = 0.6 * (i // 4 * 4) / n - 0.3  # The same for all four kinds.
        w = [(-0.5, 0.5)[upper] + rng.normal(0, 0.05), (-0.5, 0.5)[lower] + rng.normal(0, 0.05), rest]
        img = Synthesis()(torch.tensor([[[*w, 0.0]]]).float())[0, 0].clamp(-1, 1)
        PIL.Image.fromarray(((img.numpy() + 1) * 127.5).round().astype(np.uint8)).save(folder / f'{i}.png')
        rows.append([f'{i}.png', ('dark', 'bright')[upper], ('low', 'high')[lower]])
    return rows


class Set:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = [['split', 'file', 'upper', 'lower']]
        rows += [['train', *row] for row in draw(folder / 'train', 100, 0)]
        rows += [['val', *row] for row in draw(folder / 'val', 32, 1)]
        with open(folder / 'labels.csv', 'w', newline='') as file:
            csv.writer(file).writerows(rows)
        places = {name: str(folder / name) for name in ('train', 'val', 'labels.csv')}
        self.options: dict[str, Any] = dict(
            data=places['train'], val=places['val'], labels=places['labels.csv'], shifts=(1.0, 2.0, 3.0))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Set:
    return Set(tmp_path_factory.mktemp('patches'))


def session(outdir: Path, batch: int = 7) -> Session:
    return Session(Patches(), 'patches.pkl', torch.device('cpu'), str(outdir), batch=batch)


@pytest.fixture(scope='module')
def evaluated(data: Set, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return edit_evaluation_run.run(EvaluateOptions(**data.options), session(tmp_path_factory.mktemp('out')), [])


def test_known_attributes_are_edited_alone(evaluated: Any) -> None:
    for measured in evaluated.measured:
        success = measured.success.mean(axis=1)
        assert success[0] == 0 and success[-1] == 1, measured.edit
        # Directions are learned, hence turned a little towards what is no attribute.
        assert measured.values['outside'][-1].mean() < 0.1 * measured.values['mse'][-1].mean()
        assert measured.values['leakage'][-1].mean() < 0.02


def test_both_ways_both_spaces_and_conditions_are_measured(evaluated: Any) -> None:
    names = {(m.edit.direction.name, m.edit.direction.space, m.edit.conditional) for m in evaluated.measured}
    values = ('upper=dark', 'upper=bright', 'lower=low', 'lower=high')
    assert names == {(value, space, condition) for value in values for space in 'yz' for condition in (False, True)}
    for aim, region in evaluated.regions.items():
        rows, columns = (UPPER, LOWER)[aim[0]]
        assert region[rows, columns].all() and region.mean() < 0.3


def test_z_that_is_y_by_another_scale_does_the_same(evaluated: Any) -> None:
    compared = [(evaluated.measured[a], evaluated.measured[b]) for a, b in pairs(evaluated.measured)]
    across = [(a, b) for a, b in compared if a.edit.direction.space != b.edit.direction.space]
    assert len(across) == 8
    for y, z in across:
        assert np.array_equal(y.items, z.items)
        np.testing.assert_allclose(y.values['mse'], z.values['mse'], rtol=0.05, atol=1e-4)
        np.testing.assert_allclose(y.values['z_norm2'], z.values['z_norm2'], rtol=0.05, atol=1e-3)


def test_figures_do_not_depend_on_the_batch(evaluated: Any) -> None:
    measured = evaluated.measured[0]
    again = edit_evaluation.measure(
        session(Path(evaluated.session.outdir), batch=64), measured.edit, evaluated.held, measured.items,
        evaluated.judges, evaluated.regions[measured.edit.aim], measured.amounts[1:].tolist())
    for name, values in measured.values.items():
        np.testing.assert_allclose(again.values[name], values, atol=1e-5, err_msg=name)


def test_directions_of_means_are_the_difference_of_means(evaluated: Any) -> None:
    labels = np.array([[0], [1], [1], [-1]])
    y = torch.tensor([[1.0, 0, 0, 0], [4, 3, 0, 0], [4, 5, 0, 0], [9, 9, 9, 9]])
    codes = evaluated.held.codes[[0, 1, 2, 3]].with_code(y)
    learned = edit_evaluation_run.Learned([], evaluated, codes, labels)
    found = edit_evaluation_run.learn_edits(evaluated.session, learned, [Attribute('a', ('no', 'yes'))], 'means')
    assert [edit.direction.space for edit in found] == ['y', 'z'] and 'means of 3' in found[0].direction.source
    for edit in found:
        np.testing.assert_allclose(edit.direction.vector, [0.6, 0.8, 0, 0], atol=1e-6)


def test_edits_are_tried_where_label_and_judge_say_another_class(evaluated: Any) -> None:
    upper = evaluated.attributes[0]
    labels = np.array([[0], [0], [1], [1], [-1], [0]])
    said = np.eye(2)[[0, 1, 0, 1, 0, 0]]
    held = dataclasses.replace(evaluated.held, labels=labels, said={upper.name: said})
    assert candidates(held, upper, 0, 1, None).tolist() == [0, 5]
    assert candidates(held, upper, 0, 0, None).tolist() == [3]
    assert candidates(held, upper, 0, 1, 1).tolist() == [0]


def test_held_out_images_are_kept_where_they_are(evaluated: Any) -> None:
    """Originals are read again when shown."""
    held = evaluated.held
    assert set(held.codes.originals) == {None} and len(held.pictures) == len(held.targets) == len(held.codes)
    item = len(held.targets) - 1
    difference = held.original(item, evaluated.session.G).int() - held.pictures[item].int()
    assert difference.abs().float().mean() < 2, 'the reconstruction is that of this image'


def test_images_that_could_not_be_read_leave_no_gap(evaluated: Any) -> None:
    held, session, places = evaluated.held, evaluated.session, [1, 2, 6]
    batches = []
    for some in (places[:2], places[2:]):
        codes = image_codes(session.G, 'patches.pkl', [held.targets[place] for place in some])
        assert codes is not None
        batches.append((some, codes))
    found = edit_evaluation.look(session, held.targets, batches, held.labels, evaluated.judges)
    assert found is not None and [one.name for one in found.targets] == list(found.codes.names)
    assert np.array_equal(found.labels, held.labels[places]) and torch.equal(found.pictures, held.pictures[places])
    for name, said in found.said_of_originals.items():
        np.testing.assert_allclose(said, held.said_of_originals[name][places], atol=1e-6)
    assert edit_evaluation.look(session, held.targets, [], held.labels, evaluated.judges) is None


def given(evaluated: Any, vector: list[float], amount: float) -> tuple[Any, int]:
    """What an edit towards upper=bright along a vector of y does, and the attribute's place."""
    upper = next(k for k, attribute in enumerate(evaluated.attributes) if attribute.name == 'upper')
    edit = Edit(make_direction('upper=bright', torch.tensor(vector).float(), 'y', scale=1.0), upper,
                evaluated.attributes[upper].classes.index('bright'), 'file')
    items = candidates(evaluated.held, evaluated.attributes[upper], *edit.aim, None)
    region = evaluated.regions[edit.aim]
    return edit_evaluation.measure(
        evaluated.session, edit, evaluated.held, items, evaluated.judges, region, (amount,)), upper


def test_the_attributes_own_direction_changes_nothing_else(evaluated: Any) -> None:
    measured, _upper = given(evaluated, [1, 0, 0, 0], 1.0)
    assert measured.success[-1].mean() == 1 and measured.values['leakage'][-1].max() < 0.05
    assert not measured.values['outside'].any()  # To the pixel.
    np.testing.assert_allclose(measured.values['mse'][-1], 16 / SIDE**2, rtol=0.02)  # 16 pixels, brighter by 1.


def test_no_further_amount_is_tried_when_success_is_enough(evaluated: Any) -> None:
    measured, done = evaluated.measured[0], []
    again = edit_evaluation.measure(
        evaluated.session, measured.edit, evaluated.held, measured.items, evaluated.judges,
        evaluated.regions[measured.edit.aim], (0.01, 3.0, 4.0, 5.0), done.append, enough=0.8)
    assert again.amounts.tolist() == [0, 0.01, 3] and again.success.shape == (3, len(measured.items))
    assert sum(done) == 4 * len(measured.items)  # A bar comes to its end all the same.


def test_a_direction_that_moves_both_attributes_leaks_and_is_not_local(evaluated: Any) -> None:
    measured, upper = given(evaluated, [1, 1, 0, 0], 1.4)
    items = measured.items
    assert measured.success[-1].mean() == 1
    low = evaluated.held.labels[items, 1 - upper] == evaluated.attributes[1 - upper].classes.index('low')
    assert measured.values['leakage:lower'][-1][low].mean() > 0.8
    assert measured.values['changed:lower'][-1][low].mean() == 1
    assert measured.values['outside'][-1].min() > 0.01
    # |z|²/d in closed form: z = y / 2, moved by 1.4 along (1, 1, 0, 0) / √2.
    y = evaluated.held.codes.code[items] + 1.4 * torch.tensor([1.0, 1, 0, 0]) / np.sqrt(2)
    np.testing.assert_allclose(measured.values['z_norm2'][-1], (y / 2).square().mean(dim=1), rtol=1e-5)


def test_everything_is_written(evaluated: Any) -> None:
    text = save_all(evaluated)
    out = Path(evaluated.session.outdir)
    content = json.loads((out / 'evaluation.json').read_text())
    assert {judge['attribute']: judge['recon'] for judge in content['judges']} == {'upper': 1, 'lower': 1}
    edit = content['edits'][0]
    assert edit['held_out_accuracy']['accuracy'] == 1 and edit['held_out_accuracy']['auc'] == 1
    at = edit['at_equal_success']['0.5']
    assert at['amount']['low'] <= at['amount']['value'] <= at['amount']['high'] and at['leakage']['value'] < 0.02
    assert len(content['comparisons']) == len(pairs(evaluated.measured))
    assert (out / 'directions_y.npz').exists() and (out / 'directions_z.npz').exists()
    html = (out / 'index.html').read_text()
    assert html.count('<img') > 20 and 'upper=bright' in html and 'median' in html
    planes = content['logistic_regression']
    own = [edit for edit in content['edits'] if not (edit['conditional'] or edit['reverse'])]
    assert {(one['aim'], one['space']) for one in planes} == {(edit['aim'], edit['space']) for edit in own}
    assert all(one['held_out_accuracy']['accuracy'] == 1 for one in planes)
    assert f"| {planes[0]['aim']} in y, logistic regression |" in text
    assert '## Differences at 50% success' in text and '| upper=bright in y |' in text


def test_examples_are_in_the_middle_and_the_worst() -> None:
    cost = np.array([[0.0] * 9, [3, 9, 1, 5, 7, 2, 8, 4, 6]])
    edit = Edit(make_direction('a=b', torch.ones(2), 'y', scale=1.0), 0, 0, 'f')
    measured = Measured(edit, np.arange(9), np.array([0.0, 1]), np.array([[0.0] * 9, [1] * 9]), {'outside': cost})
    assert examples([measured, measured], 0.5) == ([7, 3, 8], [1, 6])


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_outside_of_the_region() -> None:
    change = np.arange(8.0).reshape(2, 2, 2)
    region = np.array([[True, False], [True, False]])
    assert mean_outside(change, region).tolist() == [2, 6]
    assert np.isnan(mean_outside(change, region | True)).all()


def test_recognised_by_what_lies_outside() -> None:
    unedited = torch.randint(0, 256, [5, 1, 8, 8], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    region = np.zeros([8, 8], bool)
    region[:4] = True
    edited = unedited[[3, 1]].clone()
    edited[:, :, :4] = 9  # Inside: does not matter.
    small = [shrink(pictures, region) for pictures in (edited, unedited)]
    assert recognised(*small, np.array([3, 1])).tolist() == [1, 1]
    assert recognised(*small, np.array([2, 1])).tolist() == [0, 1]


def test_rare_classes_stay_whole_when_training_images_are_many() -> None:
    labels = np.array([[0]] * 80 + [[1]] * 6 + [[-1]] * 14)
    chosen = edit_evaluation_inputs.choose_labelled(labels, 20)
    assert len(chosen) == 20 and set(range(80, 86)) <= set(chosen) and max(chosen) < 86
    assert np.diff(chosen[:14]).max() <= 12  # The others are spread.
    assert edit_evaluation_inputs.choose_labelled(labels, None) == list(range(86))


def test_aims_of_names() -> None:
    attributes = [Attribute('hair', ('red', 'grey')), Attribute('age', ('old', 'young'))]
    assert aim_of('age=young', attributes, {}, 'f') == (1, 1)
    assert aim_of('smile', attributes, {'smile': 'hair=red'}, 'f') == (0, 0)
    assert aim_of('hair=blue', attributes, {}, 'f') is None and aim_of('hat=yes', attributes, {}, 'f') is None
    with pytest.raises(UserError, match='--aim smile COLUMN=VALUE'):
        aim_of('smile', attributes, {}, 'f')


def test_the_way_back_is_the_other_side_of_the_plane() -> None:
    edit = Edit(make_direction('hair=grey', torch.tensor([3.0, 4]), 'y', bias=0.5, scale=2.0), 0, 1, 'f')
    there, back = with_reverse(edit, Attribute('hair', ('red', 'grey')))
    assert there is edit and back.positive == 0 and back.direction.name == 'hair=red' and back.reverse
    assert torch.equal(back.direction.vector, -edit.direction.vector) and back.direction.bias == -0.5
    assert with_reverse(edit, Attribute('hair', ('red', 'grey', 'blue'))) == [edit]


def test_conditions_are_of_other_attributes_of_one_file_and_space() -> None:
    def edit(k: int, vector: list[float], space: str = 'y', source: str = 'f') -> Edit:
        return Edit(make_direction(f'{k}', torch.tensor(vector), space, scale=1.0), k, 0, source)

    found = with_conditional([edit(0, [1, 1, 0]), edit(0, [0, 0, 1]), edit(1, [0, 1, 0]), edit(2, [1, 0, 0], 'z'),
                              edit(3, [1, 0, 0], source='g')], 2)  # fmt: skip
    assert [(one.attribute, one.conditional) for one in found] == [
        (0, False), (0, True), (0, False), (0, True), (1, False), (1, True), (2, False), (3, False)]
    np.testing.assert_allclose(found[1].direction.vector, [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(('paths', 'short'), [
    (['runs/a/directions.npz', 'runs/b/directions.npz'], ['a', 'b']),
    (['runs/a/smile.npz', 'runs/a/hat.npz'], ['smile.npz', 'hat.npz']),
    (['a/x/d.npz', 'b/x/d.npz', 'b/y/d.npz'], ['a/x', 'b/x', 'b/y']),
    (['d.npz', 'a/d.npz'], None),
    (['only.npz'], ['only.npz']),
    (['learned'], ['learned']),
])  # fmt: skip
def test_files_are_told_by_what_tells_them_apart(paths: list[str], short: list[str] | None) -> None:
    found = short_names(paths)
    assert len(set(found)) == len(paths) and (short is None or found == short)


def test_an_edit_is_called_by_its_file_only_where_another_one_has_its_name() -> None:
    def measured(path: str, space: str = 'y', reverse: bool = False) -> Any:
        direction = make_direction('hat=yes', torch.ones(2), space, scale=1.0)
        return SimpleNamespace(edit=Edit(direction, 0, 1, path, reverse=reverse))

    def names(*those: Any) -> list[str]:
        return [edit_name(SimpleNamespace(measured=those), one.edit) for one in those]  # type: ignore[arg-type]

    assert names(measured('a/d.npz'), measured('b/d.npz', 'z')) == ['hat=yes in y', 'hat=yes in z']
    assert names(measured('a/d.npz'), measured('b/d.npz')) == ['hat=yes in y (a)', 'hat=yes in y (b)']
    assert names(measured('d'), measured('d', reverse=True)) == ['hat=yes in y', 'hat=yes in y, reversed']
    assert names(measured('d', reverse=True)) == ['hat=yes in y']


# ---------------------------------------------------------------------------------------------------------------------
# The command


def run(*args: str) -> int:
    from lia_plugin.commands.edit import edit

    return cli.run(edit, ['evaluate', *args], prog_name='edit.py')


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'grey.pkl', make_generator(channels=1))


def test_the_command_with_a_share_and_a_broken_image(
    network: str, data: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = draw(tmp_path / 'set', 60, 3)
    (tmp_path / 'set' / '7.png').write_bytes(b'no picture')
    with open(tmp_path / 'labels.tsv', 'w') as file:
        file.write('\n'.join(['file\tupper', *(f'{name}\t{upper}' for name, upper, _lower in rows)]))
    code = run('--network', network, '--data', str(tmp_path / 'set'), '--val', '0.3', '--labels',
               str(tmp_path / 'labels.tsv'), '--outdir', str(tmp_path / 'out'), '--shift', '2,4', '--device', 'cpu')
    out, err = capsys.readouterr()
    assert code == 1 and '## Judges' in out and '| upper=' in out
    assert json.loads((tmp_path / 'out' / 'evaluation.json').read_text())['held_out'] in (17, 18), '0.3 of 60'
    assert '7.png' in err and (tmp_path / 'out' / 'index.html').exists()


def test_directions_out_of_files(network: str, data: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector = torch.ones(16)
    save_directions(tmp_path / 'a.npz', [make_direction('brighter', vector, 'y', scale=1.0),
                                         make_direction('hat=yes', vector, 'z', scale=1.0)])
    options = ['--network', network, '--data', data.options['data'], '--val', data.options['val'], '--labels',
               data.options['labels'], '--outdir', str(tmp_path / 'out'), '--device', 'cpu', '--directions',
               str(tmp_path / 'a.npz')]
    assert run(*options) == 2
    assert '--aim brighter COLUMN=VALUE' in capsys.readouterr().err
    assert run(*options, '--aim', 'brighter', 'cap=no', '--aim', 'softer', 'cap=no') == 2
    assert '--aim: no direction is called softer; they are called brighter, hat=yes' in capsys.readouterr().err
    assert run(*options, '--aim', 'brighter', 'cap=no') == 2
    err = capsys.readouterr().err
    assert 'hat=yes is left out' in err and 'none leads to a class of upper, lower' in err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('changes', 'message'), [
    ({'--shift': '2,1'}, '--shift: give amounts above 0 that grow'),
    ({'--shift': 'far'}, "'far' is not a valid float"),
    ({'--val': '1.5'}, '--val=1.5: a share lies between 0 and 1'),
    ({'--val': 'nowhere'}, '--val=nowhere: no such file'),
    ({'--labels': 'none.csv'}, '--labels=none.csv: cannot be read'),
    ({'--attributes': 'hat'}, "no column 'hat'; it has upper, lower"),
    ({'--attributes': 'upper=dark/pale'}, "upper has no value 'pale'"),
    ({'--directions': 'none.npz'}, 'none.npz'),
    ({'--aim': ('brighter', 'upper=dark')}, '--aim: says what directions of --directions lead to'),
    ({'--directions': 'none.npz', '--fit': 'means'}, '--fit: how directions are learned; not with --directions'),
])
def test_bad_inputs_get_one_line(
    network: str, data: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    options = {'--network': network, '--data': data.options['data'], '--val': data.options['val'],
               '--labels': data.options['labels'], '--outdir': str(tmp_path / 'out'), '--device': 'cpu', **changes}
    given = [[option, *([value] if isinstance(value, str) else value)] for option, value in options.items()]
    assert run(*[text for option in given for text in option]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith('Error: ') and err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_networks_without_encoder_are_refused(
    data: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1 = save_pickle(tmp_path / 'stage1.pkl', make_generator(channels=1, encoder=False))
    options = data.options
    assert run('--network', stage1, '--data', options['data'], '--val', options['val'], '--labels', options['labels'],
               '--outdir', str(tmp_path / 'out')) == 2
    assert 'encoder' in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    import subprocess

    code = ('import sys; from lia_plugin import cli; from lia_plugin.commands.edit import edit; '
            'cli.run(edit, ["evaluate", "--help"]); sys.exit("torch" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and '--success' in done.stdout


def test_held_out_share_is_that_of_training(tmp_path: Path) -> None:
    from training.dataset import split_indices

    draw(tmp_path / 'set', 30, 0)
    held = edit_evaluation_inputs._held_out_names(str(tmp_path / 'set'), 0.2)
    names = sorted(f'{i}.png' for i in range(30))
    assert held == {names[i] for i in split_indices(30, 'val', 0.2, 0)}
