"""StyleGAN3's picture moved and turned: the matrix that its synthesis input applies before anything else.

Karras et al. 2021, arXiv 2106.12423, appendix F: the input features are waves on the plane, and moving or turning the
plane moves or turns what is painted on it. StyleGAN2 starts from a constant, which has no such plane.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lia_plugin.host import UserError


def sampling_matrix(translate: tuple[float, float] = (0, 0), degrees: float = 0) -> torch.Tensor:
    """[3, 3], float64: from points of the picture to points of the untransformed one, the inverse of the motion.

    The motion turns by `degrees` about the centre, counter-clockwise as seen, and then moves by `translate` pictures
    to the right and down.
    """
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    motion = [[cos, sin, translate[0]], [-sin, cos, translate[1]], [0, 0, 1]]  # y points down.
    return torch.linalg.inv(torch.tensor(motion, dtype=torch.float64))


def set_transform(G: Any, translate: tuple[float, float] = (0, 0), degrees: float = 0) -> None:
    """Moves and turns all that G draws from now on: see `sampling_matrix`.

    Raises:
        UserError: G's synthesis network is no StyleGAN3.
    """
    transform = getattr(getattr(G.synthesis, 'input', None), 'transform', None)
    if transform is None:
        option = '--translate' if any(translate) else '--rotate'
        raise UserError(f'{option}: this network is a StyleGAN2, whose input cannot be moved; only a StyleGAN3 can')
    with torch.no_grad():
        transform.copy_(sampling_matrix(translate, degrees).to(transform.dtype))
