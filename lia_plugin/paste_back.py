"""Edited crops of files and of codes, back into the pictures that they came from: for `edit paste` and `--paste`."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import torch

from lia_plugin import targets
from lia_plugin.host import UserError
from lia_plugin.images import LoadedImage, read_image, save_png
from lia_plugin.pasting import FEATHER, paste
from lia_plugin.placement import Placement

if TYPE_CHECKING:
    from lia_plugin.codes import Codes
    from lia_plugin.edit_session import Session

DIFFERENCE = 'difference'


@dataclass(frozen=True)
class Style:
    """How a crop is put back; see `pasting.paste`."""

    mode: str = DIFFERENCE  # Or 'replace'.
    feather: float = FEATHER


def read_picture(placement: Placement, moved: str | None = None) -> LoadedImage:
    """The full picture of a crop, with its transparency; `moved`: the file where it is now.

    What is lost on the way, as of 16 bits, is told on stderr.

    Raises:
        UserError: it is not there, no image, or of another size than the crop was cut from.
    """
    if moved is None and not placement.source:
        raise UserError('--picture: the crop is not of a file; say which picture it belongs to')
    target = targets.of_placement(placement) if moved is None else targets.Target(moved, None, '')
    if not os.path.exists(target.path):
        hint = '' if moved else f'{_from_where(target.path)}; --picture=FILE says where it is now'
        raise UserError(f'{target.label}: no such file{hint}')
    found = target.read_full(alpha=True)
    size = (found.pixels.shape[2], found.pixels.shape[1])
    if size != placement.size:
        raise UserError(f'{target.label}: has {size[0]}x{size[1]} pixels, but the crop was cut from a picture of '
                        f'{placement.size[0]}x{placement.size[1]}')
    if found.notes:
        click.echo(f'{target.label}: {"; ".join(found.notes)}', err=True)
    return found


def _from_where(path: str) -> str:
    """A relative path is as it was given to invert.py."""
    return '' if os.path.isabs(path) else ', seen from this folder; be where invert.py was run'


Reader = Callable[[Placement, str | None], LoadedImage]


class CodePaster:
    """Puts edits of codes' images back into their pictures: for commands that edit, with --paste.

    Raises:
        UserError: at once, for a code that is of no picture, or whose picture is not there any more.
    """

    def __init__(self, session: Session, codes: Codes, style: Style = Style()) -> None:
        self.session, self.codes, self.style = session, codes, style
        for source, placement in zip(codes.sources, codes.placements):
            if placement is None:
                raise UserError(f'--paste: {source}: is not cut out of a picture; --paste is for images, and for .npz '
                                'files of invert.py')
            if not os.path.exists(placement.source):
                raise UserError(f'--paste: {source}: its picture {placement.label} is not there'
                                f'{_from_where(placement.source)}')
        self._last: tuple[int, LoadedImage, torch.Tensor | None] | None = None

    def __call__(self, row: int, edited: torch.Tensor) -> torch.Tensor:
        """The full picture of code `row` with an edit of it, uint8 [1 or 3, R, R] -> uint8 [C, H, W]."""
        _row, full, base = self._picture(row)
        return paste(full.pixels, edited, self._placement(row), base, self.style.feather)

    def save(self, row: int, edited: torch.Tensor, path: str) -> None:
        """Writes it as a PNG, with the picture's colour profile."""
        save_png(self(row, edited), path, self._picture(row)[1].profile)

    def _placement(self, row: int) -> Placement:
        placement = self.codes.placements[row]
        assert placement is not None, 'looked at by the constructor'
        return placement

    def _picture(self, row: int) -> tuple[int, LoadedImage, torch.Tensor | None]:
        """The picture and the reconstruction of the row; kept, for edits of one image mostly come together."""
        if self._last is None or self._last[0] != row:
            base = None
            if self.style.mode == DIFFERENCE:
                own = self.codes[[row]]
                base = self.session.render(own.code, own.c, own.noise)[0]
            self._last = (row, read_picture(self._placement(row)), base)
        return self._last


# ---------------------------------------------------------------------------------------------------------------------
# Files


def choose(placements: Mapping[str, Placement | None], name: str | None, where: str) -> dict[str, Placement]:
    """Those that edited files may belong to: all, or the one called `name`. Raises UserError if there is none."""
    known = {key: placement for key, placement in placements.items() if placement is not None}
    if name is None:
        return known
    if name not in known:
        listed = ', '.join(list(known)[:5]) + (' …' if len(known) > 5 else '')
        raise UserError(f'--latents={where}:{name}: the file has no place of that name; it has {listed}')
    return {name: known[name]}


def match(stem: str, known: Mapping[str, Placement], where: str) -> tuple[str, Placement]:
    """Which crop an edited file belongs to: the only one, or that whose name its own begins with."""
    if len(known) == 1:
        return next(iter(known.items()))
    fitting = [name for name in known if re.match(re.escape(name) + r'(?![^\W_])', stem)]
    if not fitting:
        raise UserError(f'{stem}: begins with no name in {where}; say which it is: --latents={where}:NAME')
    name = max(fitting, key=len)
    return name, known[name]


def find_reconstruction(latents: str, name: str, placement: Placement) -> str:
    """NAME_recon.png beside the file of latents, as invert.py writes it.

    Raises:
        UserError: there is none.
    """
    folder = os.path.dirname(latents)
    stems = [name, os.path.splitext(os.path.basename(latents))[0], targets.of_placement(placement).name]
    paths = [os.path.join(folder, f'{stem}_recon.png') for stem in stems if stem]
    for path in paths:
        if os.path.isfile(path):
            return path
    raise UserError(f'--reconstruction: there is no {paths[-1]}; name the reconstruction before the edit, or take '
                    '--paste-mode=replace')


def read_crop(path: str, placement: Placement, option: str) -> torch.Tensor:
    """An edited crop or a reconstruction, uint8 [1 or 3, R, R]. Raises UserError for one of another size."""
    pixels = read_image(path).pixels
    R = placement.resolution
    if pixels.shape[1:] != (R, R):
        raise UserError(f'{option}: {path}: has {pixels.shape[2]}x{pixels.shape[1]} pixels, but the crop has {R}x{R}')
    return pixels


def paste_file(
    edited: targets.Target, latents: str, known: Mapping[str, Placement], outdir: str, style: Style,
    picture: str | None = None, reconstruction: str | None = None, read: Reader = read_picture,
) -> str:
    """One edited file into its picture, which `read` reads -> where the result is: NAME_pasted.png in `outdir`.

    Raises:
        UserError: one line, for whatever is wrong with the files.
    """
    name, placement = match(edited.stem, known, latents)
    R = placement.resolution
    pixels = edited.read_full().pixels
    if pixels.shape[1:] != (R, R):
        raise UserError(f'{edited.label}: has {pixels.shape[2]}x{pixels.shape[1]} pixels, but the crop has {R}x{R}')
    base = None
    if style.mode == DIFFERENCE:
        path = reconstruction or find_reconstruction(latents, name, placement)
        base = read_crop(path, placement, '--reconstruction')
    full = read(placement, picture)
    result = paste(full.pixels, pixels, placement, base, style.feather)
    os.makedirs(outdir, exist_ok=True)
    path = os.path.join(outdir, f'{edited.name}_pasted.png')
    save_png(result, path, full.profile)
    return path


def paste_files(
    items: Sequence[targets.Target], latents: str, known: Mapping[str, Placement], outdir: str, style: Style,
    picture: str | None = None, reconstruction: str | None = None,
) -> tuple[list[str], list[tuple[str, str]]]:
    """All of them -> paths of results, and (what messages call it, reason) for those that can't be used."""
    from tqdm import tqdm

    read = functools.lru_cache(maxsize=1)(read_picture)  # Edits of one picture mostly come together.
    written, failures = [], []
    for item in tqdm(items, desc='Pasting', unit='image', disable=True if len(items) == 1 else None):
        try:
            written.append(paste_file(item, latents, known, outdir, style, picture, reconstruction, read))
        except UserError as error:
            failures.append((item.label, str(error)))
    return written, failures
