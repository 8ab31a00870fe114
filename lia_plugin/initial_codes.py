"""Where an inversion starts from: codes out of .npz files, each found for its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from lia_plugin.code_files import Array, CodeFile, read_code_file
from lia_plugin.host import UserError

MAX_NAMES = 5  # So many of a file's names are told where none fits.


class StartingPoint(NamedTuple):
    """Where an image starts from, float32."""

    code: torch.Tensor  # [dim] or [num_ws, dim]: y or y+, w or w+ for a stock network.
    noise: dict[str, torch.Tensor]  # Noise maps of its own: buffer's name -> [1, R, R]. Empty = those of the network.


def read_codes(path: str, G: Any, names: Sequence[str]) -> dict[str, StartingPoint]:
    """Name of each image -> its code in a file, with its noise maps if there are any.

    A file with `names`, as latents.npz has them, is matched by these. Without names one code is for every image, which
    is said on stderr, and several go by the images' order.

    Raises:
        UserError: one line that names the file, for whatever is wrong with it.
    """
    said = f'--init={path}'
    found = read_code_file(path, G, said, hint="; it may be 'encoder', 'mean' or an .npz with codes")
    rows = _rows(said, found, names)
    return {name: starting_point(found, row) for name, row in zip(names, rows)}


def starting_point(found: CodeFile, row: int) -> StartingPoint:
    """One image's part of a file."""
    return StartingPoint(_tensor(found.codes[row]), {key: _tensor(value[row]) for key, value in found.noise.items()})


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def layered(points: Mapping[str, StartingPoint]) -> bool:
    """Whether any of these codes says other things to one layer than to another."""
    return any(code.ndim == 2 and bool((code != code[:1]).any()) for code, _noise in points.values())


def _rows(said: str, found: CodeFile, names: Sequence[str]) -> list[int]:
    """Which code each image gets."""
    count = len(found.codes)
    if found.names is None:
        if count == 1:
            if len(names) > 1:
                click.echo(f'{said}: one code for all {len(names)} images', err=True)
            return [0] * len(names)
        if count != len(names):
            raise UserError(f'{said}: holds {count} codes for {len(names)} images, and no names to tell by')
        return list(range(count))
    known = {name: row for row, name in enumerate(found.names)}
    missing = [name for name in names if name not in known]
    if missing:
        without = f'{len(missing)} of {len(names)} images have none'
        has = ', '.join(list(known)[:MAX_NAMES]) + (' …' if len(known) > MAX_NAMES else '')
        raise UserError(f'{said}: has no code for {missing[0]} ({without}); it names {has}')
    return [known[name] for name in names]
