"""FFHQ's alignment: where the square crop of a face lies, from landmarks.

Written from the text of Karras et al. 2018 (arXiv 1710.10196, appendix C), whose crops CelebA-HQ and, with the same
numbers, FFHQ are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lia_plugin.placement import Array, Placement, place

# Of the 68 landmarks in dlib's order, and of five: eyes, nose, corners of the mouth.
GROUPS: dict[int, dict[str, tuple[Sequence[int], Sequence[int]]]] = {
    68: dict(eyes=(range(36, 42), range(42, 48)), mouth=((48,), (54,))),
    5: dict(eyes=((0,), (1,)), mouth=((3,), (4,))),
}
# Half the side of the crop is the larger of so many distances between the eyes, and from the eyes to the mouth.
EYES_TIMES, MOUTH_TIMES = 2.0, 1.8
LOWERED = 0.1  # The centre lies below the middle of the eyes by this share of the way to the mouth.


def face_placement(points: Array, size: tuple[int, int], resolution: int) -> Placement:
    """The crop of a face with landmarks [68, 2] or [5, 2], in pixels of the upright picture of size (W, H).

    The five are eye, eye, nose, corner of the mouth, corner of the mouth; which of two comes first makes no difference.

    Raises:
        ValueError: another number of landmarks, numbers that are not finite, or a face without extent.
    """
    first, second, mouth = _features(points)
    across, down = second - first, mouth - (first + second) / 2
    if _turned(across) @ down < 0:  # Left and right were exchanged: the mouth would lie above the eyes.
        across = -across
    x = across - _turned(down)
    half = max(EYES_TIMES * np.linalg.norm(across), MOUTH_TIMES * np.linalg.norm(down))
    if not np.linalg.norm(x) > 0 or not half >= 1:
        raise ValueError('landmarks: hardly a pixel apart; they must be in pixels of the picture')
    x = x / np.linalg.norm(x) * half
    y = _turned(x)
    centre = (first + second) / 2 + LOWERED * down
    return place(np.column_stack([2 * x / resolution, 2 * y / resolution, centre - x - y]), size, resolution)


def _features(points: Array) -> tuple[Array, Array, Array]:
    """Both eyes and the middle of the mouth, [2] each."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) not in GROUPS:
        raise ValueError(f'landmarks: expected {" or ".join(f"{n} points" for n in GROUPS)}, got {list(points.shape)}')
    if not np.isfinite(points).all():
        raise ValueError('landmarks: not all are finite numbers')
    groups = GROUPS[len(points)]
    eyes = [points[list(indices)].mean(axis=0) for indices in groups['eyes']]
    corners = [points[list(indices)].mean(axis=0) for indices in groups['mouth']]
    return eyes[0], eyes[1], (corners[0] + corners[1]) / 2


def _turned(v: Array) -> Array:
    """A quarter turn, from right to down."""
    return np.array([-v[1], v[0]])
