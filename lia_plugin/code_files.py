"""Codes in .npz files: ours (`y`, `y_plus`, `w`, `names`, `noise.*`, `c`, …) and those of StyleGAN projectors (`w`)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from lia_plugin import noise_maps, placement, spaces
from lia_plugin.host import UserError, one_line
from lia_plugin.network_hash import generator_hash, same_codes
from lia_plugin.placement import Placement

Array = npt.NDArray[Any]

HASH = 'network_hash'  # `generator_hash` of the network that made the codes.
KEYS = ('y_plus', 'y', 'w', 'names', 'c', HASH)
NOISE = 'noise.'  # What the names of noise maps begin with.


class CodeFile(NamedTuple):
    """What a file holds of N images, checked against a network."""

    codes: Array  # float32 [N, dim] or [N, num_ws, dim]: y or y+, w or w+ for a stock network.
    noise: dict[str, Array]  # Noise buffer's name -> [N, 1, R, R]. Empty = those of the network.
    names: list[str] | None  # N, if the file has them.
    labels: Array | None  # [N, c_dim], if the file has them.
    placements: tuple[Placement | None, ...]  # N: where each image was cut out, if that is known.


def read_code_file(path: str, G: Any, said: str | None = None, hint: str = '') -> CodeFile:
    """Reads and checks a file; messages call it `said` and end in `hint` if there is no file.

    `y_plus` goes before `y`, and `w` serves where y is w. Codes of another network are told of on stderr.

    Raises:
        UserError: one line, for whatever is wrong with the file.
    """
    said = said or path
    arrays = _load(path, said, hint)
    return _describe(said, arrays, _find_codes(said, arrays, G), G)


def read_only_w(path: str, G: Any) -> CodeFile | None:
    """A file with w and no y, for a network whose y is something else: its codes are w or w+. None for all other files.

    Projectors write such files. They can be drawn, but not edited.

    Raises:
        UserError: one line, for whatever is wrong with the file.
    """
    if not spaces.has_prior(G) or spaces.y_is_w(G) or not os.path.isfile(path):
        return None
    arrays = _load(path, path, '')
    if 'w' not in arrays or 'y' in arrays or 'y_plus' in arrays:
        return None
    return _describe(path, arrays, _check_codes(path, 'w', arrays['w'], G.w_dim, G.num_ws), G)


def read_placements(path: str) -> dict[str, Placement | None]:
    """Where the images of a file were cut out, by the names of their codes ('' for the one of a file without names).

    Needs no network.

    Raises:
        UserError: missing, no .npz, damaged, or without any of that.
    """
    arrays = _load(path, path, '; invert.py writes one')
    names = [str(name) for name in arrays['names'].tolist()] if 'names' in arrays else ['']
    found = _placements(path, arrays, len(names))
    if not any(found):
        raise UserError(f'{path}: does not say where its images were cut out; invert.py writes files that do')
    return dict(zip(names, found))


def _placements(said: str, arrays: Mapping[str, Array], count: int) -> tuple[Placement | None, ...]:
    try:
        return placement.from_arrays(arrays, count)
    except ValueError as error:
        raise UserError(f'{said}: {error}') from None


def _describe(said: str, arrays: Mapping[str, Array], codes: Array, G: Any) -> CodeFile:
    names = arrays.get('names')
    if names is not None and names.shape != (len(codes),):
        raise UserError(f'{said}: its names have shape {list(names.shape)}, for {len(codes)} codes')
    stored = None if names is None else [str(name) for name in names.tolist()]
    if HASH in arrays and not same_codes(str(arrays[HASH]), generator_hash(G)):
        click.echo(f'{said}: its codes were made with another network, and mean other things in this one', err=True)
    return CodeFile(codes, _find_noise(said, arrays, len(codes), G), stored, _labels(said, arrays, len(codes), G),
                    _placements(said, arrays, len(codes)))


def _load(path: str, said: str, hint: str) -> Mapping[str, Array]:
    if not os.path.isfile(path):
        raise UserError(f'{said}: no such file{hint}')
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError('a single array')
            return {key: file[key] for key in file.files if key in KEYS or key.startswith((NOISE, placement.PREFIX))}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise UserError(f'{said}: not an .npz with codes ({one_line(error)})') from None


def _find_codes(said: str, arrays: Mapping[str, Array], G: Any) -> Array:
    """The codes, [N, dim] or [N, num_ws, dim]."""
    with_phi = spaces.has_prior(G)
    keys = ('y_plus', 'y', 'w') if with_phi and spaces.y_is_w(G) else ('y_plus', 'y') if with_phi else ('w',)
    key = next((key for key in keys if key in arrays), None)
    if key is None:
        raise UserError(f'{said}: holds no {" or ".join(keys)}, which this network starts from')
    return _check_codes(said, key, arrays[key], spaces.code_dim(G), G.num_ws)


def _check_codes(said: str, key: str, codes: Array, dim: int, num_ws: int) -> Array:
    """float32 [N, dim] or [N, num_ws, dim], as it is stored or with less around it."""
    fits = codes.ndim in (2, 3) and len(codes) > 0 and codes.shape[-1] == dim and codes.dtype.kind == 'f'
    if not fits or (codes.ndim == 3 and codes.shape[1] not in (1, num_ws)):
        raise UserError(f'{said}: its {key} has shape {list(codes.shape)}, this network takes [N, {dim}] or '
                        f'[N, {num_ws}, {dim}]')
    with np.errstate(over='ignore'):
        codes = codes.astype(np.float32)  # What is too large for it becomes infinite.
    if not np.isfinite(codes).all():
        raise UserError(f'{said}: holds numbers that are not finite, or too large for float32')
    return codes[:, 0] if codes.ndim == 3 and codes.shape[1] == 1 else codes


def has_names(path: str) -> bool:
    """Whether a readable file says what its codes are called."""
    with np.load(path, allow_pickle=False) as file:
        return 'names' in file


def _find_noise(said: str, arrays: Mapping[str, Array], count: int, G: Any) -> dict[str, Array]:
    """The noise maps, buffer's name -> [N, 1, R, R]."""
    found = {key.removeprefix(NOISE): value for key, value in arrays.items() if key.startswith(NOISE)}
    own = noise_maps.initial_noise(G.synthesis, 1) if found else {}
    for name, value in found.items():
        wanted = [count, *own[name].shape[1:]] if name in own else None
        if list(value.shape) != wanted or value.dtype.kind != 'f' or not np.isfinite(value).all():
            raise UserError(f'{said}: its {NOISE}{name}, of shape {list(value.shape)}, is no noise of this '
                            f'network ({"it has no such layer" if wanted is None else f"finite numbers {wanted}"})')
    return found


def _labels(said: str, arrays: Mapping[str, Array], count: int, G: Any) -> Array | None:
    labels = arrays.get('c')
    if labels is None or G.c_dim == 0:
        return None
    if labels.shape != (count, G.c_dim) or labels.dtype.kind != 'f' or not np.isfinite(labels).all():
        raise UserError(f'{said}: its c, of shape {list(labels.shape)}, is no labels of this network ([{count}, '
                        f'{G.c_dim}], finite)')
    return labels
