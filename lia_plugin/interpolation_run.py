"""What `edit interpolate` does once its keyframes are there: paths, frames, strips, grids, a video, and figures."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import click
import torch

from lia_plugin import code_output, editing, paths, prior, results, sheets, spaces
from lia_plugin.codes import Codes, made_codes
from lia_plugin.edit_session import Session
from lia_plugin.host import UserError
from lia_plugin.images import enlarge, legible_factor, save_png, to_float
from lia_plugin.picture_files import PictureFolder
from lia_plugin.video import FPS, check_format, save_video

MAX_COLUMNS = 9  # Frames from one keyframe to the next that a strip shows.
VIDEO_SIDE = 256  # Smaller frames are magnified to about this.
MAX_VALUES = 2**30  # Numbers in the codes of all frames, w of each layer: 4 GB.
MAX_NOISE = 2**28  # So many numbers of noise go into an .npz.


@dataclass(frozen=True)
class InterpolateOptions:
    """The command's own options, by its parameters' names."""

    spaces: tuple[str, ...] = ()
    steps: int = 8
    path: str = 'linear'
    loop: bool = False
    grid: bool = False
    frames: bool = False
    video: str | None = None
    fps: int = FPS
    tile: int | None = None

    def check(self) -> None:
        """UserError, one line, for options that don't go together whatever the inputs."""
        if self.video is not None:
            check_format(self.video, self.fps)
        if self.grid:
            for option, given in (('--loop', self.loop), (f'--path={self.path}', self.path != 'linear'),
                                  (f'--video={self.video}', self.video is not None)):  # fmt: skip
                if given:
                    raise UserError(f'{option}: not with --grid, which lies between four corners')

    def check_keys(self, session: Session, keys: Codes) -> None:
        """UserError for what these keyframes, or this network, can't be used for."""
        side = self.steps + 1
        if self.grid and side > sheets.most_rows(side + 2, session.G.img_resolution, self.tile):
            raise UserError(f'--steps={self.steps}: {side} x {side} pictures are too large for one grid; take fewer, '
                            'or a smaller --tile')  # fmt: skip
        if self.grid and len(keys) != 4:
            raise UserError(f'--grid: takes four corners, from top left to bottom right, got {len(keys)}')
        if len(keys) < 2:
            raise UserError(f'INPUT: an interpolation needs two keyframes at least, got {len(keys)}')
        if 'z' in self.spaces and not spaces.has_prior(session.G):
            raise UserError(f'--space=z: {session.network}: it has no φ, so its codes have no z; take y, here its w')
        self._check_count(session.G, len(keys))

    def _check_count(self, G: Any, keys: int) -> None:
        """UserError for so many frames that the memory does not hold their codes."""
        frames = (self.steps + 1) ** 2 if self.grid else paths.frame_count(keys, self.steps, self.loop)
        if frames * G.num_ws * G.w_dim > MAX_VALUES:
            raise UserError(f'--steps={self.steps}: makes {frames} frames, of which the codes alone are too large; '
                            'take fewer')  # fmt: skip

    def chosen_spaces(self, keys: Codes) -> tuple[str, ...]:
        """As asked for; else y, or y+ where the codes have it."""
        return tuple(dict.fromkeys(self.spaces)) or ('y+' if keys.code.ndim == 3 else 'y',)


class Walk(NamedTuple):
    """A path as it is drawn: T codes in one space, with labels and noise."""

    space: str
    code: torch.Tensor
    c: torch.Tensor | None
    noise: editing.NoisePath

    @property
    def label(self) -> str:
        """The space in file names."""
        return self.space.replace('+', '_plus')

    def frame_name(self, index: int) -> str:
        return f'{self.label}_{index:04d}'


@dataclass
class Figures:
    """How far each picture of a path is from the one before: root mean square difference, images in [-1, 1]."""

    previous: torch.Tensor | None = None
    distances: list[float] = field(default_factory=list)

    def add(self, frame: torch.Tensor) -> None:
        """uint8 CHW."""
        img = to_float(frame)
        if self.previous is not None:
            self.distances.append(float((img - self.previous).square().mean().sqrt()))
        self.previous = img


class Interpolation:
    """One run of the command."""

    def __init__(self, session: Session, keys: Codes, asked: InterpolateOptions) -> None:
        asked.check_keys(session, keys)
        self.session, self.keys, self.asked = session, keys, asked
        self.originals = sheets.shrunk_cells(keys.originals, asked.tile)
        # w of a stock network has no label, whatever class it was drawn of.
        self.labels = keys.c if spaces.has_prior(session.G) else None
        self.walks = [self._walk(space) for space in asked.chosen_spaces(keys)]
        self.figures = {walk.space: Figures() for walk in self.walks}
        self._notes()

    def _walk(self, space: str) -> Walk:
        G, asked = self.session.G, self.asked
        try:
            if asked.grid:
                made = editing.bilinear(G, self.keys.code, self.labels, space, asked.steps + 1)
                return Walk(space, *made, editing.NoiseGrid(G, self.keys.noise, asked.steps + 1))
            made = editing.interpolate(G, self.keys.code, self.labels, space, asked.steps, asked.path, asked.loop)
            return Walk(space, *made, editing.NoisePath(G, self.keys.noise, asked.steps, asked.loop))
        except ValueError as error:  # Keyframes that no arc leads between.
            raise UserError(f'--space={space}: {error}') from None

    def _notes(self) -> None:
        code = self.keys.code
        layered = code.ndim == 3 and bool((code != code[:, :1]).any())
        chosen = [walk.space for walk in self.walks]
        if layered and 'y' in chosen:
            click.echo('--space=y: of codes that differ from layer to layer it takes the first layer’s; y+ takes all',
                       err=True)  # fmt: skip
        if code.ndim == 2 and 'y+' in chosen:
            click.echo('--space=y+: these codes have one y for all layers, so that y+ is the same as y', err=True)
        most = self._most_strips()
        if not self.asked.grid and most < len(self.keys) - (not self.asked.loop):
            click.echo(f'strip.png: has room for the first {most} pairs of {len(self.keys)} keyframes', err=True)
        if self.labels is not None and bool((self.labels != self.labels[:1]).any()):
            click.echo('The keyframes are of different classes: labels go linearly from one to the next, of which the '
                       'network has seen only the ends', err=True)  # fmt: skip

    def run(self) -> None:
        """Draws and writes everything, and prints the table of figures."""
        os.makedirs(self.session.outdir, exist_ok=True)
        shown = self._draw()
        for walk in self.walks:
            self._save_codes(walk)
        if self.asked.grid:
            for walk in self.walks:
                save_png(self._grid(walk, shown), self._path(f'grid_{walk.label}.png'))
        else:
            save_png(self._strips(shown), self._path('strip.png'))
        told = {walk.space: self._told(walk) for walk in self.walks}
        results.save_json(self._path('results.json'), self._report(told))
        click.echo('\n'.join(results.aligned(_table(told))))

    def _path(self, *names: str) -> str:
        return os.path.join(self.session.outdir, *names)

    # Pictures

    def _draw(self) -> dict[tuple[str, int], torch.Tensor]:
        """Renders all frames, with video and files on the way -> those that strips show, small, by space and index."""
        shown: dict[tuple[str, int], torch.Tensor] = {}
        wanted = set(range(len(self.walks[0].code))) if self.asked.grid else self._wanted()
        files = PictureFolder(self._path('frames'), 'png')
        together = zip(*(self._frames(walk, files) for walk in self.walks))

        spaces_drawn = [walk.space for walk in self.walks]

        def frames() -> Iterator[torch.Tensor]:
            for index, images in enumerate(together):
                for walk, img in zip(self.walks, images):
                    if index in wanted:
                        shown[walk.space, index] = sheets.shrunk(img, self.asked.tile)
                yield images[0] if self.asked.video is None else _video_frame(spaces_drawn, images)

        with files:
            if self.asked.video is None:
                deque(frames(), maxlen=0)
            else:
                save_video(self._path(f'video.{self.asked.video}'), frames(), self.asked.fps)
        return shown

    def _frames(self, walk: Walk, files: PictureFolder) -> Iterator[torch.Tensor]:
        """The frames of one path, uint8 CHW, as they are drawn."""
        index = 0
        for batch in self.session.render_batches(walk.code, walk.c, walk.noise, desc=f'Frames in {walk.space}'):
            for img in batch:
                if self.asked.frames:
                    files.add(img, walk.frame_name(index))
                if not self.asked.grid:
                    self.figures[walk.space].add(img)
                index += 1
                yield img

    def _segments(self) -> Iterator[tuple[int, int, list[int]]]:
        """The frames that strips show, of as many pairs of keyframes as there is room for."""
        every = editing.segments(len(self.keys), self.asked.steps, self.asked.loop)
        for first, last, indices in itertools.islice(every, self._most_strips()):
            yield first, last, [indices[place] for place in shown_places(len(indices))]

    def _most_strips(self) -> int:
        rows = sheets.most_rows(MAX_COLUMNS + 2, self.session.G.img_resolution, self.asked.tile)
        return max(1, rows // len(self.walks))

    def _wanted(self) -> set[int]:
        return {index for _first, _last, indices in self._segments() for index in indices}

    def _strips(self, shown: Mapping[tuple[str, int], torch.Tensor]) -> torch.Tensor:
        """One strip for each pair of neighbours, with a row for each space and the originals at its ends."""
        with_originals = any(img is not None for img in self.originals)
        captions = [walk.space for walk in self.walks] if len(self.walks) > 1 else ()
        parts = []
        for first, last, indices in self._segments():
            rows: list[list[sheets.Cell]] = [[shown[walk.space, i] for i in indices] for walk in self.walks]
            times = [f'{(i % self.asked.steps) / self.asked.steps:.2f}' for i in indices[1:-1]]
            columns = [self.keys.names[first], *times, self.keys.names[last]]
            if with_originals:
                ends: list[tuple[sheets.Cell, sheets.Cell]] = [(None, None)] * len(rows)
                ends[0] = (self.originals[first], self.originals[last])
                rows = [[left, *row, right] for row, (left, right) in zip(rows, ends)]
                columns = [_original(ends[0][0]), *columns, _original(ends[0][1])]
            parts.append(sheets.sheet(rows, columns, captions, side=self.asked.tile))
        return sheets.stack(parts)

    def _grid(self, walk: Walk, shown: Mapping[tuple[str, int], torch.Tensor]) -> torch.Tensor:
        side = self.asked.steps + 1
        rows: list[list[sheets.Cell]] = [[shown[walk.space, i * side + k] for k in range(side)] for i in range(side)]
        blank = [''] * (side - 2)
        above, below = ([self.keys.names[i], *blank, self.keys.names[i + 1]] for i in (0, 2))
        originals = self.originals
        if any(img is not None for img in originals):
            rows = [[None, *row, None] for row in rows]
            for row, i in ((rows[0], 0), (rows[-1], 2)):
                row[0], row[-1] = originals[i], originals[i + 1]
            above = [_original(originals[0]), *above, _original(originals[1])]
            below = [_original(originals[2]), *below, _original(originals[3])]
        return sheets.sheet(rows, above, below=below, side=self.asked.tile)

    # Codes and figures

    def _save_codes(self, walk: Walk) -> None:
        noise: list[dict[str, torch.Tensor]] = []
        if 0 < walk.noise.values <= MAX_NOISE:
            noise = walk.noise[:]
        elif walk.noise.values:
            click.echo(f'path_{walk.label}.npz: without the frames’ noise, which would be too large', err=True)
        names = [walk.frame_name(i) for i in range(len(walk.code))]
        codes = made_codes(names, walk.code, walk.c, noise)
        code_output.save_codes(self._path(f'path_{walk.label}.npz'), self.session.G, codes)

    def _told(self, walk: Walk) -> dict[str, Any]:
        """The figures of one path, for JSON."""
        told: dict[str, Any] = {'frames': len(walk.code)}
        distances = self.figures[walk.space].distances
        if distances:
            told['picture_length'] = sum(distances)
            told['largest_step'] = max(distances)
        figures = code_output.prior_figures(self.session.G, walk.code, walk.c)
        if figures:
            told['mean_z_norm2'] = sum(figures['z_norm2']) / len(walk.code)
            told['lowest_typicality'] = min(figures['typicality'])
        return told | {'each_frame': {'step': distances, **figures}}

    def _report(self, told: Mapping[str, Any]) -> dict[str, Any]:
        asked = self.asked
        return {
            'network': self.session.network, 'steps': asked.steps, 'path': asked.path, 'loop': asked.loop,
            'grid': asked.grid, 'noise_mode': self.session.noise_mode, 'truncation_psi': self.session.trunc,
            'keyframes': [dict(name=name, source=source) for name, source in zip(self.keys.names, self.keys.sources)],
            'units': UNITS, 'spaces': told,
        }  # fmt: skip


UNITS = {
    'step': 'root mean square difference from one frame to the next, images in [-1, 1]',
    'picture_length': 'sum of the steps',
    **prior.UNITS,
}
COLUMNS = {
    'frames': ('frames', 'd'),
    'picture_length': ('picture length', '.3f'),
    'largest_step': ('largest step', '.3f'),
    'mean_z_norm2': ('mean |z|^2', '.1f'),
    'lowest_typicality': ('lowest typical p', '.3g'),
}


def _table(told: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    keys = [key for key in COLUMNS if all(key in figures for figures in told.values())]
    rows = [[space, *(format(figures[key], COLUMNS[key][1]) for key in keys)] for space, figures in told.items()]
    return [['space', *(COLUMNS[key][0] for key in keys)], *rows]


def shown_places(count: int) -> list[int]:
    """Of so many frames those that a strip shows, the first and the last among them; evenly if that leaves enough."""
    most = min(MAX_COLUMNS, count)
    columns = next((n for n in range(most, MAX_COLUMNS // 2, -1) if (count - 1) % (n - 1) == 0), most)
    return torch.linspace(0, count - 1, columns).round().int().tolist()


def _original(img: torch.Tensor | None) -> str:
    return '' if img is None else 'original'


def _video_frame(names: list[str], images: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """One path's frames as they are, small ones magnified; of several, side by side with their spaces above."""
    factor = legible_factor(images[0].shape[1], VIDEO_SIDE)
    if len(images) == 1:
        return enlarge(images[0], factor)
    return sheets.sheet([images], names, side=images[0].shape[1] * factor)
