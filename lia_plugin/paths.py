"""Paths through codes: straight, along the sphere, or smoothly through keyframes; and the spaces that they lie in.

A path is taken in y or y+ by straight lines, for y is the disentangled one (Zhu et al., arXiv 1906.08090, section 3),
and in z along arcs, whose length changes evenly from one end to the other: a straight line between two draws of
N(0, I) in d dimensions passes where hardly any other draw lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lia_plugin import spaces

KINDS = ('linear', 'cubic')
PARALLEL = 1e-4  # Sine of the angle under which an arc is a straight line to float32.


def lerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Straight from a (t = 0) to b (t = 1), both of one shape [...]; t [T] -> [T, ...]."""
    t = t.to(a).reshape([-1] + [1] * a.ndim)
    return torch.where(t == 1, b, a + (b - a) * t)  # Both ends exactly.


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Along the arc from a (t = 0) to b (t = 1), [..., dim] both, each row for itself; t [T] -> [T, ..., dim].

    Shoemake 1985 for the direction; the length goes linearly from that of a to that of b. Stock scripts give unit
    length instead, which StyleGAN's normalisation of z hides; LIA has none.

    Raises:
        ValueError: a and b point opposite ways, so that there is no shortest arc.
    """
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a, unit_b = a / norm_a.clamp(min=1e-12), b / norm_b.clamp(min=1e-12)
    # Not the arc cosine, which has no digits left where vectors are nearly parallel.
    omega = 2 * torch.atan2((unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True))
    sine = omega.sin()
    if bool(((sine < PARALLEL) & (omega > 1)).any()):
        raise ValueError('slerp: the two codes point opposite ways, there is no shortest arc between them')
    t = t.to(a).reshape([-1] + [1] * a.ndim)
    arc = (((1 - t) * omega).sin() * unit_a + (t * omega).sin() * unit_b) / sine.clamp(min=PARALLEL)
    path = torch.where(sine < PARALLEL, lerp(a, b, t.flatten()), arc * (norm_a + (norm_b - norm_a) * t))
    return torch.where(t == 0, a, torch.where(t == 1, b, path))


class Cubic:
    """The cubic spline through K keyframes [K, ...], fitted once; called at positions t [T] it gives [T, ...].

    Keyframe k lies at t = k. Closed, the spline goes on from the last keyframe to the first, at t = K, with no break in
    slope or curvature. With `keep_norm` the length along the last dimension is that of the keyframes, interpolated
    linearly, for a spline cuts corners and z has a length to keep.
    """

    def __init__(self, keys: torch.Tensor, closed: bool = False, keep_norm: bool = False) -> None:
        from scipy.interpolate import CubicSpline

        points = keys.detach().cpu().double().numpy()
        points = np.concatenate([points, points[:1]]) if closed else points
        self.like = keys
        ends = 'periodic' if closed else 'not-a-knot'
        self.spline = CubicSpline(np.arange(len(points)), points, axis=0, bc_type=ends)
        self.norms = np.linalg.norm(points, axis=-1, keepdims=True) if keep_norm else None

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """ValueError where a length is to be kept, and the spline passes so near to 0 that it has no direction."""
        where = t.detach().cpu().double().numpy()
        path = self.spline(where)
        if self.norms is not None:
            low = np.clip(np.floor(where).astype(int), 0, len(self.norms) - 2)
            part = (where - low).reshape([-1] + [1] * (path.ndim - 1))
            wanted = self.norms[low] * (1 - part) + self.norms[low + 1] * part
            length = np.linalg.norm(path, axis=-1, keepdims=True)
            if bool((length < PARALLEL * wanted).any()):
                raise ValueError('cubic: the curve passes through zero, for two codes point opposite ways')
            path *= wanted / np.where(length > 0, length, 1)
        return torch.from_numpy(path).to(self.like)


def frame_count(keyframes: int, steps: int, closed: bool) -> int:
    """Frames of a path with `steps` from each keyframe to the next."""
    return keyframes * steps if closed else (keyframes - 1) * steps + 1


class Walk:
    """A path through K keyframes [K, ...] with `steps` frames from each to the next, made part by part.

    It has (K − 1)·steps + 1 frames, keyframe k at index k·steps; closed K·steps, of which the last is one step before
    the first. `spherical` is for z: arcs for kind='linear', kept length for 'cubic'.

    Raises:
        ValueError: fewer than two keyframes, no step, another kind.
    """

    def __init__(
        self, keys: torch.Tensor, steps: int, kind: str = 'linear', closed: bool = False, spherical: bool = False
    ) -> None:
        if len(keys) < 2 or steps < 1:
            raise ValueError(f'walk: expected two keyframes and one step at least, got {len(keys)} and {steps}')
        if kind not in KINDS:
            raise ValueError(f'walk: kind is linear or cubic, got {kind!r}')
        self.keys, self.steps, self.closed = keys, steps, closed
        self.line = slerp if spherical else lerp
        self.curve = Cubic(keys, closed, keep_norm=spherical) if kind == 'cubic' else None

    def __len__(self) -> int:
        return frame_count(len(self.keys), self.steps, self.closed)

    def at(self, start: int, stop: int) -> torch.Tensor:
        """Frames start … stop − 1 -> [T, ...]."""
        if self.curve is not None:
            return self.curve(torch.arange(start, stop, dtype=torch.float64) / self.steps)
        keys = range(start // self.steps, -(-stop // self.steps))
        return torch.cat([self._segment(key, start, stop) for key in keys])

    def _segment(self, key: int, start: int, stop: int) -> torch.Tensor:
        """Those of the frames that lie from one keyframe on, before the next."""
        first = key * self.steps
        places = torch.arange(max(start, first), min(stop, first + self.steps)) - first
        following = (key + 1) % len(self.keys)  # Of an open path the last frame is the last keyframe alone.
        return self.line(self.keys[key], self.keys[following], places.to(torch.float32) / self.steps)


def walk(
    keys: torch.Tensor, steps: int, kind: str = 'linear', closed: bool = False, spherical: bool = False
) -> torch.Tensor:
    """All frames of such a `Walk`, [T, ...]."""
    whole = Walk(keys, steps, kind, closed, spherical)
    return whole.at(0, len(whole))


# ---------------------------------------------------------------------------------------------------------------------
# Spaces


def to_space(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """y [N, dim] or y+ [N, num_ws, dim] -> the same codes in `space`: 'y' or 'y+' changes the shape, 'z' is φ.

    Of y+, z is φ of each layer's code: [N, num_ws, dim]. `from_space` leads back.

    Raises:
        ValueError: another space, or 'z' of a network without φ.
    """
    if space not in spaces.SPACES:
        raise ValueError(f'space: expected y, y+ or z, got {space!r}')
    if space != 'z':
        return spaces.fit_code(G, code, space == 'y+')
    if not spaces.has_prior(G):
        raise ValueError('space: z needs φ, and this network has none')
    return spaces.each_layer(G.mapping.y_to_z, code, c)


def from_space(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """What `to_space` gave, or any code in that space -> y or y+, of the same shape."""
    return spaces.each_layer(G.mapping.z_to_y, code, c) if space == 'z' else code
