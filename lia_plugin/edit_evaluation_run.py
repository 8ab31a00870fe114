"""An evaluation of edits from options to figures: which images, which judges, which directions, and the measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import (
    direction_learning,
    directions,
    edit_evaluation,
    edit_judges,
    inversion,
    manipulation,
    spaces,
)
from lia_plugin.codes import Codes, concatenate, image_codes
from lia_plugin.directions import Direction
from lia_plugin.edit_evaluation import Edit, HeldOut, Measured, join
from lia_plugin.edit_evaluation_inputs import (
    EvaluateOptions,
    Split,
    choose_attributes,
    choose_labelled,
    label_numbers,
    read_splits,
)
from lia_plugin.edit_judges import Attribute, Judge, Material
from lia_plugin.edit_regions import Effect, Moments
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.images import to_float
from lia_plugin.network_hash import generator_hash
from lia_plugin.targets import Target

Array = npt.NDArray[Any]

METHODS = {'plane': 'logistic regression on', 'means': 'means of'}
MOST_ASIDE = 1000  # Training images that choose among judges.
BEYOND, ALMOST_ALL = 0.25, 0.95
VAL_PER_EDIT = 4  # So many held-out images are read for each that an edit is tried on, as most are of other classes.


# ---------------------------------------------------------------------------------------------------------------------
# Training images


class Learned(NamedTuple):
    """What training images have taught."""

    judges: list[Judge]
    moments: Moments
    codes: Codes | None  # Without originals; None if nobody asked.
    labels: Array  # Of the codes, [n, attributes]


Failures = list[tuple[str, str]]


def learn(
    session: Session, split: Split, attributes: Sequence[Attribute], want_codes: bool, failures: Failures
) -> Learned:
    """Judges and regions of real pictures; codes, if directions are to be learned from them."""
    labels = label_numbers(attributes, split.table)
    aside = edit_judges.set_aside(labels, MOST_ASIDE)
    moments = Moments([len(attribute.classes) for attribute in attributes])
    real: list[dict[str, Array]] = []
    recon: list[dict[str, Array]] = []
    parts: list[Codes] = []
    items: list[int] = []
    for places, codes in _encode(session, split.targets, 'Training images', failures):
        img = to_float(torch.stack([pixels for pixels in codes.originals if pixels is not None]))
        moments.add(labels[places], img)
        real.append(edit_judges.extract(img))
        recon.append(edit_judges.extract(to_float(session.render(codes.code, codes.c))))
        parts.append(codes.without_originals())
        items += places
    if not items:
        raise UserError(f'--data: none of its {len(split.targets)} images can be read: {failures[-1][1]}')
    kept = np.flatnonzero(np.isin(items, aside))
    judges = edit_judges.fit_judges(attributes, labels[items], Material(join(real), join(recon), kept), session.seed)
    return Learned(judges, moments, concatenate(session.G, parts) if want_codes else None, labels[items])


def _encode(
    session: Session, targets: Sequence[Target], desc: str, failures: Failures
) -> Iterator[tuple[list[int], Codes]]:
    """(places, their codes) of what can be read, batch by batch."""
    from tqdm import tqdm

    place = {target.name: k for k, target in enumerate(targets)}
    with tqdm(total=len(targets), desc=desc, unit='image', disable=None) as bar:
        for start in range(0, len(targets), session.batch):
            group = targets[start : start + session.batch]
            codes = image_codes(session.G, session.network, group, session.class_idx, session.batch, failures)
            bar.update(len(group))
            if codes is not None:
                yield [place[name] for name in codes.names], codes


def effect_of(moments: Moments, edit: Edit) -> Effect:
    return moments.effect(edit.attribute, edit.positive)


# ---------------------------------------------------------------------------------------------------------------------
# Directions


def read_edits(options: EvaluateOptions, session: Session, attributes: Sequence[Attribute]) -> list[Edit]:
    """Those of the files, each with what it leads to. UserError if none leads to an attribute that is looked at."""
    found = []
    aims, seen = dict(options.aims), set()
    for path in options.directions:
        for one in directions.load_directions(path, session.G, force=options.force):
            seen.add(one.name)
            aim = edit_evaluation.aim_of(one.name, attributes, aims, f'--directions={path}')
            if aim is None:
                click.echo(f'--directions={path}: {one.name} is left out: not among the attributes', err=True)
            else:
                found.append(Edit(one, *aim, directions.split_name(path)[0]))
    if unknown := ', '.join(name for name in aims if name not in seen):
        raise UserError(f'--aim: no direction is called {unknown}; they are called {", ".join(sorted(seen))}')
    if not found:
        listed = ', '.join(attribute.name for attribute in attributes)
        raise UserError(f'--directions: none leads to a class of {listed}; they are called COLUMN=VALUE')
    return found


def learn_edits(session: Session, learned: Learned, attributes: Sequence[Attribute], fit: str) -> list[Edit]:
    """A direction for each class, or from the first of two to the second, in y and in z (w of a stock network)."""
    assert learned.codes is not None, 'asked for'
    from tqdm import tqdm

    own = directions.code_space(session.G)
    chosen = [own, 'z'] if spaces.has_prior(session.G) else [own]
    hashed = generator_hash(session.G)
    code = spaces.fit_code(session.G, learned.codes.code, plus=False)
    # Of two classes one direction leads from the first to the second; of more, one to each.
    aims = [(k, value) for k, attribute in enumerate(attributes)
            for value in ([1] if len(attribute.classes) == 2 else range(len(attribute.classes)))]  # fmt: skip
    found = []
    with tqdm(total=len(chosen) * len(aims), desc='Learning directions', disable=None) as bar:
        for space in chosen:
            x = manipulation.enter_space(session.G, code, learned.codes.c, space).cpu().double().numpy()
            for k, value in aims:
                labels = learned.labels[:, k]
                direction = _learn_one(x, labels, attributes[k], value, space, hashed, fit, session.seed)
                found.append(Edit(direction, k, value, 'learned'))
                bar.update(1)
    return found


def _learn_one(
    x: Array, labels: Array, attribute: Attribute, positive: int, space: str, hashed: str, fit: str, seed: int
) -> Direction:
    known = labels >= 0
    boundary = direction_learning.fit(fit, x[known], labels[known] == positive, seed=seed)
    value = attribute.classes[positive]
    others = attribute.classes[1 - positive] if len(attribute.classes) == 2 else 'all others'
    return directions.make_direction(
        f'{attribute.name}={value}', torch.from_numpy(boundary.vector), space, bias=boundary.bias,
        scale=float((x @ boundary.vector).std()), meaning=f'{attribute.name}: from {others} (-) to {value} (+)',
        network_hash=hashed, source=f'{METHODS[fit]} {int(known.sum())} training images',
    )  # fmt: skip


def all_edits(
    options: EvaluateOptions, session: Session, attributes: Sequence[Attribute], found: list[Edit]
) -> list[Edit]:
    """With conditional ones, and both ways of attributes that have two classes."""
    if options.conditional:
        found = edit_evaluation.with_conditional(found, session.G.num_ws)
    return [edit for one in found for edit in edit_evaluation.with_reverse(one, attributes[one.attribute])]


# ---------------------------------------------------------------------------------------------------------------------
# The run


@dataclass
class Evaluation:
    """All that was measured; the report's matter."""

    options: EvaluateOptions
    session: Session
    attributes: list[Attribute]
    judges: list[Judge]
    held: HeldOut
    train_counts: Array  # Known labels of each attribute.
    effects: dict[tuple[int, int], Effect]
    regions: dict[tuple[int, int], Array]
    edits: list[Edit]  # As they were read or learned.
    planes: list[Edit]  # Logistic regression's, which are not measured: they tell how well codes know the labels.
    measured: list[Measured]
    skipped: list[str]  # Why some edits were not measured.


def run(options: EvaluateOptions, session: Session, failures: Failures) -> Evaluation:
    """Measures all edits. Raises UserError, before long work where that can be known."""
    inversion.check_invertible(session.G, session.network)
    train, val = read_splits(options)
    attributes = choose_attributes(options, train.table)
    train = train.take(choose_labelled(label_numbers(attributes, train.table), options.num_train))
    for split in (train, val):  # Says now what is wrong with the labels of a conditional network.
        inversion.target_labels(session.G, session.class_idx, split.targets)
    given = read_edits(options, session, attributes) if options.directions else []
    _check_val(attributes, val)
    most = None if options.num is None else VAL_PER_EDIT * options.num
    val = val.take(choose_labelled(label_numbers(attributes, val.table), most))
    learned = learn(session, train, attributes, not given, failures)
    found = given or learn_edits(session, learned, attributes, options.fit or direction_learning.FITS[0])
    planes = [] if given else found if options.fit == 'plane' else learn_edits(session, learned, attributes, 'plane')
    edits = all_edits(options, session, attributes, found)
    held = _look_at_val(session, val, attributes, learned.judges, failures)
    effects = {edit.aim: effect_of(learned.moments, edit) for edit in edits}
    regions = {aim: effect.region() for aim, effect in effects.items()}
    measured, skipped = _measure_all(options, session, edits, held, learned.judges, regions)
    counts = (label_numbers(attributes, train.table) >= 0).sum(axis=0)
    return Evaluation(options, session, attributes, learned.judges, held, counts, effects, regions, found, planes,
                      measured, skipped)


def _check_val(attributes: Sequence[Attribute], val: Split) -> None:
    labels = label_numbers(attributes, val.table)
    for attribute, column in zip(attributes, labels.T):
        if not (column >= 0).any():
            raise UserError(f'--val: none of its {len(val.targets)} images has a known {attribute.name} in '
                            f'{val.table.where}')


def _look_at_val(
    session: Session, val: Split, attributes: Sequence[Attribute], judges: Sequence[Judge], failures: Failures
) -> HeldOut:
    batches = _encode(session, val.targets, 'Held-out images', failures)
    held = edit_evaluation.look(session, val.targets, batches, label_numbers(attributes, val.table), judges)
    if held is None:
        raise UserError(f'--val: none of its {len(val.targets)} images can be read: {failures[-1][1]}')
    return held


def _measure_all(
    options: EvaluateOptions, session: Session, edits: Sequence[Edit], held: HeldOut, judges: list[Judge],
    regions: Mapping[tuple[int, int], Array],
) -> tuple[list[Measured], list[str]]:
    from tqdm import tqdm

    plan, skipped = [], []
    for edit in edits:
        attribute = judges[edit.attribute].attribute
        items = edit_evaluation.candidates(held, attribute, edit.attribute, edit.positive, options.num)
        if len(items) < 2 or not math.isfinite(edit.direction.scale):
            skipped.append(f'{edit.direction.name} in {edit.kind}: {len(items)} held-out images to try it on')
        else:
            plan.append((edit, items))
    plan.sort(key=lambda task: (*task[0].aim, task[0].conditional, task[0].direction.space))
    if not plan:
        raise UserError('--val: no edit can be tried: no held-out image is of another class, by its label and by what '
                        'the judge says of its reconstruction')
    # A little further than the highest level, for bootstrap samples reach it later.
    enough = min(max(options.levels) + BEYOND, ALMOST_ALL)
    total = sum(len(items) for _, items in plan) * len(options.shifts)
    with tqdm(total=total, desc='Editing', unit='picture', disable=None) as bar:
        return [edit_evaluation.measure(session, edit, held, items, judges, regions[edit.aim], options.shifts,
                                        bar.update, enough) for edit, items in plan], skipped  # fmt: skip
