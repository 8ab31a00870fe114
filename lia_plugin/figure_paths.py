"""Real images interpolated in y and in z: strips, what both ways measure, and where they run on a map of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin import canvas, editing, embedding, images, paths, prior, sheets, spaces
from lia_plugin.canvas import Key, Panel
from lia_plugin.figure_base import (
    Advance,
    CannotDraw,
    Exhibit,
    Figure,
    mean_and_error,
    rows_of,
    with_error,
)
from lia_plugin.networks import base_code
from lia_plugin.path_measures import FeatureSpace, measure_steps, nearest

Array = npt.NDArray[np.float64]

FINENESS = 3  # Measured points for each step of a strip.
MAPPED_PAIRS = 3  # On the map of samples.
CROSS_FADE = 'pixels'
LINE_IN_Z = 'z-line'
COLOURS = {'y': canvas.BLUE, 'y+': canvas.BLUE, 'z': canvas.RED, LINE_IN_Z: canvas.PURPLE, CROSS_FADE: canvas.GREY}
LABELS = {'y': 'straight in y', 'y+': 'straight in y+', 'z': 'arc in z', LINE_IN_Z: 'straight in z',
          CROSS_FADE: 'cross-fade of pixels'}  # fmt: skip
MEASURED_ALONE = (LINE_IN_Z,)  # And not shown in strips.


class Ways(NamedTuple):
    """Paths of one kind between P pairs, T points each."""

    images: torch.Tensor  # [P, T, C, H, W], float in [-1, 1]
    log_p: Array | None  # Of the base code, nats per dimension, [P, T]
    z_norm2: Array | None  # ‖z‖²/dim, [P, T]


def draw_pairs(labels: torch.Tensor | None, count: int, seed: int, total: int) -> list[tuple[int, int]]:
    """Pairs of different images, none in two of them; of a conditional network both of one class.

    Raises:
        CannotDraw: there is not one such pair.
    """
    order = np.random.default_rng(seed).permutation(total).tolist()
    waiting: dict[tuple[float, ...], int] = {}
    found = []
    for item in order:
        label = () if labels is None else tuple(labels[item].tolist())
        if label in waiting:
            found.append((waiting.pop(label), item))
        else:
            waiting[label] = item
    if not found:
        raise CannotDraw('no two images of --data to interpolate' + ('' if labels is None else ', of one class'))
    return found[:count]


def walk(exhibit: Exhibit, pairs: Sequence[tuple[int, int]], space: str, points: int) -> Ways:
    """The pairs' paths in 'y', 'y+' or 'z', or straight in z."""
    reals, found = exhibit.reals, []
    for pair in pairs:
        ends, c = reals.code[list(pair)], rows_of(reals.c, pair)
        if space == LINE_IN_Z:
            path = straight_in_z(exhibit.G, ends, c, points)
        else:
            path = editing.interpolate(exhibit.G, ends, c, space, points - 1)
        found.append((exhibit.draw(path.code, path.c), *code_figures(exhibit.G, path)))
    img, log_p, z_norm2 = zip(*found)
    return Ways(torch.stack(img), np.stack(log_p), np.stack(z_norm2))


@torch.no_grad()
def straight_in_z(G: Any, ends: torch.Tensor, c: torch.Tensor | None, points: int) -> editing.Path:
    """Not a way to go, for z of its middle is too short, but the arc's control: what is due to length, what to z."""
    line = paths.walk(paths.to_space(G, ends, c, 'z'), points - 1)
    labels = None if c is None else paths.walk(c, points - 1)
    return editing.Path(paths.from_space(G, line, labels, 'z'), labels)


@torch.no_grad()
def code_figures(G: Any, path: editing.Path) -> tuple[Array, Array]:
    """log p(y)/dim and ‖z‖²/dim of a path's base codes, [T] each."""
    y = base_code(path.code)
    z = G.mapping.y_to_z(y, path.c)
    return (prior.log_prob_per_dim(G, y, path.c).cpu().double().numpy(),
            (prior.squared_norm(z) / z.shape[1]).cpu().double().numpy())  # fmt: skip


def cross_fade(ways: Ways) -> Ways:
    """The same ends, and between them a blend of pixels."""
    t = torch.linspace(0, 1, ways.images.shape[1])
    faded = paths.lerp(ways.images[:, 0], ways.images[:, -1], t).transpose(0, 1)
    return Ways(faded.contiguous(), None, None)


class Measured(NamedTuple):
    """Figures per pair [P], profiles along the paths [P, T], and the paths' rows in feature space [P, T, D]."""

    figures: dict[str, Array]
    profiles: dict[str, Array]
    rows: npt.NDArray[np.float32]


def measure(
    ways: Ways, space: FeatureSpace, real_rows: npt.NDArray[np.float32], pairs: Sequence[tuple[int, int]]
) -> Measured:
    """All that is measured of paths; `real_rows` are the embedded real images, and a path's own two don't count."""
    count, points = ways.images.shape[:2]
    before, after = ways.images[:, :-1].flatten(0, 1), ways.images[:, 1:].flatten(0, 1)
    steps = space.distance(before, after).reshape(count, points - 1).T
    found = measure_steps(steps, space.distance(ways.images[:, 0], ways.images[:, -1]))
    rows = space.embed(ways.images.flatten(0, 1))
    own = np.zeros([count, len(real_rows)], bool)
    for i, pair in enumerate(pairs):
        own[i, list(pair)] = True
    profiles: dict[str, Array] = {}
    if not own.all(axis=1).any():
        profiles['nearest'] = nearest(rows, real_rows, own.repeat(points, axis=0)).reshape(count, points)
    if ways.log_p is not None and ways.z_norm2 is not None:
        profiles.update(log_p=ways.log_p, z_norm2=ways.z_norm2)
    figures = {**found._asdict(), **{name: values.mean(axis=1) for name, values in profiles.items()}}
    if 'nearest' in profiles:
        # The ends are reconstructions, which are all the same for every kind of path: what counts is how much
        # farther out the way between them is.
        ends = profiles['nearest'][:, [0, -1]].mean(axis=1)
        figures['off'] = profiles['nearest'][:, points // 4 : points - points // 4].mean(axis=1) / ends
    return Measured(figures, profiles, rows.reshape(count, points, -1))


def measure_all(
    exhibit: Exhibit, pairs: Sequence[tuple[int, int]], own: str, points: int, space: FeatureSpace,
    real_rows: npt.NDArray[np.float32], advance: Advance,
) -> tuple[dict[str, Measured], list[dict[str, torch.Tensor]]]:
    """All kinds of paths, measured over all pairs; and of those shown the strips, uint8 [steps, C, H, W] by kind.

    Pair by pair: the images of all would not fit into memory where they are large.
    """
    parts: dict[str, list[Measured]] = {}
    shown: list[dict[str, torch.Tensor]] = []
    for i, pair in enumerate(pairs):
        ways = {kind: walk(exhibit, [pair], kind, points) for kind in (own, 'z', LINE_IN_Z)}
        ways[CROSS_FADE] = cross_fade(ways[own])
        for kind, way in ways.items():
            parts.setdefault(kind, []).append(measure(way, space, real_rows, [pair]))
        if i < exhibit.options.shown:
            shown.append({kind: images.to_uint8(way.images[0, ::FINENESS]) for kind, way in ways.items()
                          if kind not in MEASURED_ALONE})  # fmt: skip
        advance((i + 1) / len(pairs))
    return {kind: together(found) for kind, found in parts.items()}, shown


def together(parts: Sequence[Measured]) -> Measured:
    """What was measured of several pairs, as if of all at once."""
    first = parts[0]
    return Measured(
        {name: np.concatenate([part.figures[name] for part in parts]) for name in first.figures},
        {name: np.concatenate([part.profiles[name] for part in parts]) for name in first.profiles},
        np.concatenate([part.rows for part in parts]),
    )


def embed_reals(exhibit: Exhibit, space: FeatureSpace) -> npt.NDArray[np.float32]:
    """All real images in feature space, [N, D]."""
    count, size = len(exhibit.reals), exhibit.session.batch
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return np.concatenate([space.embed(exhibit.originals(rows)) for rows in blocks])


def summary(figures: dict[str, Array]) -> dict[str, dict[str, float]]:
    """Mean over pairs and its standard error."""
    return {name: mean_and_error(values) for name, values in figures.items()}


def differences(y: dict[str, Array], z: dict[str, Array]) -> dict[str, dict[str, float]]:
    """z minus y, pair by pair: mean and standard error; of lengths as a share of y's."""
    found = {}
    for name in y:
        gap = (z[name] - y[name]) / (np.maximum(np.abs(y[name]), 1e-30) if name == 'length' else 1)
        found[name] = dict(mean_and_error(gap), pairs_greater=float((gap > 0).mean()))
    return found


def draw(exhibit: Exhibit, advance: Advance) -> Figure:
    """z- against y-interpolation between real images."""
    options, reals = exhibit.options, exhibit.reals
    own = 'y+' if exhibit.is_deep() else 'y'
    pairs = draw_pairs(reals.c, options.pairs, options.seed, len(reals))
    points = FINENESS * (options.steps - 1) + 1
    percep, feature_name = exhibit.percep
    space = FeatureSpace(percep, exhibit.session.device, exhibit.session.batch, options.seed)
    real_rows = embed_reals(exhibit, space)
    measured, shown = measure_all(exhibit, pairs, own, points, space, real_rows, lambda s: advance(0.55 * s))
    pictures = {'': (strips(shown, measured), f'{len(shown)} of {len(pairs)} pairs of real images, each path with '
                     'its perceptual length; first and last column: their reconstructions.')}  # fmt: skip
    pictures['profiles'] = (profile_panels(measured), 'Along the paths: mean over all pairs.')
    numbers: dict[str, Any] = dict(
        space=own, features=feature_name, pairs=[[reals.sources[i], reals.sources[j]] for i, j in pairs],
        points=points, n_reals=len(reals), paths={kind: summary(m.figures) for kind, m in measured.items()},
        per_pair={kind: {name: v.tolist() for name, v in m.figures.items()} for kind, m in measured.items()},
        z_minus_y=differences(measured[own].figures, measured['z'].figures),
        profiles={kind: {name: v.mean(axis=0).tolist() for name, v in m.profiles.items()}
                  for kind, m in measured.items()},
    )  # fmt: skip
    text = text_of(numbers, len(pairs))
    try:
        picture, numbers['map'] = sample_map(exhibit, space, measured, real_rows, lambda s: advance(0.55 + 0.25 * s))
        pictures['map'] = (picture, map_caption(numbers['map'], feature_name))
    except CannotDraw as reason:
        text += f' The map of samples is left out: {reason}.'
    advance(1)
    return Figure('Interpolation in y and in z', text, pictures, [table_of(numbers)], numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def strips(shown: Sequence[dict[str, torch.Tensor]], measured: dict[str, Measured]) -> torch.Tensor:
    """A strip [T, C, H, W] for each pair and kind of path, kinds of one pair together, with the path's length."""
    rows = [list(strip) for kinds in shown for strip in kinds.values()]
    return sheets.sheet(rows, captions=[f'{i + 1}: {LABELS[kind]}, {measured[kind].figures["length"][i]:.3f}'
                                        for i, kinds in enumerate(shown) for kind in kinds])  # fmt: skip


def profile_panels(measured: dict[str, Measured]) -> torch.Tensor:
    titles = dict(nearest='Distance to the nearest other real image', log_p='log p(y) per dimension, nats',
                  z_norm2='|z|^2 per dimension (prior: 1)')  # fmt: skip
    panels = []
    for name, title in titles.items():
        lines = {kind: m.profiles[name].mean(axis=0) for kind, m in measured.items() if name in m.profiles}
        if not lines:
            continue
        t = np.linspace(0, 1, len(next(iter(lines.values()))))
        low, high = canvas.span(np.concatenate(list(lines.values())))
        top = high + (0.12 + 0.1 * len(lines)) * (high - low)  # Room for the legend.
        panel = Panel(canvas.Range(0, 1), canvas.Range(low, top), title, 'share of the path', width=430, height=320)
        for kind, line in lines.items():
            panel.line(np.stack([t, line], axis=1), COLOURS[kind], 2.5)
        panel.legend([Key(LABELS[kind], COLOURS[kind]) for kind in lines])
        panels.append(panel.picture())
    return canvas.beside(panels)


def sample_rows(exhibit: Exhibit, space: FeatureSpace, advance: Advance) -> npt.NDArray[np.float32]:
    """Images of the prior, in feature space: [samples, D]."""
    code, c = spaces.sample_codes(exhibit.G, exhibit.options.samples, exhibit.options.seed)
    size, parts = exhibit.session.batch, []
    for start in range(0, len(code), size):
        rows = range(start, min(start + size, len(code)))
        parts.append(space.embed(exhibit.draw(code[rows], rows_of(c, rows))))
        advance(rows.stop / len(code))
    return np.concatenate(parts)


def sample_map(
    exhibit: Exhibit, space: FeatureSpace, measured: dict[str, Measured], real_rows: npt.NDArray[np.float32],
    advance: Advance,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """t-SNE of samples of the generator and the real images, with the paths of some pairs."""
    embedding.check_tsne()
    samples_rows = sample_rows(exhibit, space, advance)
    kinds = [kind for kind in measured if kind not in (CROSS_FADE, *MEASURED_ALONE)]
    shown = min(MAPPED_PAIRS, len(measured[kinds[0]].rows))
    ways = [measured[kind].rows[i] for kind in kinds for i in range(shown)]
    found = embedding.tsne_map(np.concatenate([samples_rows, real_rows]), np.concatenate(ways), exhibit.options.seed)
    samples, reals = np.split(found.places, [len(samples_rows)])
    lines = np.split(found.laid, len(ways))
    everything = np.concatenate([found.places, found.laid])
    panel = Panel(canvas.span(everything[:, 0]), canvas.span(everything[:, 1]),
                  f't-SNE of {len(samples)} samples, {len(reals)} real images, and the paths of {shown} pairs',
                  width=820, height=700, marks=False)  # fmt: skip
    panel.points(samples, canvas.FAINT, 1.3)
    panel.points(reals, canvas.ORANGE, 1.8)
    for place, line in enumerate(lines):
        kind = kinds[place // shown]
        panel.line(line, 'white', 4)
        panel.line(line, COLOURS[kind], 2)
        panel.points(line, COLOURS[kind], 2.5)
    for i in range(shown):
        for end, letter in ((0, 'a'), (-1, 'b')):
            panel.points(lines[i][[end]], 'white', 10)
            panel.points(lines[i][[end]], canvas.INK, 9)
            x, y = panel.pixels(lines[i][[end]])[0]
            panel.text(x, y, f'{i + 1}{letter}', 'white', 'mm')
    keys = [Key('samples of the generator', canvas.FAINT, False), Key('real images', canvas.ORANGE, False)]
    panel.legend([*keys, *(Key(LABELS[kind], COLOURS[kind]) for kind in kinds)])
    facts = dict(samples=len(samples), reals=len(reals), pairs=shown, components=found.components,
                 variance=found.variance, perplexity=found.perplexity, kl=found.kl)  # fmt: skip
    return panel.picture(), facts


# ---------------------------------------------------------------------------------------------------------------------
# Words

COLUMNS = (('length', 'perceptual length', '.3f'), ('straightness', 'straightness', '.3f'),
           ('evenness', 'evenness', '.3f'), ('nearest', 'distance to the nearest real image', '.3f'),
           ('off', 'its middle half / ends', '.3f'), ('log_p', 'log p(y)/d', '.3f'),
           ('z_norm2', '|z|²/d', '.3f'))  # fmt: skip


def table_of(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Mean ± standard error over pairs, and a row of differences."""
    rows = []
    for kind, figures in numbers['paths'].items():
        rows.append([LABELS[kind], *(_cell(figures.get(name), form) for name, _title, form in COLUMNS)])
    gap = numbers['z_minus_y']
    cells = [_cell(gap.get(name), '+.1%' if name == 'length' else '+' + form) for name, _title, form in COLUMNS]
    rows.append([f'arc in z − {numbers["space"]}, pair by pair', *cells])
    return ['path', *(title for _name, title, _form in COLUMNS)], rows


def _cell(value: dict[str, float] | None, form: str) -> str:
    return '' if value is None else with_error(value, form)


def text_of(numbers: dict[str, Any], count: int) -> str:
    gap, space = numbers['z_minus_y']['length'], numbers['space']
    longer = with_error(dict(gap, mean=abs(gap['mean'])), '.1%')
    return (
        f'Between the reconstructions of {count} pairs of real images: a straight line in {space}, an arc in z '
        f'(spherical interpolation, with the length interpolated), and for comparison a straight line in z, whose '
        f'middle is shorter than its ends (|z|²/d tells how long each path\'s codes are), and a cross-fade of pixels. '
        f'Perceptual length is the sum of the distances of neighbours among {numbers["points"]} points '
        f'({numbers["features"]}); '
        f'straightness is the distance of the ends over it, evenness the mean step over the largest. Distances to real '
        f'images are to the nearest of {numbers["n_reals"]}, without the path\'s own two. A path off the manifold '
        f'should be farther from them in its middle half than at its ends; how far these features tell that is seen '
        f'from the cross-fade, which is off it. ± is the standard error over pairs. Arcs in z are '
        f'{longer} {"longer" if gap["mean"] > 0 else "shorter"} than in {space}, '
        f'and longer for {gap["pairs_greater"]:.0%} of the pairs.'
    )


def map_caption(facts: dict[str, Any], feature_name: str) -> str:
    return (
        f'By {feature_name}, reduced to {facts["components"]} principal components ({facts["variance"]:.0%} of the '
        f'variance), perplexity {facts["perplexity"]:g}. The map is of samples and real images; each image of a path '
        f'is laid into it where its neighbours are. Numbers are pairs, a and b their ends. Neighbours in the map are '
        f'neighbours among features; distances across it mean little.'
    )
