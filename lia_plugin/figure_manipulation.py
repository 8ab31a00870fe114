"""Images moved along directions: given ones, learned from labels, or found without (SeFa and PCA)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from lia_plugin import (
    attribute_labels,
    direction_factors,
    direction_learning,
    directions,
    images,
    manipulation,
    spaces,
)
from lia_plugin.directions import Direction
from lia_plugin.figure_base import Advance, CannotDraw, Exhibit, Figure, rows_of
from lia_plugin.host import UserError
from lia_plugin.networks import base_code

REACH = 3.0  # Units to both sides.
MAX_DIRECTIONS = 6
MAX_CLASSES = 12  # Columns of more values are names, not attributes.
ROWS = 3  # Images a direction.
HELD_OUT = 0.25
UNLABELLED = 3  # Of SeFa and of PCA each.


class Edit(NamedTuple):
    """A way to go, and how far one column unit leads."""

    direction: Direction
    unit: float  # In units of the direction's space.
    told: str  # What a unit is.


class Found(NamedTuple):
    edits: list[Edit]
    accuracies: list[dict[str, Any]]  # Of labels: held out, in y and in z.
    text: str


def find(exhibit: Exhibit) -> Found:
    """The directions that were asked for, or those that can be had."""
    options, G = exhibit.options, exhibit.G
    if options.directions is not None:
        given = directions.load_directions(options.directions, G)
        return Found([plain(direction) for direction in given], [], f'Directions of {options.directions}.')
    if options.labels is not None:
        return from_labels(exhibit, options.labels)
    return without_labels(exhibit)


def plain(direction: Direction) -> Edit:
    """Along the direction itself, by the spread of codes along it."""
    return Edit(direction, direction.scale, f'{direction.scale:.3g} in {direction.space}: the spread of codes along it')


def pattern(direction: Direction, codes: torch.Tensor) -> Edit:
    """How codes [n, dim] change, on average, where their distance to a boundary changes by its spread.

    With the normal v and the covariance Σ that is σ·Σv/(vᵀΣv). The normal itself tells classes apart, and for that it
    cancels what they share: along it codes hardly differ, and images hardly change (Haufe et al. 2014, "On the
    interpretation of weight vectors of linear models in multivariate neuroimaging").
    """
    codes = codes.cpu().double()  # In this order: MPS has no float64.
    centred = codes - codes.mean(dim=0)
    distances = centred @ direction.vector.double()
    along = centred.t() @ distances / distances.square().sum()
    spread = float(distances.std())
    moved = directions.make_direction(direction.name, along, direction.space, meaning=direction.meaning)
    unit = spread * float(along.norm())
    return Edit(moved, unit, f'{unit:.3g} in {direction.space}: what goes with one deviation ({spread:.3g}) of the '
                'distance to the boundary')  # fmt: skip


def from_labels(exhibit: Exhibit, table: str) -> Found:
    """A direction for each attribute with two values, or for each value of the others: the best held-out ones first."""
    direction_learning.check_installed()
    reals = exhibit.reals
    # Of a table whose rows go by the images' places all images have to be known.
    known = attribute_labels.read_attributes(table, [target.stored_name for target in exhibit.everything])
    place = {target.label: i for i, target in enumerate(exhibit.everything)}
    rows = [place[source] for source in reals.sources]
    learned: list[tuple[Edit, dict[str, Any]]] = []
    for name, column in known.columns.items():
        if name not in attribute_labels.SPLIT_COLUMNS:
            learned += learn(exhibit, name, tuple(column[row] for row in rows))
    if not learned:
        raise CannotDraw(f'--labels={table}: no column has values that {len(rows)} images could teach; --num=… encodes '
                         'more')  # fmt: skip
    learned.sort(key=lambda pair: -pair[1]['y']['balanced_accuracy'])
    text = (f'Directions in y from {table}, by logistic regression on codes of {len(rows)} real images, and judged on '
            f'a quarter of them held out; the same in z for comparison. Images are moved as real ones go along with '
            f'a change of the distance to the boundary.')  # fmt: skip
    return Found([edit for edit, _ in learned], [accuracy for _, accuracy in learned], text)


def learn(
    exhibit: Exhibit, name: str, column: attribute_labels.Column
) -> list[tuple[Edit, dict[str, Any]]]:
    """The directions of one column, with their held-out figures in both spaces; [] if it teaches none."""
    rows = [i for i, value in enumerate(column) if value is not None]
    values = [str(column[i]) for i in rows]
    if not 2 <= len(set(values)) <= MAX_CLASSES:
        return []
    reals, G = exhibit.reals, exhibit.G
    y = base_code(reals.code)[rows]
    z = G.mapping.y_to_z(y, rows_of(reals.c, rows))
    codes = dict(y=y.cpu().double().numpy(), z=z.cpu().double().numpy())
    order = sorted(set(values))
    try:
        split = direction_learning.hold_out(np.array([order.index(v) for v in values]), HELD_OUT,
                                            seed=exhibit.options.seed)  # fmt: skip
        tasks = direction_learning.make_tasks(name, values)
    except UserError:  # Too few images, or too small classes.
        return []
    found = []
    for task in tasks:
        if direction_learning.why_not(task.positive, split) is not None:
            continue
        fits, figures = {}, {}
        for space, code in codes.items():
            fits[space] = direction_learning.fit_boundary(
                code[split.train], task.positive[split.train], seed=exhibit.options.seed)
            figures[space] = direction_learning.judge(fits[space], code[split.held_out], task.positive[split.held_out])
        boundary = fits['y']
        normal = directions.make_direction(task.name, torch.from_numpy(boundary.vector), 'y', bias=boundary.bias,
                                           meaning=task.meaning)  # fmt: skip
        found.append((pattern(normal, y), dict(name=task.name, **figures)))
    return found


def without_labels(exhibit: Exhibit) -> Found:
    """What changes styles most, and how codes vary most: no meaning is known of these."""
    G, seed = exhibit.G, exhibit.options.seed
    if exhibit.has_encoder and exhibit.items:
        codes, whose = base_code(exhibit.reals.code), 'of the real images'
    else:
        codes, whose = spaces.sample_codes(G, 4096, seed)[0], 'of the prior'
    sefa = [directions.with_scale(G, directions.make_direction(f'SeFa {i + 1}', factor.vector, 'y'))
            for i, factor in enumerate(direction_factors.sefa(G, UNLABELLED, seed=seed))]  # fmt: skip
    pca = [directions.make_direction(f'PCA {i + 1}', factor.vector, 'y', scale=max(factor.strength, 1e-12) ** 0.5)
           for i, factor in enumerate(direction_factors.pca(codes, UNLABELLED))]  # fmt: skip
    text = (f'No labels were given, so what the directions mean is for you to say: SeFa, what the style weights '
            f'amplify most, and PCA of codes {whose}.')  # fmt: skip
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
        pictures[str(i + 1)] = (strips(exhibit, code, c, direction, reach * unit), caption)
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
    exhibit: Exhibit, code: torch.Tensor, c: torch.Tensor | None, direction: Direction, amounts: torch.Tensor
) -> torch.Tensor:
    """A row for each code, a column for each amount."""
    rows = []
    for i in range(len(code)):
        many = code[[i] * len(amounts)]
        labels = rows_of(c, [i] * len(amounts))
        moved = manipulation.shift(exhibit.G, many, labels, direction, amounts.to(code.device))
        rows.append(exhibit.draw(moved, labels))
    return images.interpolation_strips(rows)


def accuracy_table(accuracies: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Held out: 0.5 is chance for balanced accuracy and AUC."""
    header = ['direction', 'held out', 'with it', 'balanced accuracy in y', 'in z', 'AUC in y', 'in z']
    rows = [[row['name'], str(row['y']['n']), str(row['y']['n_positive']), *(
        f'{row[space][key]:.3f}' for key in ('balanced_accuracy', 'auc') for space in ('y', 'z'))]
        for row in accuracies]  # fmt: skip
    return header, rows
