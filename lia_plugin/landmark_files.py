"""Landmarks of images out of files: one JSON or CSV for all, or a small file beside each image."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping

import numpy as np

from lia_plugin.host import UserError, one_line
from lia_plugin.placement import Array
from lia_plugin.targets import Target

BESIDE = ('.npy', '.txt')
MAX_BYTES = 2**28  # Landmarks of a million faces.

Lookup = Callable[[Target], Array]


def open_landmarks(path: str) -> Lookup:
    """A function that gives the landmarks [K, 2] of an image, in pixels of the upright picture, from a table.

    JSON is {name: [[x, y], …]}; a row of CSV is name, x, y, x, y … Names are paths in the folder or zip, or file names,
    with or without their ending.

    Raises:
        UserError: missing or damaged; the function raises it for an image that is not in the table.
    """
    table = _read(path)

    def lookup(target: Target) -> Array:
        for name in _names(target):
            if name in table:
                return table[name]
        raise UserError(f'{target.label}: --align={path} has no landmarks of it')

    return lookup


def beside(target: Target) -> Array:
    """The landmarks of NAME.npy or NAME.txt (two numbers a line) beside an image. Raises UserError."""
    if target.member is not None:
        raise UserError(f'{target.label}: --align=beside is for files, not for zips; give a JSON or CSV')
    stem = os.path.splitext(target.path)[0]
    for path in (stem + ending for ending in BESIDE):
        if os.path.isfile(path):
            return _small_file(path)
    raise UserError(f'{target.label}: there is no {os.path.basename(stem)}{" or ".join(BESIDE)} beside it')


def _small_file(path: str) -> Array:
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError('too large')
        points = np.load(path, allow_pickle=False) if path.endswith('.npy') else np.loadtxt(_text(path).splitlines())
        return _points(points)
    except Exception as error:  # Damaged files raise anything.
        raise UserError(f'{path}: no landmarks ({one_line(error)})') from None


def _points(values: object) -> Array:
    """[K, 2] from pairs, or from a flat list x, y, x, y …"""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1 and len(array) and len(array) % 2 == 0:
        array = array.reshape(-1, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f'expected pairs of numbers, got shape {list(array.shape)}')
    return array


def _names(target: Target) -> list[str]:
    stored = target.stored_name if target.source or target.member else os.path.basename(target.path)
    base = stored.rsplit('/', 1)[-1]
    return [stored, base, os.path.splitext(stored)[0], os.path.splitext(base)[0]]


def _text(path: str) -> str:
    with open(path, encoding='utf-8-sig') as file:
        return file.read(MAX_BYTES)


def _read(path: str) -> Mapping[str, Array]:
    if not os.path.isfile(path):
        raise UserError(f"--align={path}: no such file; it may be 'detect', 'search', 'beside', or a JSON or CSV file")
    try:
        text = _text(path)
        rows = _json(text) if text.lstrip().startswith(('{', '[')) else _csv(text)
        if not rows:
            raise ValueError('it is empty')
        return rows
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f'--align={path}: must be JSON {{name: [[x, y], …]}} or CSV name,x,y,x,y… ({one_line(error)})'
                        ) from None  # fmt: skip


def _json(text: str) -> dict[str, Array]:
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError('it is a list, without names')
    found = {}
    for name, values in table.items():
        try:
            found[name] = _points(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f'{name}: {error}') from None
    return found


def _csv(text: str) -> dict[str, Array]:
    found = {}
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        cells = [cell.strip() for cell in row if cell.strip()]
        if not cells or cells[0].startswith('#'):
            continue
        try:
            found[cells[0]] = _points([float(cell) for cell in cells[1:]])
        except ValueError as error:
            if number:  # The first line may be a header.
                raise ValueError(f'line {number + 1}: {error}') from None
    return found
