"""Boundaries against planes that are known, figures against scikit-learn, splits against their contract."""

import numpy as np
import pytest
import sklearn.metrics
from numpy.typing import NDArray

from lia_plugin import direction_learning as learning
from lia_plugin.host import UserError

DIM = 12


def plane(n: int, noise: float = 0.0, seed: int = 0) -> tuple[NDArray, NDArray, NDArray, float]:
    """Codes of unequal spreads about a mean that isn't 0, labels by a known plane: codes, positive, normal, bias."""
    random = np.random.default_rng(seed)
    scales = np.geomspace(0.3, 3, DIM)
    codes = random.normal(size=[n, DIM]) * scales + random.normal(size=DIM)
    normal = random.normal(size=DIM) / scales
    normal /= np.linalg.norm(normal)
    bias = -float(codes.mean(axis=0) @ normal)
    spread = (codes @ normal).std()
    return codes, codes @ normal + bias + noise * spread * random.normal(size=n) > 0, normal, bias


@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_a_known_plane_is_found(noise: float) -> None:
    codes, positive, normal, bias = plane(3000, noise)
    found = learning.fit_boundary(codes, positive)
    assert found.vector @ normal > 0.99 and np.linalg.norm(found.vector) == pytest.approx(1)
    distances = codes @ found.vector + found.bias
    assert distances.mean() == pytest.approx((codes @ normal + bias).mean(), abs=0.1 * distances.std())


def correlated(n: int) -> tuple[NDArray, NDArray]:
    """Labels by a dimension that a wider one hides: to tell them takes a normal that the means don't show."""
    random = np.random.default_rng(0)
    noise, signal = random.normal(size=[n, DIM]), random.normal(size=n)
    noise[:, 0] *= 5
    codes = noise.copy()
    codes[:, 1] = noise[:, 0] + 0.5 * signal
    return codes, signal + 0.3 * random.normal(size=n) > 0


def test_the_choice_is_the_strongest_penalty_that_is_as_good_as_the_best() -> None:
    """By scikit-learn's balanced accuracy on the same folds; its standard error from both classes' binomials."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    codes, positive = correlated(300)
    standard = (codes - codes.mean(axis=0)) / np.sqrt(codes.var(axis=0).mean())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores, errors = [], []
    for strength in learning.STRENGTHS:
        machine = LogisticRegression(C=strength, class_weight='balanced', max_iter=2000)
        found = cross_val_predict(machine, standard, positive, cv=folds)
        scores.append(sklearn.metrics.balanced_accuracy_score(positive, found))
        shares = [(found == positive)[positive == side].mean() for side in (False, True)]
        counts = [(positive == side).sum() for side in (False, True)]
        errors.append(np.sqrt(sum(p * (1 - p) / n for p, n in zip(shares, counts))) / 2)
    best = int(np.argmax(scores))
    good = [k for k, score in enumerate(scores) if score >= scores[best] - errors[best]]
    assert learning.fit_boundary(codes, positive).strength == learning.STRENGTHS[good[0]]
    assert 0 < good[0] < len(scores) - 1, 'neither end of the scale'


def test_rare_labels_weigh_as_much_as_others() -> None:
    """Two Gaussians of one spread: the plane lies midway, however few there are of one."""
    random = np.random.default_rng(0)
    positive = np.arange(2000) < 100
    codes = random.normal(size=[2000, DIM])
    codes[positive, 0] += 2
    found = learning.fit_boundary(codes, positive)
    assert found.vector[0] > 0.9
    assert -found.bias / found.vector[0] == pytest.approx(1, abs=0.25), 'unweighted it would be about 2.5'


def test_neither_unit_nor_axes_of_the_space_matter_and_constant_dimensions_are_ignored() -> None:
    codes, positive, _normal, _bias = plane(400, 0.2)
    plain = learning.fit_boundary(codes, positive)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=[DIM, DIM]))[0]
    turned = learning.fit_boundary(codes @ turn, positive)
    assert turned.vector @ (plain.vector @ turn) > 0.9999 and turned.strength == plain.strength
    scaled = learning.fit_boundary(np.column_stack([codes * 1000, np.full(400, 7.0)]), positive)
    assert scaled.vector[-1] == 0 and scaled.vector[:-1] @ plain.vector > 0.999
    far = (codes @ plain.vector + plain.bias) * 1000
    np.testing.assert_allclose(1000 * codes @ scaled.vector[:-1] + scaled.bias, far, atol=0.1 * far.std())


def test_where_means_tell_enough_the_normal_joins_them() -> None:
    """Two Gaussians of unequal spreads along the axes: their means tell the kinds apart; a dimension of hardly any
    spread tells them as well, but a code that is moved along it hardly changes."""
    random = np.random.default_rng(0)
    positive = np.arange(600) < 300
    codes = random.normal(size=[600, DIM]) * np.geomspace(0.02, 2, DIM)
    codes[positive] += 6 * np.r_[np.zeros(DIM - 1), 2]
    codes[positive, 0] += 0.12
    found, means = learning.fit_boundary(codes, positive), learning.fit_means(codes, positive)
    assert found.vector @ means.vector > 0.99 and found.vector[-1] > 0.99


def test_means_are_joined_and_the_plane_lies_midway() -> None:
    codes, positive, _normal, _bias = plane(300, 0.5)
    found = learning.fit_means(codes, positive)
    ends = [codes[positive == side].mean(axis=0) for side in (False, True)]
    distances = [float(end @ found.vector + found.bias) for end in ends]
    assert distances[0] == pytest.approx(-distances[1]) and distances[1] > 0
    assert distances[1] == pytest.approx(np.linalg.norm(ends[1] - ends[0]) / 2)


def test_equal_codes_have_no_plane() -> None:
    with pytest.raises(UserError, match='all alike'):
        learning.fit_boundary(np.ones([40, 3]), np.arange(40) < 20)


def test_figures_are_scikit_learns() -> None:
    codes, positive, normal, bias = plane(300, noise=0.8)
    positive[:200] = False
    found = learning.judge(learning.Boundary(normal, bias, 1.0), codes, positive)
    said = codes @ normal + bias > 0
    assert found['accuracy'] == pytest.approx(sklearn.metrics.accuracy_score(positive, said))
    assert found['balanced_accuracy'] == pytest.approx(sklearn.metrics.balanced_accuracy_score(positive, said))
    assert found['auc'] == pytest.approx(sklearn.metrics.roc_auc_score(positive, codes @ normal))
    assert found['majority'] == pytest.approx(1 - positive.mean()) and found['n'] == 300
    assert learning.area(np.zeros(10), np.arange(10) < 3) == 0.5, 'ties count by half'


@pytest.mark.parametrize('right, n', [(0, 5), (45, 90), (90, 90)])
def test_intervals_are_scipys(right: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(right, n).proportion_ci(method='wilson')
    assert learning.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-7)


# What to learn, and from what


def test_two_values_are_one_task_and_more_are_one_each() -> None:
    (task,) = learning.make_tasks('emotion', ['happiness', 'neutral', 'happiness'])
    assert task.name == 'emotion=neutral' and task.positive.tolist() == [False, True, False]
    assert 'from happiness (-) to neutral (+)' in task.meaning
    tasks = learning.make_tasks('n', ['10', '9', '2', '10'] * 5)
    assert [task.name for task in tasks] == ['n=2', 'n=9', 'n=10'], 'numbers go by size'
    assert tasks[2].positive[:4].tolist() == [True, False, False, True]
    for values in ({'nan', '1', '-2'}, {'1', '1.0', '01'}):
        assert learning.sort_values(values) == sorted(values), 'no order that differs from run to run'
    with pytest.raises(UserError, match='only the value a among 2 images'):
        learning.make_tasks('x', ['a', 'a'])
    with pytest.raises(UserError, match='60 values among 60 images'):
        learning.make_tasks('x', [str(i) for i in range(60)])


def test_a_share_of_each_class_is_held_out() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    split = learning.hold_out(labels, 0.2)
    assert np.bincount(labels[split.held_out]).tolist() == [12, 6, 2]
    assert sorted([*split.train, *split.held_out]) == list(range(100))
    assert not np.array_equal(learning.hold_out(labels, 0.2, seed=1).held_out, split.held_out)
    assert np.bincount(labels[learning.hold_out(labels, 0.4).held_out]).tolist() == [24, 12, 4], 'of any size'
    assert len(learning.hold_out(labels, 0.01).held_out) == 1, 'no more than the share, where that is little'


def test_groups_stay_together() -> None:
    groups = np.arange(120) % 12
    labels = np.arange(120) % 2
    split = learning.hold_out(labels, 0.25, groups)
    assert not set(groups[split.train]) & set(groups[split.held_out])
    assert 20 <= len(split.held_out) <= 40
    assert 40 <= len(learning.hold_out(labels, 0.4, groups).held_out) <= 60
    large = learning.hold_out(labels, 0.01, groups)
    assert len(np.unique(groups[large.held_out])) == 1, 'one at least'
    with pytest.raises(UserError, match='--group-column: all images are of one group'):
        learning.hold_out(labels, 0.25, groups * 0)


def test_groups_that_tell_all_do_not_choose_the_penalty() -> None:
    """Every group has a code of its own and a random label: only folds that keep groups together see through that."""
    groups = np.repeat(np.arange(40), 10)
    for seed in range(2):
        random = np.random.default_rng(seed)
        codes = random.normal(size=[40, 30])[groups] + 0.01 * random.normal(size=[400, 30])
        positive = (random.permutation(40) < 20)[groups]
        assert learning.fit_boundary(codes, positive).strength > learning.fit_boundary(codes, positive, groups).strength


@pytest.mark.parametrize('positive, reason', [
    ([1] * 4 + [0] * 36, '3 images to learn from; 5 are the least'),
    ([1] * 39 + [0], '1 other images to learn from'),
    ([0, 1] * 15 + [0] * 10, '0 images held out'),
    ([1, 0] * 20, None),
])  # fmt: skip
def test_labels_too_rare_to_learn(positive: list[int], reason: str | None) -> None:
    places = np.arange(40)
    split = learning.Split(places[:30], places[30:])
    if reason and reason.startswith('3'):
        split = learning.Split(places[1:31], np.r_[0, places[31:]])
    if reason and reason.startswith('1'):
        split = learning.Split(places[10:], places[:10])
    found = learning.why_not(np.array(positive, bool), split)
    assert found == reason or (reason is not None and found is not None and reason in found)


def test_a_label_of_one_group_cannot_be_judged_by_others() -> None:
    positive = np.arange(40) < 20
    split = learning.Split(np.arange(5, 35), np.r_[0:5, 35:40])
    assert learning.why_not(positive, split, groups=np.arange(40) // 20) == 'all its images are of one group'
    assert learning.why_not(positive, split, groups=np.arange(40) % 7) is None
