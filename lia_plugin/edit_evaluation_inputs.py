"""What an evaluation of edits is asked for: its options, training and held-out images, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from lia_plugin import direction_learning, edit_judges, host
from lia_plugin.attribute_labels import Attributes, read_attributes
from lia_plugin.edit_judges import Attribute
from lia_plugin.host import UserError
from lia_plugin.targets import Target, collect

Array = npt.NDArray[Any]

TRAIN_SPLITS, VAL_SPLITS = ('train', 'training'), ('val', 'valid', 'validation', 'test')


@dataclass(frozen=True)
class EvaluateOptions:
    """The command's own options, by its parameters' names."""

    data: str
    val: str
    labels: str
    attributes: str | None = None
    directions: tuple[str, ...] = ()
    aims: tuple[tuple[str, str], ...] = ()
    shifts: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0, 30.0)
    levels: tuple[float, ...] = (0.5,)
    num: int | None = 500
    num_train: int | None = 10000
    conditional: bool = True
    force: bool = False
    fit: str | None = None  # 'means' or 'plane'. None = 'means', or the files' own.

    def check(self) -> None:
        """UserError, one line, for what can't be meant."""
        direction_learning.check_installed()
        if self.fit is not None and self.directions:
            raise UserError('--fit: how directions are learned; not with --directions, which are given')
        if self.aims and not self.directions:
            raise UserError('--aim: says what directions of --directions lead to; those learned here are called so')
        if not self.shifts or any(b <= a for a, b in zip((0.0, *self.shifts), self.shifts)):
            raise UserError('--shift: give amounts above 0 that grow, as 0.5,1,2,4')
        share = as_share(self.val)
        if share is not None and not 0 < share < 1:
            raise UserError(f'--val={self.val}: a share lies between 0 and 1')

    @property
    def specs(self) -> list[str]:
        return [spec.strip() for spec in (self.attributes or '').split(',') if spec.strip()]


def as_share(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Images and their labels


class Split(NamedTuple):
    """Images of one side, and what the table says of them."""

    targets: list[Target]
    table: Attributes

    def take(self, places: Sequence[int]) -> Split:
        return Split([self.targets[place] for place in places], self.table.take(places))


def read_splits(options: EvaluateOptions) -> tuple[Split, Split]:
    """Training and held-out images. UserError for what is no data set, or has no labels."""
    share = as_share(options.val)
    if share is None:
        train = _labelled(_data_set(options.data, '--data'), options.labels, TRAIN_SPLITS)
        val = _labelled(_data_set(options.val, '--val'), options.labels, VAL_SPLITS)
    else:
        both = _labelled(_data_set(options.data, '--data'), options.labels, None)
        held = _held_out_names(options.data, share)
        train = both.take([i for i, target in enumerate(both.targets) if target.stored_name not in held])
        val = both.take([i for i, target in enumerate(both.targets) if target.stored_name in held])
    for note in {split.table.note for split in (train, val) if split.table.note}:
        click.echo(note, err=True)
    return train, val


def _labelled(targets: list[Target], labels: str, split: Sequence[str] | None) -> Split:
    return Split(targets, read_attributes(labels, [target.stored_name for target in targets], split))


def _data_set(source: str, option: str) -> list[Target]:
    found = collect([source], option)
    if any(target.source is None for target in found):
        raise UserError(f'{option}={source}: expected a folder or zip of images')
    return found


def _held_out_names(path: str, share: float) -> set[str]:
    """The images that train.py --val=SHARE holds out."""
    held = host.open_data_set(class_name='training.dataset.ImageFolderDataset', path=path, split='val',
                              val_share=share, val_seed=0)  # fmt: skip
    return {name.replace('\\', '/') for name in host.image_names(held)}


def spread(items: Sequence[int], most: int | None) -> list[int]:
    """At most so many, evenly spread."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def choose_attributes(options: EvaluateOptions, table: Attributes) -> list[Attribute]:
    """Those asked for, or all columns that are attributes."""
    if options.specs:
        return [edit_judges.choose_attribute(spec, table) for spec in options.specs]
    found = []
    for name in table.columns:
        try:
            found.append(edit_judges.choose_attribute(name, table))
        except UserError:
            continue
    if not found:
        raise UserError(f'{table.where}: no column has two classes of {edit_judges.MIN_IMAGES} training images')
    return found


def label_numbers(attributes: Sequence[Attribute], table: Attributes) -> Array:
    """int64 [n, attributes], −1 = not known."""
    return np.stack([attribute.numbers(table) for attribute in attributes], axis=1)


def choose_labelled(labels: Array, most: int | None) -> list[int]:
    """Which images to take: those of a known class, at most `most`, evenly spread but for rare classes.

    Each class is granted the same number, so that rare ones stay whole. labels int [n, attributes] -> sorted places.
    """
    known = np.flatnonzero((labels >= 0).any(axis=1)).tolist()
    if most is None or len(known) <= most:
        return known
    classes = [(k, kind) for k, column in enumerate(labels.T) for kind in range(column.max() + 1)]
    chosen: set[int] = set()
    for k, kind in classes:
        chosen.update(spread(np.flatnonzero(labels[:, k] == kind).tolist(), most // len(classes)))
    left = [item for item in known if item not in chosen]
    return sorted([*chosen, *spread(left, most - len(chosen))])
