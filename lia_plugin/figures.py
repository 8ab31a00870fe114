"""The paper's figures from a trained pair of data set and network, on one page: the table of contents, and the binding.

Zhu et al., arXiv 1906.08090. Each figure is drawn for itself: one that can't be is said to be missing, and why.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lia_plugin import __version__, host, images, page
from lia_plugin.figure_base import Advance, CannotDraw, Exhibit, Figure, Options
from lia_plugin.host import UserError
from lia_plugin.results import save_json


class Entry(NamedTuple):
    """A figure that there may be."""

    module: str  # With `draw(exhibit, advance) -> Figure`; imported when it is drawn.
    about: str
    cost: Callable[[Options], float]  # About how long it takes, in images that are drawn.
    needs_network: bool = True


CONTENTS = {
    'swiss-roll': Entry('figure_swiss_roll', 'φ on a Swiss roll: straight in the data, and straight in z',
                        lambda o: 5 * o.roll_steps, needs_network=False),
    'paths': Entry('figure_paths', 'real images interpolated in y and in z, with a t-SNE of samples',
                   lambda o: 5 * o.samples + 20 * o.pairs * o.steps),
    'reconstructions': Entry('figure_reconstruction', 'reconstructions by each method',
                             lambda o: 9 * o.opt_num * o.refine),
    'manipulation': Entry('figure_manipulation', 'images moved along directions', lambda o: 50 * o.steps),
    'lengths': Entry('figure_lengths', '‖z‖² of real images against χ²', lambda o: o.num),
}  # fmt: skip


def parse_only(text: str | None) -> tuple[str, ...]:
    """The figures of --only, in the order of the page; None = all.

    Raises:
        UserError: one that isn't there.
    """
    asked = set(CONTENTS) if text is None else {name.strip() for name in text.split(',') if name.strip()}
    wrong = sorted(asked - set(CONTENTS))
    if wrong or not asked:
        raise UserError(f'--only: {wrong[0] if wrong else "none named"}: there are {", ".join(CONTENTS)}')
    return tuple(name for name in CONTENTS if name in asked)


class Outcome(NamedTuple):
    """What has become of the figures, by name: drawn, or why not."""

    figures: dict[str, Figure]
    missing: dict[str, str]


def draw_all(
    exhibit: Exhibit, names: Sequence[str], keep: Callable[[Outcome], None] = lambda outcome: None
) -> Outcome:
    """Draws what can be drawn; a bar on stderr tells how long it will take. `keep` gets all there is after each."""
    costs = {name: CONTENTS[name].cost(exhibit.options) for name in names}
    figures: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    form = '{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]'
    with tqdm(total=sum(costs.values()), desc='Figures', disable=None, bar_format=form) as bar:
        done = 0.0
        for name in names:
            bar.set_description(name)
            try:
                figures[name] = draw_one(exhibit, name, _advance(bar, done, costs[name]))
            except (CannotDraw, UserError) as error:
                missing[name] = host.one_line(error)
                tqdm.write(f'{name}: left out: {missing[name]}', file=_stderr())
            done += costs[name]
            bar.update(done - bar.n)
            if figures:
                keep(Outcome(figures, missing))
    return Outcome(figures, missing)


def _stderr() -> Any:
    import sys

    return sys.stderr  # As it is now: tests and notebooks change it.


def _advance(bar: Any, start: float, cost: float) -> Advance:
    return lambda share: bar.update(max(start + min(share, 1) * cost - bar.n, 0))


def draw_one(exhibit: Exhibit, name: str, advance: Advance = lambda share: None) -> Figure:
    """Raises CannotDraw or UserError if it can't be."""
    torch.manual_seed(exhibit.options.seed)
    return importlib.import_module(f'lia_plugin.{CONTENTS[name].module}').draw(exhibit, advance)


def save(outdir: str, outcome: Outcome, facts: dict[str, Any], unreadable: int = 0) -> None:
    """index.html, NAME.png and NAME-KEY.png, figures.json with every number; `unreadable` images are told of."""
    facts = dict(facts, unreadable=unreadable)
    os.makedirs(outdir, exist_ok=True)
    files: dict[str, list[str]] = {}
    for name, figure in outcome.figures.items():
        files[name] = [f'{name}-{key}.png' if key else f'{name}.png' for key in figure.pictures]
        for file, (picture, _caption) in zip(files[name], figure.pictures.values()):
            images.save_png(picture, os.path.join(outdir, file))
    content = dict(facts, versions=dict(lia=__version__, torch=torch.__version__), missing=outcome.missing, figures={
        name: dict(files=files[name], **figure.numbers) for name, figure in outcome.figures.items()
    })  # fmt: skip
    save_json(os.path.join(outdir, 'figures.json'), content)
    page.save_page(os.path.join(outdir, 'index.html'), 'Figures', sections(outcome, facts))


def sections(outcome: Outcome, facts: dict[str, Any]) -> list[page.Section]:
    """The page: what it is of, every figure, and what is missing."""
    first = page.Section('Of what', [page.paragraph(', '.join(f'{key}: {value}' for key, value in facts.items()
                                                              if value is not None))])  # fmt: skip
    found = [first, *(_section(number, figure) for number, figure in enumerate(outcome.figures.values(), 1))]
    if outcome.missing:
        lines = [page.paragraph(f'{name}: {reason}') for name, reason in outcome.missing.items()]
        found.append(page.Section('Left out', lines))
    return found


def _section(number: int, figure: Figure) -> page.Section:
    parts = [page.paragraph(figure.text)]
    parts += [page.figure(picture, caption) for picture, caption in figure.pictures.values()]
    parts += [page.table(header, rows) for header, rows in figure.tables]
    return page.Section(f'{number}. {figure.heading}', parts)
