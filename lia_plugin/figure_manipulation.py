"""Images moved along directions: given ones, learned from labels, or found without (SeFa and PCA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import (
    attribute_labels,
    direction_data,
    direction_factors,
    direction_learning,
    directions,
    images,
    manipulation,
    sheets,
    spaces,
)
from lia_plugin.direction_learning import Split, Task
from lia_plugin.directions import Direction
from lia_plugin.figure_base import Advance, CannotDraw, Exhibit, Figure, rows_of
from lia_plugin.host import UserError
from lia_plugin.networks import base_code

Array = npt.NDArray[Any]

REACH = 3.0  # Units to both sides.
MAX_DIRECTIONS = 6
MAX_CLASSES = 12  # Columns of more values are names, not attributes.
ROWS = 3  # Images a direction.
HELD_OUT = 0.25
JUDGES = 3  # Images held out of each kind; where there are fewer, one right answer would be 100 %.
UNLABELLED = 3  # Of SeFa and of PCA each.


class Edit(NamedTuple):
    """A way to go, and how far one column unit leads."""

    direction: Direction
    unit: float  # In units of the direction's space.
    told: str  # What a unit is.


class Found(NamedTuple):
    edits: list[Edit]
    accuracies: list[dict[str, Any]]  # Of labels: see `Learned.figures`.
    text: str


def check(exhibit: Exhibit) -> None:
    """UserError for directions or labels that can't be used: before long work."""
    if exhibit.options.directions is not None:
        read_directions(exhibit, exhibit.options.directions)
    if exhibit.options.labels is not None and exhibit.has_encoder and exhibit.items:
        direction_learning.check_installed()
        known = read_labels(exhibit)
        if exhibit.options.group_column is not None:
            known.column(exhibit.options.group_column)  # Says what is wrong with the name.


def read_directions(exhibit: Exhibit, path: str) -> list[Direction]:
    options = exhibit.options
    return exhibit.once('directions', lambda: directions.load_directions(
        path, exhibit.G, options.direction_space, options.force))  # fmt: skip


def find(exhibit: Exhibit) -> Found:
    """The directions that were asked for, or those that can be had."""
    options = exhibit.options
    if options.directions is not None:
        given = read_directions(exhibit, options.directions)
        return Found([plain(direction) for direction in given], [], f'Directions of {options.directions}.')
    if options.labels is not None:
        return from_labels(exhibit, options.labels)
    return without_labels(exhibit)


def plain(direction: Direction) -> Edit:
    """Along the direction itself, by the spread of codes along it."""
    return Edit(direction, direction.scale, f'{direction.scale:.3g} in {direction.space}: the spread of codes along it')


def read_labels(exhibit: Exhibit) -> attribute_labels.Attributes:
    """What --labels says of all images of --data: of a table that goes by their places all have to be known."""
    table = exhibit.options.labels
    assert table is not None, 'asked for only where there is one'
    names = [target.stored_name for target in exhibit.everything]
    return exhibit.once('labels', lambda: attribute_labels.read_attributes(table, names, exhibit.options.split))


def from_labels(exhibit: Exhibit, table: str) -> Found:
    """A direction for each attribute with two values, or for each value of the others: the best held-out ones first."""
    direction_learning.check_installed()
    reals, known = exhibit.reals, read_labels(exhibit)
    place = {target.label: i for i, target in enumerate(exhibit.everything)}
    rows = [place[source] for source in reals.sources]
    together = exhibit.options.group_column
    groups = None if together is None else direction_data.group_numbers([known.column(together)[row] for row in rows])
    learned: list[Learned] = []
    skipped: dict[str, str] = {}
    for name, column in known.columns.items():
        if name not in (*attribute_labels.SPLIT_COLUMNS, together):
            learned += learn(exhibit, name, tuple(column[row] for row in rows), groups, skipped)
    if not learned:
        raise CannotDraw(f'--labels={table}: no column has values that {len(rows)} images could teach; --num=… encodes '
                         'more')  # fmt: skip
    learned.sort(key=_order)
    text = (f'Directions in y from {table}, of codes of {len(rows)} real images; those that tell their label best come '
            'first. Images move from the mean of those without a label to that of those with it, as by edit directions '
            '--fit=means, which takes along what goes with the label. How well codes tell the label is judged on a '
            'quarter of them, held out ' + ('at random' if together is None else f'in whole groups of {together}')
            + ': by the plane of logistic regression in y and in z, and by the direction that is shown; labels that '
            f'fewer than {JUDGES} images of a kind judge come last.'
            + (f' {known.note}.' if known.note else '')
            + ''.join(f' Not learned: {name}: {reason}.' for name, reason in skipped.items()))  # fmt: skip
    accuracies = [dict(name=one.edit.direction.name, **one.figures) for one in learned]
    return Found([one.edit for one in learned], accuracies, text)


def _order(one: Learned) -> tuple[bool, float]:
    """The directions that tell their label best first, behind all others those that next to no image judges."""
    judged = one.figures['means']
    few = min(judged['n_positive'], judged['n'] - judged['n_positive']) < JUDGES
    return few, -judged['balanced_accuracy']


class Learned(NamedTuple):
    edit: Edit
    figures: dict[str, dict[str, float]]  # Held out, of the planes in 'y' and in 'z' and of the 'means' in y.


def learn(
    exhibit: Exhibit, name: str, column: attribute_labels.Column, groups: Array | None, skipped: dict[str, str]
) -> list[Learned]:
    """The directions of one column; what it doesn't teach goes to `skipped`, with the reason.

    With `groups`, numbers [N], images of one group are held out together.
    """
    rows = [i for i, value in enumerate(column) if value is not None]
    values = [str(column[i]) for i in rows]
    classes, numbers = np.unique(values, return_inverse=True)
    if not 2 <= len(classes) <= MAX_CLASSES:
        skipped[name] = f'{len(classes)} values, not 2 to {MAX_CLASSES}'
        return []
    try:
        own_groups = None if groups is None else groups[rows]
        split = direction_learning.hold_out(numbers, HELD_OUT, own_groups, exhibit.options.seed)
        tasks = direction_learning.make_tasks(name, values)
    except UserError:
        skipped[name] = f'{len(classes)} values among {len(values)} images are too few of each'
        return []
    y = base_code(exhibit.reals.code)[rows]
    z = exhibit.G.mapping.y_to_z(y, rows_of(exhibit.reals.c, rows))
    codes = dict(y=y.cpu().double().numpy(), z=z.cpu().double().numpy())
    found = []
    for task in tasks:
        reason = direction_learning.why_not(task.positive, split, own_groups)
        if reason is None:
            found.append(learn_one(task, split, codes, own_groups, exhibit.options.seed))
        else:
            skipped[task.name] = reason
    return found


def learn_one(
    task: Task, split: Split, codes: dict[str, Array], groups: Array | None, seed: int
) -> Learned:
    """What is shown, the way between the means in y, and how well that and planes in y and z tell the label."""
    (train, held_out), label = split, task.positive
    apart = None if groups is None else groups[train]
    fits = {space: direction_learning.fit_boundary(code[train], label[train], apart, seed)
            for space, code in codes.items()}  # fmt: skip
    figures = {space: direction_learning.judge(fit, codes[space][held_out], label[held_out])
               for space, fit in fits.items()}  # fmt: skip
    means = direction_learning.fit_means(codes['y'][train], label[train])
    figures['means'] = direction_learning.judge(means, codes['y'][held_out], label[held_out])
    direction = directions.make_direction(
        task.name, torch.from_numpy(means.vector), 'y', bias=means.bias, meaning=task.meaning,
        scale=float((codes['y'][train] @ means.vector).std()))  # fmt: skip
    return Learned(plain(direction), figures)


def without_labels(exhibit: Exhibit) -> Found:
    """What changes styles most, and how codes vary most: no meaning is known of these."""
    G, seed = exhibit.G, exhibit.options.seed
    if exhibit.has_encoder and exhibit.items:
        codes, whose = base_code(exhibit.reals.code), 'of the real images'
    else:
        codes, whose = spaces.sample_codes(G, 4096, seed)[0], 'of the prior'
    sefa = [directions.with_scale(G, directions.make_direction(f'sefa{i}', factor.vector, 'y'))
            for i, factor in enumerate(direction_factors.sefa(G, UNLABELLED, seed=seed))]  # fmt: skip
    pca = [directions.make_direction(f'pc{i}', factor.vector, 'y', scale=max(factor.strength, 1e-12) ** 0.5)
           for i, factor in enumerate(direction_factors.pca(codes, UNLABELLED))]  # fmt: skip
    text = (f'No labels were given, so what the directions mean is for you to say: sefa0 and so on is what the '
            f'style weights amplify most (SeFa), pc0 and so on are principal components of codes {whose}.')  # fmt: skip
    return Found([plain(direction) for direction in (*sefa, *pca)], [], text)


def sitters(exhibit: Exhibit) -> tuple[torch.Tensor, torch.Tensor | None, list[str]]:
    """The codes that are moved: of real images, or without an encoder of seeds."""
    if exhibit.has_encoder and exhibit.items:
        some = exhibit.sitters(ROWS)
        assert some.code is not None, 'there is an encoder'
        return some.code, some.c, some.names
    code, c = spaces.sample_codes(exhibit.G, ROWS, exhibit.options.seed)
    return code, c, [f'sample {i + 1}' for i in range(ROWS)]


def draw(exhibit: Exhibit, advance: Advance) -> Figure:
    found = find(exhibit)
    advance(0.5)
    shown = found.edits[:MAX_DIRECTIONS]
    code, c, names = sitters(exhibit)
    reach = torch.linspace(-REACH, REACH, exhibit.options.steps)
    pictures, told = {}, []
    for i, (direction, unit, what) in enumerate(shown):
        caption = f'{direction.name}: −{REACH:g} to {REACH:g} times {what}'
        pictures[str(i + 1)] = (strips(exhibit, code, c, names, direction, reach * unit), caption)
        told.append(dict(name=direction.name, space=direction.space, unit=unit, meaning=direction.meaning,
                         amounts=(reach * unit).tolist()))  # fmt: skip
        advance(0.5 + 0.5 * (i + 1) / len(shown))
    numbers: dict[str, Any] = dict(images=names, reach=REACH, directions=told, accuracies=found.accuracies)
    middle = 'is the reconstruction' if exhibit.has_encoder and exhibit.items else 'is as it was drawn'
    text = (f'{found.text} Rows are {", ".join(names)}; of an odd number of columns the middle one {middle}.'
            + (f' Shown are {len(shown)} of {len(found.edits)} directions.'
               if len(shown) < len(found.edits) else ''))  # fmt: skip
    tables = [accuracy_table(found.accuracies)] if found.accuracies else []
    return Figure('Manipulation', text, pictures, tables, numbers)


def strips(
    exhibit: Exhibit, code: torch.Tensor, c: torch.Tensor | None, names: Sequence[str], direction: Direction,
    amounts: torch.Tensor,
) -> torch.Tensor:
    """A row for each code, a column for each amount."""
    rows = []
    for i in range(len(code)):
        many = code[[i] * len(amounts)]
        labels = rows_of(c, [i] * len(amounts))
        moved = manipulation.shift(exhibit.G, many, labels, direction, amounts.to(code.device))
        rows.append(list(images.to_uint8(exhibit.draw(moved, labels))))
    return sheets.sheet(rows, captions=names)


def accuracy_table(accuracies: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Held out: 0.5 is chance for balanced accuracy and AUC."""
    header = ['direction', 'held out', 'with it', 'balanced accuracy: plane in y', 'in z', 'as shown',
              'AUC: plane in y', 'in z', 'as shown']  # fmt: skip
    rows = [[row['name'], str(row['y']['n']), str(row['y']['n_positive']), *(
        f'{row[fit][key]:.3f}' for key in ('balanced_accuracy', 'auc') for fit in ('y', 'z', 'means'))]
        for row in accuracies]  # fmt: skip
    return header, rows
