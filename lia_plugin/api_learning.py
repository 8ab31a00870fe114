"""The Python API's part that finds directions: by labels, by two sets of images, by SeFa, by PCA."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lia_plugin import api_checks, codes, direction_data
from lia_plugin.api_base import Layers
from lia_plugin.api_checks import in_python
from lia_plugin.api_directions import Directed, Directions
from lia_plugin.codes import Codes
from lia_plugin.direction_data import Labelled
from lia_plugin.direction_search import Search, SearchOptions
from lia_plugin.directions import Direction
from lia_plugin.edit_session import Session

Labels = Sequence[Any] | np.ndarray  # N values, None or NaN = not known.
SPACES = ('y', 'z')
AT_HAND = 'images'  # As SearchOptions.data: that there are some, though not in files.


class Learner(Directed):
    """A network in whose latent space directions can be found."""

    @in_python
    def directions_from_labels(
        self,
        images: Any,
        labels: str | os.PathLike[str] | Labels | Mapping[str, Labels],
        attribute: str | Sequence[str] = (),
        *,
        values: Sequence[str] = (),
        split: str | None = None,
        val: str | os.PathLike[str] | None = None,
        group_column: str | None = None,
        fit: str = 'means',
        holdout: float = 0.2,
        space: str = 'y',
        layers: Layers | None = None,
        seed: int = 0,
        c: Any = None,
    ) -> Directions:
        """Directions towards labels; `figures` tells how well they and logistic regression tell images held out.

        An attribute of two values gives one direction, ATTRIBUTE=VALUE, from the first to the second in the alphabet;
        one of more gives one for each value, against all others.

        Args:
            images: N of any kind, codes of them, or, with a table, their folder, zip or .npz.
            labels: N values; several attributes by name; or the file of a table, which calls images by their names.
            attribute: Which columns of the table, or what to call the labels. () = all.
            values: Only images with one of these; of two the direction leads from the first to the second.
            split: Only rows of the table whose column `split` says so, if it has one.
            val: Images of the table to judge by, as the command's --val; their `split` is 'val'.
            group_column: Images of the table with one value there are held out together.
            fit: 'means', from the mean of the others to that of the label's, or 'plane', across that of logistic
                regression, which tells labels best and changes pictures less.
            holdout: Share of images held out to judge by.
            space: 'y' or 'z'. (Of a stock network 'y' is its w.)
            layers: Which of them the directions are to move, unless `manipulate` is told; they are learned of all.
            seed: Of what is held out.

        Raises:
            ValueError: labels that don't fit the images, or nothing that can be learned.
        """
        names = (attribute,) if isinstance(attribute, str) else tuple(attribute)
        asked = SearchOptions(
            'labels', space, data=AT_HAND, attributes=names, values=tuple(str(value) for value in values), fit=fit,
            holdout=None if val is not None else api_checks.share('holdout', holdout), layers=self._layers(layers),
        )  # fmt: skip
        _check(asked)
        if isinstance(labels, str | os.PathLike):
            asked = replace(
                asked, data=_path(images), labels=os.fspath(labels), group_column=group_column,
                splits=() if split is None else (split,), val=None if val is None else os.fspath(val),
            )  # fmt: skip
            return self._from_files(asked, seed, c)
        if (split, val, group_column) != (None, None, None):
            raise ValueError('split, val, group_column: only with the file of a table as labels')
        found = self._read(images, c)[0]
        columns = labels if isinstance(labels, Mapping) else {names[0] if names else 'label': labels}
        table = {name: _column(name, column, len(found)) for name, column in columns.items()}
        return self._learn(found, table, asked, seed, f'{len(found)} images with labels')

    @in_python
    def directions_from_sets(
        self,
        positive: Any,
        negative: Any,
        name: str = 'direction',
        *,
        fit: str = 'means',
        holdout: float = 0.2,
        space: str = 'y',
        layers: Layers | None = None,
        seed: int = 0,
        c: Any = None,
    ) -> Directions:
        """The direction from one set of images, `negative`, to another; the rest as in `directions_from_labels`."""
        sets = [self._read(images, c)[0] for images in (negative, positive)]
        sides = _column(name, ['-'] * len(sets[0]) + ['+'] * len(sets[1]), len(sets[0]) + len(sets[1]))
        asked = SearchOptions('labels', space, data=AT_HAND, values=('-', '+'), attributes=(name,), fit=fit,
                              holdout=api_checks.share('holdout', holdout), layers=self._layers(layers))  # fmt: skip
        _check(asked)
        words = f'{len(sets[0])} images (-) and {len(sets[1])} (+)'
        (found,) = self._learn(codes.concatenate(self.G, sets), {name: sides}, asked, seed, words).values()
        meaning = f'{name}: from the second set (-) to the first (+)'
        return _by_name([replace(found, name=name, meaning=meaning)])

    @in_python
    def sefa(self, count: int = 8, layers: Layers | None = None, space: str = 'y') -> Directions:
        """What changes the styles of these layers most, without any labels (Shen and Zhou 2021): sefa0, sefa1, …"""
        asked = SearchOptions('sefa', space, count=api_checks.whole('count', count), layers=self._layers(layers))
        return self._from_files(asked)

    @in_python
    def pca(
        self, count: int = 8, images: Any = None, *, samples: int = 10_000, space: str = 'y',
        layers: Layers | None = None, seed: int = 0, c: Any = None,
    ) -> Directions:  # fmt: skip
        """How codes vary most, of images or, without these, of the prior (Härkönen et al. 2020): pc0, pc1, …"""
        asked = SearchOptions('pca', space, count=api_checks.whole('count', count), layers=self._layers(layers))
        if images is None:
            return self._from_files(replace(asked, samples=api_checks.whole('samples', samples, 2)), seed)
        asked = replace(asked, data=AT_HAND)
        _check(asked)
        found = self._read(images, c)[0]
        return self._learn(found, {}, asked, seed, f'PCA of {len(found)} codes of images')

    def _from_files(self, asked: SearchOptions, seed: int = 0, c: Any = None) -> Directions:
        """As the command does."""
        _check(asked)
        return _by_name(Search(self._session(seed, c), asked, []).found)

    def _session(self, seed: int = 0, c: Any = None) -> Session:
        if c is not None and not isinstance(c, int):
            raise ValueError(f'c: files take one class for all, got {c!r}')
        return Session(self.G, self.network, self.device, class_idx=c, batch=self._at_once(), seed=seed)

    def _learn(
        self, found: Codes, table: dict[str, list[str | None]], asked: SearchOptions, seed: int, source: str
    ) -> Directions:
        """From codes and labels at hand."""
        points = direction_data.points(self.G, found, asked.space)
        labelled = Labelled(found, points, table, None, None, f'a random share of {asked.holdout or 0:g}')
        return _by_name(Search(self._session(seed), asked, [], labelled, source).found)


def _check(asked: SearchOptions) -> None:
    """ValueError for words that are none, and for what doesn't go together, before images are looked at."""
    api_checks.one_of('space', asked.space, SPACES)
    asked.check()


def _by_name(found: Sequence[Direction]) -> Directions:
    return Directions((one.name, one) for one in found)


def _column(name: str, column: Labels, count: int) -> list[str | None]:
    values = column.tolist() if hasattr(column, 'tolist') else column  # Of arrays, tensors, pandas: plain numbers.
    if not isinstance(values, list | tuple | range) or len(values) != count or any(
        isinstance(value, list | tuple) for value in values
    ):
        raise ValueError(f'labels: expected {count} values of {name}, got {column!r:.80}')
    return [None if value is None or isinstance(value, float) and math.isnan(value) else str(value)
            for value in values]  # fmt: skip


def _path(images: Any) -> str:
    if not isinstance(images, str | os.PathLike):
        raise ValueError('images: with the file of a table, expected a folder, zip or .npz, whose names it knows, got '
                         f'{type(images).__name__}')  # fmt: skip
    return os.fspath(images)
