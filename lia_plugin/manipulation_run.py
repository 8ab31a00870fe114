"""What `edit manipulate` does once its images have codes: how far each one goes, strips, single images, a video."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from lia_plugin import code_output, manipulation, prior, results, sheets, spaces, typical_limits
from lia_plugin.codes import Codes, unique_names
from lia_plugin.directions import Direction, load_directions
from lia_plugin.edit_session import Session
from lia_plugin.edited_pictures import EditedPictures
from lia_plugin.host import UserError
from lia_plugin.images import enlarge, legible_factor, save_png, with_channels
from lia_plugin.paste_back import DIFFERENCE, CodePaster, Style
from lia_plugin.pasting import FEATHER
from lia_plugin.video import FPS, check_format, save_video

STOPPED = (220, 30, 30)  # RGB of the frame round images that were stopped.
VIDEO_FRAMES = 48  # From one end to the other; then back.
FLAT = 1e-3  # A direction that gets nearer to the boundary by less than this per unit never gets there.
MAX_LISTED = 50
UNITS = {
    'value': 'what was asked for: with --mode=shift the shift, with --mode=distance the signed distance, in --unit',
    'shift': 'how far the code was moved, in units of the space',
    'distance': 'signed distance to the boundary (without one: code . vector), in units of the space',
    'stopped': 'whether --stay-typical ended the way before its goal',
    'mse': 'mean squared difference from the image before the edit, images in [-1, 1]',
    **prior.UNITS,
}


@dataclass(frozen=True)
class ManipulateOptions:
    """The command's own options, by its parameters' names."""

    direction: str
    conditions: tuple[str, ...] = ()
    direction_space: str | None = None
    force: bool = False
    start: float = -3.0
    stop: float = 3.0
    steps: int = 7
    mode: str = 'shift'
    unit: str = 'std'
    layers: tuple[int, ...] | None = None
    stay_typical: float | None = None
    images: bool = False
    video: str | None = None
    fps: int = FPS
    tile: int | None = None
    paste: bool = False
    paste_mode: str = DIFFERENCE
    feather: float = FEATHER

    def check(self) -> None:
        """UserError, one line, for what can't be done here whatever the network."""
        if self.video is not None:
            check_format(self.video, self.fps)
        if self.steps == 1 and self.start != self.stop:
            raise UserError('--steps=1: one step has one place; give --from and --to the same value')

    def values(self, steps: int) -> torch.Tensor:
        """float64 [steps], from --from to --to."""
        return manipulation.even_steps(self.start, self.stop, steps)


@dataclass(frozen=True)
class Move:
    """One direction, by whose distance codes are judged, and the one they go along, which may lack its conditions."""

    G: Any
    direction: Direction
    along: Direction
    asked: ManipulateOptions

    @property
    def layers(self) -> tuple[int, ...] | None:
        return self.asked.layers or self.direction.layers

    def shifts(self, images: Codes, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How far each image goes along for each value [S], and where it was stopped: [N, S] both, on the CPU."""
        wanted = self._wanted(images, values * (self.direction.scale if self.asked.unit == 'std' else 1))
        if self.asked.stay_typical is None:
            return wanted, torch.zeros_like(wanted, dtype=torch.bool)
        ends = []
        for reach in (wanted.amin(dim=1).clamp(max=0), wanted.amax(dim=1).clamp(min=0)):
            ends.append(typical_limits.limits(
                self.G, images.code, images.c, self.along, reach, self.asked.stay_typical, self.layers))  # fmt: skip
        gone = wanted.clamp(ends[0][:, None], ends[1][:, None])
        return gone, gone != wanted

    def _wanted(self, images: Codes, goals: torch.Tensor) -> torch.Tensor:
        if self.asked.mode == 'shift':
            return goals.expand(len(images), -1)
        here = manipulation.distance(self.G, images.code, images.c, self.direction).cpu().double()
        return (goals - here[:, None]) / self.pace

    @property
    def pace(self) -> float:
        return manipulation.pace(self.direction, self.along, self.G.num_ws, self.layers)

    def codes(self, images: Codes, shifts: torch.Tensor) -> Codes:
        """Each image at each of its shifts [N, S], image by image: N·S codes."""
        count = shifts.shape[1]
        many = images[[i for i in range(len(images)) for _ in range(count)]]
        moved = manipulation.shift(self.G, many.code, many.c, self.along, shifts.flatten(), self.layers)
        return many.with_code(moved)


def make_move(session: Session, asked: ManipulateOptions) -> Move:
    """Reads and checks the direction and its conditions.

    Raises:
        UserError: one line, for whatever is wrong with these or doesn't go with this network.
    """
    G = session.G
    if asked.layers and max(asked.layers) >= G.num_ws:
        raise UserError(f'--layers: this network has the layers 0 to {G.num_ws - 1}, not {max(asked.layers)}')
    direction = _one(load_directions(asked.direction, G, asked.direction_space, asked.force), asked.direction)
    conditions = [one for spec in asked.conditions
                  for one in load_directions(spec, G, asked.direction_space, asked.force)]  # fmt: skip
    layers = asked.layers or direction.layers
    try:
        along = manipulation.project_out(direction, conditions, G.num_ws, layers) if conditions else direction
    except ValueError as error:
        raise UserError(f'--conditions: {error}') from None
    move = Move(G, direction, along, asked)
    _check_move(move)
    return move


def _one(found: Sequence[Direction], spec: str) -> Direction:
    if len(found) > 1:
        names = ', '.join(direction.name for direction in found[:MAX_LISTED])
        raise UserError(f'--direction={spec}: has {len(found)} directions; name one as {spec}:NAME: {names}')
    return found[0]


def _check_move(move: Move) -> None:
    asked = move.asked
    if asked.mode == 'distance' and move.direction.bias is None:
        raise UserError(f'--mode=distance: {move.direction.name} has no boundary to be at a distance from; take shift')
    if asked.mode == 'distance' and abs(move.pace) < FLAT:
        raise UserError(f'--mode=distance: {move.direction.name} does not lead to its boundary once --conditions or '
                        '--layers have taken their part; take shift')  # fmt: skip
    if asked.stay_typical is not None:
        if not spaces.has_prior(move.G):
            raise UserError('--stay-typical: this network has no φ, hence no prior to judge by')
        if move.layers is not None and 0 not in move.layers:
            raise UserError('--stay-typical: judges the base code, layer 0, which is not among the layers that move')


class Manipulation:
    """One run of the command."""

    def __init__(self, session: Session, images: Codes, asked: ManipulateOptions, move: Move) -> None:
        self.session, self.images, self.asked, self.move = session, images, asked, move
        self.paster = CodePaster(session, images, Style(asked.paste_mode, asked.feather)) if asked.paste else None
        self.values = asked.values(asked.steps)
        self.shifts, self.stopped = move.shifts(images, self.values)
        self.codes = move.codes(images, self.shifts)

    def run(self) -> None:
        """Draws and writes everything, and prints a table."""
        session, asked = self.session, self.asked
        os.makedirs(session.outdir, exist_ok=True)
        before = session.render(self.images.code, self.images.c, self.images.noise)
        names = unique_names([f'{name}_{k:02d}' for name in self.images.names for k in range(asked.steps)])
        most = sheets.most_shown('strip.png', len(before), asked.steps + 2, before.shape[-1], asked.tile)
        pictures = EditedPictures(session, asked.steps, names, asked.images, self.paster)
        shown, mse = pictures.draw(self.codes, before, most, self._tiles)
        save_png(self._strip(before[:most], shown), self._path('strip.png'))
        code_output.save_codes(self._path('edited.npz'), session.G, dataclasses.replace(self.codes, names=names))
        if asked.video is not None:
            save_video(self._path(f'video.{asked.video}'), self._frames(), asked.fps)
        told = self._told(mse)
        results.save_json(self._path('results.json'), self._report(told))
        click.echo('\n'.join(results.aligned(_table(told))))

    def _path(self, name: str) -> str:
        return os.path.join(self.session.outdir, name)

    # Pictures

    def caption(self, value: float) -> str:
        """'+1.5 sd', 'at -2'."""
        if value == 0:
            return 'as it is' if self.asked.mode == 'shift' else 'boundary'
        unit = ' sd' if self.asked.unit == 'std' else ''
        return f'{"at " if self.asked.mode == "distance" else ""}{value:+.3g}{unit}'

    def _tiles(self, images: torch.Tensor, first: int) -> list[torch.Tensor]:
        """Pictures from number `first` on as the strip shows them: frames round those that were stopped."""
        stopped = self.stopped.flatten()[first : first + len(images)].tolist()
        return [marked(img) if stop else img for img, stop in zip(self._shown(images), stopped, strict=True)]

    def _shown(self, images: torch.Tensor) -> torch.Tensor:
        return sheets.shrunk(_comparable(images, bool(self.stopped.any())), self.asked.tile)

    def _strip(self, before: torch.Tensor, tiles: Sequence[torch.Tensor]) -> torch.Tensor:
        """A row for each image: original, as it is, and the tiles of its steps."""
        steps, count = self.asked.steps, len(before)
        rows: list[list[sheets.Cell]] = [list(tiles[i * steps : (i + 1) * steps]) for i in range(count)]
        columns = [self.caption(value) for value in self.values.tolist()]
        if self.asked.mode == 'distance' or 0 not in self.values.tolist():
            rows, columns = sheets.led_by(list(self._shown(before)), 'as it is', rows, columns)
        first = [None if img is None else self._shown(img[None])[0] for img in self.images.originals[:count]]
        rows, columns = sheets.led_by(first, 'original', rows, columns)
        return sheets.sheet(rows, columns, self.images.names[:count], side=self.asked.tile)

    def _frames(self) -> Iterator[torch.Tensor]:
        """All images together, from one end to the other and back."""
        values = self.asked.values(VIDEO_FRAMES)
        shifts, stopped = self.move.shifts(self.images, values)
        per_row = len(self.images) if len(self.images) <= 4 else math.ceil(math.sqrt(len(self.images)))
        shown = []
        for k, value in enumerate(values.tolist()):
            codes = self.move.codes(self.images, shifts[:, k : k + 1])
            drawn = _comparable(self.session.render(codes.code, codes.c, codes.noise), bool(self.stopped.any()))
            tiles = [marked(img) if stop else img for img, stop in zip(drawn, stopped[:, k].tolist())]
            rows = [tiles[i : i + per_row] for i in range(0, len(tiles), per_row)]
            shown.append(sheets.sheet(rows, below=[self.caption(value)], side=self.asked.tile))
            yield shown[-1]
        yield from shown[-2:0:-1]

    # Figures

    def _told(self, mse: list[float]) -> list[dict[str, Any]]:
        """For JSON, one entry for each image; `mse` of all steps of all images."""
        G, steps = self.session.G, self.asked.steps
        figures: dict[str, list[Any]] = {
            'shift': self.shifts.flatten().tolist(),
            'distance': manipulation.distance(G, self.codes.code, self.codes.c, self.move.direction).tolist(),
            'stopped': self.stopped.flatten().tolist(),
            'mse': mse,
            **code_output.prior_figures(G, self.codes.code, self.codes.c),
        }
        start = manipulation.distance(G, self.images.code, self.images.c, self.move.direction).tolist()
        own = code_output.prior_figures(G, self.images.code, self.images.c)
        told = []
        for i, name in enumerate(self.images.names):
            at = [{'value': value} | {key: column[i * steps + k] for key, column in figures.items()}
                  for k, value in enumerate(self.values.tolist())]  # fmt: skip
            told.append(dict(image=name, source=self.images.sources[i], distance=start[i], stopped=bool(
                self.stopped[i].any())) | {key: column[i] for key, column in own.items()} | {'steps': at})  # fmt: skip
        return told

    def _report(self, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
        asked, direction = self.asked, self.move.direction
        return {
            'network': self.session.network, 'direction': asked.direction, 'meaning': direction.meaning,
            'space': direction.space, 'boundary': direction.bias is not None, 'scale': direction.scale,
            'conditions': list(asked.conditions), 'pace': self.move.pace, 'mode': asked.mode, 'unit': asked.unit,
            'layers': None if self.move.layers is None else list(self.move.layers),
            'stay_typical': asked.stay_typical, 'units': UNITS, 'images': list(told),
        }  # fmt: skip


def marked(img: torch.Tensor) -> torch.Tensor:
    """An RGB image uint8 [3, H, W] with a frame on its edge."""
    made, width = img.clone(), max(1, img.shape[1] // 40)
    colour = torch.tensor(STOPPED, dtype=torch.uint8)[:, None, None]
    for part in (made[:, :width], made[:, -width:], made[:, :, :width], made[:, :, -width:]):
        part[:] = colour
    return made


def _comparable(images: torch.Tensor, framed: bool) -> torch.Tensor:
    """NCHW uint8; if any will get a frame, in colour, and large enough that it hides little."""
    if not framed:
        return images
    return enlarge(with_channels(images, 3), legible_factor(images.shape[2], sheets.SMALL_SIDE))


def _table(told: Sequence[dict[str, Any]]) -> list[list[str]]:
    header = ['image', 'distance', 'first', 'last', 'largest MSE', 'stopped']
    rows = []
    for image in told[:MAX_LISTED]:
        steps = image['steps']
        ends = [format(value, '.3f') for value in (image['distance'], steps[0]['distance'], steps[-1]['distance'])]
        count = sum(step['stopped'] for step in steps)
        largest = format(max(step['mse'] for step in steps), '.5f')
        rows.append([image['image'], *ends, largest, f'{count} of {len(steps)}'])
    if len(told) > MAX_LISTED:
        rows.append([f'… {len(told) - MAX_LISTED} more in results.json', *[''] * 5])
    return [header, *rows]
