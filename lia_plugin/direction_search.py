"""What `edit directions` looks for: directions by labels, by two sets of images, by SeFa or by PCA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch

from lia_plugin import direction_data, direction_factors, direction_learning, spaces
from lia_plugin.codes import Codes
from lia_plugin.direction_data import DataOptions, Failures, Labelled
from lia_plugin.direction_learning import FITS, Split, Task
from lia_plugin.directions import Direction, code_space, make_direction, with_scale
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.network_hash import generator_hash

METHODS = ('labels', 'sets', 'sefa', 'pca')
SEEDS_SHOWN = '0-2'
IMAGES_SHOWN = 3
# Which options go with which methods; all others go with all.
ONLY = {
    'data': ('labels', 'pca'), 'labels': ('labels',), 'attributes': ('labels',), 'values': ('labels',),
    'val': ('labels',), 'splits': ('labels',), 'group_column': ('labels',), 'positive': ('sets',),
    'negative': ('sets',), 'name': ('sets',), 'holdout': ('labels', 'sets'), 'count': ('sefa', 'pca'),
    'samples': ('pca',), 'fit': ('labels', 'sets'),
}  # fmt: skip


@dataclass(frozen=True)
class SearchOptions:
    """The command's own options, by its parameters' names. None and () = not given."""

    method: str
    space: str = 'y'
    data: str | None = None
    labels: str | None = None
    attributes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    val: str | None = None
    splits: tuple[str, ...] = ()
    group_column: str | None = None
    holdout: float | None = None
    fit: str | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    name: str | None = None
    count: int | None = None
    samples: int | None = None
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """UserError, one line, for options that don't go together whatever the network."""
        if self.fit not in (None, *FITS):
            raise UserError(f"fit: expected 'means' or 'plane', got {self.fit!r}")
        for name, methods in ONLY.items():
            if getattr(self, name) not in (None, ()) and self.method not in methods:
                option = {'attributes': 'attribute'}.get(name, name.replace('_', '-'))
                raise UserError(f'--{option}: only with --method={" or ".join(methods)}')
        if self.method in ('labels', 'sets'):
            direction_learning.check_installed()
        if self.method == 'labels':
            self._check_labels()
        if self.method == 'sets' and not (self.positive and self.negative):
            raise UserError('--method=sets: needs --positive and --negative, two sets of images')
        if self.method == 'pca':
            if self.space == 'z' and self.data is None:
                raise UserError('--space=z: the prior varies alike in all directions; --data=IMAGES has components')
            if self.samples and self.data:
                raise UserError('--samples: not with --data, whose codes are taken instead of samples')

    def _check_labels(self) -> None:
        if self.data is None:
            raise UserError('--method=labels: needs --data, the images that the labels are of')
        if self.val is not None:
            for option, given in (('--group-column', self.group_column), ('--holdout', self.holdout)):
                if given is not None:
                    raise UserError(f'{option}: not with --val, whose images are what is held out')
        if self.values and (len(self.attributes) != 1 or len(set(self.values)) < 2):
            raise UserError('--values: takes two or more values of one --attribute')
        if len(self.splits) > 2 or (len(self.splits) == 2 and self.val is None):
            raise UserError('--splits: TRAIN, or TRAIN,VAL with --val')

    @property
    def has_images(self) -> bool:
        """Whether images are looked at, so that there are some to show."""
        return self.method == 'sets' or self.data is not None

    def check_network(self, session: Session) -> None:
        """UserError for what the network hasn't."""
        if self.space == 'z' and not spaces.has_prior(session.G):
            raise UserError(f'--space=z: {session.network}: it has no φ, so its codes have no z; take y, here its w')
        if self.layers and max(self.layers) >= session.G.num_ws:
            raise UserError(f'--layers: this network has 0 to {session.G.num_ws - 1}, not {max(self.layers)}')


class Search:
    """One run; `found` in the order of the file, `shown` what the sheet can show them on (None = seeds).

    `given`, with words for its source, is codes and labels at hand already, in place of the files that `asked` names.
    """

    def __init__(
        self,
        session: Session,
        asked: SearchOptions,
        failures: Failures,
        given: Labelled | None = None,
        source: str = '',
    ) -> None:
        asked.check_network(session)
        self.given, self.source = given, source
        self.session, self.asked, self.failures = session, asked, failures
        self.space = 'z' if asked.space == 'z' else code_space(session.G)
        self.hash = generator_hash(session.G)
        self.shown: Codes | None = None
        self.skipped: dict[str, str] = {}  # What could not be learned -> why.
        find = dict(labels=self._by_labels, sets=self._by_sets, sefa=self._by_sefa, pca=self._by_pca)[asked.method]
        self.found = [with_scale(session.G, direction) for direction in find()]

    def _make(self, name: str, vector: Any, **rest: Any) -> Direction:
        return make_direction(name, torch.as_tensor(vector), self.space, network_hash=self.hash,
                              layers=self.asked.layers, **rest)  # fmt: skip

    # From labels

    def _by_labels(self) -> list[Direction]:
        if self.given is not None:
            return self._learn(self.given, list(self._jobs(self.given)), self.source)
        asked = self.asked
        assert asked.data is not None, 'check() has seen to it'
        options = DataOptions(asked.data, asked.labels, asked.val, asked.splits, asked.group_column, self._share)
        labelled = options.read(self.session, asked.space, self.failures)
        self.shown = _ordinary(labelled.shown)
        jobs = list(self._jobs(labelled))
        source = f'labels of {asked.labels or asked.data}, images of {asked.data}'
        return self._learn(labelled, jobs, source)

    @property
    def _share(self) -> float:
        return self.asked.holdout or 0.2

    def _jobs(self, labelled: Labelled) -> Iterator[tuple[Task, Any, Split]]:
        """(task, rows of the table, split of these rows) of each direction that can be learned."""
        asked = self.asked
        for name in dict.fromkeys(asked.attributes) or tuple(labelled.table):
            if name not in labelled.table:
                raise UserError(f'--attribute={name}: no such column; there are {", ".join(labelled.table)}')
            column = labelled.table[name]
            missing = [value for value in asked.values if value not in column]
            if missing:
                raise UserError(f'--values: no image has {name}={missing[0]}')
            rows = np.array([row for row, value in enumerate(column)
                             if value is not None and (not asked.values or value in asked.values)], np.int64)
            try:
                values = [str(column[row]) for row in rows]
                tasks = direction_learning.make_tasks(name, values, asked.values)
                split = labelled.split(rows, np.unique(values, return_inverse=True)[1], self._share, self.session.seed)
            except UserError as error:
                if asked.attributes:
                    raise
                self.skipped[name] = str(error)
                continue
            yield from ((task, rows, split) for task in tasks)

    def _by_sets(self) -> list[Direction]:
        asked, G = self.asked, self.session.G
        parts = [direction_data.read_codes(self.session, sources, option, self.failures)[0]
                 for option, sources in (('--negative', asked.negative), ('--positive', asked.positive))]  # fmt: skip
        self.shown = _ordinary(parts[0])
        inside = np.concatenate([direction_data.points(G, part, asked.space) for part in parts])
        positive = np.arange(len(inside)) >= len(parts[0])
        name = asked.name or _stem(asked.positive[0])
        meaning = f'from {", ".join(asked.negative)} (-) to {", ".join(asked.positive)} (+)'
        labelled = Labelled(parts[0], inside, {}, None, None, f'a random share of {self._share:g}')
        rows = np.arange(len(inside))
        split = labelled.split(rows, positive.astype(np.int64), self._share, self.session.seed)
        return self._learn(labelled, [(Task(name, meaning, positive), rows, split)], 'two sets of images')

    def _learn(
        self, labelled: Labelled, jobs: Sequence[tuple[Task, Any, Split]], source: str
    ) -> list[Direction]:
        from tqdm import tqdm

        found = []
        for task, rows, split in tqdm(jobs, desc='Learning', unit='direction', disable=None):
            groups = None if labelled.groups is None else labelled.groups[rows]
            reason = direction_learning.why_not(task.positive, split, groups)
            if reason is None:
                found.append(self._learn_one(task, labelled.points[rows], split, groups, labelled.held_out_by, source))
            else:
                self.skipped[task.name] = reason
        left_out = '; '.join(f'{", ".join(names)} ({reason})' for reason, names in self._left_out().items())
        if not found:
            raise UserError(f'--method={self.asked.method}: nothing could be learned: {left_out or "no labels"}')
        if left_out:
            click.echo(f'Not learned: {left_out}', err=True)
        return found

    def _left_out(self) -> dict[str, list[str]]:
        """Reason -> names of what could not be learned."""
        found: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            found.setdefault(reason.removeprefix(f'--attribute={name}: '), []).append(name)
        return found

    def _learn_one(
        self, task: Task, inside: Any, split: Split, groups: Any, held_out_by: str, source: str
    ) -> Direction:
        train, held_out = split
        fit = self.asked.fit or FITS[0]
        plane = direction_learning.fit_boundary(
            inside[train], task.positive[train], None if groups is None else groups[train], self.session.seed)
        boundary = plane if fit == 'plane' else direction_learning.fit_means(inside[train], task.positive[train])
        judged = direction_learning.judge(boundary, inside[held_out], task.positive[held_out])
        best = direction_learning.judge(plane, inside[held_out], task.positive[held_out])
        own = direction_learning.judge(boundary, inside[train], task.positive[train])
        figures = dict(
            judged, fit=fit, train_n=own['n'], train_n_positive=own['n_positive'],
            train_accuracy=own['accuracy'], held_out_by=held_out_by, inverse_penalty=plane.strength,
            **{f'plane_{key}': best[key] for key in ('accuracy', 'balanced_accuracy', 'auc')},
        )  # fmt: skip
        return self._make(
            task.name, boundary.vector, bias=boundary.bias, scale=float((inside[train] @ boundary.vector).std()),
            meaning=task.meaning, source=source, figures=figures,
        )  # fmt: skip

    # Without labels

    def _by_sefa(self) -> list[Direction]:
        asked = self.asked
        found = direction_factors.sefa(self.session.G, asked.count or 8, asked.layers, asked.space, self.session.seed)
        self._tell_count(len(found))
        return [
            self._make(f'sefa{k}', factor.vector, source='SeFa', figures=dict(
                eigenvalue=factor.strength, share=factor.share), meaning=f'changes styles most, number {k}')
            for k, factor in enumerate(found)
        ]  # fmt: skip

    def _by_pca(self) -> list[Direction]:
        asked, G = self.asked, self.session.G
        if self.given is not None:
            inside, source = torch.from_numpy(self.given.points), self.source
        elif asked.data is None:
            samples = asked.samples or 10_000
            inside = spaces.sample_codes(G, samples, self.session.seed)[0]
            source = f'PCA of {len(inside)} codes of the prior'
        else:
            read, _names = direction_data.read_codes(self.session, [asked.data], '--data', self.failures)
            self.shown = _ordinary(read)
            inside = torch.from_numpy(direction_data.points(G, read, asked.space))
            source = f'PCA of {len(inside)} codes of {asked.data}'
        found = direction_factors.pca(inside, asked.count or 8)
        self._tell_count(len(found))
        return [
            self._make(f'pc{k}', factor.vector, scale=factor.strength**0.5, source=source, figures=dict(
                variance=factor.strength, explained_variance=factor.share), meaning=f'principal component {k}')
            for k, factor in enumerate(found)
        ]  # fmt: skip

    def _tell_count(self, found: int) -> None:
        """Says so if there are fewer than were asked for."""
        if self.asked.count is not None and found < self.asked.count:
            fewer = ', or one less than there are codes' if self.asked.method == 'pca' else ''
            click.echo(f'--count={self.asked.count}: there are {found}, as codes have dimensions{fewer}', err=True)


def _ordinary(found: Codes) -> Codes:
    """A few codes: of each of so many equal parts of the list the one that is nearest to the mean of all.

    The first ones of a data set are often of a kind, and an odd one tells little of what a direction does to others.
    """
    count = min(IMAGES_SHOWN, len(found))
    away = (found.code - found.code.mean(dim=0)).flatten(1).norm(dim=1).cpu()
    parts = torch.arange(len(found)).tensor_split(count)
    return found[[int(part[away[part].argmin()]) for part in parts]]


def _stem(text: str) -> str:
    return os.path.splitext(os.path.basename(os.path.abspath(text)))[0]
