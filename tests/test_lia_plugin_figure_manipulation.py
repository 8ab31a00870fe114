"""Strips of moved images: given directions, and those that labels teach."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_exhibits import exhibit
from test_lia_plugin_inversion import make_generator, save_pictures

from lia_plugin import direction_learning, figure_manipulation, figures
from lia_plugin.directions import make_direction, save_directions
from lia_plugin.figure_base import Exhibit


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pictures(tmp_path_factory.mktemp('data') / 'set', 10))


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


def test_given_directions_are_followed(G: Any, data: str, tmp_path: Path) -> None:
    vector = torch.zeros(16)
    vector[2] = 1
    path = tmp_path / 'd.npz'
    save_directions(path, [make_direction('third', vector, 'y', scale=0.5)])
    show = exhibit(G, data, directions=str(path))
    found = figures.draw_one(show, 'manipulation')
    assert found.numbers['directions'][0]['amounts'] == pytest.approx([-1.5, 0, 1.5])
    code = show.reals.code[:3].clone()
    torch.testing.assert_close(strip_middle(show, code, 0.0, vector), show.draw(code, None))
    moved = code + 1.5 * vector
    torch.testing.assert_close(strip_middle(show, code, 1.5, vector), show.draw(moved, None))


def strip_middle(show: Exhibit, code: torch.Tensor, amount: float, vector: torch.Tensor) -> torch.Tensor:
    """What the strips show in the column of an amount, caught on its way to the picture."""
    caught: list[torch.Tensor] = []
    draw = show.draw
    show.draw = lambda code, c: caught.append(draw(code, c)) or caught[-1]  # type: ignore[method-assign,func-returns-value]
    direction = make_direction('v', vector, 'y')
    figure_manipulation.strips(show, code, None, ['a', 'b', 'c'], direction, torch.tensor([-1.0, amount]))
    show.draw = draw  # type: ignore[method-assign]
    return torch.stack([row[1] for row in caught])


def test_labels_teach_directions(G: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 60
    folder = save_pictures(tmp_path / 'set', count)
    show = exhibit(G, str(folder))
    first = show.reals.code[:, 0]
    names = [target.stored_name for target in show.items]
    order = {target.label: target.stored_name for target in show.items}
    positive = {order[source]: bool(value > first.median()) for source, value in zip(show.reals.sources, first)}
    rows = [f'{name},{"yes" if positive[name] else "no"},{i},train' for i, name in enumerate(names)]
    table = tmp_path / 'labels.csv'
    table.write_text('\n'.join(['file,smile,number,split', *rows]))
    show = exhibit(G, str(folder), labels=str(table))
    found = figures.draw_one(show, 'manipulation')
    assert [row['name'] for row in found.numbers['accuracies']] == ['smile=yes'], 'numbers and splits are no attributes'
    assert found.numbers['accuracies'][0]['y']['balanced_accuracy'] > 0.6
    # Going along raises what the label was made of.
    edit = figure_manipulation.find(show).edits[0]
    assert float(edit.direction.vector[0]) > 0


def labels_by_first(show: Exhibit) -> dict[str, bool]:
    """An attribute that a tiny network's codes know: whether the first coordinate of y is over the median."""
    first = show.reals.code[:, 0]
    name_of = {target.label: target.stored_name for target in show.items}
    return {name_of[source]: bool(value > first.median()) for source, value in zip(show.reals.sources, first)}


def test_images_go_from_mean_to_mean_and_what_teaches_nothing_is_told(G: Any, tmp_path: Path) -> None:
    folder = str(save_pictures(tmp_path / 'set', 40))
    positive = labels_by_first(exhibit(G, folder))
    rows = [f'{name},{int(yes)},{"rare" if i == 0 else "usual"},same' for i, (name, yes) in enumerate(positive.items())]
    (tmp_path / 'labels.csv').write_text('\n'.join(['file,first,seldom,constant', *rows]))
    show = exhibit(G, folder, labels=str(tmp_path / 'labels.csv'))
    found = figure_manipulation.find(show)
    assert [edit.direction.name for edit in found.edits] == ['first=1']
    assert 'Not learned: seldom' in found.text and 'Not learned: constant: 1 values' in found.text
    direction, unit, _told = found.edits[0]
    split = direction_learning.hold_out(np.array(list(positive.values()), int), figure_manipulation.HELD_OUT, seed=0)
    y, label = show.reals.code[split.train], torch.tensor(list(positive.values()))[split.train]
    gap = y[label].mean(dim=0) - y[~label].mean(dim=0)
    torch.testing.assert_close(direction.vector, gap / gap.norm(), rtol=1e-4, atol=1e-5)
    assert unit == pytest.approx(float((y @ direction.vector).std(unbiased=False)), rel=1e-4)
    header, table = figure_manipulation.accuracy_table(found.accuracies)
    assert all(len(row) == len(header) for row in table) and set(found.accuracies[0]) == {'name', 'y', 'z', 'means'}


def test_images_of_one_group_are_held_out_together(
    G: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_pictures(tmp_path / 'set', 40))
    positive = labels_by_first(exhibit(G, folder))
    rows = [f'{name},{int(yes)},{i // 2}' for i, (name, yes) in enumerate(positive.items())]
    (tmp_path / 'labels.csv').write_text('\n'.join(['file,first,twins', *rows]))
    splits = []
    hold_out = direction_learning.hold_out
    monkeypatch.setattr(direction_learning, 'hold_out', lambda *args: splits.append(hold_out(*args)) or splits[-1])
    show = exhibit(G, folder, labels=str(tmp_path / 'labels.csv'), group_column='twins')
    found = figure_manipulation.find(show)
    assert [row['name'] for row in found.accuracies] == ['first=1'] and 'whole groups of twins' in found.text
    place = {name: i for i, name in enumerate(positive)}
    twins = np.array([place[target.stored_name] // 2 for target in show.items])
    assert not set(twins[splits[0].train]) & set(twins[splits[0].held_out])


def test_what_one_image_judges_comes_last() -> None:
    def learned(name: str, positive: int, accuracy: float) -> figure_manipulation.Learned:
        edit = figure_manipulation.plain(make_direction(name, torch.ones(2), 'y', scale=1.0))
        judged: dict[str, float] = dict(n=20, n_positive=positive, balanced_accuracy=accuracy)
        return figure_manipulation.Learned(edit, dict(means=judged))

    many = [learned('lucky', 1, 1.0), learned('poor', 8, 0.5), learned('good', 8, 0.9), learned('rest', 19, 1.0)]
    order = [one.edit.direction.name for one in sorted(many, key=figure_manipulation._order)]
    assert order == ['good', 'poor', 'lucky', 'rest']
