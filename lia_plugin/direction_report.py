"""What `edit directions` leaves behind: the file, its figures as JSON and a table, and a sheet of what each does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import click
import torch

from lia_plugin import manipulation, page, results, sheets
from lia_plugin.codes import Codes
from lia_plugin.directions import UNITS, Direction, save_directions
from lia_plugin.edit_session import Session
from lia_plugin.images import save_png, to_float

COLUMNS = 7
HARDLY = 5e-3  # MSE of pictures in [-1, 1]: a root mean square of nine of 256 levels.
SHOWN = {  # Figure -> its heading in tables.
    'n': ('held out', 'd'),
    'n_positive': ('of it +', 'd'),
    'accuracy': ('accuracy', '.3f'),
    'accuracy_low': ('95 % from', '.3f'),
    'accuracy_high': ('to', '.3f'),
    'majority': ('majority', '.3f'),
    'balanced_accuracy': ('balanced', '.3f'),
    'auc': ('AUC', '.3f'),
    'plane_balanced_accuracy': ('by plane', '.3f'),
    'eigenvalue': ('eigenvalue', '.4g'),
    'share': ('share', '.3f'),
    'variance': ('variance', '.4g'),
    'explained_variance': ('explained', '.3f'),
    'change': ('change', '.4f'),
}
FIGURE_UNITS = {
    'accuracy': 'share of held-out images on the right side of the plane; 95 % interval by Wilson',
    'majority': 'accuracy of always naming the more frequent side',
    'balanced_accuracy': 'mean over both sides of their accuracies; 0.5 is chance',
    'auc': 'how often a held-out + lies further along than a held-out -; 0.5 is chance',
    'plane_balanced_accuracy': 'balanced accuracy of logistic regression: how well codes tell the label, whichever '
                               'way the direction leads',
    'mean_positive': 'mean signed distance to the plane of held-out images of the + side, in units of the space',
    'scale': 'standard deviation of code . vector',
    'change': 'mean squared difference that the ends of the strips make to the pictures shown, images in [-1, 1]',
    'share': 'of the sum of all eigenvalues',
    'explained_variance': 'of the sum of all variances',
}


def save_all(
    session: Session, found: Sequence[Direction], shown: Codes, extent: float, title: str
) -> list[Direction]:
    """Writes directions.npz, directions.json, sheet.png and index.html into the session's folder.

    Each direction gets the figure `change`; what hardly changes pictures is told of on stderr. Returns the directions.
    """
    drawn, changes = draw(session, found, shown, extent)
    found = [dataclasses.replace(one, figures={**one.figures, 'change': changed, 'change_at': extent})
             for one, changed in zip(found, changes)]  # fmt: skip
    outdir = session.outdir
    os.makedirs(outdir, exist_ok=True)
    save_directions(os.path.join(outdir, 'directions.npz'), found)
    told = [dict(name=one.name, meaning=one.meaning, space=one.space, bias=one.bias, scale=one.scale,
                 layers=one.layers, source=one.source, **one.figures) for one in found]  # fmt: skip
    content = dict(network=session.network, network_hash=found[0].network_hash, units=FIGURE_UNITS | dict(vector=UNITS),
                   directions=told)  # fmt: skip
    results.save_json(os.path.join(outdir, 'directions.json'), content)
    save_png(_overview(found, drawn, extent), os.path.join(outdir, 'sheet.png'))
    header, rows = table(found)
    sections = [page.Section('Figures', [page.table(header, rows), *map(page.paragraph, _explained(header))])]
    sections += [page.Section(one.name, [page.paragraph(_words(one)), page.figure(_strips(images, shown, extent))])
                 for one, images in zip(found, drawn)]  # fmt: skip
    page.save_page(os.path.join(outdir, 'index.html'), title, sections)
    _tell_of_weak(found, extent)
    return found


def change(images: torch.Tensor) -> float:
    """Mean squared difference between the ends of strips and their middles, of `draw`'s pixels of one direction."""
    rows = to_float(images).unflatten(0, [-1, COLUMNS])
    return float((rows[:, [0, -1]] - rows[:, [COLUMNS // 2]]).square().mean())


def _tell_of_weak(found: Sequence[Direction], extent: float) -> None:
    """A normal that tells labels well may lead where codes hardly vary, so that nothing is to be seen."""
    weak = [one.name for one in found if one.figures['change'] < HARDLY]
    if weak:
        way = '; --fit=means changes more' if any(one.figures.get('fit') == 'plane' for one in found) else ''
        click.echo(f'Hardly change pictures at {extent:g} sd: {", ".join(weak)}{way}', err=True)


def amounts(extent: float) -> torch.Tensor:
    """From - to +, in standard deviations."""
    return manipulation.even_steps(-extent, extent, COLUMNS)


def draw(
    session: Session, found: Sequence[Direction], shown: Codes, extent: float
) -> tuple[list[torch.Tensor], list[float]]:
    """For each direction pixels [N·COLUMNS, C, H, W], image by image, no larger than sheets show them; `change`s."""
    from tqdm import tqdm

    drawn, changes = [], []
    for direction in tqdm(found, desc='Drawing', unit='direction', disable=None):
        steps = amounts(extent) * direction.scale
        codes = shown[[i for i in range(len(shown)) for _ in steps]]
        moved = manipulation.shift(session.G, codes.code, codes.c, direction, steps.repeat(len(shown)))
        images = session.render(moved, codes.c, codes.noise)
        changes.append(change(images))
        drawn.append(sheets.shrunk(images))
    return drawn, changes


def _overview(found: Sequence[Direction], drawn: Sequence[torch.Tensor], extent: float) -> torch.Tensor:
    """One row for each direction, of the first image."""
    most = sheets.most_shown('sheet.png', len(drawn), COLUMNS, drawn[0].shape[-1])
    rows = [list(images[:COLUMNS]) for images in drawn[:most]]
    return sheets.sheet(rows, _headings(extent), [one.name for one in found[:most]])


def _strips(images: torch.Tensor, shown: Codes, extent: float) -> torch.Tensor:
    return sheets.sheet([list(row) for row in images.split(COLUMNS)], _headings(extent), shown.names)


def _headings(extent: float) -> list[str]:
    return [f'{value:+.3g} sd' if value else 'as it is' for value in amounts(extent).tolist()]


def _words(direction: Direction) -> str:
    plane = '' if direction.bias is None else f'; its plane at bias {direction.bias:.4g}'
    layers = '' if direction.layers is None else f'; moves layers {", ".join(map(str, direction.layers))}'
    return f'{direction.meaning}; in {direction.space}; 1 sd = {direction.scale:.4g}{plane}{layers}'


def table(found: Sequence[Direction]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of figures that people compare."""
    keys = [key for key in SHOWN if all(key in one.figures for one in found)]
    header = ['direction', *(SHOWN[key][0] for key in keys), 'sd']
    rows = [[one.name, *(format(one.figures[key], SHOWN[key][1]) for key in keys), f'{one.scale:.4g}'] for one in found]
    return header, rows


def _explained(header: Sequence[str]) -> list[str]:
    """What the table's words mean, of those that are there."""
    return [f'{SHOWN[key][0]}: {text}.' for key, text in FIGURE_UNITS.items()
            if key in SHOWN and SHOWN[key][0] in header]  # fmt: skip
