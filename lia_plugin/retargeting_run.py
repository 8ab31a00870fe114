"""What `edit retarget` does once its inputs have codes."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import click
import torch

from lia_plugin import code_output, results, retargeting, sheets, similarity, spaces
from lia_plugin.codes import Codes, unique_names
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.images import save_png, to_float
from lia_plugin.paste_back import DIFFERENCE, CodePaster, Style
from lia_plugin.pasting import FEATHER

UNITS = {
    'length': 'of the difference of the two codes, in units of the space; in y+ the root mean square over layers',
    'mse': 'mean squared difference from the image before the edit, images in [-1, 1]',
    'z_norm2': 'squared length of z of the base code; its mean under the prior is z_dim',
    'log_prob': 'log p(y) of the base code, in nats',
    'typicality': 'two-sided p-value of z_norm2 under chi-square with z_dim degrees of freedom',
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
        after = session.render(self.codes.code, self.codes.c, self.codes.noise, desc='Drawing')
        save_png(self._strip(source, before, after), self._path('strip.png'))
        names = unique_names([name if steps == 1 else f'{name}_{k:02d}' for name in self.targets.names
                              for k in range(steps)])  # fmt: skip
        for k, (name, img) in enumerate(zip(names, after)):
            if asked.images:
                save_png(img, self._path(f'{name}.png'))
            if self.paster is not None:
                self.paster.save(k // steps, img, self._path(f'{name}_pasted.png'))
        code_output.save_codes(self._path('edited.npz'), session.G, dataclasses.replace(self.codes, names=names))
        told = self._told(names, before, after)
        results.save_json(self._path('results.json'), self._report(told))
        click.echo('\n'.join(results.aligned(_table(told))))

    def _strip(self, source: list[torch.Tensor], before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The two images; beneath them a row for each of the others: original, as it is, and with the edit."""
        strengths, tile = self.asked.strengths, self.asked.tile
        ends: list[list[sheets.Cell]] = [[end.originals[0], img] for end, img in zip(self.ends, source)]
        if all(original is None for original, _img in ends):
            ends = [[img] for img in source]
        rows: list[list[sheets.Cell]] = [
            [img, *edited] for img, edited in zip(before, after.split(len(strengths)), strict=True)]
        headings = ['as it is', *(f'{strength:+.3g} x edit' for strength in strengths)]
        rows, headings = sheets.led_by(self.targets.originals, 'original', rows, headings)
        learned = sheets.sheet(ends, ['original', 'as it is'][-len(ends[0]) :], ['before', 'after'], side=tile)
        return sheets.stack([learned, sheets.sheet(rows, headings, self.targets.names, side=tile)])

    def _path(self, name: str) -> str:
        return os.path.join(self.session.outdir, name)

    def _told(self, names: tuple[str, ...], before: torch.Tensor, after: torch.Tensor) -> list[dict[str, Any]]:
        steps = len(self.asked.strengths)
        figures: dict[str, list[Any]] = {
            'mse': similarity.mse(to_float(after), to_float(before.repeat_interleave(steps, dim=0))).tolist(),
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
