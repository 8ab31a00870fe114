"""Directions from labels: the normal of the plane that best tells one kind of codes from another.

Logistic regression, as InterFaceGAN's boundaries (Shen et al. 2020, arXiv 2005.09635, section 2.2; there a linear SVM),
with the strength of the L2 penalty chosen by cross-validation, and judged on codes that had no part in either. All
dimensions of a code have one unit, in which shifts are measured too, and keep it: were each scaled to unit variance,
the penalty would favour those that vary little, along which codes hardly move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lia_plugin.host import UserError

Array = npt.NDArray[Any]

STRENGTHS = tuple(10.0**k for k in range(-5, 3))  # Inverse penalties, on codes whose mean variance is 1.
FOLDS = 5
MIN_EXAMPLES = 5  # Of each class, to learn from.
MAX_CLASSES = 50
WILSON_Z = 1.959964  # Of a 95 % interval.


class Boundary(NamedTuple):
    """A plane: code · vector + bias is the signed distance from it, greater than 0 on the side of the label."""

    vector: Array  # [dim], float64, length 1
    bias: float
    strength: float  # The inverse penalty that cross-validation chose; NaN without one.


class Split(NamedTuple):
    """Which codes are learned from and which are held out, as sorted places."""

    train: Array
    held_out: Array


class Task(NamedTuple):
    """One direction to learn."""

    name: str
    meaning: str
    positive: Array  # bool [n]


def check_installed() -> None:
    """UserError unless scikit-learn is there. To be asked before long work."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError('directions and judges from labels need scikit-learn: pip install scikit-learn') from None


# ---------------------------------------------------------------------------------------------------------------------
# What to learn


def make_tasks(name: str, values: Sequence[str], order: Sequence[str] = ()) -> list[Task]:
    """Two values make one direction, from the first to the second in `order`; more make one for each.

    () = numbers by size, texts by the alphabet.

    Raises:
        UserError: one value alone, or so many that they are no classes.
    """
    labels = np.asarray(values)
    found = set(values)
    classes = [value for value in order if value in found] if order else sort_values(found)
    if len(classes) == 1:
        raise UserError(f'--attribute={name}: has only the value {classes[0]} among {len(values)} images')
    if len(classes) > max(2, min(MAX_CLASSES, len(values) // MIN_EXAMPLES)):
        raise UserError(f'--attribute={name}: has {len(classes)} values among {len(values)} images, too few of each')
    if len(classes) == 2:
        low, high = classes
        return [Task(f'{name}={high}', f'{name}: from {low} (-) to {high} (+)', labels == high)]
    return [Task(f'{name}={one}', f'{name}: from all others (-) to {one} (+)', labels == one) for one in classes]


def sort_values(values: set[str]) -> list[str]:
    """Numbers by size, texts by the alphabet, as all are if any is no number: the same order in every run."""
    texts = sorted(values)
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        return texts
    return sorted(texts, key=numbers.__getitem__) if all(map(math.isfinite, numbers.values())) else texts


def hold_out(labels: Array, share: float, groups: Array | None = None, seed: int = 0) -> Split:
    """A random share of each class [n], or, with `groups` [n], whole groups of about that share.

    Raises:
        UserError: a single group.
    """
    held = _share_of_each(labels, share, seed) if groups is None else _share_of_groups(labels, share, groups, seed)
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def _share_of_each(labels: Array, share: float, seed: int) -> Array:
    """bool [n]: held out, of each class the nearest number to its share."""
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for kind in np.unique(labels):
        items = random.permutation(np.flatnonzero(labels == kind))
        held[items[: round(share * len(items))]] = True
    return held


def _share_of_groups(labels: Array, share: float, groups: Array, seed: int) -> Array:
    """bool [n]: held out. One group after another, in random order, that brings each class nearer to its share."""
    _names, places = np.unique(groups, return_inverse=True)
    counts = np.zeros([places.max() + 1, labels.max() + 1])
    np.add.at(counts, (places, labels), 1)
    if len(counts) < 2:
        raise UserError('--group-column: all images are of one group; two are the least')
    parts = counts / np.maximum(counts.sum(axis=0), 1)  # Of each class that each group has, [groups, classes].
    gap = np.full(parts.shape[1], share)
    held: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(parts)):
        if np.linalg.norm(gap - parts[group]) < np.linalg.norm(gap):
            held.append(int(group))
            gap = gap - parts[group]
    if not held:  # All are too large.
        held = [int(np.linalg.norm(gap - parts, axis=1).argmin())]
    return np.isin(places, held)


def why_not(positive: Array, split: Split, groups: Array | None = None) -> str | None:
    """Why a label can't be learned and judged with this split; None if it can."""
    for part, least in ((split.train, MIN_EXAMPLES), (split.held_out, 1)):
        for side in (True, False):
            count = int((positive[part] == side).sum())
            if count < least:
                where = 'to learn from' if part is split.train else 'held out'
                return f'{count} {"images" if side else "other images"} {where}; {least} are the least'
    if groups is not None:
        for side in (True, False):
            rows = split.train[positive[split.train] == side]
            if len(np.unique(groups[rows])) < 2:
                return 'all its images are of one group' if side else 'all other images are of one group'
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Learning


FITS = ('means', 'plane')  # The first one where none is asked for: see `fit_means`.


def fit(kind: str, codes: Array, positive: Array, groups: Array | None = None, seed: int = 0) -> Boundary:
    """`fit_boundary` ('plane') or `fit_means` ('means')."""
    return fit_means(codes, positive) if kind == 'means' else fit_boundary(codes, positive, groups, seed)


def fit_boundary(codes: Array, positive: Array, groups: Array | None = None, seed: int = 0) -> Boundary:
    """The plane between codes [n, dim] whose label [n] is true and the others, both kinds weighing the same.

    With `groups` [n] cross-validation keeps each of them together.
    """
    codes = np.asarray(codes, np.float64)
    mean, unit = codes.mean(axis=0), math.sqrt(codes.var(axis=0).mean())
    if not unit:
        raise UserError('the codes are all alike: no plane parts them')
    scaled = (codes - mean) / unit
    strength = _choose_strength(scaled, positive, groups, seed)
    machine = _classifier(strength).fit(scaled, positive)
    vector, offset = machine.coef_[0], unit * float(machine.intercept_[0])  # Of codes about their mean, times unit.
    size = float(np.linalg.norm(vector))
    assert math.isfinite(size) and size > 0, 'codes differ, so the penalised optimum is not 0 but for a miracle'
    vector = vector / size
    return Boundary(vector, offset / size - float(vector @ mean), strength)


def fit_means(codes: Array, positive: Array) -> Boundary:
    """The plane midway between the means of both kinds, across the line that joins them.

    It parts them less well than `fit_boundary`'s, but changes pictures more: a code that goes that way takes along all
    that goes with the label. A normal is the filter that reads a label off a code, this the pattern that the label
    leaves in it (Haufe et al. 2014, "On the interpretation of weight vectors of linear models").
    """
    codes = np.asarray(codes, np.float64)
    ends = codes[~positive].mean(axis=0), codes[positive].mean(axis=0)
    size = float(np.linalg.norm(ends[1] - ends[0]))
    if not size:
        raise UserError('the codes are all alike: no plane parts them')
    vector = (ends[1] - ends[0]) / size
    return Boundary(vector, -float(vector @ (ends[0] + ends[1]) / 2), math.nan)


def _classifier(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight='balanced', max_iter=2000)


def _choose_strength(codes: Array, positive: Array, groups: Array | None, seed: int) -> float:
    """The strongest penalty whose balanced accuracy over all folds is within one standard error of the best.

    Weaker ones tell labels no better, but turn the normal from the line that joins both kinds' means towards
    directions in which codes hardly vary, where a shift hardly shows. Not the log loss: it judges the vector's length,
    too. One standard error: Breiman et al. 1984, section 3.4.3.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

    least = min(positive.sum(), (~positive).sum())
    if groups is not None:
        least = min(len(np.unique(groups[positive])), len(np.unique(groups[~positive])))
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = list(kind(int(min(FOLDS, least)), shuffle=True, random_state=seed).split(codes, positive, groups))
    folds = [fold for fold in folds if 0 < positive[fold[0]].sum() < len(fold[0])]
    judged = np.concatenate([test for _train, test in folds])
    if len(judged) < len(codes):  # Groups went so that a fold had one class alone: too little to choose by.
        return 1e-2
    weights = np.where(positive, 0.5 / positive.mean(), 0.5 / (1 - positive.mean()))
    scores = []  # [n] each, their mean is the balanced accuracy.
    for strength in STRENGTHS:
        found = cross_val_predict(_classifier(strength), codes, positive, cv=folds)
        scores.append(weights * (found == positive))
    means = np.mean(scores, axis=1)
    best = int(means.argmax())
    within = means >= means[best] - _standard_error(scores[best], groups)
    return STRENGTHS[int(within.argmax())]


def _standard_error(scores: Array, groups: Array | None) -> float:
    """Of the mean of scores [n]; those of one group stand or fall together."""
    gaps = scores - scores.mean()
    if groups is not None:
        gaps = np.bincount(np.unique(groups, return_inverse=True)[1], weights=gaps)
    return float(np.sqrt(np.square(gaps).sum())) / len(scores)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def judge(boundary: Boundary, codes: Array, positive: Array) -> dict[str, float]:
    """How well a boundary tells labels [n] of codes [n, dim] that it was not learned from.

    `majority` is the accuracy of always naming the more frequent side; a balanced accuracy and an AUC of 0.5 are those
    of chance. `accuracy_low` and `accuracy_high` are Wilson's 95 % interval.
    """
    distances = np.asarray(codes, np.float64) @ boundary.vector + boundary.bias
    right = (distances > 0) == positive
    low, high = wilson(int(right.sum()), len(right))
    return dict(
        n=len(right), n_positive=int(positive.sum()), accuracy=float(right.mean()), accuracy_low=low,
        accuracy_high=high, majority=float(max(positive.mean(), 1 - positive.mean())),
        balanced_accuracy=float((right[positive].mean() + right[~positive].mean()) / 2),
        auc=area(distances, positive), mean_positive=float(distances[positive].mean()),
        mean_negative=float(distances[~positive].mean()),
    )  # fmt: skip


def area(distances: Array, positive: Array) -> float:
    """Area under the ROC curve: how often a positive lies further along than a negative, ties by half."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    ranks = rankdata(distances)[positive].sum() - count * (count + 1) / 2
    return float(ranks / (count * (len(positive) - count)))


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    share, z2 = right / n, WILSON_Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = WILSON_Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)
