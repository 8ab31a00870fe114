"""What an audit leaves behind: a table of all images, figures of the set, one page to look at, and a list to keep."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from lia_plugin import charts, duplicates, images, page
from lia_plugin.audit import FAR_OUT, UNITS, Judged, Measured, reasons_to_drop
from lia_plugin.host import atomic_write
from lia_plugin.results import save_json
from lia_plugin.targets import Target

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
LISTED = 50  # So many odd, worst and least typical images are named in audit.json.
SHOWN = 24  # Images, groups and pairs in each part of the page.
SHOWN_OF_GROUP = 6
SHOWN_SIDE = 256  # Larger images are shown at about this size.
TITLES = {
    'mse': 'reconstruction error (MSE)',
    'z_norm2': 'log10 of |z|^2; the line is the prior',
    'log_prob': 'log p(y), nats',
    'distance': 'log10 of the distance to the set',
}

Row = dict[str, Any]
# Places of images in `Measured` -> (originals, reconstructions), NCHW in [-1, 1].
Gallery = Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]]


# ---------------------------------------------------------------------------------------------------------------------
# Tables and lists


def table_rows(targets: Sequence[Target], measured: Measured, judged: Judged) -> list[Row]:
    """One row for each image that was looked at, in the set's order; those that can't be read have no figures."""
    rows = {item: _unreadable(targets[item], reason) for item, reason in measured.failures.items()}
    names = [targets[item].stored_name for item in measured.items.tolist()]
    against = reasons_to_drop(judged, names)
    repeats = {duplicate.index: duplicate for duplicate in judged.duplicates}
    group_of = {}
    for number, (first, members) in enumerate(duplicates.groups(judged.duplicates).items(), 1):
        group_of.update(dict.fromkeys([first, *(member.index for member in members)], number))
    for index, item in enumerate(measured.items.tolist()):
        unlisted = [] if _can_be_listed(names[index]) else ['no list can name it: a line break, or half a character']
        reasons = against[index] + unlisted
        odd = [kind for kind, flags in (('error', judged.odd_error), ('code', judged.odd_code)) if flags[index]]
        repeat = repeats.get(index)
        rows[item] = {
            'file': names[index],
            'suggestion': 'drop' if reasons else 'keep',
            'reasons': '; '.join(reasons),
            'odd': ' '.join(odd),
            **{key: float(values[index]) for key, values in judged.figures.items()},
            'rank_error': int(judged.rank_error[index]),
            'rank_atypical': int(judged.rank_atypical[index]),
            'duplicate_group': group_of.get(index, ''),
            'duplicate_kind': '' if repeat is None else repeat.kind,
            'duplicate_of': '' if repeat is None else names[repeat.first],
            'changes': measured.notes.get(item, ''),
        }
    return [rows[item] for item in sorted(rows)]


def _unreadable(target: Target, reason: str) -> Row:
    return {'file': target.stored_name, 'suggestion': 'drop', 'reasons': f'unreadable: {reason}'}


def _can_be_listed(name: str) -> bool:
    try:
        name.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:  # Windows has such names.
        return False
    return '\n' not in name and '\r' not in name


def well_formed(value: Any) -> Any:
    """The same value with `\\udcff` and the like in place of what is no character, at any depth.

    Bytes of a file name that are not UTF-8 come as such, and no text file takes them.
    """
    if isinstance(value, str):
        return value.encode('utf-8', 'backslashreplace').decode('utf-8')
    if isinstance(value, Mapping):
        return {key: well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [well_formed(item) for item in value]
    return value


def save_csv(path: str, rows: Sequence[Row]) -> None:
    """Numbers with six digits; nothing where there is none."""
    columns = next(list(row) for row in rows if 'mse' in row)
    with atomic_write(path, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return '' if np.isnan(value) else format(value, '.6g')
    return value


def save_keep(path: str, rows: Sequence[Row], others: Sequence[Target], data: str) -> None:
    """The names to keep, as `dataset_tool --include` takes them: also of images that were not looked at (`others`).

    Names that are not UTF-8 stand there with their own bytes.
    """
    kept = [row['file'] for row in rows if row['suggestion'] == 'keep']
    kept += [target.stored_name for target in others if _can_be_listed(target.stored_name)]
    dropped = [row for row in rows if row['suggestion'] == 'drop']
    lines = [f'# {len(kept)} images of {data} to keep; dataset_tool.py --include takes this list.']
    if others:
        lines.append(f'# {len(others)} of them were not looked at (--num).')
    lines += [f'# Left out: {" ".join(row["file"].split())}: {" ".join(row["reasons"].split())}' for row in dropped]
    lines = well_formed(lines)
    # A line that begins with # would be a comment.
    lines += [f'./{name}' if name.startswith('#') else name for name in sorted(kept)]
    with atomic_write(path, 'w', encoding='utf-8', errors='surrogateescape', newline='\n') as file:
        file.write('\n'.join(lines) + '\n')


def summary(measured: Measured, judged: Judged, rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Content of audit.json."""
    good = [row for row in rows if 'mse' in row]
    kinds = Counter(duplicate.kind for duplicate in judged.duplicates)
    return {
        **settings,
        'n': len(good),
        'calibration': {'data': judged.usual.data, 'n': judged.usual.n, 'shrinkage': judged.usual.gaussian.shrinkage},
        'pair_mse': judged.pair_mse,
        'units': {key: UNITS[key] for key in judged.figures},
        'mean': {key: float(np.mean(values)) for key, values in judged.figures.items()},
        'quantiles': {
            key: {format(q, 'g'): float(np.quantile(values, q)) for q in QUANTILES}
            for key, values in judged.figures.items()
        },
        'kept': sum(row['suggestion'] == 'keep' for row in rows),
        'dropped': sum(row['suggestion'] == 'drop' for row in rows),
        'duplicates': {kind: kinds[kind] for kind in duplicates.KINDS},
        'odd': {'error': int(judged.odd_error.sum()), 'code': int(judged.odd_code.sum())},
        'odd_by_error': _names(good, lambda row: 'error' in row['odd'], 'rank_error'),
        'odd_by_code': _names(good, lambda row: 'code' in row['odd'], 'rank_atypical'),
        'worst': _names(good, lambda row: True, 'rank_error'),
        'least_typical': _names(good, lambda row: True, 'rank_atypical'),
        'unreadable': [row['file'] for row in rows if 'mse' not in row],
    }


def _names(rows: Sequence[Row], wanted: Callable[[Row], bool], order: str) -> list[str]:
    return [row['file'] for row in sorted(filter(wanted, rows), key=lambda row: row[order])[:LISTED]]


# ---------------------------------------------------------------------------------------------------------------------
# The page


def save_page(
    path: str, measured: Measured, judged: Judged, names: Sequence[str], content: Mapping[str, Any], gallery: Gallery
) -> None:
    """index.html: `names` of the images that were read, `content` of audit.json."""
    n = len(names)
    by_error, by_code = (np.argsort(rank).tolist() for rank in (judged.rank_error, judged.rank_atypical))
    distance = judged.figures['distance']
    by_commonness = np.argsort(np.abs(distance - np.median(distance)), kind='stable').tolist()
    odd = [index for index in by_error if judged.odd_error[index] and judged.odd_code[index]]

    def pairs(order: Sequence[int]) -> list[str]:
        return _pairs(order[:SHOWN], judged, names, gallery)

    alike = _look_alikes(measured, judged, names, gallery, content['device'])
    sections = [
        page.Section('The set', [page.paragraph(_text(content)), _quantile_table(content)]),
        page.Section('Distributions', _histograms(judged, measured.z.shape[1])),
        page.Section('Odd by both error and code', [page.paragraph(_odd_text(content, len(odd))), *pairs(odd)]),
        page.Section('Worst reconstructions', pairs(by_error)),
        page.Section('Least typical codes: farthest from the others', pairs(by_code)),
        page.Section('Most typical codes, for comparison: as far from the others as most are', pairs(by_commonness)),
        page.Section('Duplicates', _groups(judged, names, gallery)),
        page.Section('Look-alikes: nearest codes among what is no duplicate', alike),
        page.Section('Could not be read', [page.paragraph(', '.join(content['unreadable'][:LISTED]) or 'None.')]),
    ]
    title = f'Audit of {content["data"]}: {n} images'
    page.save_page(path, title, sections)


def _text(content: Mapping[str, Any]) -> str:
    usual = content['calibration']
    found = ', '.join(f'{count} {kind}' for kind, count in content['duplicates'].items())
    return (
        f'{content["n"]} images of {content["data"]}, network {content["network"]}; {len(content["unreadable"])} could '
        f'not be read. Codes are compared with {usual["n"]} of {usual["data"]}. Duplicates: {found}. '
        f'Suggested: keep {content["kept"]}, drop {content["dropped"]} (audit.csv says why; keep.txt lists the kept).'
    )


def _odd_text(content: Mapping[str, Any], both: int) -> str:
    error, code = content['odd']['error'], content['odd']['code']
    return (
        f'{error} images are odd by their error, {code} by their code, {both} by both: their logarithm lies more than '
        f'{FAR_OUT:g} quartile ranges above the median. audit.csv says which.'
    )


def _quantile_table(content: Mapping[str, Any]) -> str:
    header = ['', 'mean', *(f'{q:.0%}' for q in QUANTILES)]
    body = [
        [key, *(format(value, '.4g') for value in (content['mean'][key], *content['quantiles'][key].values()))]
        for key in content['units']
    ]
    return page.table(header, body)


def _histograms(judged: Judged, z_dim: int) -> list[str]:
    """Lengths and distances on logarithmic axes, for codes may be many times as long as the prior says."""
    law = stats.chi2(z_dim)
    parts = []
    for key, title in TITLES.items():
        if key == 'z_norm2':
            ends = np.log10(law.ppf([0.001, 0.999]))
            shown = charts.histogram(
                np.log10(judged.figures[key]), title, lambda u: law.pdf(10**u) * 10**u * np.log(10), (ends[0], ends[1])
            )
        else:
            values = judged.figures[key]
            shown = charts.histogram(np.log10(values) if key == 'distance' else values, title)
        parts.append(page.figure(shown, UNITS[key]))
    return parts


def _pairs(order: Sequence[int], judged: Judged, names: Sequence[str], gallery: Gallery) -> list[str]:
    """Original | reconstruction of each, with its figures."""
    if not order:
        return []
    parts = []
    for index, original, recon in zip(order, *map(_shown, gallery(order))):
        figures = {key: values[index] for key, values in judged.figures.items()}
        text = (f'{names[index]}: MSE {figures["mse"]:.4f}, |z|² {figures["z_norm2"]:.4g}, '
                f'distance {figures["distance"]:.4g}, p {figures["p_distance"]:.2g}')  # fmt: skip
        parts.append(page.figure(images.side_by_side([original, recon], ['original', 'reconstruction']), text))
    return parts


def _shown(img: torch.Tensor) -> torch.Tensor:
    """Large images brought to the page's size."""
    factor = img.shape[2] // SHOWN_SIDE
    return torch.nn.functional.avg_pool2d(img, factor) if factor > 1 else img


def _row_of(order: Sequence[int], captions: Sequence[str], text: str, gallery: Gallery) -> str:
    return page.figure(images.side_by_side(list(_shown(gallery(order)[0])), captions), text)


def _groups(judged: Judged, names: Sequence[str], gallery: Gallery) -> list[str]:
    groups = duplicates.groups(judged.duplicates)
    # Exact ones are sure; those that may be wrong are what a person has to look at.
    order = sorted(groups, key=lambda first: all(member.kind == 'exact' for member in groups[first]))
    parts = []
    for first in order[:SHOWN]:
        members = groups[first][: SHOWN_OF_GROUP - 1]
        text = '; '.join([names[first], *(f'{names[m.index]} ({m.kind}, MSE {m.mse:.2g})' for m in members)])
        more = len(groups[first]) - len(members)
        parts.append(_row_of([first, *(m.index for m in members)], ['first', *(m.kind for m in members)],
                             text + (f'; {more} more' if more else ''), gallery))  # fmt: skip
    left = len(groups) - len(parts)
    return [page.paragraph(f'{len(groups)} groups' + (f', {left} of them only in audit.csv.' if left else '.')), *parts]


def _look_alikes(
    measured: Measured, judged: Judged, names: Sequence[str], gallery: Gallery, device: str
) -> list[str]:
    """Perhaps the same picture, cut or lit differently: for people to look at, nothing is suggested from it."""
    repeated = {duplicate.index for duplicate in judged.duplicates}
    unique = np.array([index for index in range(len(names)) if index not in repeated])
    if len(unique) < 2:
        return [page.paragraph('None.')]
    parts = []
    for a, b, gap in duplicates.closest_codes(torch.from_numpy(measured.z[unique]), SHOWN // 2, device):
        pair = [int(unique[a]), int(unique[b])]
        parts.append(_row_of(pair, [], f'{names[pair[0]]}, {names[pair[1]]}: {gap:.3g} apart in z', gallery))
    return parts


def save_all(
    outdir: str, targets: Sequence[Target], others: Sequence[Target], measured: Measured, judged: Judged,
    settings: Mapping[str, Any], gallery: Gallery,
) -> dict[str, Any]:
    """Writes audit.csv, audit.json, keep.txt and index.html; gives the content of audit.json."""
    os.makedirs(outdir, exist_ok=True)
    rows = table_rows(targets, measured, judged)
    content = well_formed(summary(measured, judged, rows, settings))
    save_csv(os.path.join(outdir, 'audit.csv'), rows)
    save_json(os.path.join(outdir, 'audit.json'), content)
    save_keep(os.path.join(outdir, 'keep.txt'), rows, others, settings['data'])
    names = well_formed([targets[item].stored_name for item in measured.items.tolist()])
    save_page(os.path.join(outdir, 'index.html'), measured, judged, names, content, gallery)
    return content
