"""What `generate` does once its options are known: batch after batch of pictures, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch

from lia_plugin import code_output, codes, inversion, results, sampling, spaces
from lia_plugin.edit_session import Session
from lia_plugin.generate_parts import Drawn, FilePart, SeedPart, chosen_classes, latent_arrays, one_class
from lia_plugin.host import UserError
from lia_plugin.input_transform import set_transform
from lia_plugin.network_hash import generator_hash
from lia_plugin.networks import base_code
from lia_plugin.outputs import check_output
from lia_plugin.picture_files import GridFolder, PictureFolder, check_grid


@dataclass(frozen=True)
class GenerateOptions:
    """The options of the command, by its parameters' names."""

    network: str
    seeds: tuple[int, ...] | None = None
    files: tuple[str, ...] = ()
    outdir: str = 'out'
    trunc: float = 1.0
    trunc_cutoff: int | None = None
    trunc_space: str = 'w'
    classes: tuple[int, ...] | str | None = None
    noise_mode: str = 'const'
    translate: tuple[float, float] = (0.0, 0.0)
    rotate: float = 0.0
    grid: tuple[int, int] | None = None
    captions: bool = False
    kind: str = 'png'
    save_latents: bool = False
    batch: int | None = 8  # None = as many as fit into memory.
    device: str | None = None
    precision: str | None = None
    trust_pickle: bool = False

    def check(self) -> None:
        """UserError, one line, for options that don't go together whatever the network."""
        check_output('--outdir', self.outdir, folder=True)
        if not self.seeds and not self.files:
            raise UserError('--seeds: say which, as in --seeds=0-35; or give stored latents, --projected-w=FILE')
        if self.captions and self.grid is None:
            raise UserError('--captions: only with --grid=WxH')
        if self.trunc_cutoff is not None and self.trunc == 1:
            raise UserError('--trunc-cutoff: only with --trunc, for a psi of 1 truncates nothing')


class Generation:
    """One call of the command: everything is loaded and checked by the constructor, `run` does the work."""

    def __init__(self, asked: GenerateOptions) -> None:
        self.asked = asked
        self.session = Session.open(
            asked.network, asked.outdir, asked.device, asked.trust_pickle, asked.precision, batch=asked.batch)
        self.G = self.session.G
        if asked.grid is not None:
            check_grid(asked.grid, self.G.img_resolution, asked.kind)
        if any(asked.translate) or asked.rotate:
            set_transform(self.G, asked.translate, asked.rotate)
        self.parts: list[SeedPart | FilePart] = self._parts()
        self.names = codes.unique_names([name for part in self.parts for name in part.names])
        self.trunc = sampling.truncation(self.G, asked.trunc, asked.trunc_cutoff, asked.trunc_space)
        for part in self.parts:
            if isinstance(part, FilePart):
                part.check(self.trunc)
        self.rows: list[dict[str, Any]] = []
        self.known: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []  # First row; base codes, labels.
        self.latents: list[Drawn] = []

    def _parts(self) -> list[SeedPart | FilePart]:
        asked, G = self.asked, self.G
        parts: list[SeedPart | FilePart] = []
        if asked.seeds:
            parts.append(SeedPart(G, asked.seeds, chosen_classes(G, asked.classes)))
        if asked.files:
            index = one_class(G, asked.classes)
            parts += [FilePart.read(G, path, index, alone=len(asked.files) == 1) for path in asked.files]
        return parts

    def run(self) -> None:
        """Draws everything and writes what comes of it."""
        from tqdm import tqdm

        asked = self.asked
        with PictureFolder(asked.outdir, asked.kind) as folder, tqdm(
            total=len(self.names), desc='Drawing', unit='image', disable=None
        ) as bar:
            sheets = None if asked.grid is None else GridFolder(folder, *asked.grid, asked.captions)
            for drawn in self._batches():
                pixels = self._render(drawn)
                names = self.names[len(self.rows) : len(self.rows) + len(pixels)]
                if sheets is not None:
                    sheets.add(pixels, drawn.captions)
                else:
                    for img, name in zip(pixels, names, strict=True):
                        folder.add(img, name)
                self._note(drawn, names)
                bar.update(len(pixels))
            if sheets is not None:
                sheets.flush()
        self._finish(folder.count)

    def _batches(self) -> Iterator[Drawn]:
        for part in self.parts:
            for start in range(0, len(part.names), self.session.batch):
                yield part.draw(slice(start, start + self.session.batch), self.trunc)

    def _render(self, drawn: Drawn) -> torch.Tensor:
        """Pixels uint8 NCHW on the CPU."""
        noise = codes.stack_noise(self.G, drawn.noise)
        return sampling.render(self.G, drawn.ws, noise, self.asked.noise_mode, drawn.noise_seeds)

    def _note(self, drawn: Drawn, names: tuple[str, ...]) -> None:
        """Keeps what is told at the end."""
        if drawn.code is not None:
            self.known.append((len(self.rows), base_code(drawn.code), drawn.c))
        self.rows += [{'image': name, **facts} for name, facts in zip(names, drawn.facts, strict=True)]
        if self.asked.save_latents:
            self.latents.append(drawn._replace(ws=drawn.ws.cpu()))

    def _judge(self) -> None:
        """Adds what the prior says of known codes; all at once, for it would hold up the drawing."""
        if not self.known:
            return
        rows = [row for start, y, _c in self.known for row in range(start, start + len(y))]
        labels = [c for _start, _y, c in self.known if c is not None]
        figures = code_output.prior_figures(
            self.G, torch.cat([y for _start, y, _c in self.known]), torch.cat(labels) if labels else None
        )
        for name, values in figures.items():
            for row, value in zip(rows, values, strict=True):
                self.rows[row][name] = value

    def _finish(self, count: int) -> None:
        asked, G = self.asked, self.G
        self._judge()
        if asked.save_latents:
            arrays = latent_arrays(G, self.latents)
            path = os.path.join(asked.outdir, 'latents.npz')
            results.save_latents(path, arrays, names=np.array(self.names), network_hash=np.array(generator_hash(G)))
        facts = dict(
            network=asked.network, resolution=G.img_resolution, channels=G.img_channels, z_dim=G.z_dim,
            trunc=asked.trunc, trunc_cutoff=asked.trunc_cutoff, trunc_space=asked.trunc_space,
            noise_mode=asked.noise_mode, translate=asked.translate, rotate=asked.rotate, n=len(self.rows),
        )  # fmt: skip
        units = {name: inversion.UNITS[name] for name in code_output.FIGURES if name in self.rows[0]}
        results.save_json(
            os.path.join(asked.outdir, 'generate.json'), {**facts, 'units': units, 'images': self.rows}
        )
        what = '' if asked.grid is None else f' in {count} files'
        size, where = f'{G.img_resolution}x{G.img_resolution}', click.format_filename(asked.outdir)
        print(f'n = {len(self.rows)}, {size}{what}; written to {where}')
        self._say()

    def _say(self) -> None:
        """What a reader should know."""
        known = self.trunc.in_code or self.trunc.psi == 1 or not spaces.has_prior(self.G)
        if not known:
            what = 'latents.npz holds w alone' if self.asked.save_latents else 'there is no log p'
            click.echo(f'truncated in w, these pictures have no known y, so {what}; --trunc-space=y keeps y', err=True)
