"""What people say of images: tables of attributes, and which row of them belongs to which image.

A table is a dataset.json (class numbers or vectors), a folder or zip that holds one, or lines of text: fields parted by
commas, semicolons, tabs or spaces, with a header or without, one column of file names and one for each attribute. An
attribute's value is a text; an empty field is a missing value. A column `split` tells the rows of one data set from
those of another that has files of the same names, as train and val of the demo.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lia_plugin.host import UserError, parse_labels
from lia_plugin.images import has_image_extension

SEPARATORS = (',', '\t', ';')  # Tried in this order; spaces if none of them is in the first lines.
SPLIT_COLUMNS = ('split', 'partition', 'subset')
NUMBERED = re.compile(r'img(\d{8})')  # dataset_tool.py's names, that tell an image's place and nothing else.
LABEL_FILE = 'dataset.json'

Row = list[str]
Column = tuple['str | None', ...]


@dataclass(frozen=True)
class Attributes:
    """Columns of values, each as long as the list of images that was asked for; None = not known."""

    where: str  # What messages call the table.
    columns: Mapping[str, Column]
    note: str | None = None  # How files were found in the table, where people should know.

    def column(self, name: str) -> Column:
        """One attribute's values. UserError, which lists the columns, if there is none of the name."""
        if name not in self.columns:
            raise UserError(f'{self.where}: no column {name!r}; it has {", ".join(self.columns)}')
        return self.columns[name]

    def take(self, places: Sequence[int]) -> Attributes:
        """The same of some of the images. Tables are read with all images of a data set: see `read_attributes`."""
        picked = {name: tuple(column[place] for place in places) for name, column in self.columns.items()}
        return Attributes(self.where, picked, self.note)

    def classes(self, name: str) -> dict[str, int]:
        """Value -> number of images that have it, the most frequent first."""
        return dict(Counter(value for value in self.column(name) if value is not None).most_common())


def read_attributes(
    path: str, names: Sequence[str], split: str | Sequence[str] | None = None, option: str = '--labels'
) -> Attributes:
    """The attributes of images, which a table calls by their names.

    A name is looked for as it stands, then without its extension, then by its last part, then by both: "a/7.png" finds
    "7.jpg". Images that dataset_tool.py has numbered find rows of other names by their place, if there is a row for
    each of them: the tool numbers files in the order of their names.

    Args:
        path: CSV or other text, dataset.json, or a folder or zip with a dataset.json.
        names: File names of the images, '/'-separated, as `Target.stored_name` and `host.image_names` give them.
        split: Take only rows with this value in the table's column `split`, if it has one; of several values the first
            that is there.
        option: What errors call the table.

    Raises:
        UserError: an unreadable table, a file name twice, or none of its rows belongs to an image.
    """
    where = f'{option}={path}'
    if _is_json(path):
        return _from_json(path, names, where)
    header, rows = _parse(_read_text(path, where), where)
    header, rows = _of_split(header, rows, split)
    if not rows:
        raise UserError(f'{where}: has no row of split {split if isinstance(split, str) else " or ".join(split or ())}')
    file_column, places, note = _find_images(rows, names, where)
    values: dict[str, list[str | None]] = {
        header[k]: [None] * len(names) for k in range(len(header)) if k != file_column}
    for row, place in zip(rows, places):
        if place is not None:
            for k, text in enumerate(row):
                if k != file_column and text.strip():
                    values[header[k]][place] = text.strip()
    return Attributes(where, {name: tuple(column) for name, column in values.items()}, note)


# ---------------------------------------------------------------------------------------------------------------------
# Text


def _read_text(path: str, where: str) -> str:
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            return file.read()
    except OSError as error:
        raise UserError(f'{where}: cannot be read ({error.strerror})') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{where}: not a text file ({error.reason})') from None


def _parse(text: str, where: str) -> tuple[Row, list[Row]]:
    """Header and rows; a table without header gets the names "column 1" and so on."""
    rows = _split_lines(text, where)
    if rows and len(rows) > 1 and len(rows[0]) == 1 and rows[0][0].isdigit() and len(rows[-1]) > 1:
        rows = rows[1:]  # CelebA's tables begin with the number of their rows.
        if all(len(row) == len(rows[0]) + 1 for row in rows[1:]):
            rows[0].insert(0, 'file')  # And their header doesn't name the column of files.
    if not rows or len(rows[0]) < 2:
        raise UserError(f'{where}: expected a column of file names and one of labels, as "file,label"')
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise UserError(f'{where}: row {number} has {len(row)} fields, the first {len(rows[0])}')
    if any(has_image_extension(field) for field in rows[0]):
        return [f'column {k}' for k in range(1, len(rows[0]) + 1)], rows
    header = [name.strip() for name in rows[0]]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f'{where}: two columns are called {twice[0]!r}')
    if len(rows) < 2:
        raise UserError(f'{where}: has a header and no rows')
    return header, rows[1:]


def _split_lines(text: str, where: str) -> list[Row]:
    start = '\n'.join(text.splitlines()[:3])
    separator = next((sign for sign in SEPARATORS if sign in start), None)
    if separator is None:
        return [line.split() for line in text.splitlines() if line.strip()]
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        raise UserError(f'{where}: not a CSV file ({error})') from None
    return [row for row in rows if any(field.strip() for field in row)]


def _of_split(header: Row, rows: list[Row], split: str | Sequence[str] | None) -> tuple[Row, list[Row]]:
    """Rows of a split, without the column; all rows where the table has no such column or none is asked for."""
    column = next((k for k, name in enumerate(header) if name.lower() in SPLIT_COLUMNS), None)
    if column is None or split is None:
        return header, rows
    there = [row[column].strip().lower() for row in rows]
    asked = [name.lower() for name in ([split] if isinstance(split, str) else split)]
    wanted = next((name for name in asked if name in there), '')
    kept = [row for row, name in zip(rows, there) if name == wanted]
    return _without(header, column), [_without(row, column) for row in kept]


def _without(row: Row, column: int) -> Row:
    return row[:column] + row[column + 1 :]


# ---------------------------------------------------------------------------------------------------------------------
# Rows and images


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if has_image_extension(name) else name


def _last(name: str) -> str:
    return name.rsplit('/', 1)[-1]


# How a name in the table may differ from the image's, the least first.
KEYS: tuple[Callable[[str], str], ...] = (str, _stem, _last, lambda name: _stem(_last(name)))


def _find_images(
    rows: list[Row], names: Sequence[str], where: str
) -> tuple[int, list[int | None], str | None]:
    """The column of file names, the image of each row (None = not among them), and a note."""
    best: tuple[int, int, list[int | None]] = (0, 0, [])
    for key in KEYS:
        known = _unique_places([key(name) for name in names])
        for column in range(len(rows[0])):
            places = [known.get(key(row[column].strip().replace('\\', '/'))) for row in rows]
            found = len({place for place in places if place is not None})
            if found > best[0]:  # Ties go to the stricter key and the earlier column.
                best = found, column, places
    found, column, places = best
    if found:
        _refuse_twice(rows, column, places, where)
        return column, places, None
    return _by_order(rows, names, where)


def _unique_places(keys: Sequence[str]) -> dict[str, int]:
    """Key -> place; of two images with one key nobody knows which is meant."""
    counts = Counter(keys)
    return {key: place for place, key in enumerate(keys) if counts[key] == 1}


def _refuse_twice(rows: list[Row], column: int, places: list[int | None], where: str) -> None:
    seen: dict[int, Row] = {}
    for row, place in zip(rows, places):
        if place is not None and seen.setdefault(place, row) != row:
            raise UserError(f'{where}: two rows for {row[column]}; a column "split" (train, val) may tell them apart, '
                            'with --splits=train of edit directions or --split=train of figures')  # fmt: skip


def _by_order(
    rows: list[Row], names: Sequence[str], where: str
) -> tuple[int, list[int | None], str]:
    numbers = [NUMBERED.fullmatch(_stem(_last(name))) for name in names]
    files = [k for k in range(len(rows[0])) if all(has_image_extension(row[k].strip()) for row in rows)]
    first = names[0] if names else '(no image)'
    if not files or not all(numbers) or not names:
        raise UserError(f'{where}: none of its rows names an image of the data set, whose first is {first}')
    if len(rows) != 1 + max(int(number[1]) for number in numbers if number):
        raise UserError(f'{where}: its files have other names than the images ({rows[0][files[0]]}; {first}), and '
                        f'there are not as many: {len(rows)} rows, {len(names)} images')
    column = files[0]
    place_of = {int(number[1]): place for place, number in enumerate(numbers) if number}
    order = sorted(range(len(rows)), key=lambda k: rows[k][column].strip())
    places: list[int | None] = [None] * len(rows)
    for number, k in enumerate(order):
        places[k] = place_of.get(number)
    return column, places, f'{where}: files are paired with the numbered images in the order of their names'


# ---------------------------------------------------------------------------------------------------------------------
# dataset.json


def _is_json(path: str) -> bool:
    return path.lower().endswith('.json') or os.path.isdir(path) or zipfile.is_zipfile(path)


def _json_bytes(path: str, where: str) -> bytes:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.read(LABEL_FILE)
        with open(os.path.join(path, LABEL_FILE) if os.path.isdir(path) else path, 'rb') as file:
            return file.read()
    except KeyError:
        raise UserError(f'{where}: holds no {LABEL_FILE}') from None
    except OSError as error:
        raise UserError(f'{where}: {LABEL_FILE} cannot be read ({error.strerror})') from None


def _from_json(path: str, names: Sequence[str], where: str) -> Attributes:
    """Class numbers and one-hot vectors are one attribute, "class"; each place of other vectors is one, "label K"."""
    table = parse_labels(_json_bytes(path, where), where)
    if not table:
        raise UserError(f'{where}: has no labels')
    rows = [[name, str(place)] for place, name in enumerate(table)]
    labels = list(table.values())
    lengths = {len(label) if isinstance(label, list) else 0 for label in labels}
    if len(lengths) > 1:
        raise UserError(f'{where}: labels of several lengths')
    column, places, note = _find_images(rows, names, where)
    if column != 0:
        raise UserError(f'{where}: none of its labels is of an image of the data set, whose first is {names[0]}')
    texts = _label_texts(labels)
    values: dict[str, list[str | None]] = {name: [None] * len(names) for name in texts}
    for k, place in enumerate(places):
        if place is not None:
            for name, column_texts in texts.items():
                values[name][place] = column_texts[k]
    return Attributes(where, {name: tuple(found) for name, found in values.items()}, note)


def _label_texts(labels: Sequence[int | list[float]]) -> dict[str, list[str]]:
    """Attribute -> the text of each label's value."""
    vectors = [label for label in labels if isinstance(label, list)]
    if not vectors:
        return {'class': [str(label) for label in labels]}
    if all(sorted(vector) == [0] * (len(vector) - 1) + [1] for vector in vectors):
        return {'class': [str(vector.index(1)) for vector in vectors]}
    return {f'label {k}': [format(vector[k], 'g') for vector in vectors] for k in range(len(vectors[0]))}
