"""Arrays out of files of directions that others publish. Nothing in a file runs.

InterFaceGAN and LIA: `.npy`, boundaries [1, dim]. e4e, ReStyle, StyleCLIP: `.pt`, [dim], [1, dim] or [1, num_ws, dim].
GANSpace: `.npz`, lat_comp [K, 1, dim] with lat_stdev [K]; e4e's copy of it: `.pt`, a dict of comp [K, dim] and std [K].
Any other `.npz` or dict: each array is a direction of its own name.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lia_plugin.host import UserError, one_line

Array = npt.NDArray[Any]

EXTENSIONS = ('.npz', '.npy', '.pt', '.pth')
MAX_BYTES = 2**28  # A thousand directions of 18 layers of 512 numbers are a seventh of it.
COMPONENTS = {'lat_comp': 'lat_stdev', 'comp': 'std'}  # GANSpace's arrays of components and of their spreads.
NAMED_SPACE = re.compile(r'(?:^|[_\W])(y|w|z)(?:plus|\+)?(?=[_\W]|$)', re.IGNORECASE)


class Found(NamedTuple):
    """One direction of a file as it stands there: any length, [dim] or [layers, dim]."""

    name: str
    vector: Array
    scale: float | None = None  # The codes' standard deviation along it, if the file tells.


def read_arrays(path: str) -> dict[str, Array]:
    """All arrays of an .npz, .npy or .pt by name; a single one is called ''.

    Raises:
        UserError: missing, of an unknown kind, damaged, too large, or with more in it than numbers.
    """
    extension = os.path.splitext(path)[1].lower()
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file; directions are {", ".join(EXTENSIONS)} files, or FILE:NAME of one')
    if extension not in EXTENSIONS:
        raise UserError(f'{path}: directions are read from {", ".join(EXTENSIONS)}')
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f'more than {MAX_BYTES >> 20} MB')
        with open(path, 'rb') as file:
            data = file.read()
        return _read_torch(data) if extension in ('.pt', '.pth') else _read_numpy(data)
    except Exception as error:  # Hostile and damaged files raise whatever they can.
        raise UserError(f'{path}: no file of plain numbers that can be read ({one_line(error)})') from None


def _read_numpy(data: bytes) -> dict[str, Array]:
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # Looked at before anything is unpacked.
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise ValueError(f'more than {MAX_BYTES >> 20} MB unpacked')
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded as archive_of_arrays:
            return {key: archive_of_arrays[key] for key in archive_of_arrays.files}
    return {'': loaded}


def _read_torch(data: bytes) -> dict[str, Array]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # What is odd about a file matters only if it can't be read.
            loaded = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    except Exception as error:
        if 'weights_only' in str(error) or 'Weights only' in str(error):  # torch's own advice would be to run the file.
            raise ValueError('holds objects other than tensors, which are not run; save a tensor') from None
        raise
    named = loaded if isinstance(loaded, Mapping) else {'': loaded}
    tensors = {str(key): value for key, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f'holds a {type(loaded).__name__}, expected a tensor or a dict of tensors')
    return {key: value.detach().to(torch.float64).numpy() for key, value in tensors.items()}


def published(path: str, arrays: Mapping[str, Array]) -> list[Found]:
    """The directions among a file's arrays.

    Raises:
        UserError: an array that is no direction: of a wrong shape, not finite, or 0.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    for key, spread in COMPONENTS.items():
        if key in arrays:
            return _components(path, arrays[key], arrays.get(spread))
    single = len(arrays) == 1
    return [Found(stem if single else key, _vector(path, key, value)) for key, value in arrays.items()]


def _components(path: str, components: Array, spreads: Array | None) -> list[Found]:
    """GANSpace's: [K, dim] or [K, 1, dim], the strongest first."""
    flat = components[:, 0] if components.ndim == 3 and components.shape[1] == 1 else components
    if flat.ndim != 2:
        raise UserError(f'{path}: its components have shape {list(components.shape)}, expected [K, dim] or [K, 1, dim]')
    given = None if spreads is None or np.size(spreads) != len(flat) else np.ravel(spreads)
    return [Found(f'pc{k}', _vector(path, f'component {k}', row), None if given is None else float(given[k]))
            for k, row in enumerate(flat)]  # fmt: skip


def _vector(path: str, key: str, value: Array) -> Array:
    """[dim] or [layers, dim], float64."""
    where = f'{path}: {key}' if key else path
    if value.dtype.kind not in 'fiu':
        raise UserError(f'{where}: expected numbers, got {value.dtype}')
    vector = np.asarray(value, np.float64)
    while vector.ndim > 1 and vector.shape[0] == 1:
        vector = vector[0]
    if vector.ndim not in (1, 2) or vector.size == 0:
        raise UserError(f'{where}: has shape {list(value.shape)}; a direction is [dim], [1, dim] or [num_ws, dim]')
    if not np.isfinite(vector).all() or not vector.any():
        what = 'only zeros' if np.isfinite(vector).all() else 'numbers that are not finite'
        raise UserError(f'{where}: holds {what}')
    return vector


def space_of_name(path: str) -> str | None:
    """The space that a published file's name tells, as InterFaceGAN's do: of age_w_boundary w, of age_boundary z.

    e4e's and most other .pt files are directions in w. None: it tells nothing.
    """
    stem, extension = os.path.splitext(os.path.basename(path))
    told = NAMED_SPACE.findall(stem)
    if told:
        return told[-1].lower()
    return 'z' if is_boundary(path) else 'w' if extension.lower() in ('.pt', '.pth') else None


def is_boundary(path: str) -> bool:
    """Whether the name says that this is the normal of a classifier's plane."""
    return 'boundary' in os.path.basename(path).lower()
