"""Edits that need no direction: paths between codes, bilinear grids, mixed layers, and variations that keep the prior.

Pure functions on codes, y [N, dim] or y+ [N, num_ws, dim] (w, w+ of a stock network), and labels c [N, c_dim] or None.

Labels. A code belongs to a class only in z, since φ is conditioned on c, and where a mapping network of the host's
stands between y and w. Between keyframes of different classes the label goes linearly from one to the other: φ can be
inverted for every c, so z stays exact and both ends do; but of blends in between the network has seen none in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch

from lia_plugin import paths, spaces
from lia_plugin.codes import stack_noise


class Path(NamedTuple):
    """Codes [T, dim] or [T, num_ws, dim] with the labels [T, c_dim] that they belong to."""

    code: torch.Tensor
    c: torch.Tensor | None


# ---------------------------------------------------------------------------------------------------------------------
# Interpolation


def codes_for(G: Any, code: torch.Tensor, space: str) -> torch.Tensor:
    """The keyframes of a path in `space`: base codes for 'y', one a layer for 'y+', as they are for 'z'."""
    return code if space == 'z' else spaces.fit_code(G, code, space == 'y+')


@torch.no_grad()
def interpolate(
    G: Any,
    code: torch.Tensor,
    c: torch.Tensor | None = None,
    space: str = 'y',
    steps: int = 8,
    kind: str = 'linear',
    loop: bool = False,
) -> Path:
    """A path through K keyframes, `steps` frames from each to the next.

    T is (K − 1)·steps + 1 with keyframe k at index k·steps, the very codes that `codes_for` gives; K·steps with `loop`,
    which leads back to the first. Straight lines in y and y+, arcs in z; kind='cubic' takes the corners off.

    Raises:
        ValueError: fewer than two keyframes, no step, an unknown space or kind, z without φ, or keyframes in z that
            point opposite ways.
    """
    keys = codes_for(G, code, space)
    line = paths.walk(paths.to_space(G, keys, c, space), steps, kind, loop, spherical=space == 'z')
    labels = None if c is None else paths.walk(c, steps, 'linear', loop)
    made = paths.from_space(G, line, labels, space)
    made[torch.arange(len(keys)) * steps] = keys  # What went through φ and back differs in the last digits.
    return Path(made, labels)


@torch.no_grad()
def bilinear(G: Any, code: torch.Tensor, c: torch.Tensor | None = None, space: str = 'y', side: int = 5) -> Path:
    """Between four corners (top left, top right, bottom left, bottom right) -> side × side codes, row by row.

    Down both edges first, then across; in z along arcs.

    Raises:
        ValueError: not four corners, `side` below 2, or what `interpolate` raises.
    """
    if len(code) != 4 or side < 2:
        raise ValueError(f'bilinear: expected four corners and a side of 2 at least, got {len(code)} and {side}')
    keys = codes_for(G, code, space)
    spread = _spread(paths.to_space(G, keys, c, space), side, spherical=space == 'z')
    labels = None if c is None else _spread(c, side, spherical=False)
    made = paths.from_space(G, spread, labels, space)
    made[[0, side - 1, side * (side - 1), side * side - 1]] = keys
    return Path(made, labels)


def _spread(corners: torch.Tensor, side: int, spherical: bool) -> torch.Tensor:
    """[4, ...] -> [side², ...]."""
    line = paths.slerp if spherical else paths.lerp
    t = torch.arange(side, dtype=torch.float32) / (side - 1)
    edges = line(corners[:2], corners[2:], t)  # [side, left and right, ...]
    return line(edges[:, 0], edges[:, 1], t).transpose(0, 1).flatten(0, 1)


class NoisePath(Sequence[dict[str, torch.Tensor]]):
    """Noise maps along a path through keyframes that have their own, made when asked for: there may be a lot of them.

    Each map goes along an arc, which keeps its variance: of two independent maps the mean has half of it. Where no
    keyframe has maps of its own every frame has {}, which is the network's noise. Closed paths lead back to the first.
    """

    def __init__(self, G: Any, noise: Sequence[dict[str, torch.Tensor]], steps: int, loop: bool = False) -> None:
        self.keys = stack_noise(G, noise)  # Buffer's name -> [K, 1, R, R].
        self.keyframes, self.steps = len(noise), steps
        self.length = paths.frame_count(self.keyframes, steps, loop)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, torch.Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        if isinstance(index, slice):
            return [self._frame(i) for i in range(self.length)[index]]
        return self._frame(range(self.length)[index])

    def _frame(self, index: int) -> dict[str, torch.Tensor]:
        key, step = divmod(index, self.steps)
        t = step / self.steps
        return {name: _arc(maps[key], maps[(key + 1) % self.keyframes], t) for name, maps in self.keys.items()}

    @property
    def values(self) -> int:
        """How many numbers all frames together hold."""
        return self.length * sum(maps[0].numel() for maps in self.keys.values())


class NoiseGrid(NoisePath):
    """The same between four corners, as `bilinear` has them."""

    def __init__(self, G: Any, noise: Sequence[dict[str, torch.Tensor]], side: int) -> None:
        super().__init__(G, noise, steps=1)
        self.side, self.length = side, side * side

    def _frame(self, index: int) -> dict[str, torch.Tensor]:
        down, across = (place / (self.side - 1) for place in divmod(index, self.side))
        return {name: _arc(_arc(a, c, down), _arc(b, d, down), across) for name, (a, b, c, d) in self.keys.items()}


def _arc(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    return paths.slerp(a.flatten(), b.flatten(), torch.tensor([t]))[0].reshape(a.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Mixing


def mix(rows: torch.Tensor, columns: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """y+ of R rows [R, num_ws, dim], with some layers from C columns [C, num_ws, dim] -> [R, C, num_ws, dim].

    Style mixing (Karras et al. 2019, arXiv 1812.04948, section 3.1) of every row with every column.

    Raises:
        ValueError: shapes that don't belong together, a layer that isn't there.
    """
    if rows.ndim != 3 or columns.ndim != 3 or rows.shape[1:] != columns.shape[1:]:
        raise ValueError(f'mix: expected y+ of one network, got {list(rows.shape)} and {list(columns.shape)}')
    if not all(0 <= layer < rows.shape[1] for layer in layers):
        raise ValueError(f'mix: expected layers 0 to {rows.shape[1] - 1}, got {list(layers)}')
    taken = torch.zeros([rows.shape[1], 1], dtype=torch.bool, device=rows.device)
    taken[list(layers)] = True
    return torch.where(taken, columns[None], rows[:, None])


def mixes_classes(G: Any, labels: Sequence[torch.Tensor | None]) -> bool:
    """Whether codes of these labels [N, c_dim] can't be mixed: they are of several classes, and the network makes
    all styles of one code and one class, by mapping layers between y and w that were there before φ."""
    known = [c for c in labels if c is not None]
    several = bool(known) and bool((torch.cat(known) != known[0][0]).any())
    return several and spaces.has_prior(G) and G.mapping.base is not None


# ---------------------------------------------------------------------------------------------------------------------
# Variations


class Variation(NamedTuple):
    """How z changes: z' = ρz + √(1−ρ²)·e with e ~ N(0, I), in the coordinates and layers that are free to.

    If z is a draw of N(0, I) then so is z', whatever stands here: the prior is kept exactly.
    """

    rho: float = 0.9  # 1 = the same image, 0 = as if drawn anew.
    share: float = 1.0  # Share of the coordinates that change, others each time.
    coords: Sequence[int] | None = None  # The coordinates these are taken from. None = all.
    layers: Sequence[int] | None = None  # Layers of y+ that change. None = all.
    each_layer: bool = False  # Whether each layer gets an e of its own; else all change together.


@torch.no_grad()
def vary(
    G: Any, code: torch.Tensor, c: torch.Tensor | None, num: int, how: Variation, generator: torch.Generator
) -> torch.Tensor:
    """`num` variations of each of N codes -> [N, num, dim], or [N, num, num_ws, dim] of y+ or if `how` tells layers.

    `generator` is one of the CPU, so that every device draws the same.

    Raises:
        ValueError: no φ, ρ or a share outside [0, 1], a coordinate or layer that isn't there.
    """
    plus = code.ndim == 3 or how.layers is not None or how.each_layer
    code = spaces.fit_code(G, code, plus)
    z = paths.to_space(G, code, c, 'z')
    varied = vary_z(z, num, how, generator).flatten(0, 1)
    labels = None if c is None else c.repeat_interleave(num, dim=0)
    made = paths.from_space(G, varied, labels, 'z').unflatten(0, [len(code), num])
    if how.layers is None:
        return made
    return torch.where(_chosen(how.layers, code.shape[1], code.device)[:, None], made, code[:, None])


def vary_z(z: torch.Tensor, num: int, how: Variation, generator: torch.Generator) -> torch.Tensor:
    """z [N, dim] or [N, num_ws, dim] -> [N, num, …], on z's device; `how.layers` is not looked at. Errors as `vary`."""
    if not 0 <= how.rho <= 1:
        raise ValueError(f'rho: expected 0 to 1, got {how.rho}')
    per_layer = z.shape[1:-1] if how.each_layer else [1] * (z.ndim - 2)
    noise = torch.randn([len(z), num, *per_layer, z.shape[-1]], generator=generator).to(z)
    free = _free_coordinates(len(z), num, z.shape[-1], how, generator).to(z.device)
    free = free.reshape([len(z), num, *[1] * (z.ndim - 2), z.shape[-1]])
    old = z[:, None]
    return torch.where(free, how.rho * old + math.sqrt(1 - how.rho**2) * noise, old)


def _free_coordinates(count: int, num: int, dim: int, how: Variation, generator: torch.Generator) -> torch.Tensor:
    """bool [count, num, dim]: which coordinates change, drawn anew for each variation if only a share does."""
    if not 0 <= how.share <= 1:
        raise ValueError(f'share: expected 0 to 1, got {how.share}')
    allowed = _chosen(range(dim) if how.coords is None else how.coords, dim)
    if how.share == 1:
        return allowed.expand(count, num, dim)
    wanted = max(round(how.share * int(allowed.sum())), math.ceil(how.share))  # One at least, unless none is meant.
    scores = torch.rand([count, num, dim], generator=generator).masked_fill(~allowed, 2.0)
    return allowed & (scores.argsort(dim=-1).argsort(dim=-1) < wanted)


def _chosen(indices: Sequence[int], count: int, device: torch.device | str = 'cpu') -> torch.Tensor:
    """bool [count], True at the indices."""
    if not all(0 <= index < count for index in indices):
        raise ValueError(f'expected indices from 0 to {count - 1}, got {list(indices)}')
    chosen = torch.zeros([count], dtype=torch.bool, device=device)
    chosen[list(indices)] = True
    return chosen


def segments(count: int, steps: int, loop: bool) -> Iterator[tuple[int, int, list[int]]]:
    """Of a path through `count` keyframes: from which to which, and the indices of the frames, both ends included."""
    total = paths.frame_count(count, steps, loop)
    for first in range(count if loop else count - 1):
        yield first, (first + 1) % count, [i % total for i in range(first * steps, (first + 1) * steps + 1)]
