"""Judges of attributes: classifiers that see pictures alone, and say what class an edited picture is of.

Whether an edit along a direction succeeds is not for the direction to say, nor for anything in its space: a judge is
learned from training images and their labels, on features that no network made, and sees pictures, not codes. It will
be shown what a generator draws, which is never as crisp as a photograph: so it learns from the real pictures and from
their reconstructions alike. Its probabilities will be compared: so of several judges the one is taken whose
probabilities are best for both, of training images that it was not fitted to.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lia_plugin.attribute_labels import Attributes
from lia_plugin.edit_statistics import balanced_accuracy
from lia_plugin.host import UserError

Array = npt.NDArray[Any]

PIXEL_SIDE = 16  # Small enough that a reconstruction's lack of detail does not tell.
GRADIENT_SIDE = 32  # Gradients of larger pictures are those of their detail.
CELLS, BINS = 8, 9  # Of Dalal and Triggs's histograms of oriented gradients; blocks are 2 x 2 cells.
COMPONENTS = 200
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression.
ASIDE = 5  # Every fifth training picture of a class chooses among judges.
MIN_IMAGES = 10  # Classes with fewer training pictures are left out.
MAX_CLASSES = 100  # A column of more values counts something, or names it.
WEAK = 0.5  # A judge that is not half-way between chance and certainty on reconstructions is called weak.


# ---------------------------------------------------------------------------------------------------------------------
# Attributes


class Attribute(NamedTuple):
    """A column of labels, and those of its values that are told apart."""

    name: str
    classes: tuple[str, ...]

    def numbers(self, table: Attributes) -> Array:
        """int64 [n]: each image's class, −1 where it is not known or none of these."""
        place = {value: k for k, value in enumerate(self.classes)}
        return np.array([place.get(value or '', -1) for value in table.column(self.name)], np.int64)


def choose_attribute(spec: str, table: Attributes, option: str = '--attributes') -> Attribute:
    """COLUMN, or COLUMN=A/B for some of its values, with classes of enough training pictures.

    Raises:
        UserError: no such column or value, or fewer than two classes of MIN_IMAGES pictures.
    """
    name, _, listed = spec.partition('=')
    counts = table.classes(name)
    wanted = [value.strip() for value in listed.split('/')] if listed else list(counts)
    for value in wanted:
        if value not in counts:
            raise UserError(f'{option}={spec}: {table.where}: {name} has no value {value!r}; it has {_some(counts)}')
        if listed and counts[value] < MIN_IMAGES:
            raise UserError(f'{option}={spec}: {counts[value]} training images are {value}; '
                            f'at least {MIN_IMAGES} are needed')
    kept = tuple(value for value in wanted if counts[value] >= MIN_IMAGES)
    if len(set(kept)) < 2 or len(kept) > MAX_CLASSES:
        found = f'{len(counts)} values, {len(kept)} of them of at least {MIN_IMAGES} training images'
        raise UserError(f'{option}={spec}: {table.where}: {name} is no attribute to tell classes by: {found}')
    return Attribute(name, kept)


def _some(counts: Mapping[str, int]) -> str:
    return ', '.join(list(counts)[:8]) + (' …' if len(counts) > 8 else '')


# ---------------------------------------------------------------------------------------------------------------------
# Features


def pixel_features(img: torch.Tensor) -> torch.Tensor:
    """Pictures NCHW, shrunk by area -> [N, features]."""
    side = min(PIXEL_SIDE, img.shape[2])
    return F.interpolate(img, size=(side, side), mode='area').flatten(1)


def gradient_features(img: torch.Tensor) -> torch.Tensor:
    """Histograms of oriented gradients (Dalal and Triggs 2005) of pictures NCHW -> [N, features].

    Of colours the strongest gradient counts; each gradient is shared between the two nearest of BINS unsigned
    orientations, and blocks of 2 x 2 cells have unit length.
    """
    if img.shape[2] > GRADIENT_SIDE:
        img = F.interpolate(img, size=(GRADIENT_SIDE, GRADIENT_SIDE), mode='area')
    edged = F.pad(img, (1, 1, 1, 1), mode='replicate')
    dx, dy = edged[:, :, 1:-1, 2:] - edged[:, :, 1:-1, :-2], edged[:, :, 2:, 1:-1] - edged[:, :, :-2, 1:-1]
    strength = dx.square() + dy.square()
    strongest = strength.argmax(dim=1, keepdim=True)
    dx, dy, strength = (x.gather(1, strongest) for x in (dx, dy, strength))
    angle = torch.atan2(dy, dx).remainder(math.pi) / math.pi * BINS  # [N, 1, H, W]
    bins = torch.arange(BINS, device=img.device).view(1, -1, 1, 1)
    apart = (angle - bins).abs()
    share = (1 - torch.minimum(apart, BINS - apart)).clamp(min=0)  # The circle of orientations closes.
    cells = F.adaptive_avg_pool2d(share * strength.sqrt(), CELLS)
    blocks = F.unfold(cells, 2)
    return (blocks / (blocks.square().sum(dim=1, keepdim=True) + 1e-4).sqrt()).flatten(1)


def extract(img: torch.Tensor) -> dict[str, Array]:
    """Features of pictures NCHW in [-1, 1]: kind -> float32 [N, features], on the CPU."""
    img = img.detach().to('cpu', torch.float32).clamp(-1, 1)
    pixels, gradients = pixel_features(img).numpy(), gradient_features(img).numpy()
    return {'pixels': pixels, 'gradients': gradients, 'both': np.concatenate([pixels, gradients], axis=1)}


# ---------------------------------------------------------------------------------------------------------------------
# Judges


@dataclass
class Judge:
    """Tells the classes of one attribute."""

    attribute: Attribute
    kind: str  # Of its features.
    strength: float
    basis: Any  # Features -> few numbers, shared by all judges of a kind.
    model: Any

    def probabilities(self, features: Mapping[str, Array]) -> Array:
        """Features by kind -> [N, classes], each row sums to 1."""
        return self.model.predict_proba(self.basis.transform(features[self.kind]))


def ask(judges: Sequence[Judge], img: torch.Tensor) -> dict[str, Array]:
    """What each judge says of pictures NCHW in [-1, 1]: attribute's name -> probabilities [N, classes]."""
    features = extract(img)
    return {judge.attribute.name: judge.probabilities(features) for judge in judges}


class Material(NamedTuple):
    """What judges are learned from: features by kind, [n, features] each, of n images."""

    real: dict[str, Array]
    recon: dict[str, Array]  # Of their reconstructions.
    aside: Array  # int64: which of the n choose among judges.


def fit_judges(attributes: Sequence[Attribute], labels: Array, material: Material, seed: int = 0) -> list[Judge]:
    """A judge for each attribute; labels int [n, attributes], −1 = not known.

    Images set aside choose among kinds of features and strengths; then all fit the judge.
    """
    from tqdm import tqdm

    both = {kind: np.stack([material.real[kind], material.recon[kind]]) for kind in material.real}  # [2, n, features]
    bases = {kind: _fit_basis(pair.reshape(-1, pair.shape[-1]), seed) for kind, pair in both.items()}
    small = {kind: np.stack([bases[kind].transform(x) for x in pair]) for kind, pair in both.items()}
    with tqdm(attributes, desc='Learning to judge', unit='attribute', disable=None) as bar:
        return [_fit_judge(attribute, labels[:, k], bases, small, material.aside) for k, attribute in enumerate(bar)]


def _fit_basis(features: Array, seed: int) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = min(COMPONENTS, *features.shape)
    return make_pipeline(StandardScaler(), PCA(components, random_state=seed)).fit(features)


def _fit_model(pair: Array, labels: Array, strength: float) -> Any:
    """From real pictures and reconstructions together, [2, n, features]; labels [n]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Classes weigh the same however rare, or a rare one would never be seen in an edited picture.
    model = LogisticRegression(C=strength, class_weight='balanced', max_iter=300)
    with warnings.catch_warnings():
        # Weak penalties are tried, too, where more steps change next to nothing; how well a judge reads is measured.
        warnings.simplefilter('ignore', ConvergenceWarning)
        return model.fit(pair.reshape(-1, pair.shape[-1]), np.tile(labels, 2))


def _fit_judge(
    attribute: Attribute, labels: Array, bases: dict[str, Any], pairs: dict[str, Array], aside: Array
) -> Judge:
    known = np.flatnonzero(labels >= 0)
    fitted, choosing = np.setdiff1d(known, aside), np.intersect1d(known, aside)
    if len(np.unique(labels[fitted])) < len(attribute.classes):  # Too few to choose with.
        fitted, choosing = known, known[:0]
    losses: dict[tuple[str, float], float] = {}
    for kind, pair in pairs.items():
        for strength in STRENGTHS:
            model = _fit_model(pair[:, fitted], labels[fitted], strength)
            losses[kind, strength] = sum(log_loss(model.predict_proba(x[choosing]), labels[choosing]) for x in pair
                                         if len(choosing))  # fmt: skip
    kind, strength = min(losses, key=lambda key: losses[key])
    return Judge(attribute, kind, strength, bases[kind], _fit_model(pairs[kind][:, known], labels[known], strength))


def log_loss(said: Array, labels: Array) -> float:
    """−log of the probability that the true class was given, classes weighing the same: [n, classes], int [n]."""
    nats = -np.log(np.maximum(said[np.arange(len(labels)), labels], 1e-12))
    return float(np.mean([nats[labels == kind].mean() for kind in np.unique(labels)]))


def set_aside(labels: Array, most: int) -> Array:
    """Which pictures choose among judges: a fifth of each class of each attribute, in one piece; about `most` in all.

    In one piece, because neighbours in a data set are often nearly the same picture, and a judge that has seen one
    knows the other. labels int [n, attributes], −1 = not known -> sorted int64.
    """
    chosen = np.zeros(len(labels), bool)
    for column in labels.T:
        for kind in range(column.max() + 1):
            items = np.flatnonzero(column == kind)
            missing = len(items) // ASIDE - int(chosen[items].sum())
            if missing > 0:
                free = items[~chosen[items]]
                start = (len(free) - missing) // 2
                chosen[free[start : start + missing]] = True
    items = np.flatnonzero(chosen)
    return items if len(items) <= most else items[np.linspace(0, len(items) - 1, most).round().astype(np.int64)]


class JudgeFigures(NamedTuple):
    """How well a judge reads held-out pictures: balanced accuracies, by labels."""

    n: int
    chance: float
    real: float
    recon: float

    @property
    def weak(self) -> bool:
        """Whether what it says of edits says little."""
        return not self.recon >= self.chance + WEAK * (1 - self.chance)


def judge_figures(judge: Judge, labels: Array, real: Array, recon: Array) -> JudgeFigures:
    """Of held-out images: labels int [n], −1 = not known; probabilities [n, classes] of originals, reconstructions."""
    known = labels >= 0
    kinds = len(np.unique(labels[known]))
    chance = 1 / kinds if kinds else float('nan')
    return JudgeFigures(
        int(known.sum()), chance, balanced_accuracy(labels[known], real[known].argmax(axis=1)),
        balanced_accuracy(labels[known], recon[known].argmax(axis=1)),
    )  # fmt: skip
