"""What an inversion leaves behind: latents, pictures, figures as JSON and as a table, and a page to look at."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from lia_plugin import page
from lia_plugin.alignment_search import FAR_GAIN
from lia_plugin.background import Background
from lia_plugin.host import atomic_write
from lia_plugin.images import LoadedImage, reconstruction_rows, save_png, side_by_side, to_uint8
from lia_plugin.inversion import ALL_UNITS, InvertedBatch, mean_figures
from lia_plugin.outputs import finite
from lia_plugin.placement import Placement, to_arrays
from lia_plugin.similarity import psnr_from_mse
from lia_plugin.targets import Target

FORMATS = {
    'start_mse': ('start MSE', '.5f'),
    'pivot_mse': ('pivot MSE', '.5f'),
    'mse': ('MSE', '.5f'),
    'psnr': ('PSNR dB', '.2f'),
    'ssim': ('SSIM', '.4f'),
    'start_lpips': ('start LPIPS', '.4f'),
    'lpips': ('LPIPS', '.4f'),
    'ms': ('ms', '.1f'),
    'seconds': ('s', '.2f'),
    'z_norm2': ('|z|^2', '.1f'),
    'start_log_prob': ('start log p', '.1f'),
    'log_prob': ('log p(y)', '.1f'),
    'start_typicality': ('start p', '.3g'),
    'typicality': ('typical p', '.3g'),
    'typicality_set': ('set p', '.3g'),
    'p_distance': ('far p', '.3g'),
    'phi_error': ('phi error', '.1e'),
}
ENTRY_UNITS = {  # Of what stands beside an image's figures and has no mean.
    'moved_gain': 'by how much the best of a few moved crops has less misfit, in nats (log of the unexplained share, '
                  f'plus -log p(y) per dimension); above {FAR_GAIN} it looks far from the training alignment',
}
CAPTIONS = ('original', 'reconstruction')
MAX_TABLE_ROWS = 50
MAX_SHOWN = 64  # Images on the page and in the grid.
WRITERS = 8  # Threads; they wait for the disk as much as they compress, so that few cores are no reason for fewer.
MAX_WAITING = 64  # Files in memory that are not written yet.


class Picture(NamedTuple):
    """One inverted image as it is shown: uint8 [C, H, W] each, and its name."""

    name: str
    original: torch.Tensor
    earlier: tuple[torch.Tensor, ...]  # What it looked like on the way, if it was refined or tuned.
    recon: torch.Tensor


def save_latents(path: str, latents: Mapping[str, torch.Tensor], **more: Any) -> None:
    """An .npz of float32 arrays, N in front: `w`, with φ `y` and `z`, and what else there is.

    Stock generate.py takes it for N = 1.
    """
    arrays: dict[str, Any] = {name: value.detach().cpu().numpy() for name, value in latents.items()}
    with atomic_write(path) as file:
        np.savez(file, **arrays, **more)


def batch_latents(result: InvertedBatch) -> dict[str, torch.Tensor]:
    """What a batch's .npz files hold: `w` [N, num_ws, w_dim], `y` and `z` [N, z_dim], `y_plus` [N, num_ws, z_dim]."""
    found = dict(w=result.ws, y=result.y, z=result.z, y_plus=result.y_plus)
    return {name: value.cpu() for name, value in found.items() if value is not None}


def save_json(path: str, content: Mapping[str, Any]) -> None:
    """Strict JSON in UTF-8: what is infinite or not a number becomes null.

    File names that are not UTF-8 hold surrogates; JSON has an escape for these, and Python reads them back.
    """
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode('utf-8', errors='backslashreplace') + b'\n')


def _side(picture: Picture, captions: Sequence[str]) -> torch.Tensor:
    return side_by_side([picture.original, *picture.earlier, picture.recon], captions)


def table_cells(
    names: Sequence[str], rows: Sequence[Mapping[str, float]], limit: int = MAX_TABLE_ROWS
) -> tuple[list[str], list[list[str]]]:
    """Header, and a row for each image up to `limit` with one for the mean at the end, as text."""
    columns = [key for key in FORMATS if key in rows[0]]
    header = ['image', *(FORMATS[key][0] for key in columns)]
    shown = [(name, row) for name, row in list(zip(names, rows))[:limit]]
    if len(rows) > 1:
        shown.append((f'mean of {len(rows)}', mean_figures(rows)))
    return header, [[name, *(format(row[key], FORMATS[key][1]) for key in columns)] for name, row in shown]


def format_table(names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    """Aligned plain text; images beyond MAX_TABLE_ROWS are counted in the mean but not listed."""
    header, body = table_cells(names, rows)
    text = aligned([header, *body])
    if len(rows) > MAX_TABLE_ROWS:
        text.insert(-1, f'… {len(rows) - MAX_TABLE_ROWS} more in results.json')
    return '\n'.join(text)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells, equally many each -> lines of text: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = []
    for name, *figures in lines:
        right = [cell.rjust(width) for cell, width in zip(figures, widths[1:])]
        text.append('  '.join([name.ljust(widths[0]), *right]))
    return text


def save_overview(
    outdir: str,
    pictures: Sequence[Picture],
    rows: Sequence[Mapping[str, float]],
    summary: str,
    captions: Sequence[str] = CAPTIONS,
) -> None:
    """grid.png (originals over reconstructions) and index.html for the first MAX_SHOWN images."""
    shown = list(pictures)[:MAX_SHOWN]
    originals = torch.stack([picture.original for picture in shown])
    recons = torch.stack([picture.recon for picture in shown])
    save_png(reconstruction_rows(originals, recons, columns=min(8, len(shown))), os.path.join(outdir, 'grid.png'))
    header, body = table_cells([picture.name for picture in shown], rows, limit=MAX_SHOWN)
    pairs = [page.figure(_side(picture, captions), picture.name) for picture in shown]
    sections = [
        page.Section('Figures', [page.paragraph(summary), page.table(header, body)]),
        page.Section(', '.join(captions[:-1]).capitalize() + f' and {captions[-1]}', pairs),
    ]
    page.save_page(os.path.join(outdir, 'index.html'), 'Inversion', sections)


class InversionWriter:
    """Writes each batch as it comes, and what is about all of them at the end. Creates the folder with the first image.

    Files of single images, NAME_recon.png, NAME_side.png (original | reconstruction, with the stages between if there
    are any) and latents, are compressed and written in threads; a context, at whose end they are there. The first error
    of one is raised by a later call, or then.

    One image's latents go to projected_w.npz; of several, to NAME.npz each, and to latents.npz together. Labels stand
    there as `c` [N, c_dim], where each crop lies as placement.KEY (`placement.to_arrays`), and
    whose codes they are as `network_hash` (`generator_hash`). Noise maps that are an image's own stand in its file as
    noise.BUFFER [1, 1, R, R].
    """

    def __init__(
        self, outdir: str, single: bool, captions: Sequence[str] = CAPTIONS, network_hash: str = ''
    ) -> None:
        self.outdir = outdir
        self.single = single
        self.told: dict[str, Any] = {'network_hash': np.array(network_hash)} if network_hash else {}
        self.captions = captions  # Of the original, what came between, and the reconstruction.
        self.names: list[str] = []
        self.rows: list[dict[str, float]] = []  # Figures of each image.
        self.entries: list[dict[str, Any]] = []  # The same and more, for results.json.
        self.failures: list[dict[str, str]] = []
        self.pictures: list[Picture] = []
        self.latents: list[dict[str, torch.Tensor]] = []
        self.placements: list[Placement | None] = []
        self.background = Background(WRITERS, MAX_WAITING)

    def __enter__(self) -> InversionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.background.__exit__(kind, error, where)

    def fail(self, target: Target, reason: str) -> None:
        """Counts an image that could not be used."""
        self.failures.append({'image': target.label, 'reason': reason})

    def add(
        self, group: Sequence[tuple[Target, LoadedImage]], result: InvertedBatch, c: torch.Tensor | None = None
    ) -> None:
        """Writes the files of one batch, with its labels c [N, c_dim] if the network takes them."""
        os.makedirs(self.outdir, exist_ok=True)
        latents = batch_latents(result)
        if c is not None:
            latents['c'] = c.cpu()
        self.latents.append(latents)
        noise = {f'noise.{name}': value.cpu() for name, value in (result.noise or {}).items()}
        recons, *earlier = (to_uint8(recon).cpu() for recon in (result.recon, *result.earlier))
        for i, (target, loaded) in enumerate(group):
            row = {name: values[i] for name, values in result.figures.items()}
            self.names.append(target.name)
            self.rows.append(row)
            where = None if loaded.placement is None else loaded.placement.to_json()
            entry = {'image': target.name, 'source': target.label, 'changes': list(loaded.notes), 'placement': where}
            self.entries.append({**entry, **row})
            picture = Picture(target.name, loaded.pixels, tuple(stage[i] for stage in earlier), recons[i])
            self._save_picture(picture)
            if len(self.pictures) < MAX_SHOWN:
                self.pictures.append(picture)
            latent_file = 'projected_w.npz' if self.single else f'{target.name}.npz'
            own = {name: value[i : i + 1] for name, value in {**latents, **noise}.items()}
            more = {**self.told, **to_arrays([loaded.placement])}
            self.background.do(functools.partial(save_latents, **more), os.path.join(self.outdir, latent_file), own)
            self.placements.append(loaded.placement)

    def _save_picture(self, picture: Picture) -> None:
        # Threads get finished pixels: PyTorch's operators would start threads of their own in each of them.
        shown = {'recon': picture.recon, 'side': _side(picture, self.captions)}
        for what, img in shown.items():
            self.background.do(save_png, img, os.path.join(self.outdir, f'{picture.name}_{what}.png'))

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Writes results.json and, for several images, latents.npz, grid.png and index.html."""
        self.background.finish()  # What is about all images says that they are there.
        content = {
            **settings,
            'n': len(self.rows),
            'units': {name: unit for name, unit in (ALL_UNITS | ENTRY_UNITS).items()
                      if any(name in entry for entry in self.entries)},
            'mean': mean_figures(self.rows),
            'psnr_of_mean_mse': float(psnr_from_mse(torch.tensor(mean_figures(self.rows)['mse']))),
            'images': self.entries,
            'failed': self.failures,
        }
        save_json(os.path.join(self.outdir, 'results.json'), content)
        if self.single:
            return
        together = {name: torch.cat([part[name] for part in self.latents]) for name in self.latents[0]}
        more = dict(names=np.array(self.names), **self.told, **to_arrays(self.placements))
        save_latents(os.path.join(self.outdir, 'latents.npz'), together, **more)
        summary = f'{settings["network"]}: {len(self.rows)} images, in [-1, 1]; {len(self.failures)} could not be used.'
        save_overview(self.outdir, self.pictures, self.rows, summary, self.captions)
