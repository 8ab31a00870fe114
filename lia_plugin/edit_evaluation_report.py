"""What an evaluation of edits leaves behind: figures as JSON, tables on the screen, one page to look at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from lia_plugin import directions, edit_evaluation, edit_evaluation_page
from lia_plugin.edit_evaluation import PLAIN, Edit, Measured
from lia_plugin.edit_evaluation_run import Evaluation
from lia_plugin.edit_judges import JudgeFigures, judge_figures
from lia_plugin.edit_statistics import COVERED, RESAMPLES, Estimate, Samples
from lia_plugin.network_hash import generator_hash
from lia_plugin.outputs import finite
from lia_plugin.results import save_json

SHOWN = ('amount', 'outside', 'mse', 'recognised', 'leakage', 'z_norm2', 'typical')  # In tables, in this order.
HEADINGS = {'amount': 'shift', 'outside': 'MSE outside', 'mse': 'MSE', 'z_norm2': '|z|²/d'}


class Table(NamedTuple):
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        cells = [[cell.replace('|', '\\|') for cell in row] for row in [self.header, *self.rows]]
        lines = [f'| {" | ".join(row)} |' for row in cells]
        rule = '|' + '---|' * len(self.header)
        return '\n'.join([f'## {self.title}', '', self.note, '', lines[0], rule, *lines[1:], ''])


Equal = dict[str, Samples]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def judges_of(ev: Evaluation) -> list[JudgeFigures]:
    return [judge_figures(judge, ev.held.labels[:, k], ev.held.said_of_originals[judge.attribute.name],
                          ev.held.said[judge.attribute.name]) for k, judge in enumerate(ev.judges)]  # fmt: skip


def edit_name(ev: Evaluation, edit: Edit) -> str:
    """The edit's own name among all of this evaluation."""
    named = {(*_called(measured.edit), measured.edit.reverse) for measured in ev.measured}
    sources = sorted({source for _name, _kind, source, _reverse in named})
    alike = len({called[:2] for called in named}) < len({called[:3] for called in named})  # Else files need no telling.
    source = f' ({short_names(sources)[sources.index(edit.source)]})' if alike else ''
    # A file may have a direction to either of two classes, each of which leads to both.
    way = ', reversed' if edit.reverse and (*_called(edit), False) in named else ''
    return f'{edit.direction.name} in {edit.kind}{way}{source}'


def _called(edit: Edit) -> tuple[str, str, str]:
    return edit.direction.name, edit.kind, edit.source


def short_names(paths: Sequence[str]) -> list[str]:
    """Different paths -> as few of their last parts as tell them apart; without those last ones that all share.

    ['runs/a/directions.npz', 'runs/b/directions.npz'] -> ['a', 'b'].
    """
    if len(paths) < 2:
        return list(paths)
    split = [os.path.abspath(path).replace('\\', '/').split('/') for path in paths]
    while min(len(parts) for parts in split) > 2 and len({parts[-1] for parts in split}) == 1:
        split = [parts[:-1] for parts in split]
    for count in range(1, max(len(parts) for parts in split) + 1):
        short = ['/'.join(parts[-count:]) for parts in split]
        if len(set(short)) == len(short):
            return short
    return list(paths)


def pairs(measured: Sequence[Measured]) -> list[tuple[int, int]]:
    """Which are compared, (a, b) for b − a: z with y alike in all else, conditional edits with what they come from."""
    found = []
    for i, one in enumerate(measured):
        for k, other in enumerate(measured):
            a, b = one.edit, other.edit
            if a.aim != b.aim:
                continue
            spaces = a.direction.space == 'y' and b.direction.space == 'z' and a.conditional == b.conditional
            conditions = (a.source, a.direction.space) == (b.source, b.direction.space) and not a.conditional
            if spaces or (conditions and b.conditional):
                found.append((i, k))
    return found


def _told(estimate: Estimate) -> dict[str, float]:
    return dict(estimate._asdict())


def content(ev: Evaluation, equal: dict[float, list[Equal]]) -> dict[str, Any]:
    """Of evaluation.json."""
    options, session = ev.options, ev.session
    return {
        'network': session.network, 'network_hash': generator_hash(session.G), 'data': options.data,
        'val': options.val, 'labels': options.labels, 'seed': session.seed, 'held_out': len(ev.held.codes),
        'covered': COVERED, 'resamples': RESAMPLES, 'units': PLAIN,
        'judges': [_judge(ev, k, figures) for k, figures in enumerate(judges_of(ev))],
        'regions': [{'aim': _aim(ev, aim), 'share': float(region.mean())} for aim, region in ev.regions.items()],
        'edits': [_edit(ev, i, equal) for i in range(len(ev.measured))],
        'logistic_regression': [
            {'aim': _aim(ev, edit.aim), 'space': edit.direction.space,
             'held_out_accuracy': edit_evaluation.held_out_accuracy(session.G, ev.held, edit)} for edit in ev.planes],
        'comparisons': [
            {'level': level, 'a': edit_name(ev, ev.measured[a].edit), 'b': edit_name(ev, ev.measured[b].edit),
             'b_minus_a': {name: _told(found[b][name].minus(found[a][name])) for name in found[a] if name in found[b]}}
            for level, found in equal.items() for a, b in pairs(ev.measured)],
        'not_measured': ev.skipped,
    }  # fmt: skip


def _aim(ev: Evaluation, aim: tuple[int, int]) -> str:
    return f'{ev.attributes[aim[0]].name}={ev.attributes[aim[0]].classes[aim[1]]}'


def _judge(ev: Evaluation, k: int, figures: JudgeFigures) -> dict[str, Any]:
    judge = ev.judges[k]
    return {
        'attribute': judge.attribute.name, 'classes': list(judge.attribute.classes), 'features': judge.kind,
        'strength': judge.strength, 'n_train': int(ev.train_counts[k]), **figures._asdict(), 'weak': figures.weak,
    }  # fmt: skip


def _edit(ev: Evaluation, i: int, equal: dict[float, list[Equal]]) -> dict[str, Any]:
    measured = ev.measured[i]
    edit = measured.edit
    return {
        'name': edit_name(ev, edit), 'aim': _aim(ev, edit.aim), 'space': edit.direction.space, 'source': edit.source,
        'conditional': edit.conditional, 'reverse': edit.reverse, 'n': len(measured.items),
        'held_out_accuracy': edit_evaluation.held_out_accuracy(ev.session.G, ev.held, edit),
        'curves': {'amount': measured.amounts.tolist(), 'success': measured.success.mean(axis=1).tolist(),
                   **{name: value.mean(axis=1).tolist() for name, value in measured.values.items()}},
        'at_equal_success': {f'{level:g}': {name: _told(samples.estimate()) for name, samples in found[i].items()}
                             for level, found in equal.items()},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def number(value: float) -> str:
    if not math.isfinite(value):
        return '—'
    return '0' if abs(value) < 1e-12 else format(value, '.3g')  # Sums of weights leave rounding.


def with_interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return '—'
    return f'{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]'


def tables(ev: Evaluation, equal: dict[float, list[Equal]]) -> list[Table]:
    found = [_judge_table(ev), _accuracy_table(ev)]
    for level, figures in equal.items():
        found += [_equal_table(ev, level, figures), _difference_table(ev, level, figures)]
        if len(ev.attributes) > 1:
            found.append(_leakage_table(ev, level, figures))
    return [table for table in found if table.rows]


def _judge_table(ev: Evaluation) -> Table:
    rows = []
    for judge, figures in zip(ev.judges, judges_of(ev)):
        said = [number(x) for x in (figures.chance, figures.real, figures.recon)]
        classes = ', '.join(judge.attribute.classes[:6]) + (' …' if len(judge.attribute.classes) > 6 else '')
        rows.append([judge.attribute.name, classes, judge.kind, str(figures.n), *said, 'weak' if figures.weak else ''])
    note = ('Balanced accuracy on held-out pictures and on their reconstructions. A weak judge is less than half-way '
            'from chance to certainty on reconstructions: what it says of edits says little.')
    header = ['judge', 'classes', 'features', 'n', 'chance', 'pictures', 'reconstructions', '']
    return Table('Judges', note, header, rows)


def _accuracy_table(ev: Evaluation) -> Table:
    own = [measured.edit for measured in ev.measured if not (measured.edit.conditional or measured.edit.reverse)]
    rows = [_accuracy_row(ev, edit, '') for edit in own]
    if ev.options.fit != 'plane':  # Else the edits' own are these.
        rows += [_accuracy_row(ev, edit, ', logistic regression') for edit in ev.planes]
    header = ['direction', 'n', 'accuracy', 'majority', 'balanced', 'AUC']
    return Table('Directions on held-out codes', 'How well they tell held-out images of their class from the others, '
                 'and how well logistic regression does; intervals cover '
                 f'{COVERED:.0%}.', header, rows)  # fmt: skip


def _accuracy_row(ev: Evaluation, edit: Edit, kind: str) -> list[str]:
    found = edit_evaluation.held_out_accuracy(ev.session.G, ev.held, edit)
    accuracy = Estimate(*(found.get(key, math.nan) for key in ('accuracy', 'accuracy_low', 'accuracy_high')))
    return [edit_name(ev, edit) + kind, str(found['n']), with_interval(accuracy), number(found['majority']),
            number(found.get('balanced_accuracy', math.nan)), number(found['auc'])]  # fmt: skip


def _equal_table(ev: Evaluation, level: float, figures: list[Equal]) -> Table:
    names = [name for name in SHOWN if any(name in found for found in figures)]
    rows = []
    for measured, found in zip(ev.measured, figures):
        best = measured.success.mean(axis=1).max()
        cells = [with_interval(found[name].estimate()) if name in found else '—' for name in names]
        rows.append([edit_name(ev, measured.edit), str(len(measured.items)), number(float(best)), *cells])
    header = ['edit', 'n', 'best success', *(HEADINGS.get(name, name) for name in names)]
    note = (f'Figures where {level:.0%} of the images have come to the wanted class; — = never reached with these '
            f'amounts. Intervals: bootstrap over images, {COVERED:.0%}.')
    return Table(f'Edits at {level:.0%} success', note, header, rows)


def _difference_table(ev: Evaluation, level: float, figures: list[Equal]) -> Table:
    names = [name for name in SHOWN if name != 'amount' and any(name in found for found in figures)]
    rows = []
    for a, b in pairs(ev.measured):
        cells = [with_interval(figures[b][name].minus(figures[a][name])) if name in figures[a] and name in figures[b]
                 else '—' for name in names]  # fmt: skip
        if any(cell != '—' for cell in cells):
            first, second = ev.measured[a].edit, ev.measured[b].edit
            rows.append([f'{_aim(ev, first.aim)}: {second.kind} − {first.kind}', *cells])
    note = 'The same images edited in two ways, resampled together: an interval without 0 is a difference.'
    header = ['second − first', *(HEADINGS.get(name, name) for name in names)]
    return Table(f'Differences at {level:.0%} success', note, header, rows)


def _leakage_table(ev: Evaluation, level: float, figures: list[Equal]) -> Table:
    names = [attribute.name for attribute in ev.attributes]
    rows = [[edit_name(ev, measured.edit), *(_leak(found, name) for name in names)]
            for measured, found in zip(ev.measured, figures) if math.isfinite(found['amount'].value)]  # fmt: skip
    note = ('Mean change of the judged probabilities of each other attribute (total variation: 0 = none, 1 = all); in '
            'brackets the share of images whose judged class changes.')
    return Table(f'Leakage at {level:.0%} success', note, ['edit', *names], rows)


def _leak(found: Equal, name: str) -> str:
    if f'leakage:{name}' not in found:
        return '—'
    return f'{number(found[f"leakage:{name}"].value)} ({found[f"changed:{name}"].value:.0%})'


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_all(ev: Evaluation) -> str:
    """Writes evaluation.json, index.html and what was learned; gives the tables as Markdown."""
    seed = ev.session.seed
    equal = {level: [edit_evaluation.equal_success(measured, level, seed) for measured in ev.measured]
             for level in ev.options.levels}  # fmt: skip
    outdir = ev.session.outdir
    os.makedirs(outdir, exist_ok=True)
    for space in {edit.direction.space for edit in ev.edits if edit.source == 'learned'}:
        mine = [edit.direction for edit in ev.edits if edit.direction.space == space]
        directions.save_directions(os.path.join(outdir, f'directions_{space}.npz'), mine)
    save_json(os.path.join(outdir, 'evaluation.json'), finite(content(ev, equal)))
    shown = tables(ev, equal)
    edit_evaluation_page.save(os.path.join(outdir, 'index.html'), ev, equal, shown, edit_name)
    parts = [table.markdown() for table in shown]
    parts += [f'Not measured: {text}' for text in ev.skipped]
    return '\n'.join([*parts, f'Look at {os.path.join(outdir, "index.html")}'])
