"""How good edits are: what a judge says of edited pictures, what else changes in them, and whether codes stay typical.

Held-out images of another class than a direction leads to are moved along it by several amounts. Success is that a
judge, who sees the picture alone, names the wanted class; everything else is what it costs. Figures are kept for each
image, so that edits can be compared at equal success, on the same images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import edit_judges, manipulation, paths, prior, spaces
from lia_plugin.codes import Codes, concatenate
from lia_plugin.direction_learning import area, wilson
from lia_plugin.directions import Direction
from lia_plugin.edit_judges import Attribute, Judge
from lia_plugin.edit_session import Session
from lia_plugin.edit_statistics import Samples, at_equal_success, balanced_accuracy, resample_weights
from lia_plugin.host import UserError
from lia_plugin.images import to_float
from lia_plugin.targets import Target

Array = npt.NDArray[Any]

TYPICAL = 0.01  # Least two-sided p of |z|² of a code that is called typical.
RECOGNITION_SIDE = 32  # Pictures are told apart at this size.
PLAIN = {
    'amount': 'shift, in standard deviations of the direction',
    'wanted': 'judged probability of the wanted class',
    'outside': 'MSE outside the region, of pictures in [-1, 1]',
    'mse': 'MSE of the whole picture',
    'recognised': 'share of edited pictures whose nearest unedited one, outside the region, is their own',
    'leakage': 'mean change of judged probabilities of the other attributes (total variation, 0 … 1)',
    'z_norm2': '|z|² over the dimensions of z; 1 under the prior',
    'typical': f'share of codes whose |z|² has a two-sided p of at least {TYPICAL:g}',
}


# ---------------------------------------------------------------------------------------------------------------------
# Edits


@dataclasses.dataclass(frozen=True)
class Edit:
    """A direction and what it is meant to do."""

    direction: Direction
    attribute: int  # Place in the list of attributes.
    positive: int  # The class that it leads to.
    source: str  # Where the direction comes from.
    conditional: bool = False  # Whether directions of other attributes were projected out.
    reverse: bool = False  # Whether it goes against its direction as that was found.

    @property
    def aim(self) -> tuple[int, int]:
        return self.attribute, self.positive

    @property
    def kind(self) -> str:
        return f'{self.direction.space}{", others projected out" if self.conditional else ""}'


def aim_of(name: str, attributes: Sequence[Attribute], aims: Mapping[str, str], where: str) -> tuple[int, int] | None:
    """(attribute, class) that a direction called COLUMN=VALUE leads to, or as `aims` say of its name.

    None for an attribute that is not looked at, or a class too rare to be judged.

    Raises:
        UserError: its name says nothing of the kind.
    """
    column, sign, value = aims.get(name, name).partition('=')
    if not sign:
        raise UserError(f'{where}: {name}: which attribute it changes is told by names like COLUMN=VALUE; say it with '
                        f'--aim {name} COLUMN=VALUE')
    for k, attribute in enumerate(attributes):
        if attribute.name == column and value in attribute.classes:
            return k, attribute.classes.index(value)
    return None


def with_reverse(edit: Edit, attribute: Attribute) -> list[Edit]:
    """Of an attribute of two classes also the edit that leads to the other one."""
    if len(attribute.classes) != 2:
        return [edit]
    other = 1 - edit.positive
    old = edit.direction
    back = dataclasses.replace(
        old, name=f'{attribute.name}={attribute.classes[other]}', vector=-old.vector,
        bias=None if old.bias is None else -old.bias,
    )  # fmt: skip
    return [edit, dataclasses.replace(edit, direction=back, positive=other, reverse=not edit.reverse)]


def with_conditional(edits: Sequence[Edit], num_ws: int) -> list[Edit]:
    """Each edit, and after it the same one with directions of other attributes projected out: of its source and space.

    Left out where there are no others, or where they leave nothing.
    """
    found = []
    for edit in edits:
        found.append(edit)
        others = [other.direction for other in edits if other.attribute != edit.attribute
                  and (other.source, other.direction.space) == (edit.source, edit.direction.space)]  # fmt: skip
        if others:
            try:
                purged = manipulation.project_out(edit.direction, others, num_ws, edit.direction.layers)
            except ValueError:
                continue
            found.append(dataclasses.replace(edit, direction=purged, conditional=True))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Pictures before and after


@dataclasses.dataclass
class HeldOut:
    """Held-out images as the network has them: before any edit."""

    codes: Codes  # Without originals, which may be more than the memory holds; see `original`.
    targets: tuple[Target, ...]  # Where they are.
    labels: Array  # int64 [n, attributes], −1 = not known
    pictures: torch.Tensor  # Reconstructions, uint8 NCHW.
    said: dict[str, Array]  # What judges say of reconstructions: attribute -> [n, classes].
    said_of_originals: dict[str, Array]

    def original(self, item: int, G: Any) -> torch.Tensor:
        """Pixels of an image, read again, uint8 [C, R, R]."""
        return self.targets[item].read(G.img_resolution, G.img_channels).pixels


def look(
    session: Session, targets: Sequence[Target], batches: Iterable[tuple[list[int], Codes]], labels: Array,
    judges: Sequence[Judge],
) -> HeldOut | None:
    """Reconstructs and judges images, batch by batch as they are read: places among the targets, and their codes with
    originals. `labels` are the targets' [n, attributes]. None if there was no batch."""
    G, places = session.G, list[int]()
    parts: list[Codes] = []
    recon: list[dict[str, Array]] = []
    real: list[dict[str, Array]] = []
    # One piece from the start: to join batches would take the memory twice.
    pictures = torch.empty([len(targets), G.img_channels, *[G.img_resolution] * 2], dtype=torch.uint8)
    for items, codes in batches:
        pixels = session.render(codes.code, codes.c, codes.noise)
        pictures[len(places) : len(places) + len(items)] = pixels
        originals = torch.stack([original for original in codes.originals if original is not None])
        recon.append(edit_judges.ask(judges, to_float(pixels)))
        real.append(edit_judges.ask(judges, to_float(originals)))
        parts.append(codes.without_originals())
        places += items
    if not places:
        return None
    return HeldOut(concatenate(G, parts), tuple(targets[place] for place in places), labels[places],
                   pictures[: len(places)], join(recon), join(real))


def join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """What was found of each batch, by names, as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def candidates(held: HeldOut, attribute: Attribute, k: int, positive: int, most: int | None) -> Array:
    """Which images an edit is tried on: known to be of another class, and judged to be of another when reconstructed.

    At most `most`, spread evenly; sorted int64.
    """
    labels, said = held.labels[:, k], held.said[attribute.name].argmax(axis=1)
    items = np.flatnonzero((labels >= 0) & (labels != positive) & (said != positive))
    if most is None or len(items) <= most:
        return items
    return items[np.linspace(0, len(items) - 1, most).round().astype(np.int64)]


class Measured(NamedTuple):
    """What an edit does to n images at A amounts, the first of which is 0."""

    edit: Edit
    items: Array  # int64 [n], places among the held-out images
    amounts: Array  # [A], in standard deviations of the direction
    success: Array  # [A, n], 1 where the judge names the wanted class
    # Further figures, [A, n] each: those of PLAIN, and of each other attribute 'leakage:NAME' and 'changed:NAME'.
    values: dict[str, Array]


def measure(
    session: Session,
    edit: Edit,
    held: HeldOut,
    items: Array,
    judges: Sequence[Judge],
    region: Array,
    amounts: Sequence[float],
    progress: Callable[[int], None] = lambda done: None,
    enough: float = float('inf'),
) -> Measured:
    """Moves images `items` along an edit's direction by each amount, and looks at the pictures.

    `region` bool [H, W]: what may change. `enough`: a share of success after which no further amount is tried.
    Figures don't depend on the batch size, but for rounding.
    """
    codes = held.codes[[int(item) for item in items]]
    rows = [_unedited(session, edit, held, items, judges, codes)]
    unedited = shrink(held.pictures, region)
    for amount in amounts:
        parts = []
        for start in range(0, len(items), session.batch):
            part = slice(start, start + session.batch)
            parts.append(_edited(session, edit, held, items[part], codes[part], judges, region, unedited, amount))
            progress(len(items[part]))
        rows.append(join(parts))
        if rows[-1]['success'].mean() >= enough:
            break
    progress(len(items) * (len(amounts) + 1 - len(rows)))  # What was not needed.
    values = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Measured(edit, items, np.array([0.0, *amounts])[: len(rows)], values.pop('success'), values)


def edited_codes(session: Session, edit: Edit, codes: Codes, amount: float) -> torch.Tensor:
    steps = torch.full([len(codes)], amount * edit.direction.scale)
    return manipulation.shift(session.G, codes.code, codes.c, edit.direction, steps)


def _unedited(
    session: Session, edit: Edit, held: HeldOut, items: Array, judges: Sequence[Judge], codes: Codes
) -> dict[str, Array]:
    zeros = np.zeros(len(items))
    return {
        'success': zeros, 'wanted': held.said[judges[edit.attribute].attribute.name][items, edit.positive],
        'outside': zeros, 'mse': zeros, 'recognised': np.ones(len(items)),
        **_of_codes(session.G, codes.code, codes.c), **_leakage(edit, held, items, judges, held_out_said(held, items)),
    }  # fmt: skip


def held_out_said(held: HeldOut, items: Array) -> dict[str, Array]:
    return {name: said[items] for name, said in held.said.items()}


def _edited(
    session: Session, edit: Edit, held: HeldOut, items: Array, codes: Codes, judges: Sequence[Judge], region: Array,
    unedited: torch.Tensor, amount: float,
) -> dict[str, Array]:
    code = edited_codes(session, edit, codes, amount)
    pixels = session.render(code, codes.c, codes.noise)
    pictures = to_float(pixels)
    said = edit_judges.ask(judges, pictures)
    wanted = said[judges[edit.attribute].attribute.name]
    change = (pictures - to_float(held.pictures[items])).square().mean(dim=1).double().numpy()  # [n, H, W]
    return {
        'success': (wanted.argmax(axis=1) == edit.positive).astype(np.float64), 'wanted': wanted[:, edit.positive],
        'outside': mean_outside(change, region), 'mse': change.mean(axis=(1, 2)),
        'recognised': recognised(shrink(pixels, region), unedited, items),
        **_of_codes(session.G, code, codes.c), **_leakage(edit, held, items, judges, said),
    }  # fmt: skip


def mean_outside(change: Array, region: Array) -> Array:
    """Means over the pixels that are not in the region, [n, H, W] -> [n]; NaN if there are none."""
    if region.all():
        return np.full(len(change), np.nan)
    return change[:, ~region].mean(axis=1)


def shrink(pictures: torch.Tensor, region: Array) -> torch.Tensor:
    """What lies outside the region, small: pixels uint8 NCHW -> [N, features], for `recognised`."""
    outside = torch.from_numpy(~region).float()
    size = (min(RECOGNITION_SIDE, pictures.shape[2]),) * 2
    return torch.cat([
        torch.nn.functional.interpolate(to_float(part) * outside, size=size, mode='area').flatten(1)
        for part in pictures.split(16)])  # fmt: skip


def recognised(edited: torch.Tensor, unedited: torch.Tensor, items: Array) -> Array:
    """1 for each of the edited [n, features] whose nearest among the unedited [N, features] is number items[n], else 0.

    What is as near as the nearest counts.
    """
    gaps = torch.cdist(edited.double(), unedited.double())
    own = gaps[torch.arange(len(items)), torch.from_numpy(items)]
    return (own <= gaps.amin(dim=1) + 1e-9).double().numpy()


def _of_codes(G: Any, code: torch.Tensor, c: torch.Tensor | None) -> dict[str, Array]:
    """What the prior says of codes; nothing without φ."""
    if not spaces.has_prior(G):
        return {}
    with torch.no_grad():
        z = paths.to_space(G, code, c, 'z').to(torch.float32)
    layers = z if z.ndim == 3 else z[:, None]
    norm2 = layers.square().mean(dim=(1, 2)).cpu().double().numpy()
    return {'z_norm2': norm2, 'typical': (prior.typicality(layers[:, 0]) >= TYPICAL).double().numpy()}


def _leakage(
    edit: Edit, held: HeldOut, items: Array, judges: Sequence[Judge], said: Mapping[str, Array]
) -> dict[str, Array]:
    """Of each other attribute the total variation between what its judge says after and before, and whether the class
    that it names is another one; of the first also the mean over attributes."""
    others = [judge.attribute.name for k, judge in enumerate(judges) if k != edit.attribute]
    before = {name: held.said[name][items] for name in others}
    found = {f'leakage:{name}': np.abs(said[name] - before[name]).sum(axis=1) / 2 for name in others}
    changed = {f'changed:{name}': (said[name].argmax(axis=1) != before[name].argmax(axis=1)).astype(np.float64)
               for name in others}  # fmt: skip
    return {**found, **changed, 'leakage': np.mean(list(found.values()), axis=0)} if found else {}


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def held_out_accuracy(G: Any, held: HeldOut, edit: Edit) -> dict[str, Any]:
    """How well a direction tells held-out images of its class from the others: `auc`, and where it has a plane,
    `accuracy` with Wilson's interval and `balanced_accuracy`; `majority` = always naming the more frequent kind."""
    labels = held.labels[:, edit.attribute]
    known = np.flatnonzero(labels >= 0)
    positive = labels[known] == edit.positive
    codes = held.codes[[int(item) for item in known]]
    distances = manipulation.distance(G, codes.code, codes.c, edit.direction).cpu().double().numpy()
    share = float(positive.mean()) if len(known) else float('nan')
    both = 0 < positive.sum() < len(positive)
    found: dict[str, Any] = {
        'n': len(known), 'n_positive': int(positive.sum()), 'majority': max(share, 1 - share),
        'auc': area(distances, positive) if both else float('nan'),
    }  # fmt: skip
    if edit.direction.bias is not None and len(known):
        right = (distances > 0) == positive
        low, high = wilson(int(right.sum()), len(right))
        balanced = balanced_accuracy(positive.astype(np.int64), (distances > 0).astype(np.int64))
        found |= dict(accuracy=float(right.mean()), accuracy_low=low, accuracy_high=high, balanced_accuracy=balanced)
    return found


def equal_success(measured: Measured, level: float, seed: int) -> dict[str, Samples]:
    """All figures where the edit's success reaches a level; edits of the same images are resampled alike."""
    weights = resample_weights(len(measured.items), seed)
    return at_equal_success(measured.success, {'amount': measured.amounts, **measured.values}, level, weights)


def leakage_matrix(names: Sequence[str], figures: Sequence[Mapping[str, Samples]]) -> Array:
    """[edits, attributes]; NaN for an edit's own attribute, and where the level is not reached."""
    return np.array([[found[f'leakage:{name}'].value if f'leakage:{name}' in found else np.nan for name in names]
                     for found in figures])  # fmt: skip
