"""What `edit variations` does once its inputs are there: variations of each, and how far from it they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import torch

from lia_plugin import code_output, editing, paths, prior, results, sheets, similarity, spaces
from lia_plugin.codes import Codes, concatenate, made_codes, unique_names
from lia_plugin.edit_session import Session
from lia_plugin.editing import Variation
from lia_plugin.host import UserError
from lia_plugin.images import save_png, to_float
from lia_plugin.params import compact
from lia_plugin.paste_back import DIFFERENCE, CodePaster, Style
from lia_plugin.picture_files import PictureFolder

DEFAULT_RHO = 0.9

UNITS = {
    'moved_z': 'root mean square change of a coordinate of z; for a typical z, sqrt(2 - 2 rho) where all change',
    'moved_y': 'the same of y, in standard deviations of each coordinate under the prior',
    'mse': 'mean squared difference from the input\'s reconstruction, images in [-1, 1]',
    **prior.UNITS,
}
COLUMNS = {
    'moved_z': ('moved z', '.3f'),
    'moved_y': ('moved y', '.3f'),
    'mse': ('MSE', '.5f'),
    'z_norm2': ('|z|^2', '.1f'),
    'log_prob': ('log p(y)', '.1f'),
    'typicality': ('typical p', '.3g'),
}
MAX_COLUMNS = 10  # Variations in one row of the picture.


@dataclass(frozen=True)
class VariationsOptions:
    """The command's own options, by its parameters' names."""

    num: int = 8
    rho: tuple[float, ...] = ()
    resample: float | None = None
    coords: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    each_layer: bool = False
    tile: int | None = None
    paste: bool = False
    paste_mode: str = DIFFERENCE
    feather: float = Style().feather

    def check(self, session: Session) -> None:
        """UserError for what this network can't do."""
        G = session.G
        if not spaces.has_prior(G):
            raise UserError(f'{session.network}: it has no φ, so its codes have no z to vary; lia attach gives it one')
        if self.coords is not None and self.coords[-1] >= G.z_dim:
            raise UserError(f'--coords={compact(self.coords)}: z has the coordinates 0 to {G.z_dim - 1}')
        if self.layers is not None and self.layers[-1] >= G.num_ws:
            raise UserError(f'--layers={compact(self.layers)}: this network has the layers 0 to {G.num_ws - 1}')

    def kinds(self) -> dict[str, Variation]:
        """What is to be made, one for each ρ, by what file names call it."""
        partial = self.resample is not None or self.coords is not None
        values = tuple(dict.fromkeys(self.rho)) or (0.0 if partial else DEFAULT_RHO,)
        share = 1.0 if self.resample is None else self.resample
        return {f'rho{rho:g}': Variation(rho, share, self.coords, self.layers, self.each_layer) for rho in values}


def title(how: Variation) -> str:
    """A kind of variation in a few words, for captions."""
    where = [f'{how.share:.3g} of z'] if how.share < 1 else ['coords'] if how.coords is not None else []
    return ' '.join([*where, 'anew' if where and how.rho == 0 else f'rho {how.rho:g}'])


class Made(NamedTuple):
    """The variations of one kind."""

    title: str
    codes: Codes  # N·num, input after input.
    images: torch.Tensor  # uint8 NCHW, as small as the sheet shows them, and only those that it does.
    figures: dict[str, list[float]]


class Variations:
    """One run of the command."""

    def __init__(self, session: Session, inputs: Codes, asked: VariationsOptions) -> None:
        asked.check(session)
        self.session, self.inputs, self.asked = session, inputs, asked
        self.kinds = asked.kinds()
        self.paster = CodePaster(session, inputs, Style(asked.paste_mode, asked.feather)) if asked.paste else None
        self.names = self._names()
        self.most_shown = self._most_shown()
        self.std = spaces.code_statistics(session.G).std

    def run(self) -> None:
        """Draws and writes everything, and prints the table of figures."""
        os.makedirs(self.session.outdir, exist_ok=True)
        inputs = self.inputs
        recons = self.session.render(inputs.code, inputs.c, inputs.noise)
        with PictureFolder(self.session.outdir, 'png') as files:
            for name, img in zip(inputs.names, recons):
                files.add(img, name)
            made = [self._make(label, recons, files) for label in self.kinds]
        save_png(self._sheet(recons, made), self._path('variations.png'))
        self._save_codes(made)
        self._report(made)

    def _path(self, name: str) -> str:
        return os.path.join(self.session.outdir, name)

    def _names(self) -> dict[str, tuple[str, ...]]:
        """Names of the variations of each kind, none of them that of an input."""
        count, num = len(self.inputs), self.asked.num
        suffixes = {label: f'{label}_' if len(self.kinds) > 1 else '' for label in self.kinds}
        wanted = [f'{name}_{suffix}{k:02d}' for suffix in suffixes.values() for name in self.inputs.names
                  for k in range(num)]  # fmt: skip
        names = unique_names([*self.inputs.names, *wanted])[count:]
        return {label: names[i * count * num : (i + 1) * count * num] for i, label in enumerate(self.kinds)}

    def _make(self, label: str, recons: torch.Tensor, files: PictureFolder) -> Made:
        """All kinds draw the same e, so that the k-th variations differ in ρ alone."""
        G, inputs, num, how = self.session.G, self.inputs, self.asked.num, self.kinds[label]
        code = editing.vary(G, inputs.code, inputs.c, num, how, self.session.generator()).flatten(0, 1)
        rows = [row for row in range(len(inputs)) for _ in range(num)]
        old = inputs[rows]
        codes = made_codes(self.names[label], code, old.c, old.noise, old.placements)
        figures = self._moved(old, codes) | {'mse': []}
        shown = []
        for batch in self.session.render_batches(code, codes.c, codes.noise, desc=f'Variations, {title(how)}'):
            first = len(figures['mse'])
            own = recons[rows[first : first + len(batch)]]
            figures['mse'] += similarity.mse(to_float(batch), to_float(own)).tolist()
            self._write(batch, first, codes.names, files)
            if first < self.most_shown * num:
                shown.append(sheets.shrunk(batch[: self.most_shown * num - first], self.asked.tile))
        return Made(title(how), codes, torch.cat(shown), figures | code_output.prior_figures(G, code, codes.c))

    def _write(self, images: torch.Tensor, first: int, names: Sequence[str], files: PictureFolder) -> None:
        """Files of the variations from number `first` on; full pictures, too, where they are asked for."""
        for i, img in enumerate(images, first):
            files.add(img, names[i])
            if self.paster is not None:
                self.paster.save(i // self.asked.num, img, self._path(f'{names[i]}_pasted.png'))

    @torch.no_grad()
    def _moved(self, old: Codes, new: Codes) -> dict[str, list[float]]:
        """How far codes went; of y+, the mean over all layers."""
        G = self.session.G
        start = spaces.fit_code(G, old.code, plus=new.code.ndim == 3)
        in_z = paths.to_space(G, new.code, new.c, 'z') - paths.to_space(G, start, old.c, 'z')
        in_y = (new.code - start) / self.std
        return {name: change.square().flatten(1).mean(dim=1).sqrt().tolist()
                for name, change in (('moved_z', in_z), ('moved_y', in_y))}  # fmt: skip

    def _sheet(self, recons: torch.Tensor, made: Sequence[Made]) -> torch.Tensor:
        """A row for each input and kind: original, reconstruction, variations."""
        inputs, num = self.inputs, self.asked.num
        with_originals = any(img is not None for img in inputs.originals)
        rows: list[list[sheets.Cell]] = []
        captions = []
        for i, name in enumerate(inputs.names[: self.most_shown]):
            for k, part in enumerate(made):
                first = sheets.shrunk_cells([*[inputs.originals[i]] * with_originals, recons[i]], self.asked.tile)
                images = part.images[i * num : (i + 1) * num]
                for start in range(0, num, MAX_COLUMNS):
                    shown = first if k == start == 0 else [None] * len(first)
                    rows.append([*shown, *images[start : start + MAX_COLUMNS]])
                    captions.append('' if start else f'{name}, {part.title}')
        kind = 'reconstruction' if with_originals else 'input'
        numbers = [str(i) for i in range(num)] if num <= MAX_COLUMNS else []
        columns = ['original'] * with_originals + [kind, *numbers]
        return sheets.sheet(rows, columns, captions, side=self.asked.tile)

    def _most_shown(self) -> int:
        """So many inputs have room in the sheet, which is said if it is not all of them."""
        num = self.asked.num
        most = sheets.most_rows(min(num, MAX_COLUMNS) + 2, self.session.G.img_resolution, self.asked.tile)
        most = max(1, most // (len(self.kinds) * -(-num // MAX_COLUMNS)))
        if most < len(self.inputs):
            click.echo(f'variations.png: has room for the first {most} of {len(self.inputs)} inputs', err=True)
        return most

    def _save_codes(self, made: Sequence[Made]) -> None:
        together = concatenate(self.session.G, [part.codes for part in made])
        code_output.save_codes(self._path('variations.npz'), self.session.G, together)

    def _report(self, made: Sequence[Made]) -> None:
        """results.json with every figure, and a table of means."""
        G, inputs, num = self.session.G, self.inputs, self.asked.num
        before = code_output.prior_figures(G, inputs.code, inputs.c)
        lines = [['input', *(title for title, _format in COLUMNS.values())]]
        told = []
        for i, name in enumerate(inputs.names):
            own = {key: values[i] for key, values in before.items()}
            lines.append(_line(name, {'moved_z': 0.0, 'moved_y': 0.0, 'mse': 0.0, **own}))
            entry: dict[str, Any] = {'name': name, 'source': inputs.sources[i], **own, 'variations': []}
            for part in made:
                each = {key: values[i * num : (i + 1) * num] for key, values in part.figures.items()}
                lines.append(_line(f'  mean of {num}, {part.title}',
                                   {key: sum(values) / num for key, values in each.items()}))  # fmt: skip
                entry['variations'] += [
                    {'name': part.codes.names[i * num + k], **{key: values[k] for key, values in each.items()}}
                    for k in range(num)]  # fmt: skip
            told.append(entry)
        settings = {'network': self.session.network, 'seed': self.session.seed, 'num': num,
                    'kinds': {label: how._asdict() for label, how in self.kinds.items()}}  # fmt: skip
        results.save_json(self._path('results.json'), {**settings, 'units': UNITS, 'inputs': told})
        click.echo('\n'.join(results.aligned(lines)))


def _line(name: str, figures: Mapping[str, float]) -> list[str]:
    return [name, *(format(figures[key], shape) for key, (_title, shape) in COLUMNS.items())]
