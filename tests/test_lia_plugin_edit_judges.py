"""Judges: features with known values, attributes out of tables, and judges that read what is drawn and nothing else."""

import numpy as np
import pytest
import torch

from lia_plugin import edit_judges as ej
from lia_plugin.attribute_labels import Attributes
from lia_plugin.edit_judges import Attribute, Judge, JudgeFigures, Material
from lia_plugin.host import UserError


def ramp(dx, dy, side=32):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    return ((dx * x + dy * y) / side)[None, None].float()


@pytest.mark.parametrize(('dx', 'dy', 'expected'), [(1, 0, 0), (-1, 0, 0), (0, 1, 4.5), (1, 1, 2.25)])
def test_gradients_lie_in_the_bins_of_their_orientation(dx, dy, expected):
    # A block in the middle, of one orientation alone: shared between the two nearest of nine bins of 20 degrees.
    weights = ej.gradient_features(ramp(dx, dy)).reshape(ej.BINS, 4, 7, 7)[:, :, 3, 3].sum(dim=1)
    shares = (weights / weights.sum()).numpy()
    low = int(np.floor(expected))
    assert shares[low] + shares[(low + 1) % ej.BINS] == pytest.approx(1, abs=1e-3)
    assert shares[low] == pytest.approx(1 - (expected - low), abs=0.02)


def test_features_of_flat_pictures_are_nothing_and_rows_are_independent():
    assert not ej.gradient_features(torch.full([1, 3, 32, 32], 0.5)).any()
    img = torch.rand([5, 3, 48, 48]) * 2 - 1
    together, alone = ej.extract(img), ej.extract(img[2:3])
    for kind in together:
        np.testing.assert_allclose(together[kind][2:3], alone[kind], atol=1e-6)
    assert np.array_equal(together['both'], np.concatenate([together['pixels'], together['gradients']], axis=1))


def table(**columns):
    return Attributes('--labels=t.csv', {name: tuple(values) for name, values in columns.items()})


def test_attributes_out_of_a_table():
    hair = ['red'] * 20 + ['grey'] * 15 + ['none'] * 3 + [None] * 2
    assert ej.choose_attribute('hair', table(hair=hair)) == Attribute('hair', ('red', 'grey'))
    chosen = ej.choose_attribute('hair=grey/red', table(hair=hair))
    assert chosen.classes == ('grey', 'red')
    assert chosen.numbers(table(hair=hair)).tolist() == [1] * 20 + [0] * 15 + [-1] * 5


@pytest.mark.parametrize(('spec', 'message'), [
    ('age', "no column 'age'; it has hair"), ('hair=red/blue', "no value 'blue'; it has red"),
    ('hair=red/none', '3 training images are none; at least 10'), ('hair=red', 'no attribute to tell classes by'),
])
def test_attributes_that_cannot_be_are_refused_in_one_line(spec, message):
    with pytest.raises(UserError, match=message):
        ej.choose_attribute(spec, table(hair=['red'] * 20 + ['grey'] * 15 + ['none'] * 3))


def test_a_fifth_of_each_class_is_set_aside_in_one_piece():
    labels = np.array([[0]] * 50 + [[1]] * 20 + [[-1]] * 30)
    chosen = ej.set_aside(labels, 100)
    assert chosen.tolist() == [*range(20, 30), *range(58, 62)]
    assert len(ej.set_aside(labels, 5)) == 5
    both = ej.set_aside(np.concatenate([labels, 1 - labels], axis=1), 100)
    assert len(both) < 2 * len(chosen)  # One picture serves several attributes.


def drawn(n, seed):
    """Pictures with a bright patch for each of two independent attributes, and their labels [n, 2]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, [n, 2])
    img = torch.from_numpy(rng.normal(0, 0.1, [n, 1, 16, 16])).float()
    img[:, :, 2:6, 2:6] += torch.from_numpy(labels[:, 0])[:, None, None, None]
    img[:, :, 9:14, 9:14] += torch.from_numpy(labels[:, 1])[:, None, None, None]
    return img, labels


@pytest.fixture(scope='module')
def judges():
    img, labels = drawn(200, 0)
    aside = ej.set_aside(labels, 100)
    attributes = [Attribute('upper', ('no', 'yes')), Attribute('lower', ('no', 'yes'))]
    return ej.fit_judges(attributes, labels, Material(ej.extract(img), ej.extract(img), aside))


def test_judges_read_held_out_pictures(judges):
    img, labels = drawn(100, 1)
    said = ej.ask(judges, img)
    for k, judge in enumerate(judges):
        figures = ej.judge_figures(judge, labels[:, k], said[judge.attribute.name], said[judge.attribute.name])
        assert figures == JudgeFigures(100, 0.5, 1.0, 1.0) and not figures.weak
        np.testing.assert_allclose(said[judge.attribute.name].sum(axis=1), 1)


def test_what_judges_say_does_not_depend_on_the_batch(judges):
    img, _labels = drawn(9, 2)
    together, alone = ej.ask(judges, img), ej.ask(judges, img[4:5])
    for name in together:
        np.testing.assert_allclose(together[name][4:5], alone[name], atol=1e-6)


def test_the_judge_is_chosen_by_reconstructions_too():
    """Reconstructions without any edge leave pixels alone to judge by."""
    img, labels = drawn(200, 0)
    aside = ej.set_aside(labels, 100)
    blank = {kind: values * (kind == 'pixels') for kind, values in ej.extract(img).items()}
    chosen = ej.fit_judges([Attribute('upper', ('no', 'yes'))], labels[:, :1], Material(ej.extract(img), blank, aside))
    assert isinstance(chosen[0], Judge) and chosen[0].kind == 'pixels'


def test_judges_read_what_generators_draw():
    """Half the contrast and a grey veil: a judge of crisp pictures alone would call all of it one class."""
    img, labels = drawn(200, 0)
    attributes, aside = [Attribute('upper', ('no', 'yes'))], ej.set_aside(labels, 100)
    veiled = img * 0.3 - 0.6
    judges = ej.fit_judges(attributes, labels[:, :1], Material(ej.extract(img), ej.extract(veiled), aside))
    held, truth = drawn(100, 1)
    crisp, dull = (ej.ask(judges, x)['upper'].argmax(axis=1) for x in (held, held * 0.3 - 0.6))
    assert (crisp == truth[:, 0]).mean() > 0.95 and (dull == truth[:, 0]).mean() > 0.9


def test_log_loss_of_certain_even_and_rare_classes():
    said = np.array([[1, 0], [0.5, 0.5], [0.25, 0.75]])
    assert ej.log_loss(said[:1], np.array([0])) == 0
    assert ej.log_loss(said, np.array([0, 0, 1])) == pytest.approx((np.log(2) / 2 - np.log(0.75)) / 2)


def test_probabilities_are_sure_where_pictures_are_clear(judges):
    img, labels = drawn(100, 3)
    said = ej.ask(judges, img)['upper']
    assert said[np.arange(100), labels[:, 0]].min() > 0.9


def test_weak_judges_are_told():
    assert JudgeFigures(10, 0.5, 0.9, 0.7).weak and not JudgeFigures(10, 0.5, 0.9, 0.75).weak
    assert JudgeFigures(10, 0.5, 0.9, float('nan')).weak
