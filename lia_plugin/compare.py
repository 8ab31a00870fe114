"""The paper's comparison: which methods there are, and what of a comparison is said once for all of them.

Zhu et al., arXiv 1906.08090, section 5 and figure 4: how well are real images reconstructed by LIA, by encoders of
other kinds, by BiGAN/ALI and by optimisation. All is measured on the same held-out images, after equal budgets:

    stage 1      --kimg images: the generator with φ, and the one with an MLP mapping, each once a seed
    encoders     --enc-kimg images each, with the generator of their stage 1 frozen
    BiGAN/ALI    both budgets together, for it trains everything at once
    optimisers   no training; so many steps an image, all in y, towards the pixels of the image
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from click import UsageError

STAGE1, STAGE1_MLP = 'stage1', 'stage1-mlp'


@dataclasses.dataclass(frozen=True)
class Method:
    """A way from an image to its reconstruction."""

    name: str  # In options and file names.
    label: str  # In tables.
    caption: str  # Above a column of pictures.
    about: str
    base: str = STAGE1  # Whose generator it uses; BiGAN takes its sizes alone.
    encoder: Mapping[str, Any] | None = None  # Options of the stage 2 that it needs; None = it trains none.
    without: tuple[str, ...] = ('enc_offset',)  # Options of stage 2 that are for other methods only.
    needs: str | None = None  # Method whose network it takes.
    joint: bool = False  # Everything is trained together.
    steps: int = 0  # Of optimisation.
    space: str = 'y'  # What it moves.
    optimizer: str = 'lbfgs'  # Of refinement.Settings.
    prior_weight: float = 0.0

    @property
    def optimises(self) -> bool:
        return self.steps > 0

    @property
    def family(self) -> str:
        """What optimisations that differ in their length alone have in common; '' of all others."""
        if not self.optimises:
            return ''
        return f'{self.needs}, {self.space}, {self.optimizer}, {self.prior_weight:g}'

    @property
    def trains(self) -> bool:
        return self.encoder is not None or self.joint


METHODS = (
    Method('lia-y', 'LIA, y', 'LIA y', "one code y for an image: the paper's method", encoder=dict(enc_space='y')),
    Method('lia-y+', 'LIA, y+', 'LIA y+', 'a code y for each layer', encoder=dict(enc_space='y+'), without=()),
    Method('encoder-z', 'encoder to z', 'encoder to z', "LIA's generator and loss, but the encoder leads to z, as in "
           'VAE/GAN', encoder=dict(enc_space='z'), without=('enc_offset', 'enc_iters')),
    Method('mlp-w', 'MLP mapping, encoder to w', 'MLP, to w', "StyleGAN2 with its MLP in φ's place; the encoder leads "
           'to its w; an MLP has no exact prior, so the loss has none', base=STAGE1_MLP,
           encoder=dict(enc_space='y', enc_prior=0.0)),
    Method('lia-y-disc', 'LIA, y, D in the loss', 'LIA y, D', "D's features count, and late and weakly its judgement",
           encoder=dict(enc_space='y', percep='disc', enc_percep=0.03, enc_adv=0.02)),
    Method('no-disc', 'LIA, y, no discriminator', 'no D', "the encoder has nothing from D: neither features nor "
           'judgement, nor its convolutions to begin with; the head begins fitted as elsewhere',
           encoder=dict(enc_space='y', percep='none', enc_percep=None, enc_adv=0.0, enc_start='head'),
           without=('enc_offset', 'enc_adv_start')),
    Method('bigan', 'BiGAN/ALI', 'BiGAN', 'generator, encoder and a discriminator of pairs (x, z) trained together; '
           'the encoder is deterministic', joint=True, without=('enc_offset', 'enc_iters')),
)  # fmt: skip
DEFAULTS = (*(m.name for m in METHODS), 'opt-100', 'opt-1000', 'lbfgs-100', 'refine-100', 'map-100')
PATTERN = re.compile(r'(opt|lbfgs|refine|map)-([1-9]\d{0,6})(-y\+)?')
PATTERNS = 'opt-STEPS, lbfgs-STEPS, refine-STEPS, map-STEPS, each also with -y+'
MAP_WEIGHT = 1e-3  # Of the exact prior in map-STEPS: -log p(y) per dimension beside the mean squared error.


def find_method(name: str) -> Method | None:
    """The method of that name: in the table, or an optimisation of any number of steps."""
    found = PATTERN.fullmatch(name)
    if found is None:
        return next((m for m in METHODS if m.name == name), None)
    steps, space = int(found[2]), 'y+' if found[3] else 'y'
    where = ' in y+' if found[3] else ''
    moves: dict[str, Any] = dict(steps=steps, space=space)
    if found[1] == 'opt':
        return Method(name, f'Adam{where}, {steps} steps', f'Adam {steps}{where}',
                      f'{space} by Adam from the mean of y, as projectors do it', optimizer='adam', **moves)
    if found[1] == 'lbfgs':
        return Method(name, f'L-BFGS{where}, {steps} steps', f'L-BFGS {steps}{where}',
                      f'{space} by L-BFGS from the mean of y', **moves)
    moves['needs'] = 'lia-y'
    told = f"{space} by L-BFGS from the code of LIA's encoder"
    if found[1] == 'map':
        return Method(name, f'LIA, y + {steps} steps{where}, exact prior', f'LIA y + {steps}, prior{where}',
                      f'{told}, with the exact prior at {MAP_WEIGHT:g}', prior_weight=MAP_WEIGHT, **moves)
    return Method(name, f'LIA, y + {steps} steps{where}', f'LIA y + {steps}{where}', told, **moves)


def method(name: str) -> Method:
    found = find_method(name)
    assert found is not None, f'{name}: parse_methods has let it pass'
    return found


def parse_methods(text: str | None) -> tuple[str, ...]:
    """The methods of `--methods`, None = DEFAULTS. UsageError for one that isn't there."""
    if text is None:
        return DEFAULTS
    asked = list(dict.fromkeys(name for name in text.replace(' ', '').split(',') if name))
    wrong = next((name for name in asked if find_method(name) is None), None)
    if wrong is not None or not asked:
        raise UsageError(f'--methods: {wrong or "none named"}: there are {", ".join(m.name for m in METHODS)}, and '
                         f'{PATTERNS}')
    return tuple(asked)


def parse_taken(values: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` → {name: path}. UsageError for what isn't such a pair, or for a method that trains nothing."""
    taken = {}
    able = [STAGE1, STAGE1_MLP, *(m.name for m in METHODS if m.trains)]
    for value in values:
        name, equals, path = value.partition('=')
        if not equals or not path:
            raise UsageError(f'--take: {value}: expected NAME=PICKLE_OR_RUN, NAME one of {", ".join(able)}')
        if name not in able:
            raise UsageError(f'--take: {name}: nothing is trained under that name; there are {", ".join(able)}')
        if name in taken:
            raise UsageError(f'--take: {name}: given twice')
        taken[name] = path
    return taken


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that was said. `training` holds options of train.py by their fields, as the user gave them."""

    outdir: str
    training: Mapping[str, Any]
    methods: tuple[str, ...] = DEFAULTS
    seeds: int = 1
    num: int = 1000  # Held-out images for methods of one pass …
    opt_num: int = 64  # … and those of them that all methods reconstruct.
    gen_num: int = 10_000  # Generated images for metrics of generators.
    detector: str | None = None  # None = Inception if it is in the cache, else random:0.
    labels: str | None = None  # CSV file for linear separability. None = the data set's labels.
    taken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mlp_depth: int = 8  # Layers of the MLP mapping; StyleGAN's.
    fit_steps: int = 1000  # Of the φ that stands for the MLP in stage 2.
    batch: int | None = None  # Images at a time while measuring.
    shown: int = 8  # Images in the grid.
    command: str = ''

    def seeds_of(self, name: str) -> range:
        """Seeds of a method, or of a stage 1: those that differ. With a given network only training differs by seed."""
        while name not in (*self.taken, STAGE1, STAGE1_MLP) and not method(name).trains:
            name = method(name).needs or method(name).base
        return range(1 if name in self.taken else self.seeds)

    def path(self, *parts: str) -> str:
        return os.path.join(self.outdir, *parts)

    @property
    def trained(self) -> list[str]:
        """The methods whose networks have to be there, given or trained: those of others included."""
        wanted = {name for m in map(method, self.methods) for name in (m.name, m.needs)}
        return [m.name for m in METHODS if m.name in wanted and m.trains]

    @property
    def bases(self) -> list[str]:
        """The networks of stage 1 that have to be there, or are given to be measured."""
        needed = {method(name).base for name in self.trained if name not in self.taken}
        needed |= {m.base for m in map(method, self.methods) if m.optimises and m.needs is None}
        return [base for base in (STAGE1, STAGE1_MLP) if base in needed | set(self.taken)]


def work_name(seed: int, name: str) -> str:
    """What files of one method and seed are called."""
    return f'seed{seed}-{name}'


def read_json(path: str) -> dict[str, Any] | None:
    """A JSON file of our own writing; None if it isn't there or can't be read: then what it held is done again."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
