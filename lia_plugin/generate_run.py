"""What `generate` does once its options are known: batch after batch of pictures, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch

from lia_plugin import codes, inversion, results, sampling, spaces
from lia_plugin.edit_session import Session
from lia_plugin.generate_parts import Drawn, FilePart, SeedPart, chosen_classes, draw_noise, latent_arrays, one_class
from lia_plugin.host import UserError
from lia_plugin.images import MAX_PIXELS
from lia_plugin.input_transform import set_transform
from lia_plugin.networks import base_code
from lia_plugin.outputs import check_output
from lia_plugin.picture_files import GridFolder, PictureFolder

MAX_SIDE = {'png': 2**31 - 1, 'jpg': 65_500, 'webp': 16_383}  # What the formats can hold.
FIGURES = ('z_norm2', 'log_prob', 'typicality')


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
    batch: int = 8
    device: str | None = None
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

    def check_grid(self, resolution: int) -> None:
        """UserError for a grid too large to be a picture."""
        if self.grid is None:
            return
        width, height = (count * resolution for count in self.grid)
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE[self.kind]:
            raise UserError(f'--grid={self.grid[0]}x{self.grid[1]}: of {resolution}x{resolution} pictures that is '
                            f'{width}x{height}, too large for a {self.kind}; take fewer')  # fmt: skip


class Generation:
    """One call of the command: everything is loaded and checked by the constructor, `run` does the work."""

    def __init__(self, asked: GenerateOptions) -> None:
        self.asked = asked
        self.session = Session.open(asked.network, asked.outdir, asked.device, asked.trust_pickle)
        self.G = self.session.G
        asked.check_grid(self.G.img_resolution)
        if any(asked.translate) or asked.rotate:
            set_transform(self.G, asked.translate, asked.rotate)
        self.parts: list[SeedPart | FilePart] = self._parts()
        self.names = codes.unique_names([name for part in self.parts for name in part.names])
        self.trunc = sampling.truncation(self.G, asked.trunc, asked.trunc_cutoff, asked.trunc_space)
        for part in self.parts:
            if isinstance(part, FilePart):
                part.check(self.trunc)
        self.rows: list[dict[str, Any]] = []
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
            for start in range(0, len(part.names), self.asked.batch):
                yield part.draw(slice(start, start + self.asked.batch), self.trunc)

    def _render(self, drawn: Drawn) -> torch.Tensor:
        """Pixels uint8 NCHW on the CPU."""
        mode = self.asked.noise_mode
        if mode != 'random':
            return sampling.render(self.G, drawn.ws, codes.stack_noise(self.G, drawn.noise), mode)
        return sampling.render(self.G, drawn.ws, draw_noise(self.G, drawn.noise_seeds))

    def _note(self, drawn: Drawn, names: tuple[str, ...]) -> None:
        """Keeps what is told at the end."""
        figures: dict[str, list[float]] = {}
        if spaces.has_prior(self.G) and drawn.code is not None:
            y = base_code(drawn.code)
            with torch.no_grad():
                found = inversion.code_figures(self.G, y, self.G.mapping.y_to_z(y, drawn.c), drawn.c)
            figures = {name: found[name] for name in FIGURES}
        for i, name in enumerate(names):
            self.rows.append({'image': name, **drawn.facts[i], **{key: value[i] for key, value in figures.items()}})
        if self.asked.save_latents:
            self.latents.append(drawn)

    def _finish(self, count: int) -> None:
        asked, G = self.asked, self.G
        if asked.save_latents:
            arrays = latent_arrays(G, self.latents)
            path = os.path.join(asked.outdir, 'latents.npz')
            results.save_latents(path, arrays, names=np.array(self.names))
        facts = dict(
            network=asked.network, resolution=G.img_resolution, channels=G.img_channels, z_dim=G.z_dim,
            trunc=asked.trunc, trunc_cutoff=asked.trunc_cutoff, trunc_space=asked.trunc_space,
            noise_mode=asked.noise_mode, translate=asked.translate, rotate=asked.rotate, n=len(self.rows),
        )  # fmt: skip
        units = {name: inversion.UNITS[name] for name in FIGURES if name in self.rows[0]}
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
