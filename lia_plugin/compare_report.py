"""What a comparison leaves to read: every number as JSON, tables in Markdown, a page, the grid of figure 4, a curve."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lia_plugin import __version__, compare, compare_training, host, images, page, plot
from lia_plugin.compare import STAGE1, STAGE1_MLP, Method, Settings
from lia_plugin.results import save_json

# Key, heading, format. A column is left out where no method has it.
COLUMNS = (
    ('mse', 'MSE', '.4f'),
    ('psnr', 'PSNR dB', '.2f'),
    ('ssim', 'SSIM', '.3f'),
    ('lpips', 'LPIPS', '.3f'),
    ('recon_fid', 'recon. FID', '.3f'),
    ('recon_swd', 'recon. SWD', '.1f'),
    ('seconds', 's/image', '.2g'),
    ('seconds_batched', 's/image, batch', '.2g'),
    ('z_norm2', '‖z‖²/d', '.2f'),
    ('log_p', 'log p(y)/d', '.3f'),
    ('latent_fd', 'latent FD', '.1f'),
    ('ls_y', 'LS, y', '.3f'),
    ('ls_z', 'LS, z', '.3f'),
)
GENERATOR_LABELS = {STAGE1: 'φ (LIA)', STAGE1_MLP: 'MLP mapping', 'bigan': 'φ, trained as BiGAN'}
LEGEND = (
    'Images in [-1, 1], clipped; MSE is 4 times that of [0, 1], PSNR has peak 2, SSIM a Gaussian window of 11 pixels. '
    'FID and SWD are of reconstructions against the images themselves, biased upward at small n; SWD is ×10³. Seconds '
    'are warm: one image alone, and as one of a batch. ‖z‖²/d is 1 under the prior; log p(y)/d in nats, of the base '
    'code, compares only with others of one generator; behind the MLP all figures of z are those of a φ fitted to its '
    'w afterwards. Latent FD is the Fréchet distance of encoded images to N(0, I), LS linear separability by labels (1 '
    'is best). ± is the standard deviation over seeds.'
)


def budget(settings: Settings, method: Method) -> dict[str, Any]:
    """What a method has cost before it sees an image to reconstruct."""
    kimg, enc_kimg = settings.training['kimg'], settings.training['enc_kimg']
    source = method.name if method.trains else method.needs or method.base
    given = [name for name in (method.base, source) if name in settings.taken]
    of = dict(stage1_kimg=0 if method.joint else kimg, encoder_kimg=enc_kimg if method.encoder or method.needs else 0,
              joint_kimg=kimg + enc_kimg if method.joint else 0, steps=method.steps)
    return dict(budget=of, given=sorted(set(given)))


def budget_text(record: Mapping[str, Any]) -> str:
    of = record['budget']
    parts = [f'{of[key]:g}' for key in ('stage1_kimg', 'encoder_kimg', 'joint_kimg') if of[key]]
    return ' + '.join(parts) + ' kimg' + (f', {of["steps"]} steps' if of['steps'] else '')


class Results:
    """The records of all methods and seeds so far, and the files that show them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.records: list[dict[str, Any]] = []
        self.shown: dict[str, np.ndarray] = {}  # Of each method's first seed.
        self.generators: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any], shown: np.ndarray) -> None:
        self.records.append(record)
        self.shown.setdefault(record['name'], shown)

    def add_generator(self, record: dict[str, Any]) -> None:
        self.generators.append(record)

    def fail(self, name: str, seed: int, reason: str) -> None:
        self.failures.append(dict(name=name, seed=seed, reason=reason))

    def write(self) -> None:
        """All files, of what there is."""
        os.makedirs(self.settings.outdir, exist_ok=True)
        save_json(self.settings.path('compare.json'), self.content())
        with host.atomic_write(self.settings.path('compare.md'), 'w', encoding='utf-8') as file:
            file.write(markdown(self))
        if not self.records:
            return
        pictures = self.pictures()
        for name, picture in pictures.items():
            images.save_png(picture, self.settings.path(f'{name}.png'))
        parts = [page.figure(picture, name) for name, picture in pictures.items()]
        sections = [page.Section(heading, [page.table(header, rows)]) for heading, header, rows in tables(self)]
        sections[0:0] = [page.Section('What is compared', [page.paragraph(line) for line in notes(self)])]
        page.save_page(self.settings.path('index.html'), 'Comparison', [*sections, page.Section('Pictures', parts)])

    def content(self) -> dict[str, Any]:
        said = dataclasses.asdict(self.settings)
        groups = {part: summary(self.records, part) for part in ('shared', 'all')}
        versions = dict(lia=__version__, torch=torch.__version__)
        return dict(command=self.settings.command, settings=said, versions=versions, summary=groups, legend=LEGEND,
                    records=self.records, generators=self.generators, failed=self.failures)

    def pictures(self) -> dict[str, torch.Tensor]:
        """Name → uint8 [3, H, W]."""
        names = [name for name in self.settings.methods if name in self.shown]
        found = {'grid': grid(originals(self.settings, len(self.shown[names[0]])),
                              {compare.method(name).caption: self.shown[name] for name in names})}
        means = summary(self.records, 'shared')
        points = [plot.Point(m['seconds'][0], m['mse'][0], compare.method(name).label, compare.method(name).family)
                  for name, m in means.items() if m['seconds'][0] > 0 and m['mse'][0] > 0]
        if points:
            title = f'Reconstruction error of {self.records[0]["shared"]["n"]} held-out images'
            found['curve'] = plot.scatter(points, title, 'seconds per image', 'MSE, images in [-1, 1]')
        return found


def originals(settings: Settings, count: int) -> torch.Tensor:
    """The first of the shared images, uint8 NCHW: those whose reconstructions are kept."""
    num = min(settings.opt_num, settings.num)
    dataset = host.open_data_set(**compare_training.held_out_set(settings, num))
    return torch.from_numpy(np.stack([dataset[i][0] for i in range(count)]))


def grid(reals: torch.Tensor, columns: Mapping[str, np.ndarray]) -> torch.Tensor:
    """Figure 4 of the paper: a row for each image, the original first, then a column for each method, with captions."""
    tiles = [images.with_channels(x, 3) for x in (reals, *(torch.from_numpy(c) for c in columns.values()))]
    rows = [torch.stack([column[i] for column in tiles]) for i in range(len(reals))]
    factor = images.legible_factor(reals.shape[2])
    parts = [images.side_by_side(list(rows[0]), ['original', *columns])]
    for row in rows[1:]:
        strip = images.grid(row, columns=len(tiles), padding=4, magnify=factor)
        parts += [torch.full([3, 4, strip.shape[2]], images.WHITE, dtype=torch.uint8), strip]
    return torch.cat(parts, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def summary(records: Sequence[Mapping[str, Any]], part: str) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Method → figure → (mean over seeds, standard deviation or None for one seed). `part` is 'shared' or 'all'."""
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for name in dict.fromkeys(record['name'] for record in records):
        of = [record[part] for record in records if record['name'] == name and record[part] is not None]
        if of:
            keys = [key for key, value in of[0].items() if isinstance(value, int | float)]
            found[name] = {key: spread([row[key] for row in of if row.get(key) is not None]) for key in keys}
    return found


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation (n − 1) of several values. NaN for none."""
    if not values:
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def cell(value: tuple[float, float | None] | None, form: str) -> str:
    if value is None or math.isnan(value[0]):
        return ''
    return format(value[0], form) + (f' ± {format(value[1], form)}' if value[1] is not None else '')


def tables(results: Results) -> list[tuple[str, list[str], list[list[str]]]]:
    """(heading, header, rows) of each table that has something in it."""
    found = []
    for part, words in (('shared', 'All methods'), ('all', 'Methods of one pass')):
        means = summary(results.records, part)
        if means:
            n = int(next(iter(means.values()))['n'][0])
            name = detector((r[part] for r in results.records), 'fid')
            heading = f'{words}, the same {n} held-out images; FID by {name}'
            found.append((heading, *figure_table(results, means)))
    if results.generators:
        fid, path = (detector((g['figures'] for g in results.generators), kind) for kind in ('fid', 'ppl'))
        heading = f'Generators, {results.settings.gen_num} images each; FID by {fid}, path lengths by {path}'
        found.append((heading, *generator_table(results)))
    return found


def figure_table(
    results: Results, means: Mapping[str, Mapping[str, tuple[float, float | None]]]
) -> tuple[list[str], list[list[str]]]:
    columns = [column for column in COLUMNS if any(column[0] in row for row in means.values())]
    rows = []
    for name, row in means.items():
        record = next(r for r in results.records if r['name'] == name)
        seeds = sum(r['name'] == name for r in results.records)
        figures = [cell(row.get(key), form) for key, _heading, form in columns]
        rows.append([record['label'], *figures, budget_text(record), str(seeds)])
    return ['method', *(heading for _key, heading, _form in columns), 'trained, optimised', 'seeds'], rows


def generator_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Figures of generated images, a row for each generator."""
    flat = [dict(name=g['name'], figures=g['figures']) for g in results.generators]
    means = summary(flat, 'figures')
    keys = list(dict.fromkeys(key for row in means.values() for key in row))
    rows = [[GENERATOR_LABELS[name], *(cell(row.get(key), '.4g') for key in keys)] for name, row in means.items()]
    return ['mapping', *keys], rows


def detector(rows: Iterable[Mapping[str, Any] | None], kind: str) -> str:
    """Name of the feature network of a kind of metrics, or that there is none."""
    found = [value['detector'] for row in rows for key, value in (row or {}).items()
             if key.endswith('_notes') and kind in key and 'detector' in value]
    return found[0] if found else 'no detector'


def notes(results: Results) -> list[str]:
    """What people must know to read the tables, one line each."""
    settings = results.settings
    machines = sorted({record['machine'] for record in results.records if 'machine' in record})
    lines = [LEGEND, *(f'Timed on {machine}.' for machine in machines)]
    lines += [f'{compare.method(name).label}: {compare.method(name).about}.' for name in settings.methods]
    for name, path in settings.taken.items():
        seen = compare_training.recorded_set(compare_training.taken_pickle(name, path))
        lines.append(f'{name}: given, {path}' + ('.' if seen else '; which images it was trained on is not known.'))
    left_out = {key: value for g in results.generators for key, value in g['figures'].items()
                if key.endswith('_left_out')}
    left_out.update({key: value for r in results.records for part in ('shared', 'all')
                     for key, value in (r[part] or {}).items() if key.endswith('_left_out')})
    lines += [f'{key.removesuffix("_left_out")}: left out: {value}.' for key, value in left_out.items()]
    lines += [f'{f["name"]}, seed {f["seed"]}: failed: {f["reason"]}' for f in results.failures]
    return lines


def markdown(results: Results) -> str:
    parts = ['# Comparison', f'    {results.settings.command}']
    for heading, header, rows in tables(results):
        lines = [f'## {heading}', '', _line(header), _line(['---', *['---:'] * (len(header) - 1)])]
        parts.append('\n'.join([*lines, *map(_line, rows)]))
    parts += ['## What is compared', '\n'.join(f'- {line}' for line in notes(results))]
    return '\n\n'.join(parts) + '\n'


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(text.replace('|', '\\|') for text in cells) + ' |'
