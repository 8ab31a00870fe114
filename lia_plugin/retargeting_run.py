"""What `edit retarget` does once its inputs have codes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from lia_plugin import code_output, prior, results, retargeting, sheets, spaces
from lia_plugin.codes import Codes, unique_names
from lia_plugin.edit_session import Session
from lia_plugin.edited_pictures import EditedPictures
from lia_plugin.host import UserError
from lia_plugin.images import save_png
from lia_plugin.paste_back import DIFFERENCE, CodePaster, Style
from lia_plugin.pasting import FEATHER

UNITS = {
    'length': 'of the difference of the two codes, in units of the space; in y+ the root mean square over layers',
    'mse': 'mean squared difference from the image before the edit, images in [-1, 1]',
    **prior.UNITS,
}


@dataclass(frozen=True)
class RetargetOptions:
    """The command's own options, by its parameters' names."""

    before: str
    after: str
    space: str | None = None
    layers: tuple[int, ...] | None = None
    strengths: tuple[float, ...] = (1.0,)
    images: bool = False
    tile: int | None = None
    paste: bool = False
    paste_mode: str = DIFFERENCE
    feather: float = FEATHER

    def check_network(self, session: Session) -> None:
        """UserError for what the network hasn't."""
        G = session.G
        if self.space == 'z' and not spaces.has_prior(G):
            raise UserError(f'--space=z: {session.network}: it has no φ, so its codes have no z; take y, here its w')
        if self.layers and max(self.layers) >= G.num_ws:
            raise UserError(f'--layers: this network has the layers 0 to {G.num_ws - 1}, not {max(self.layers)}')

    def chosen_space(self, *ends: Codes) -> str:
        """As asked for; else y+ where either code differs from layer to layer."""
        return self.space or ('y+' if any(one.code.ndim == 3 for one in ends) else 'y')


def read_one(session: Session, text: str, option: str) -> Codes:
    """The one code that an option names."""
    found = session.read([text], option)
    if len(found) != 1:
        raise UserError(f'{option}={text}: names {len(found)} images; one is wanted')
    return found


class Retargeting:
    """One run of the command."""

    def __init__(self, session: Session, before: Codes, after: Codes, targets: Codes, asked: RetargetOptions) -> None:
        G = session.G
        self.session, self.asked, self.ends, self.targets = session, asked, (before, after), targets
        self.paster = CodePaster(session, targets, Style(asked.paste_mode, asked.feather)) if asked.paste else None
        space = asked.chosen_space(before, after)
        self.edit = retargeting.learn_edit(G, before.code, after.code, before.c, after.c, space)
        if self.edit.length == 0:
            raise UserError(f'--after={asked.after}: has the same code as --before; there is no edit to apply')
        edited = [retargeting.apply_edit(G, targets.code, targets.c, self.edit, strength, asked.layers)
                  for strength in asked.strengths]  # fmt: skip
        steps = len(edited)
        rows = [i for i in range(len(targets)) for _ in range(steps)]
        self.codes = targets[rows].with_code(torch.stack(edited, dim=1).flatten(0, 1))

    def run(self) -> None:
        """Draws and writes everything, and prints a table."""
        session, asked, steps = self.session, self.asked, len(self.asked.strengths)
        os.makedirs(session.outdir, exist_ok=True)
        source = [session.render(end.code, end.c, end.noise)[0] for end in self.ends]
        before = session.render(self.targets.code, self.targets.c, self.targets.noise)
        names = unique_names([name if steps == 1 else f'{name}_{k:02d}' for name in self.targets.names
                              for k in range(steps)])  # fmt: skip
        most = sheets.most_shown('strip.png', len(before), steps + 2, before.shape[-1], asked.tile)
        pictures = EditedPictures(session, steps, names, asked.images, self.paster)
        shown, mse = pictures.draw(
            self.codes, before, most, lambda batch, _first: list(sheets.shrunk(batch, asked.tile)))
        save_png(self._strip(source, before[:most], shown), self._path('strip.png'))
        code_output.save_codes(self._path('edited.npz'), session.G, dataclasses.replace(self.codes, names=names))
        told = self._told(names, mse)
        results.save_json(self._path('results.json'), self._report(told))
        click.echo('\n'.join(results.aligned(_table(told))))

    def _strip(
        self, source: list[torch.Tensor], before: torch.Tensor, after: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The two images; beneath them a row for each of the others: original, as it is, and with the edit."""
        strengths, tile, steps = self.asked.strengths, self.asked.tile, len(self.asked.strengths)
        before = sheets.shrunk(before, tile)
        ends: list[list[sheets.Cell]] = [[end.originals[0], img] for end, img in zip(self.ends, source)]
        if all(original is None for original, _img in ends):
            ends = [[img] for img in source]
        rows: list[list[sheets.Cell]] = [
            [img, *after[i * steps : (i + 1) * steps]] for i, img in enumerate(before)]
        headings = ['as it is', *(f'{strength:+.3g} x edit' for strength in strengths)]
        originals = sheets.shrunk_cells(self.targets.originals[: len(before)], tile)
        rows, headings = sheets.led_by(originals, 'original', rows, headings)
        learned = sheets.sheet(ends, ['original', 'as it is'][-len(ends[0]) :], ['before', 'after'], side=tile)
        return sheets.stack([learned, sheets.sheet(rows, headings, self.targets.names[: len(before)], side=tile)])

    def _path(self, name: str) -> str:
        return os.path.join(self.session.outdir, name)

    def _told(self, names: tuple[str, ...], mse: list[float]) -> list[dict[str, Any]]:
        steps = len(self.asked.strengths)
        figures: dict[str, list[Any]] = {
            'mse': mse,
            **code_output.prior_figures(self.session.G, self.codes.code, self.codes.c),
        }
        return [
            dict(image=name, source=self.codes.sources[i], strength=self.asked.strengths[i % steps])
            | {key: column[i] for key, column in figures.items()}
            for i, name in enumerate(names)
        ]

    def _report(self, told: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self.asked
        return dict(network=self.session.network, before=asked.before, after=asked.after, space=self.edit.space,
                    length=self.edit.length, layers=None if asked.layers is None else list(asked.layers),
                    units=UNITS, images=told)  # fmt: skip


def _table(told: list[dict[str, Any]]) -> list[list[str]]:
    keys = [key for key in ('mse', 'typicality') if key in told[0]]
    rows = [[row['image'], f'{row["strength"]:+.3g}', *(format(row[key], '.4g') for key in keys)] for row in told[:50]]
    return [['image', 'strength', *keys], *rows]
