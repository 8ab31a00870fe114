"""What `edit mix` does once rows and columns are there: every row with every column, one file each, and grids."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import click
import torch

from lia_plugin import code_output, editing, results, sheets, spaces
from lia_plugin.codes import Codes, made_codes, unique_names
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.images import save_png
from lia_plugin.params import compact
from lia_plugin.picture_files import PictureFolder

DEFAULT_LAYERS = range(7)  # Of style_mixing.py.

Styles = tuple[int, ...]


def chosen_styles(asked: Sequence[Styles | str], num_ws: int) -> list[Styles]:
    """What --styles says, one tuple of layers for each grid; 'each' is every layer by itself.

    Raises:
        UserError: a layer that the network lacks.
    """
    if not asked:
        return [tuple(layer for layer in DEFAULT_LAYERS if layer < num_ws)]
    found: list[Styles] = []
    for styles in asked:
        found += [(layer,) for layer in range(num_ws)] if isinstance(styles, str) else [styles]
    for layers in found:
        if layers[-1] >= num_ws:
            raise UserError(f'--styles={compact(layers)}: this network has the layers 0 to {num_ws - 1}')
    return list(dict.fromkeys(found))


def plain_names(rows: Codes, columns: Codes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names for rows and columns, as style_mixing.py gives them: a seed's is its number.

    The same input in a row and in a column has one name; other inputs never share one.
    """
    known: dict[str, str] = {}
    for codes in (rows, columns):
        for name, source in zip(codes.names, codes.sources):
            seed = re.fullmatch(r'seed (\d+)', source)
            known.setdefault(source, seed[1] if seed else name)
    known = dict(zip(known, unique_names(tuple(known.values()))))
    return tuple(known[source] for source in rows.sources), tuple(known[source] for source in columns.sources)


class Mixing:
    """One run of the command."""

    def __init__(
        self, session: Session, rows: Codes, columns: Codes, styles: Sequence[Styles], tile: int | None = None
    ) -> None:
        self.session, self.styles, self.tile = session, styles, tile
        self.rows, self.columns = _prepared(session, rows), _prepared(session, columns)
        self.row_names, self.column_names = plain_names(self.rows, self.columns)
        self.pairs = [(row, column) for row in range(len(self.rows)) for column in range(len(self.columns))]
        self.names = tuple(f'{self.row_names[row]}-{self.column_names[column]}' for row, column in self.pairs)
        self._check()
        self._notes()

    def _notes(self) -> None:
        """Says where nothing of a row but its label is left, as --styles=0-6 does in a small network."""
        for layers in self.styles:
            if len(layers) == self.session.G.num_ws:
                click.echo(f'--styles={compact(layers)}: are all layers of this network, so that mixtures are the '
                           'columns; take fewer', err=True)  # fmt: skip

    def _check(self) -> None:
        """UserError for rows and columns of classes that one code can't hold; for names that files can't tell apart."""
        G = self.session.G
        if editing.mixes_classes(G, [self.rows.c, self.columns.c]):
            raise UserError('--rows, --cols: are of several classes, and this network makes styles of a code and one '
                            'class for all layers; give inputs of one class')  # fmt: skip
        if len(self.rows) + 2 > sheets.most_rows(len(self.columns) + 2, G.img_resolution, self.tile):
            raise UserError(f'--rows, --cols: {len(self.rows)} x {len(self.columns)} pictures are too large for one '
                            'grid; take fewer, or a smaller --tile')  # fmt: skip
        if unique_names(self.names) != self.names:
            raise UserError('--rows, --cols: the names of two pairs come out the same; rename the files')

    def run(self) -> None:
        """Draws and writes everything."""
        os.makedirs(self.session.outdir, exist_ok=True)
        row_images = self._draw(self.rows, 'Rows')
        column_images = self._draw(self.columns, 'Columns')
        edges = dict(zip(self.row_names + self.column_names, torch.cat([row_images, column_images])))
        with PictureFolder(self.session.outdir, 'png') as files:
            for name, img in edges.items():
                files.add(img, f'{name}-{name}')
        row_images, column_images = (sheets.shrunk(images, self.tile) for images in (row_images, column_images))
        grids = [self._mix(styles, row_images, column_images) for styles in self.styles]
        if len(self.styles) > 1:
            save_png(self._comparison(grids, row_images, column_images), self._path('styles.png'))
        self._report()

    # Pictures

    def _mix(self, styles: Styles, row_images: torch.Tensor, column_images: torch.Tensor) -> torch.Tensor:
        """One set of layers: files of all pairs -> their pictures, as small as grids show them, [R, C, …]."""
        mixed = self._codes(styles)
        drawn = self.session.render_batches(mixed.code, mixed.c, mixed.noise, f'Layers {compact(styles)}')
        names, shown = iter(mixed.names), []
        with PictureFolder(self._path(self._folder(styles)), 'png') as files:
            for batch in drawn:
                shown.append(sheets.shrunk(batch, self.tile))
                for img in batch:
                    files.add(img, next(names))
        code_output.save_codes(self._path(self._folder(styles), 'mixed.npz'), self.session.G, mixed)
        table = torch.cat(shown).unflatten(0, [len(self.rows), len(self.columns)])
        save_png(self._grid(table, row_images, column_images), self._path(self._folder(styles), 'grid.png'))
        return table

    def _codes(self, styles: Styles) -> Codes:
        """Row by row. What is not a code is the row's: label, noise, and where it was cut out."""
        mixed = editing.mix(self.rows.code, self.columns.code, styles).flatten(0, 1)
        own = self.rows[[row for row, _column in self.pairs]]
        return made_codes(self.names, mixed, own.c, own.noise, own.placements)

    def _grid(self, table: torch.Tensor, row_images: torch.Tensor, column_images: torch.Tensor) -> torch.Tensor:
        """Reconstructions, or what seeds give, at the edges, as in style_mixing.py; originals outside these."""
        across, down = (sheets.shrunk_cells(codes.originals, self.tile) for codes in (self.columns, self.rows))
        above, left = (any(img is not None for img in originals) for originals in (across, down))
        corner: list[sheets.Cell] = [None] * (1 + left)
        lines: list[list[sheets.Cell]] = [[*corner, *across]] if above else []
        lines.append([*corner, *column_images])
        for original, recon, row in zip(down, row_images, table):
            lines.append([*([original] if left else []), recon, *row])
        captions = ['original'] * above + [''] + list(self.row_names)
        top = ['original'] * left + [''] + list(self.column_names)
        return sheets.sheet(lines, top, captions, side=self.tile)

    def _comparison(
        self, grids: Sequence[torch.Tensor], row_images: torch.Tensor, column_images: torch.Tensor
    ) -> torch.Tensor:
        """A line for each pair: the row, its mixtures by sets of layers, the column."""
        lines: list[list[sheets.Cell]] = []
        most = sheets.most_rows(len(grids) + 2, self.session.G.img_resolution, self.tile)
        if most < len(self.pairs):
            click.echo(f'styles.png: has room for the first {most} of {len(self.pairs)} pairs', err=True)
        for row, column in self.pairs[:most]:
            lines.append([row_images[row], *(table[row, column] for table in grids), column_images[column]])
        top = ['row', *(compact(styles) for styles in self.styles), 'column']
        return sheets.sheet(lines, top, self.names[:most], side=self.tile)

    # The rest

    def _draw(self, codes: Codes, desc: str) -> torch.Tensor:
        return self.session.render(codes.code, codes.c, codes.noise, desc)

    def _folder(self, styles: Styles) -> str:
        return f'styles_{compact(styles)}' if len(self.styles) > 1 else ''

    def _path(self, *names: str) -> str:
        return os.path.join(self.session.outdir, *names)

    def _report(self) -> None:
        """results.json, and what was written in a line each."""

        def told(names: Sequence[str], codes: Codes) -> list[dict[str, str]]:
            return [dict(name=name, source=source) for name, source in zip(names, codes.sources)]

        results.save_json(self._path('results.json'), {
            'network': self.session.network, 'styles': [compact(styles) for styles in self.styles],
            'noise_mode': self.session.noise_mode, 'truncation_psi': self.session.trunc,
            'rows': told(self.row_names, self.rows), 'columns': told(self.column_names, self.columns),
        })  # fmt: skip
        for styles in self.styles:
            place = self._path(self._folder(styles), 'grid.png')
            click.echo(f'{place}: layers {compact(styles)}, {len(self.rows)} rows x {len(self.columns)} columns')


def _prepared(session: Session, codes: Codes) -> Codes:
    """The same as y+ (w+), each input once."""
    first = {source: i for i, source in reversed(list(enumerate(codes.sources)))}
    codes = codes[sorted(first.values())]
    return codes.with_code(spaces.fit_code(session.G, codes.code, plus=True))


def read_both(
    session: Session, rows: Sequence[str], columns: Sequence[str], failures: list[tuple[str, str]]
) -> tuple[Codes, Codes]:
    """The inputs of both options."""
    return session.read(rows, '--rows', failures), session.read(columns, '--cols', failures)
