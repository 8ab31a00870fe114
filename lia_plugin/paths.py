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


def cubic(keys: torch.Tensor, t: torch.Tensor, closed: bool = False, keep_norm: bool = False) -> torch.Tensor:
    """The cubic spline through K keyframes [K, ...] at positions t [T] (keyframe k at t = k) -> [T, ...].

    Closed, it goes on from the last keyframe to the first, at t = K, with no break in slope or curvature. With
    `keep_norm` the length along the last dimension is that of the keyframes, interpolated linearly, for a spline
    cuts corners and z has a length to keep.
    """
    from scipy.interpolate import CubicSpline

    points = keys.detach().cpu().double().numpy()
    if closed:
        points = np.concatenate([points, points[:1]])
    where = t.detach().cpu().double().numpy()
    spline = CubicSpline(np.arange(len(points)), points, axis=0, bc_type='periodic' if closed else 'not-a-knot')
    path = spline(where)
    if keep_norm:
        norms = np.linalg.norm(points, axis=-1, keepdims=True)
        low = np.clip(np.floor(where).astype(int), 0, len(points) - 2)
        part = (where - low).reshape([-1] + [1] * (points.ndim - 1))
        path *= (norms[low] * (1 - part) + norms[low + 1] * part) / np.linalg.norm(path, axis=-1, keepdims=True)
    return torch.from_numpy(path).to(keys)


def walk(
    keys: torch.Tensor, steps: int, kind: str = 'linear', closed: bool = False, spherical: bool = False
) -> torch.Tensor:
    """A path through K keyframes [K, ...] with `steps` frames from each to the next.

    -> [(K − 1)·steps + 1, ...], keyframe k at index k·steps; closed [K·steps, ...], whose last frame is one step before
    the first. `spherical` is for z: arcs for kind='linear', kept length for 'cubic'.

    Raises:
        ValueError: fewer than two keyframes, no step, another kind.
    """
    if len(keys) < 2 or steps < 1:
        raise ValueError(f'walk: expected two keyframes and one step at least, got {len(keys)} and {steps}')
    if kind not in KINDS:
        raise ValueError(f'walk: kind is linear or cubic, got {kind!r}')
    segments = len(keys) if closed else len(keys) - 1
    if kind == 'cubic':
        t = torch.arange(segments * steps + (not closed), dtype=torch.float64) / steps
        return cubic(keys, t, closed, keep_norm=spherical)
    t = torch.arange(steps, dtype=torch.float32) / steps
    line = slerp if spherical else lerp
    parts = [line(keys[k], keys[(k + 1) % len(keys)], t) for k in range(segments)]
    return torch.cat(parts if closed else [*parts, keys[-1:]])


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
    return _each_layer(G.mapping.y_to_z, code, c)


def from_space(G: Any, code: torch.Tensor, c: torch.Tensor | None, space: str) -> torch.Tensor:
    """What `to_space` gave, or any code in that space -> y or y+, of the same shape."""
    return _each_layer(G.mapping.z_to_y, code, c) if space == 'z' else code


def _each_layer(phi: Any, code: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    if code.ndim == 2:
        return phi(code, c)
    per_layer = None if c is None else c.repeat_interleave(code.shape[1], dim=0)
    return phi(code.flatten(0, 1), per_layer).unflatten(0, [len(code), -1])
