"""Directions in a latent space: what they are, whose they are, and the files that carry them.

A file is an .npz of plain arrays: `vector_0`, `vector_1`, … [dim] or [num_ws, dim], and `info`, JSON text: format,
units, and of each direction its name, space, bias, scale, meaning, network hash, layers, source and figures. Files that
others publish are read too (`lia_plugin.direction_files`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np
import torch

from lia_plugin import direction_files, outputs, spaces
from lia_plugin.host import UserError, atomic_write, one_line
from lia_plugin.network_hash import generator_hash

FORMAT = 'lia directions 1'
SPACES = ('y', 'z', 'w')
UNITS = ('vectors have unit length: a shift by 1 moves a code by 1 in its space; distance = code . vector + bias; '
         'scale = standard deviation of code . vector')  # fmt: skip
SCALE_SAMPLES = 4096
NAMED = re.compile(rf'(.+?(?:{"|".join(map(re.escape, direction_files.EXTENSIONS))})):(.+)', re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the space of codes, and the plane across it if it comes from a classifier."""

    name: str
    vector: torch.Tensor  # [dim] or [num_ws, dim], float32 on the CPU, unit length; see `length`.
    space: str  # 'y', 'z', or 'w' of a stock network.
    bias: float | None = None  # Signed distance of a code to the plane = code . vector + bias. None = no plane.
    scale: float = math.nan  # Standard deviation of code . vector over the codes it was measured on. NaN = not known.
    meaning: str = ''  # For people.
    network_hash: str = ''  # `generator_hash` of its network. '' = not known.
    layers: tuple[int, ...] | None = None  # Only these are meant to move. None = all.
    source: str = ''  # How it was found, or the file it came from.
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)  # Held-out accuracy and the like.

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(f'space: expected y, z or w, got {self.space!r}')
        if self.vector.ndim not in (1, 2) or abs(length(self.vector) - 1) > 1e-3:
            raise ValueError(f'vector: expected [dim] or [num_ws, dim] of length 1, got {list(self.vector.shape)} of '
                             f'length {length(self.vector):.4g}')  # fmt: skip
        object.__setattr__(self, 'vector', self.vector.detach().to('cpu', torch.float32))

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a vector of its own."""
        return self.vector.ndim == 2

    @property
    def dim(self) -> int:
        return int(self.vector.shape[-1])


def length(vector: torch.Tensor) -> float:
    """Of [dim] the Euclidean length; of [num_ws, dim] the root mean square of its rows' lengths.

    So one vector for all layers is as long as that many copies of it.
    """
    rows = vector.detach().cpu().double().square().sum(dim=-1)
    return float(rows.mean().sqrt())


def make_direction(name: str, vector: torch.Tensor, space: str, **rest: Any) -> Direction:
    """A Direction of a vector of any length; `bias` and `scale` are taken to be of the unit vector.

    Raises:
        ValueError: the vector is 0 or not finite.
    """
    size = length(vector)
    if not math.isfinite(size) or size == 0:
        raise ValueError(f'vector: expected finite numbers that are not all 0, got a length of {size}')
    return Direction(name, (vector.detach().cpu().double() / size).to(torch.float32), space, **rest)


# ---------------------------------------------------------------------------------------------------------------------
# Whose a direction is


def check_network(direction: Direction, G: Any, where: str, force: bool = False, own: str | None = None) -> None:
    """Whether a direction fits a network. `own` = its `generator_hash`, if known already.

    A synthesis network tuned since (by invert --tune, or trained on) is told of on stderr: codes still mean the same.

    Raises:
        UserError: other dimensions, a space that the network hasn't, or, unless `force`, another network's.
    """
    _check_shape(direction, G, where)
    if not direction.network_hash:
        return
    hashed = own or generator_hash(G)
    if direction.network_hash == hashed:
        return
    if direction.network_hash.split('-')[0] == hashed.split('-')[0]:
        click.echo(f'{where}: found with another state of the synthesis network, whose mapping is the same', err=True)
    elif not force:
        raise UserError(f'{where}: was found with another network, whose codes mean other things; '
                        '--force takes it all the same')  # fmt: skip
    else:
        click.echo(f'{where}: was found with another network', err=True)


def _check_shape(direction: Direction, G: Any, where: str) -> None:
    wanted = code_space(G)
    if direction.space != wanted and not (direction.space == 'z' and spaces.has_prior(G)):
        why = 'it has no φ, so its codes have no z' if direction.space == 'z' else f'its codes are {wanted}'
        # A published file doesn't tell its space; that was a guess.
        hint = '' if direction.network_hash else f'; if it is one in {wanted}, say --direction-space={wanted}'
        raise UserError(f'{where}: a direction in {direction.space}, which this network cannot follow: {why}{hint}')
    dim = spaces.code_dim(G)
    if direction.dim != dim or (direction.per_layer and len(direction.vector) != G.num_ws):
        raise UserError(f'{where}: has shape {list(direction.vector.shape)}, this network takes [{dim}] or '
                        f'[{G.num_ws}, {dim}]')  # fmt: skip
    if direction.layers and max(direction.layers) >= G.num_ws:
        raise UserError(f'{where}: moves layer {max(direction.layers)}, but this network has 0 to {G.num_ws - 1}')


def code_space(G: Any) -> str:
    """What a network's codes are: 'y', or 'w' if it has no φ."""
    return 'y' if spaces.has_prior(G) else 'w'


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_directions(path: str | os.PathLike[str], directions: Sequence[Direction]) -> None:
    """Writes directions, each under a name of its own, whole or not at all.

    Raises:
        ValueError: none, or two of one name.
    """
    names = [direction.name for direction in directions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'directions: expected at least one, each with its own name, got {names}')
    told = [{field.name: getattr(direction, field.name) for field in dataclasses.fields(direction)
             if field.name != 'vector'} for direction in directions]  # fmt: skip
    info = json.dumps(outputs.finite(dict(format=FORMAT, units=UNITS, directions=told)))
    vectors: dict[str, Any] = {f'vector_{i}': direction.vector.numpy() for i, direction in enumerate(directions)}
    with atomic_write(os.fspath(path)) as file:
        np.savez(file, **vectors, info=np.array(info))


def load_directions(
    path: str | os.PathLike[str], G: Any = None, space: str | None = None, force: bool = False
) -> list[Direction]:
    """All directions of a file, or the one that FILE:NAME names. Nothing in the file runs.

    With a network they are checked against it, and what a published file doesn't tell is filled in: the space, and the
    scale, measured over the prior. `space` says it for a published file; else its name, else the network does.

    Raises:
        UserError: missing, damaged, no such name, or not of this network (see `check_network`).
    """
    file, name = split_name(os.fspath(path))
    arrays = direction_files.read_arrays(file)
    found = _own(file, arrays) if 'info' in arrays else _foreign(file, arrays, space, G)
    chosen = [direction for direction in found if name in (None, direction.name)]
    if not chosen:
        raise UserError(f'{file}: has no direction {name}; it has {", ".join(direction.name for direction in found)}')
    if G is None:
        return chosen
    if spaces.y_is_w(G):
        chosen = [dataclasses.replace(one, space='y') if one.space == 'w' else one for one in chosen]
    own = generator_hash(G)
    for direction in chosen:
        check_network(direction, G, f'{file}: {direction.name}', force, own)
    return [with_scale(G, direction) for direction in chosen]


def split_name(spec: str) -> tuple[str, str | None]:
    """FILE:NAME -> (FILE, NAME); a file of that whole name, or one without a name -> (FILE, None).

    The name begins after the first colon behind an extension of such files, and may have colons itself.
    """
    match = None if os.path.exists(spec) else NAMED.fullmatch(spec)
    return (match[1], match[2]) if match else (spec, None)


def _own(path: str, arrays: Mapping[str, Any]) -> list[Direction]:
    try:
        info = json.loads(str(arrays['info'][()]))
        if info['format'] != FORMAT:
            raise ValueError(f'format {str(info["format"])[:40]!r}, expected {FORMAT!r}')
        return [_from_json(told, arrays[f'vector_{i}']) for i, told in enumerate(info['directions'])]
    except Exception as error:  # Hostile headers are whatever they want to be.
        raise UserError(f'{path}: not a file of directions, or damaged ({one_line(error)})') from None


def _from_json(told: Mapping[str, Any], vector: Any) -> Direction:
    if vector.dtype.kind != 'f':
        raise ValueError(f'vectors: expected numbers, got {vector.dtype}')
    bias, scale, layers = told['bias'], told['scale'], told['layers']
    return Direction(
        str(told['name']), torch.from_numpy(vector), str(told['space']), None if bias is None else float(bias),
        math.nan if scale is None else float(scale), str(told['meaning']), str(told['network_hash']),
        None if layers is None else tuple(int(layer) for layer in layers), str(told['source']), dict(told['figures']),
    )  # fmt: skip


def _foreign(path: str, arrays: Mapping[str, Any], space: str | None, G: Any) -> list[Direction]:
    """Directions that others have published; what they don't tell is left open."""
    default = 'w' if G is None else code_space(G)
    told = space or direction_files.space_of_name(path) or default
    plane: dict[str, Any] = {}
    if direction_files.is_boundary(path):
        # InterFaceGAN publishes normals alone, and its scripts take the plane through the origin.
        plane = dict(bias=0.0, meaning='normal of a boundary, published without its offset: taken through the origin')
    found = []
    for one in direction_files.published(path, arrays):
        vector = torch.from_numpy(one.vector)
        rest = dict(plane, source=os.path.basename(path), figures={'published_length': length(vector)})
        scale = one.scale if one.scale is not None else 1.0 if told == 'z' else math.nan
        found.append(make_direction(one.name, vector, told, scale=scale, **rest))
    return found


def with_scale(G: Any, direction: Direction) -> Direction:
    """The direction with its scale, measured over codes of the prior if it has none."""
    if math.isfinite(direction.scale) and direction.scale > 0:
        return direction
    if direction.space == 'z':
        return dataclasses.replace(direction, scale=1.0)
    codes = spaces.sample_codes(G, SCALE_SAMPLES)[0]
    vector = direction.vector.mean(dim=0) if direction.per_layer else direction.vector
    return dataclasses.replace(direction, scale=float((codes.cpu() @ vector).std()))
