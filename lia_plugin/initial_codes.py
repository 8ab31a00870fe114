"""Codes out of .npz files: ours (`y`, `y_plus`, `w`) and those of StyleGAN's projectors (`w` alone)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import spaces
from lia_plugin.host import UserError, one_line

Array = npt.NDArray[Any]

MAX_NAMES = 5  # So many of a file's names are told where none fits.


def read_codes(path: str, G: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Name of each image -> its code in a file: y or y+ (w or w+ for a stock network), float32 [dim] or [num_ws, dim].

    A file with `names`, as latents.npz has them, is matched by these. Without names one code is for every image, which
    is said on stderr, and several go by the images' order. `y_plus` goes before `y`, and `w` serves where y is w.

    Raises:
        UserError: one line that names the file, for whatever is wrong with it.
    """
    arrays = _load(path)
    codes = _find_codes(path, arrays, G)
    if not np.isfinite(codes).all():
        raise UserError(f'--init={path}: holds numbers that are not finite')
    rows = _rows(path, arrays.get('names'), len(codes), names)
    return {name: torch.from_numpy(codes[row].astype(np.float32)) for name, row in zip(names, rows)}


def layered(codes: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of these codes [dim] or [num_ws, dim] says other things to one layer than to another."""
    return any(code.ndim == 2 and bool((code != code[:1]).any()) for code in codes.values())


def _load(path: str) -> Mapping[str, Array]:
    if not os.path.isfile(path):
        raise UserError(f"--init={path}: no such file; it may be 'encoder', 'mean' or an .npz with codes")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError('a single array')
            return {key: file[key] for key in ('y_plus', 'y', 'w', 'names') if key in file}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise UserError(f'--init={path}: not an .npz with codes ({one_line(error)})') from None


def _find_codes(path: str, arrays: Mapping[str, Array], G: Any) -> Array:
    """The codes, [N, dim] or [N, num_ws, dim]."""
    with_phi = spaces.has_prior(G)
    keys = ('y_plus', 'y', 'w') if with_phi and spaces.y_is_w(G) else ('y_plus', 'y') if with_phi else ('w',)
    key = next((key for key in keys if key in arrays), None)
    if key is None:
        raise UserError(f'--init={path}: holds no {" or ".join(keys)}, which this network starts from')
    codes, dim = arrays[key], spaces.code_dim(G)
    fits = codes.ndim in (2, 3) and len(codes) > 0 and codes.shape[-1] == dim and codes.dtype.kind == 'f'
    if not fits or (codes.ndim == 3 and codes.shape[1] not in (1, G.num_ws)):
        raise UserError(f'--init={path}: its {key} has shape {list(codes.shape)}, this network takes [N, {dim}] or '
                        f'[N, {G.num_ws}, {dim}]')
    return codes[:, 0] if codes.ndim == 3 and codes.shape[1] == 1 else codes


def _rows(path: str, stored: Array | None, count: int, names: Sequence[str]) -> list[int]:
    """Which code each image gets."""
    if stored is None:
        if count == 1:
            if len(names) > 1:
                click.echo(f'--init={path}: one code for all {len(names)} images', err=True)
            return [0] * len(names)
        if count != len(names):
            raise UserError(f'--init={path}: holds {count} codes for {len(names)} images, and no names to tell by')
        return list(range(count))
    if stored.shape != (count,):
        raise UserError(f'--init={path}: its names have shape {list(stored.shape)}, for {count} codes')
    known = {str(name): row for row, name in enumerate(stored.tolist())}
    missing = [name for name in names if name not in known]
    if missing:
        without = f'{len(missing)} of {len(names)} images have none'
        has = ', '.join(list(known)[:MAX_NAMES]) + (' …' if len(known) > MAX_NAMES else '')
        raise UserError(f'--init={path}: has no code for {missing[0]} ({without}); it names {has}')
    return [known[name] for name in names]
