"""Codes out of .npz files: ours (`y`, `y_plus`, `w`) and those of StyleGAN's projectors (`w` alone)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import noise_maps, spaces
from lia_plugin.host import UserError, one_line

Array = npt.NDArray[Any]

NOISE = 'noise.'  # What the names of noise maps begin with.
MAX_NAMES = 5  # So many of a file's names are told where none fits.


class StartingPoint(NamedTuple):
    """Where an image starts from, float32."""

    code: torch.Tensor  # [dim] or [num_ws, dim]: y or y+, w or w+ for a stock network.
    noise: dict[str, torch.Tensor]  # Noise maps of its own: buffer's name -> [1, R, R]. Empty = those of the network.


def read_codes(path: str, G: Any, names: Sequence[str]) -> dict[str, StartingPoint]:
    """Name of each image -> its code in a file, with its noise maps if there are any.

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
    noise = _find_noise(path, arrays, len(codes), G)

    def point(row: int) -> StartingPoint:
        return StartingPoint(_tensor(codes[row]), {key: _tensor(value[row]) for key, value in noise.items()})

    return {name: point(row) for name, row in zip(names, rows)}


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def layered(points: Mapping[str, StartingPoint]) -> bool:
    """Whether any of these codes says other things to one layer than to another."""
    return any(code.ndim == 2 and bool((code != code[:1]).any()) for code, _noise in points.values())


def _load(path: str) -> Mapping[str, Array]:
    if not os.path.isfile(path):
        raise UserError(f"--init={path}: no such file; it may be 'encoder', 'mean' or an .npz with codes")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError('a single array')
            return {key: file[key] for key in ('y_plus', 'y', 'w', 'names') if key in file} | {
                key: file[key] for key in file.files if key.startswith(NOISE)}
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


def _find_noise(path: str, arrays: Mapping[str, Array], count: int, G: Any) -> dict[str, Array]:
    """The noise maps, buffer's name -> [N, 1, R, R]."""
    found = {key.removeprefix(NOISE): value for key, value in arrays.items() if key.startswith(NOISE)}
    own = noise_maps.initial_noise(G.synthesis, 1) if found else {}
    for name, value in found.items():
        wanted = [count, *own[name].shape[1:]] if name in own else None
        if list(value.shape) != wanted or value.dtype.kind != 'f' or not np.isfinite(value).all():
            raise UserError(f'--init={path}: its {NOISE}{name}, of shape {list(value.shape)}, is no noise of this '
                            f'network ({"it has no such layer" if wanted is None else f"finite numbers {wanted}"})')
    return found


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
