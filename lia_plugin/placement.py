"""Where a network's square crop lies in the full picture that it was cut from, and how that is written to files.

Coordinates are those of corners, in pixels: the picture reaches from (0, 0) to (W, H), its first pixel's centre is at
(0.5, 0.5). The picture is upright: EXIF rotation is applied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Row = tuple[float, float, float]

PREFIX = 'placement.'  # What its arrays' names begin with in an .npz.


@dataclass(frozen=True)
class Placement:
    """An R x R crop of a picture, under a similarity (or any affine) transform.

    Raises:
        ValueError: sizes below 1, numbers that are not finite, or a matrix that flattens the crop.
    """

    size: tuple[int, int]  # (W, H) of the full upright picture.
    matrix: tuple[Row, Row]  # The crop's coordinates (x, y, 1) -> the picture's.
    resolution: int  # R.
    source: str = ''  # The picture's file, or the zip that holds it; '' = not of a file.
    member: str | None = None  # The file inside the zip.

    def __post_init__(self) -> None:
        if min(*self.size, self.resolution) < 1:
            raise ValueError(f'placement: expected sizes of 1 and more, got {self.size} and {self.resolution}')
        array = self.array
        if array.shape != (2, 3) or not np.isfinite(array).all() or not abs(np.linalg.det(array[:, :2])) > 1e-12:
            raise ValueError(f'placement: {self.matrix} is no invertible 2x3 matrix of finite numbers')

    @property
    def label(self) -> str:
        """What messages call the picture."""
        return self.source if self.member is None else f'{self.source}:{self.member}'

    @property
    def array(self) -> Array:
        """The matrix as float64 [2, 3]."""
        return np.array(self.matrix, dtype=np.float64)

    @property
    def inverse(self) -> Array:
        """The picture's coordinates -> the crop's, float64 [2, 3]."""
        return invert_affine(self.array)

    @property
    def scale(self) -> float:
        """Length in the picture of one pixel of the crop."""
        return math.sqrt(abs(np.linalg.det(self.array[:, :2])))

    @property
    def corners(self) -> Array:
        """The crop's corners in the picture, float64 [4, 2]: from the upper left one, clockwise."""
        R = self.resolution
        return apply_affine(self.array, np.array([[0, 0], [R, 0], [R, R], [0, R]], dtype=np.float64))

    def to_json(self) -> dict[str, Any]:
        return dict(source=self.source, member=self.member, size=list(self.size), resolution=self.resolution,
                    matrix=[list(row) for row in self.matrix])  # fmt: skip

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Placement:
        """Undoes `to_json`. Raises ValueError for anything else."""
        try:
            member = content['member']
            return place(
                np.array(content['matrix'], dtype=np.float64), content['size'], int(content['resolution']),
                str(content['source']), None if member is None else str(member),
            )  # fmt: skip
        except (KeyError, TypeError, IndexError, OverflowError) as error:
            raise ValueError(f'placement: not of the right form ({error})') from None


def place(
    matrix: Array, size: Sequence[int], resolution: int, source: str = '', member: str | None = None
) -> Placement:
    """A placement from a matrix [2, 3] of any kind of numbers."""
    if np.shape(matrix) != (2, 3) or len(size) != 2:
        raise ValueError(f'placement: expected a matrix [2, 3] and a size of 2, got {np.shape(matrix)} and {size}')
    rows = [tuple(float(value) for value in row) for row in matrix]
    return Placement((int(size[0]), int(size[1])), (rows[0], rows[1]), resolution, source, member)  # type: ignore[arg-type]


def centre_crop(size: Sequence[int], resolution: int) -> Placement:
    """The largest square in the middle of a picture of size (W, H), brought to resolution x resolution."""
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    step = side / resolution
    return place(np.array([[step, 0, left], [0, step, top]]), size, resolution)


# ---------------------------------------------------------------------------------------------------------------------
# Affine maps


def apply_affine(matrix: Array, points: Array) -> Array:
    """Points [N, 2] through a matrix [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def invert_affine(matrix: Array) -> Array:
    """The matrix [2, 3] of the way back."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def compose_affine(outer: Array, inner: Array) -> Array:
    """The matrix [2, 3] of `inner` first, then `outer`."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


# ---------------------------------------------------------------------------------------------------------------------
# Files


def to_arrays(placements: Sequence[Placement | None]) -> dict[str, Array]:
    """Arrays for an .npz: placement.matrix [N, 2, 3], .size [N, 2] (W, H), .resolution, .source and .member [N].

    None is a row of zeros, and '' stands for no member.
    """
    known = [p.to_json() if p is not None else dict(matrix=np.zeros([2, 3]), size=[0, 0], resolution=0, source='',
                                                    member=None) for p in placements]  # fmt: skip
    return {
        f'{PREFIX}matrix': np.array([p['matrix'] for p in known], dtype=np.float64).reshape(-1, 2, 3),
        f'{PREFIX}size': np.array([p['size'] for p in known], dtype=np.int64).reshape(-1, 2),
        f'{PREFIX}resolution': np.array([p['resolution'] for p in known], dtype=np.int64),
        f'{PREFIX}source': np.array([p['source'] for p in known], dtype=np.str_),
        f'{PREFIX}member': np.array([p['member'] or '' for p in known], dtype=np.str_),
    }


def from_arrays(arrays: Mapping[str, Array], count: int) -> tuple[Placement | None, ...]:
    """Undoes `to_arrays` for the arrays of an .npz with `count` codes; all None if it has no placements.

    Raises:
        ValueError: they are damaged, or of another number.
    """
    keys = ('matrix', 'size', 'resolution', 'source', 'member')
    if f'{PREFIX}matrix' not in arrays:
        return (None,) * count
    try:
        columns = {key: arrays[f'{PREFIX}{key}'].tolist() for key in keys}
    except KeyError as error:
        raise ValueError(f'{error.args[0]} is missing') from None
    if any(not isinstance(column, list) or len(column) != count for column in columns.values()):
        raise ValueError(f'placement: expected {count} of each, got {[np.shape(arrays[PREFIX + key]) for key in keys]}')
    rows = [dict(zip(keys, values)) for values in zip(*columns.values())]
    return tuple(Placement.from_json({**row, 'member': row['member'] or None}) if row['resolution'] else None
                 for row in rows)  # fmt: skip
