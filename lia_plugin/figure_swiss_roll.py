"""The Swiss roll: a straight line between two of its points leaves it, a straight line between their z follows it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import canvas, paths, phi_fit
from lia_plugin.canvas import Key, Panel
from lia_plugin.figure_base import Advance, Exhibit, Figure
from lia_plugin.networks import Phi
from lia_plugin.swiss_roll import Roll, RollFit, fit, noisy

Array = npt.NDArray[np.float64]

PAIRS = 300
STEPS = 129  # Points of a path.
HELD_OUT = 8192
SHOWN = 4000  # Points in pictures.
NEAR = 3.0  # Noise deviations from the roll within which a point counts as on it.
FAR_APART = 0.3  # Pairs that are shown lie at least this share of the spiral apart.
QUARTILES = (0.25, 0.5, 0.75)
KINDS = ('straight in the data', 'straight in z', 'arc in z', 'along the roll')  # The last is the geodesic.
COLOURS = dict(zip(KINDS, (canvas.RED, canvas.BLUE, canvas.GREEN, canvas.GREY)))
DRAWN = KINDS[:2]


class Walked(NamedTuple):
    """Pairs of points of a roll and the ways between them."""

    start: Array  # Flat, [P, 2].
    stop: Array
    ways: dict[str, Array]  # By kind, [STEPS, P, 3].


def ways_between(roll: Roll, phi: Phi, start: Array, stop: Array) -> Walked:
    """All kinds of paths between flat points [P, 2]."""
    t = torch.linspace(0, 1, STEPS)
    a, b = roll.embed(start), roll.embed(stop)
    with torch.no_grad():
        za, zb = (phi(torch.from_numpy(points).float())[0] for points in (a, b))
        line, arc = (phi.inverse(z.flatten(0, 1))[0].double().numpy().reshape(STEPS, len(a), 3)
                     for z in (paths.lerp(za, zb, t), paths.slerp(za, zb, t)))  # fmt: skip
    u = t.double().numpy()[:, None, None]
    flat = start + (stop - start) * u
    on_roll = roll.embed(flat.reshape(-1, 2)).reshape(STEPS, len(a), 3)
    return Walked(start, stop, dict(zip(KINDS, (a + (b - a) * u, line, arc, on_roll))))


def measure(roll: Roll, walked: Walked) -> dict[str, dict[str, float]]:
    """Kind -> figures, means over pairs; lengths are ratios to the shortest way on the roll.

    Along a path every stretch counts by its length: in z a gap between two turns is crossed in a moment.
    """
    shortest = roll.geodesic(walked.start, walked.stop)
    found = {}
    for kind, way in walked.ways.items():
        away, share = distances(roll, way), shares(way)
        length = np.linalg.norm(np.diff(way, axis=0), axis=2).sum(axis=0)
        nats = -roll.log_density(way.reshape(-1, 3)).reshape(away.shape)
        near = away <= NEAR * roll.noise
        found[kind] = dict(
            distance=float((share * away).sum(axis=0).mean()), farthest=float(away.max(axis=0).mean()),
            on_roll=float((share * near).sum(axis=0).mean()), wholly_on_roll=float(near.all(axis=0).mean()),
            length=float(length.mean()), length_ratio=float(np.median(length / shortest)),
            nll=weighted_median(nats, share),
        )  # fmt: skip
    return found


def shares(way: Array) -> Array:
    """[STEPS, P, 3] -> which share of a path's length belongs to each of its points, [STEPS, P]."""
    half = np.linalg.norm(np.diff(way, axis=0), axis=2) / 2
    belongs = np.pad(half, [(0, 1), (0, 0)]) + np.pad(half, [(1, 0), (0, 0)])
    return belongs / belongs.sum(axis=0)


def weighted_median(values: Array, weights: Array) -> float:
    """The least value up to which half of the weight lies."""
    order = np.argsort(values, axis=None)
    reached = np.cumsum(weights.ravel()[order])
    return float(values.ravel()[order[np.searchsorted(reached, reached[-1] / 2)]])


def distances(roll: Roll, way: Array) -> Array:
    """[STEPS, P, 3] -> distance to the roll [STEPS, P]."""
    return roll.distance(way.reshape(-1, 3)).reshape(way.shape[:2])


def likelihoods(roll: Roll, phi: Phi, stream: np.random.Generator) -> dict[str, float]:
    """Mean log p of held-out noisy points in nats: a Gaussian's, φ's, and that of the density they come from."""
    seen, held_out = (noisy(roll, HELD_OUT, stream) for _ in range(2))
    x = torch.from_numpy(held_out).float()
    moments = phi_fit.Moments(3, 0)
    moments.add(torch.from_numpy(seen).float(), None)
    return dict(
        gaussian=float(moments.gaussian().log_prob(x, None).mean()), phi=phi_fit.log_likelihood(phi, x, None) * 3,
        truth=float(roll.log_density(held_out).mean()),
    )  # fmt: skip


def draw(exhibit: Exhibit, advance: Advance) -> Figure:
    """Needs no network: φ is fitted here."""
    roll, seed = Roll(), exhibit.options.seed
    settings = RollFit(steps=exhibit.options.roll_steps, seed=seed)
    phi = fit(roll, settings, lambda step: advance(0.9 * step / settings.steps))
    stream = np.random.default_rng([seed, 1])
    nats = likelihoods(roll, phi, stream)
    walked = ways_between(roll, phi, roll.draw(PAIRS, stream), roll.draw(PAIRS, stream))
    figures = measure(roll, walked)
    advance(0.97)
    shown = typical_pairs(roll, walked)
    numbers: dict[str, Any] = dict(
        pairs=PAIRS, noise=roll.noise, spiral_length=roll.length, height=roll.height, near=NEAR * roll.noise,
        geodesic=float(roll.geodesic(walked.start, walked.stop).mean()), log_likelihood=nats, paths=figures,
        fit=dataclasses.asdict(settings),
    )  # fmt: skip
    pictures = {
        '': (canvas.beside([side_view(roll, walked, shown, stream), oblique_view(roll, walked, shown, stream)]),
             'The roll from the side (left) and from obliquely above (right), coloured by the way along it, with both '
             f'paths of three pairs: of those at least {FAR_APART:.0%} of the spiral apart, the pairs whose path in z '
             'has a mean distance to the roll at the quartiles.'),
        'z': (canvas.beside([z_view(roll, phi, walked, shown[1], stream), profile(roll, walked)]),
              'Such points, and the paths of the middle pair, after φ (left; what crosses empty space lies far outside '
              'and is drawn at the edge of the samples). Distance to the roll along the paths of all pairs: median, '
              'and quartiles as thin lines (right).'),
    }  # fmt: skip
    return Figure('Swiss roll', text_of(settings, figures, nats), pictures, tables_of(figures, nats), numbers)


def typical_pairs(roll: Roll, walked: Walked) -> list[int]:
    """Of the pairs far apart along the roll, those whose z paths' mean distance to the roll is at the quartiles."""
    apart = np.abs(walked.stop - walked.start)[:, 0] > FAR_APART * roll.length
    way = walked.ways[DRAWN[1]]
    away = (shares(way) * distances(roll, way)).sum(axis=0)
    rows = np.flatnonzero(apart) if apart.any() else np.arange(len(away))
    order = rows[np.argsort(away[rows], kind='stable')]
    return [int(order[int(share * (len(order) - 1))]) for share in QUARTILES]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _points(roll: Roll, stream: np.random.Generator) -> tuple[Array, list[str]]:
    flat = roll.draw(SHOWN, stream)
    points = roll.embed(flat)
    return points + roll.noise * stream.standard_normal(points.shape), canvas.rainbow(flat[:, 0] / roll.length)


def _mark_ends(panel: Panel, ends: Array) -> None:
    panel.points(ends, 'white', 6)
    panel.points(ends, canvas.INK, 4.5)


def _draw_ways(panel: Panel, ways: dict[str, Array]) -> None:
    pairs = range(ways[DRAWN[0]].shape[1])
    for width, own in ((6.0, False), (3.0, True)):
        for kind in DRAWN:
            for pair in pairs:
                panel.line(ways[kind][:, pair], COLOURS[kind] if own else 'white', width)
    for pair in pairs:
        _mark_ends(panel, ways[DRAWN[0]][[0, -1], pair])
    panel.legend([Key(kind, COLOURS[kind]) for kind in DRAWN])


def _map(title: str, points: Array, colours: list[str], ways: dict[str, Array]) -> torch.Tensor:
    """A map of points [N, 2] with the ways [STEPS, P, 2] of some pairs on it."""
    everything = np.concatenate([points, *(way.reshape(-1, 2) for way in ways.values())])
    box = [canvas.span(everything[:, i]) for i in range(2)]
    panel = Panel(box[0], box[1], title, width=520, height=470, marks=False, equal=True)
    panel.points(points, colours, 1.3)
    _draw_ways(panel, ways)
    return panel.picture()


def side_view(roll: Roll, walked: Walked, pairs: list[int], stream: np.random.Generator) -> torch.Tensor:
    points, colours = _points(roll, stream)
    ways = {kind: walked.ways[kind][:, pairs][:, :, [0, 2]] for kind in DRAWN}
    return _map('The roll from the side', points[:, [0, 2]], colours, ways)


def oblique_view(roll: Roll, walked: Walked, pairs: list[int], stream: np.random.Generator) -> torch.Tensor:
    """In parallel projection, far points first."""
    points, colours = _points(roll, stream)
    across, up, depth = oblique_axes()
    order = np.argsort(-(points @ depth))
    view = np.stack([across, up], axis=1)
    ways = {kind: walked.ways[kind][:, pairs] @ view for kind in DRAWN}
    return _map('Obliquely from above', points[order] @ view, [colours[i] for i in order], ways)


def oblique_axes(turn: float = math.radians(62), tilt: float = math.radians(24)) -> tuple[Array, Array, Array]:
    """Unit vectors [3] of the picture: to the right, upwards, away from the eye; the roll's axis is the second."""
    right = np.array([math.cos(turn), math.sin(turn), 0.0])
    away = np.array([-math.sin(turn) * math.cos(tilt), math.cos(turn) * math.cos(tilt), -math.sin(tilt)])
    return right, np.cross(right, away), away


def z_view(roll: Roll, phi: Phi, walked: Walked, pair: int, stream: np.random.Generator) -> torch.Tensor:
    """The plane of z in which the two ends and the origin lie, so that the straight line is seen whole."""
    points, colours = _points(roll, stream)
    with torch.no_grad():
        z = phi(torch.from_numpy(points).float())[0].double().numpy()
        ways = {kind: phi(torch.from_numpy(walked.ways[kind][:, pair]).float())[0].double().numpy() for kind in DRAWN}
    ends = ways[DRAWN[1]][[0, -1]]
    basis = np.linalg.svd(ends, full_matrices=False)[2]
    # What crosses empty data lands far outside in z: cut off at what samples reach.
    reach = float(np.abs(z).max()) * 1.1
    ways = {kind: (way @ basis.T).clip(-reach, reach)[:, None] for kind, way in ways.items()}
    return _map('z, in the plane of both ends and 0', z @ basis.T, colours, ways)


def profile(roll: Roll, walked: Walked) -> torch.Tensor:
    """Distance to the roll along the paths, over all pairs."""
    t = np.linspace(0, 1, STEPS)
    bands = {kind: np.quantile(distances(roll, walked.ways[kind]), [0.25, 0.5, 0.75], axis=1) for kind in KINDS[:3]}
    top = max(float(band.max()) for band in bands.values()) * 1.5
    panel = Panel(canvas.Range(0, 1), canvas.Range(0, top), f'Distance to the roll, {len(walked.start)} pairs',
                  'share of the path', 'distance', width=520, height=470)  # fmt: skip
    for kind, (low, middle, high) in bands.items():
        for edge in (low, high):
            panel.line(np.stack([t, edge], axis=1), COLOURS[kind], 1)
        panel.line(np.stack([t, middle], axis=1), COLOURS[kind], 2.5)
    panel.line([[0, NEAR * roll.noise], [1, NEAR * roll.noise]], canvas.INK, 1)
    panel.legend([*(Key(kind, COLOURS[kind]) for kind in bands), Key(f'{NEAR:g} deviations of the noise', canvas.INK)])
    return panel.picture()


# ---------------------------------------------------------------------------------------------------------------------
# Words


def text_of(settings: RollFit, figures: dict[str, dict[str, float]], nats: dict[str, float]) -> str:
    data, z = (figures[kind] for kind in DRAWN)
    return (
        f'φ was fitted to noisy points of a three-dimensional Swiss roll by maximum likelihood (their noise is '
        f'{settings.blur:g} times as wide at first and comes down to its own); nothing else told it of the roll. '
        f'Between {PAIRS} random pairs of points, the straight line in the data lies on the roll (within {NEAR:g} '
        f'deviations of its noise) for {data["on_roll"]:.0%} of its length, the path that is a straight line in z for '
        f'{z["on_roll"]:.0%}; {z["wholly_on_roll"]:.0%} of the paths in z never leave it, and '
        f'{data["wholly_on_roll"]:.0%} of those in the data. The roll stands for the images that there are: a '
        f'cross-fade of two images is none of them, and a path through z keeps to them as far as φ has learned where '
        f'they are. The shortest way on the roll is known in closed form, and so is the density that the points come '
        f'from (held-out log p: φ {nats["phi"]:.2f}, truth {nats["truth"]:.2f} nats).'
    )


def tables_of(
    figures: dict[str, dict[str, float]], nats: dict[str, float]
) -> list[tuple[list[str], list[list[str]]]]:
    header = ['path', 'mean distance to the roll', 'farthest point', 'length on the roll', 'paths wholly on it',
              'length / geodesic (median)', '−log p (median, true density)']  # fmt: skip
    rows = [
        [kind, f'{row["distance"]:.3f}', f'{row["farthest"]:.3f}', f'{row["on_roll"]:.1%}',
         f'{row["wholly_on_roll"]:.1%}', f'{row["length_ratio"]:.2f}', f'{row["nll"]:.2f}']
        for kind, row in figures.items()
    ]  # fmt: skip
    names = dict(gaussian='a Gaussian', phi='φ', truth='the density itself')
    fits = [[names[key], f'{value:.3f}'] for key, value in nats.items()]
    return [(header, rows), (['held-out log p', 'nats'], fits)]
