"""The page of an evaluation of edits: tables, curves, the leakage matrix, regions, and strips of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import edit_charts, edit_evaluation, images, page
from lia_plugin.edit_charts import Line
from lia_plugin.edit_evaluation import Edit, Measured
from lia_plugin.edit_evaluation_run import Evaluation
from lia_plugin.edit_regions import Effect
from lia_plugin.edit_statistics import Samples, at_place, crossing

Array = npt.NDArray[Any]
Name = Callable[[Evaluation, Edit], str]

MEDIAN, WORST = 3, 2  # Examples of each aim.
MOST_AIMS = 16  # Of which curves, regions and strips are shown.
REACHES = (0.5, 1.0, 1.5)  # Strips show edits of so much of the shift at equal success.


def save(
    path: str, ev: Evaluation, equal: dict[float, list[dict[str, Samples]]], tables: Sequence[Any], name: Name
) -> None:
    """Writes index.html; `tables` have a title, note, header and rows."""
    sections = [page.Section(table.title, [page.paragraph(table.note), page.table(table.header, table.rows)])
                for table in tables]  # fmt: skip
    if len(ev.attributes) > 1:
        sections.append(page.Section('Leakage', [_leakage(ev, level, found, name) for level, found in equal.items()]))
    level = next(iter(equal))
    aims = list(dict.fromkeys(measured.edit.aim for measured in ev.measured))
    for k, value in aims[:MOST_AIMS]:
        heading = f'{ev.attributes[k].name}={ev.attributes[k].classes[value]}'
        mine = [measured for measured in ev.measured if measured.edit.aim == (k, value)]
        sections.append(page.Section(heading, [*_curves(ev, mine, name), *_region(ev, (k, value)),
                                               *_strips(ev, mine, level)]))  # fmt: skip
    if len(aims) > MOST_AIMS:
        left = f'{len(aims) - MOST_AIMS} more are in the tables alone.'
        sections.append(page.Section('More', [page.paragraph(left)]))
    if ev.skipped:
        sections.append(page.Section('Not measured', [page.paragraph(text) for text in ev.skipped]))
    page.save_page(path, f'Edits of {ev.session.network}', sections)


def _leakage(ev: Evaluation, level: float, found: Sequence[dict[str, Samples]], name: Name) -> str:
    names = [attribute.name for attribute in ev.attributes]
    values = edit_evaluation.leakage_matrix(names, found)
    picture = edit_charts.heat_map(values, [name(ev, measured.edit) for measured in ev.measured], names)
    return page.figure(picture, f'Change of judged probabilities at {level:.0%} success; no number: not reached, or '
                                'the attribute that is edited')


def _curves(ev: Evaluation, mine: Sequence[Measured], name: Name) -> list[str]:
    """Success against shift, and what success costs."""
    amounts = [Line(name(ev, one.edit), one.amounts, one.success.mean(axis=1)) for one in mine]
    parts = [page.figure(edit_charts.lines(amounts, 'success', 'shift, standard deviations'))]
    for key, title in (('outside', 'MSE outside the region'), ('leakage', 'leakage'), ('z_norm2', '|z|^2 / d')):
        costs = [Line(name(ev, one.edit), one.success.mean(axis=1), one.values[key].mean(axis=1))
                 for one in mine if key in one.values]  # fmt: skip
        if costs and any(np.isfinite(line.y).any() for line in costs):
            parts.append(page.figure(edit_charts.lines(costs, title, 'success')))
    return parts


def _region(ev: Evaluation, aim: tuple[int, int]) -> list[str]:
    picture = region_picture(ev.effects[aim], ev.regions[aim])
    share = ev.regions[aim].mean()
    text = f'Difference between real pictures of the classes; the region, {share:.0%} of the picture'
    return [page.figure(picture, text)]


def region_picture(effect: Effect, region: Array) -> torch.Tensor:
    """Size of the difference at each pixel, and the region in white."""
    size = np.abs(effect.difference).max(axis=0)
    shade = torch.from_numpy(size / max(size.max(), 1e-9) * 2 - 1).float()[None]
    return images.side_by_side([shade, torch.from_numpy(region * 2.0 - 1).float()[None]], ['difference', 'region'])


def examples(mine: Sequence[Measured], level: float) -> tuple[list[int], list[int]]:
    """Places in `items` of median examples and of the worst: by MSE outside the region at equal success, the mean rank
    over all edits of one aim, which have the same images."""
    ranks = []
    for one in mine:
        key = 'outside' if np.isfinite(one.values['outside']).all() else 'mse'
        place = _place(one, level)
        cost = at_place(one.values[key].T, np.full(len(one.items), place))
        ranks.append(np.argsort(np.argsort(cost, kind='stable')))
    order = np.argsort(np.mean(ranks, axis=0), kind='stable')
    middle = max(len(order) // 2 - MEDIAN // 2, 0)
    return order[middle : middle + MEDIAN].tolist(), order[-WORST:][::-1].tolist()


def _place(one: Measured, level: float) -> float:
    """Where success reaches the level; the last amount if nowhere."""
    place = float(crossing(one.success.mean(axis=1), level))
    return place if np.isfinite(place) else float(len(one.amounts) - 1)


def _strips(ev: Evaluation, mine: Sequence[Measured], level: float) -> list[str]:
    listed = ', '.join(f'{reach:g}' for reach in REACHES)
    parts = [page.paragraph(f'Original, reconstruction, and edits by {listed} of the shift at {level:.0%} success (of '
                            'the largest shift, where that is not reached). Median and worst are by what changes '
                            'outside the region.')]  # fmt: skip
    for kind, chosen in zip(('median', 'worst'), examples(mine, level)):
        parts += [_strip(ev, mine, level, place, kind) for place in chosen]
    return parts


def _strip(ev: Evaluation, mine: Sequence[Measured], level: float, place: int, kind: str) -> str:
    """One image: a row for each edit, original and reconstruction first."""
    rows, captions = [], []
    item = int(mine[0].items[place])
    codes = ev.held.codes[[item]]
    original = ev.held.original(item, ev.session.G)
    for one in mine:
        shift = float(at_place(one.amounts, np.array(_place(one, level))))
        edited = [ev.session.render(edit_evaluation.edited_codes(ev.session, one.edit, codes, reach * shift), codes.c,
                                    codes.noise)[0] for reach in REACHES]  # fmt: skip
        rows.append(torch.stack([original, ev.held.pictures[item], *edited]))
        wanted = at_place(one.values['wanted'][:, place], np.array(_place(one, level)))
        captions.append(f'{one.edit.kind}: {shift:.2g} std, judge {float(wanted):.2f}')
    return page.figure(images.interpolation_strips(rows, captions), f'{kind}: {codes.names[0]}')
