"""Linear separability (Karras et al. 2019, section 4.2): how much of an attribute a hyperplane in a code tells.

2^Σᵢ H(Yᵢ | Xᵢ) in bits over attributes i: Y is the image's label, X the side of a linear classifier's plane that its
code lies on. 1 = a plane tells every label; `chance` = 2^Σ H(Yᵢ): what codes that tell nothing get.

Karras et al. label 200,000 generated images with pretrained classifiers and fit and judge on the same half of them.
Here real images are encoded and have their own labels, which needs no classifier; they are few beside a code's
dimensions, so that a plane would part them all: each image is judged by a classifier that has not seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from lia_plugin.attribute_labels import read_attributes
from lia_plugin.host import UserError

Array = npt.NDArray[Any]

FOLDS = 5
Attribute = tuple[str, Array, Array]  # Name; which items have a label, int64 [n]; class number of each, int64 [n].


# ---------------------------------------------------------------------------------------------------------------------
# Entropies


def entropy(counts: Array) -> float:
    """H of the distribution that counts of any shape stand for, in bits."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def conditional_entropy(labels: Array, found: Array) -> float:
    """H(label | found) of class numbers [n] twice, in bits: H(label, found) − H(found)."""
    table = np.zeros([labels.max() + 1, found.max() + 1])
    np.add.at(table, (labels, found), 1)
    return max(entropy(table) - entropy(table.sum(axis=0)), 0.0)


def cross_predict(codes: Array, labels: Array, seed: int = 0) -> Array:
    """Class of each code, from a linear SVM that was fitted to the other folds: [n, dim], [n] -> [n].

    Each dimension is scaled to unit variance first, so that units of z and y don't matter.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    # Of the two solvers the primal one needs more rows than columns, and does without a random order.
    machine = LinearSVC(dual='auto', max_iter=10000, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(make_pipeline(StandardScaler(), machine), codes, labels, cv=folds)


def separability(codes: Array, attributes: Sequence[Attribute], seed: int = 0) -> float:
    """2^Σ H(Y|X) of codes [n, dim] over attributes; infinite codes give NaN."""
    if not np.isfinite(codes).all():
        return float('nan')
    bits = [conditional_entropy(labels, cross_predict(codes[items].astype(np.float64), labels, seed))
            for _name, items, labels in attributes]  # fmt: skip
    return float(2 ** np.sum(bits))


def chance(attributes: Sequence[Attribute]) -> float:
    """2^Σ H(Y)."""
    return float(2 ** np.sum([entropy(np.bincount(labels)) for _name, _items, labels in attributes]))


def check_installed() -> None:
    """UserError unless scikit-learn is there."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError('--metrics: ls needs scikit-learn: pip install scikit-learn') from None


# ---------------------------------------------------------------------------------------------------------------------
# Attributes


def make_attribute(name: str, items: Sequence[int], values: Sequence[Any], where: str) -> Attribute | None:
    """An attribute of the given items; classes of fewer images than there are folds are left out, with their images.

    None if that leaves fewer than two classes. UserError for values that are no classes: a number for each image.
    """
    _classes, numbers, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    if len(counts) > max(20, len(values) // FOLDS):
        raise UserError(f'{where}: {name} has {len(counts)} values for {len(values)} images: that is no attribute')
    kept = counts[numbers] >= FOLDS
    _left, labels = np.unique(numbers[kept], return_inverse=True)
    if len(_left) < 2:
        return None
    return name, np.asarray(items, np.int64)[kept], labels.astype(np.int64)


def from_vectors(labels: Array, where: str) -> list[Attribute]:
    """Attributes out of a data set's label vectors [n, label_dim]: one if they are one-hot, else each column is one."""
    items = range(len(labels))
    one_hot = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())
    columns = [('class', labels.argmax(axis=1))] if one_hot else [
        (f'label {k}', column) for k, column in enumerate(labels.T)]  # fmt: skip
    found = [make_attribute(name, items, column, where) for name, column in columns]
    return _some([attribute for attribute in found if attribute is not None], where)


def from_table(path: str, names: Sequence[str]) -> list[Attribute]:
    """Attributes out of a CSV file or another table of labels, which calls the data set's images by their `names`.

    Images that it doesn't tell of, and empty fields, are left out. See `attribute_labels.read_attributes`.

    Raises:
        UserError: no such file, no such columns, or none of its files is in the data set.
    """
    table = read_attributes(path, names)
    if table.note:
        click.echo(table.note, err=True)
    found = []
    for name, column in table.columns.items():
        items = [item for item, value in enumerate(column) if value is not None]
        if items:
            found.append(make_attribute(name, items, [column[item] for item in items], table.where))
    return _some([attribute for attribute in found if attribute is not None], table.where)


def _some(attributes: list[Attribute], where: str) -> list[Attribute]:
    if not attributes:
        raise UserError(f'{where}: no attribute has two classes of at least {FOLDS} images each')
    return attributes
