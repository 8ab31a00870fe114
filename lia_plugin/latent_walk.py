"""A walk through the latent space that ends where it began: keyframes from seeds, closed paths, frames batch by batch.

One path for each place of a grid. What is kept are the keyframes; frames are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lia_plugin import codes, paths, sampling, spaces
from lia_plugin.host import UserError
from lia_plugin.images import grid

SPACES = ('w', 'y', 'z')


def place_seeds(
    seeds: Sequence[int], cells: int, num_keyframes: int | None = None, shuffle_seed: int | None = None
) -> list[list[int]]:
    """The seeds of each keyframe, one for each place of the grid: [K][cells].

    As StyleGAN3's gen_video.py: a place takes seeds that follow each other; with `num_keyframes` they begin again where
    they end; `shuffle_seed` mixes them all.

    Raises:
        UserError: the seeds do not go round evenly, or there is but one keyframe.
    """
    if num_keyframes is None and len(seeds) % cells:
        raise UserError(f'--seeds: {len(seeds)} seeds are no multiple of the {cells} pictures of --grid; take more or '
                        'fewer, or say how many keyframes: --num-keyframes')  # fmt: skip
    count = len(seeds) // cells if num_keyframes is None else num_keyframes
    if count < 2:
        raise UserError(f'--seeds: {len(seeds)} of them for {cells} pictures make one keyframe, and no walk; it needs '
                        f'{2 * cells} at least')  # fmt: skip
    if count * cells % len(seeds):
        raise UserError(f'--num-keyframes: {count} keyframes of {cells} pictures take {count * cells} seeds, no '
                        f'multiple of the {len(seeds)} that --seeds names')  # fmt: skip
    if count * cells > codes.MAX_SEEDS:
        raise UserError(f'--num-keyframes: {count} of {cells} pictures are more than {codes.MAX_SEEDS}; take fewer')
    placed = np.resize(np.array(seeds, dtype=np.int64), count * cells)
    if shuffle_seed is not None:
        np.random.RandomState(shuffle_seed).shuffle(placed)
    return placed.reshape(cells, count).T.tolist()


class Film:
    """Draws the frames of a walk in 'w', 'y' or 'z' of a network.

    Raises:
        UserError: there is no such space in the network.
    """

    def __init__(
        self,
        G: Any,
        seeds: Sequence[Sequence[int]],  # [K][cells], as `place_seeds` gives them.
        c: torch.Tensor | None,  # [1, c_dim]
        psi: float = 1,
        space: str = 'w',
        steps: int = 120,
        kind: str = 'cubic',
    ) -> None:
        if space == 'y' and not spaces.has_prior(G):
            raise UserError('--space=y: this network has no φ, hence no y; it has w and z')
        self.G, self.space, self.c = G, space, c
        self.cells = len(seeds[0])
        self.trunc = sampling.truncation(G, psi)
        z = codes.seeds_to_z([seed for row in seeds for seed in row], G.z_dim)
        keys = self._start(z).unflatten(0, [len(seeds), self.cells]).cpu()
        self.walk = paths.Walk(keys, steps, kind, closed=True, spherical=space == 'z')

    def _labels(self, count: int) -> torch.Tensor | None:
        return None if self.c is None else self.c.repeat([count, 1])

    def _start(self, z: torch.Tensor) -> torch.Tensor:
        """z [N, z_dim] -> what the path goes through, [N, dim]: z, y, or truncated w."""
        if self.space == 'z':
            return z
        code = spaces.z_to_code(self.G, z.to(self.G.mapping.w_avg.device), self._labels(len(z)))
        return code if self.space == 'y' else self._code_to_ws(code)[:, 0]

    def _code_to_ws(self, code: torch.Tensor) -> torch.Tensor:
        return sampling.to_ws(self.G, code, self._labels(len(code)), self.trunc)[0]

    def ws(self, start: int, stop: int) -> torch.Tensor:
        """ws [T * cells, num_ws, w_dim] of frames start … stop - 1, on G's device."""
        point = self.walk.at(start, stop).flatten(0, 1).to(self.G.mapping.w_avg.device)
        if self.space == 'w':
            return point.unsqueeze(1).repeat([1, self.G.num_ws, 1])
        code = point if self.space == 'y' else spaces.z_to_code(self.G, point, self._labels(len(point)))
        return self._code_to_ws(code)

    def frames(self, columns: int, batch: int = 8, noise_mode: str = 'const') -> Iterator[torch.Tensor]:
        """All frames, uint8 [C, H, W] on the CPU, each a grid of so many columns; `batch` pictures are drawn at once.

        With noise_mode='random' each picture has noise of its own, the same in every call.
        """
        together = max(1, batch // self.cells)
        for start in range(0, len(self.walk), together):
            stop = min(start + together, len(self.walk))
            pixels = self._draw(self.ws(start, stop), start * self.cells, batch, noise_mode)
            for frame in pixels.split(self.cells):
                yield grid(frame, columns)

    def _draw(self, ws: torch.Tensor, first: int, batch: int, noise_mode: str) -> torch.Tensor:
        """ws of any number -> pixels uint8 NCHW; `first` is the number of the first picture, for its noise."""
        parts = []
        for start in range(0, len(ws), batch):
            part = ws[start : start + batch]
            numbers = range(first + start, first + start + len(part))
            parts.append(sampling.render(self.G, part, None, noise_mode, numbers))
        return torch.cat(parts)
