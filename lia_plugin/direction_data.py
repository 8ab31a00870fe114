"""Codes and labels that directions are learned from: images through the encoder, or codes out of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from lia_plugin import codes, paths, targets
from lia_plugin.attribute_labels import SPLIT_COLUMNS, Attributes, read_attributes
from lia_plugin.codes import Codes
from lia_plugin.direction_learning import Split, hold_out
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.networks import base_code

Array = npt.NDArray[Any]
Failures = list[tuple[str, str]]


def read_codes(
    session: Session, sources: Sequence[str], option: str, failures: Failures
) -> tuple[Codes, tuple[str, ...]]:
    """Codes of INPUTs, without pixels, and what tables of labels call each: files relative to their folder or zip."""
    if any(codes.is_code_file(text) or codes.parse_seeds(text) for text in sources):
        found = session.read(sources, option, failures)
        return found, found.names
    items = targets.collect(sources, option)
    encoded = codes.image_codes(
        session.G, session.network, items, session.class_idx, session.batch, failures, originals=False)
    if encoded is None:
        raise UserError(failures[0][1] if len(items) == 1 else f'{option}: none of {len(items)} images can be read')
    called = {target.label: target.stored_name for target in items}
    return encoded, tuple(called[source] for source in encoded.sources)


def points(G: Any, found: Codes, space: str) -> Array:
    """Base codes, or z of them, [N, dim], float64."""
    base = base_code(found.code)
    inside = paths.to_space(G, base, found.c, 'z') if space == 'z' else base
    return inside.detach().cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class Labelled:
    """Codes with what a table says of them, and which of them are kept from learning."""

    shown: Codes  # Of --data alone.
    points: Array  # [N, dim], those of --val behind those of --data.
    table: dict[str, list[str | None]]  # Attribute -> N values.
    groups: Array | None  # int64 [N], if groups are kept together.
    fixed: Array | None  # bool [N]: held out; None = a random share is.
    held_out_by: str  # For people.

    def split(self, rows: Array, classes: Array, share: float, seed: int) -> Split:
        """Of `rows` of the table, whose class numbers are `classes`; places are those in `rows`."""
        if self.fixed is None:
            return hold_out(classes, share, None if self.groups is None else self.groups[rows], seed)
        kept = self.fixed[rows]
        return Split(np.flatnonzero(~kept), np.flatnonzero(kept))


def group_numbers(values: Sequence[str | None]) -> Array:
    """The same number for the same value, int64 [N]; what has no group is a group of its own."""
    keys = [f'={value}' if value is not None else f'#{row}' for row, value in enumerate(values)]
    return np.unique(keys, return_inverse=True)[1]


@dataclass(frozen=True)
class DataOptions:
    """Where images and labels are, by the names of the command's parameters."""

    data: str
    labels: str | None = None
    val: str | None = None
    splits: tuple[str, ...] = ()
    group_column: str | None = None
    holdout: float = 0.2

    def read(self, session: Session, space: str, failures: Failures) -> Labelled:
        """Encodes all images and finds their labels.

        Raises:
            UserError: as the files' readers do.
        """
        train, names = read_codes(session, [self.data], '--data', failures)
        first, second_name = (*self.splits, *('train', 'val')[len(self.splits) :])
        by_split = self.val is not None or bool(self.splits)
        table = self._table(self.data, names, first if by_split else None)
        told = {name: list(column) for name, column in table.columns.items()}
        inside = points(session.G, train, space)
        if self.val is None:
            groups, fixed, how = self._inner(told, table)
            return Labelled(train, inside, told, groups, fixed, how)
        other, other_names = read_codes(session, [self.val], '--val', failures)
        second = self._table(self.val, other_names, second_name)
        shared = {name: [*column, *second.columns[name]] for name, column in told.items() if name in second.columns}
        fixed = np.arange(len(train) + len(other)) >= len(train)
        both = np.concatenate([inside, points(session.G, other, space)])
        return Labelled(train, both, shared, None, fixed, f'--val={self.val}')

    def _table(self, images: str, names: Sequence[str], split: str | None) -> Attributes:
        # A folder's or zip's own dataset.json, if no file is given.
        option = '--labels' if self.labels else '--data (--labels=FILE gives a table)'
        table = read_attributes(self.labels or images, names, split, option)
        if table.note:
            click.echo(table.note, err=True)
        return table

    def _inner(
        self, told: dict[str, list[str | None]], table: Attributes
    ) -> tuple[Array | None, Array | None, str]:
        """Groups, what is held out for certain, and words for it; columns that say these are no attributes."""
        if self.group_column is not None:
            table.column(self.group_column)  # Says what is wrong with the name.
            return group_numbers(told.pop(self.group_column)), None, f'groups of {self.group_column}'
        column = next((name for name in told if name.lower() in SPLIT_COLUMNS), None)
        if column is None:
            return None, None, f'a random share of {self.holdout:g}'
        values = told.pop(column)
        return None, np.array([value is None or value.lower() != 'train' for value in values]), f'column {column}'
