"""Directions from labels: the normal of the plane that best tells one kind of codes from another.

Logistic regression on standardised codes, as InterFaceGAN's boundaries (Shen et al. 2020, arXiv 2005.09635, section
2.2; there a linear SVM), with the strength of the L2 penalty chosen by cross-validation, and judged on codes that had
no part in either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lia_plugin.host import UserError

Array = npt.NDArray[Any]

STRENGTHS = tuple(10.0**k for k in range(-5, 3))  # Inverse penalties, on codes of unit variance.
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
        raise UserError('directions from labels need scikit-learn: pip install scikit-learn') from None


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
    """Numbers by size, texts by the alphabet."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)


def hold_out(labels: Array, share: float, groups: Array | None = None, seed: int = 0) -> Split:
    """A random share of each class [n], or, with `groups` [n], whole groups of about that share.

    Raises:
        UserError: fewer than two groups, or classes too small to be shared out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    parts = max(2, round(1 / share))
    if groups is not None and len(np.unique(groups)) < parts:
        raise UserError(f'--group-column: {len(np.unique(groups))} groups; a share of {share:g} takes {parts} or more')
    if np.bincount(labels).max() < parts:
        raise UserError(f'--holdout={share:g}: the largest class has {np.bincount(labels).max()} images; '
                        f'{parts} are the least')  # fmt: skip
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = _quiet(lambda: next(iter(kind(parts, shuffle=True, random_state=seed).split(labels, labels, groups))))
    return Split(np.sort(folds[0]), np.sort(folds[1]))


def _quiet(function: Any) -> Any:
    """scikit-learn warns of classes smaller than the number of parts; those that matter are counted by `why_not`."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='The least populated class', category=UserWarning)
        return function()


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


def fit_boundary(codes: Array, positive: Array, groups: Array | None = None, seed: int = 0) -> Boundary:
    """The plane between codes [n, dim] whose label [n] is true and the others, both kinds weighing the same.

    With `groups` [n] cross-validation keeps each of them together.
    """
    codes = np.asarray(codes, np.float64)
    mean, std = codes.mean(axis=0), codes.std(axis=0)
    if not std.any():
        raise UserError('the codes are all alike: no plane parts them')
    std = np.where(std > 1e-6 * std.max(), std, np.inf)  # A dimension that doesn't vary tells nothing.
    standard = (codes - mean) / std
    strength = _choose_strength(standard, positive, groups, seed)
    machine = _classifier(strength).fit(standard, positive)
    vector = machine.coef_[0] / std
    bias = float(machine.intercept_[0] - vector @ mean)
    size = float(np.linalg.norm(vector))
    assert math.isfinite(size) and size > 0, 'codes differ, so the penalised optimum is not 0 but for a miracle'
    return Boundary(vector / size, bias / size, strength)


def fit_means(codes: Array, positive: Array) -> Boundary:
    """The plane midway between the means of both kinds, across the line that joins them.

    It parts them less well than `fit_boundary`'s, but a code that goes that way takes along all that goes with the
    label: the way from one kind to the other, where that is the way to what tells them apart.
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

    Weaker ones tell labels no better, but turn the normal towards dimensions that hardly vary, where a shift of the
    code hardly shows. Not the log loss: it judges the vector's length, too. One standard error: Breiman et al. 1984,
    section 3.4.3.
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
    within = means >= means[best] - scores[best].std() / math.sqrt(len(codes))
    return STRENGTHS[int(within.argmax())]


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
