"""How an image becomes the network's square for inversion: its centre, its landmarks' crop, or the one that fits best.

Also whether the centre crop looks as if it were far from what the network was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import click
import torch

from lia_plugin import alignment, alignment_search, face_detector, landmark_files
from lia_plugin.host import UserError
from lia_plugin.images import LoadedImage, fitted, with_channels
from lia_plugin.pasting import take
from lia_plugin.placement import Placement, centre_crop
from lia_plugin.targets import Target

DETECT, SEARCH, BESIDE = 'detect', 'search', 'beside'


class Aligner(Protocol):
    """Gives the crop of a full picture; raises UserError for one that has none."""

    def __call__(self, target: Target, full: torch.Tensor, resolution: int) -> Placement: ...


class LandmarkAligner:
    """FFHQ's crop, by landmarks that a function knows."""

    def __init__(self, lookup: landmark_files.Lookup) -> None:
        self.lookup = lookup

    def __call__(self, target: Target, full: torch.Tensor, resolution: int) -> Placement:
        return _face(target, self.lookup(target), full, resolution)


class DetectingAligner:
    """FFHQ's crop of the largest face that a detector finds."""

    def __init__(self, detect: face_detector.Detector) -> None:
        self.detect = detect

    def __call__(self, target: Target, full: torch.Tensor, resolution: int) -> Placement:
        points = face_detector.landmarks(full, self.detect)
        if points is None:
            raise UserError(f'{target.label}: no face found in it; give landmarks, --align=FILE, or leave --align out')
        return _face(target, points, full, resolution)


def _face(target: Target, points: Any, full: torch.Tensor, resolution: int) -> Placement:
    size = (full.shape[2], full.shape[1])
    try:
        placement = alignment.face_placement(points, size, resolution)
    except ValueError as error:
        raise UserError(f'{target.label}: {error}') from None
    x, y = placement.corners.mean(axis=0)
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        raise UserError(f'{target.label}: its landmarks lie outside of it, about ({x:.0f}, {y:.0f}); the picture, '
                        f'upright, has {size[0]}x{size[1]} pixels')
    return placement


class SearchingAligner:
    """The crop that the network itself draws best; see `alignment_search`."""

    def __init__(self, G: Any, labels: Mapping[str, torch.Tensor] | None, batch: int) -> None:
        self.G, self.labels, self.batch = G, labels, batch

    def __call__(self, target: Target, full: torch.Tensor, resolution: int) -> Placement:
        base = centre_crop((full.shape[2], full.shape[1]), resolution)
        return alignment_search.find(self.G, full, base, label_of(self.labels, target, self.G), self.batch)[0]


def label_of(labels: Mapping[str, torch.Tensor] | None, target: Target, G: Any) -> torch.Tensor | None:
    """[1, c_dim] on G's device, None without classes."""
    return None if labels is None else labels[target.name][None].to(G.mapping.w_avg.device)


def open_aligner(said: str | None, G: Any, labels: Mapping[str, torch.Tensor] | None, batch: int) -> Aligner | None:
    """What `--align` says: 'detect', 'search', 'beside' or a file of landmarks; None = the centre.

    Raises:
        UserError: a file or package is missing, or the network has no encoder to search with.
    """
    if said is None:
        return None
    if said == DETECT:
        return DetectingAligner(face_detector.open_yunet())
    if said == SEARCH:
        if getattr(G, 'encoder', None) is None:
            raise UserError('--align=search: needs a network with an encoder')
        return SearchingAligner(G, labels, batch)
    return LandmarkAligner(landmark_files.beside if said == BESIDE else landmark_files.open_landmarks(said))


TINY_P = 0.001  # Of p_distance: of a thousand images of the calibration none lies so far out.
MOST_AT_ONCE = 64
PIXELS_AT_ONCE = 2**22


MOST_CHECKED = 16  # The check of an image costs as much as twenty inversions: of many images it takes a sample.


def open_cropper(
    G: Any, labels: Mapping[str, torch.Tensor] | None, align: str | None, check: bool, batch: int,
    items: Sequence[Target],
) -> Cropper:
    """The cropper of `--align` and `--check-alignment` for these items; raises UserError as `open_aligner` does."""
    at_once = max(batch, min(MOST_AT_ONCE, PIXELS_AT_ONCE // G.img_resolution**2))
    checked = sample_names(items) if check else ()
    return Cropper(G, labels, open_aligner(align, G, labels, at_once), checked, at_once)


def sample_names(items: Sequence[Target], most: int = MOST_CHECKED) -> frozenset[str]:
    """Names of all items, or of `most` that are spread evenly over them."""
    count = min(most, len(items))
    return frozenset(items[i * len(items) // count].name for i in range(count))


class Cropper:
    """Reads targets, as `Target.read` does, by an aligner if there is one; else looks at the centre crops `checked`.

    `gains` then holds what a moved crop would gain, by the target's name; see `alignment_search.moved_gain`.
    """

    def __init__(
        self, G: Any, labels: Mapping[str, torch.Tensor] | None, aligner: Aligner | None, checked: Collection[str],
        batch: int,
    ) -> None:
        self.G, self.labels, self.aligner, self.checked, self.batch = G, labels, aligner, checked, batch
        self.gains: dict[str, float] = {}

    def __call__(self, target: Target) -> LoadedImage:
        return self.crop(target, self.read(target))

    def wants_full(self, target: Target) -> bool:
        """Whether it looks at the whole picture, which may be many times as large as the crop."""
        return self.aligner is not None or target.name in self.checked

    def read(self, target: Target) -> LoadedImage:
        """What `crop` needs of a file; may be called in any thread."""
        if self.wants_full(target):
            return target.read_full()
        return target.read(self.G.img_resolution, self.G.img_channels)

    def crop(self, target: Target, found: LoadedImage) -> LoadedImage:
        """What was read, as the network takes it; one call at a time, for it may ask the network."""
        if not self.wants_full(target):
            return found
        resolution, channels = self.G.img_resolution, self.G.img_channels
        full = with_channels(found.pixels, channels)
        if self.aligner is None:
            loaded = fitted(found, resolution, channels)
            assert loaded.placement is not None, 'it was fitted'
            placement = target.own(loaded.placement)
            self._look(target, full, placement)
            return loaded._replace(placement=placement)
        placement = target.own(self.aligner(target, full, resolution))
        return LoadedImage(take(full, placement), (*found.notes, *_notes(placement)), placement)

    def far(self, entries: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Images of results.json's entries that look far from the training alignment: their source -> why.

        Entries get `moved_gain`, where it was measured.
        """
        found = {}
        for entry in entries if self.checked else ():
            gain = self.gains.get(entry['image'])
            if gain is not None:
                entry['moved_gain'] = gain
            if gain is not None and gain > alignment_search.FAR_GAIN:
                usual = alignment_search.FAR_GAIN
                found[entry['source']] = (f'a moved crop fits better, by {_apart(gain, usual)} nats; up to {usual} '
                                          'is usual')
            elif entry.get('p_distance', 1) < TINY_P:
                found[entry['source']] = f'its z is as far out as p = {entry["p_distance"]:.2g} of the calibration'
        return found

    def _look(self, target: Target, full: torch.Tensor, placement: Placement) -> None:
        judge = alignment_search.Judge(self.G, full, placement, label_of(self.labels, target, self.G), self.batch)
        self.gains[target.name] = alignment_search.moved_gain(judge)


def _apart(number: float, other: float) -> str:
    """A number with two decimals, or as many as it takes to differ from another one."""
    digits = 2
    while digits < 17 and float(f'{number:.{digits}f}') == other:
        digits += 1
    return f'{number:.{digits}f}'


def _notes(placement: Placement) -> list[str]:
    """What was done, and whether there was enough of the picture for it."""
    corners, size = placement.corners, placement.size
    side = placement.scale * placement.resolution
    notes = [f'aligned: crop of {side:.0f} pixels about {corners.mean(axis=0)[0]:.0f}, {corners.mean(axis=0)[1]:.0f}']
    if (corners < -0.5).any() or (corners > [side + 0.5 for side in size]).any():
        notes.append('it reaches over the border, where the picture goes on mirrored')
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# Far from the training alignment

MAX_TOLD = 5


def tell_far(far: Mapping[str, str], checked: int, total: int) -> None:
    """One line on stderr for each image that is far from the training alignment (label -> why), and what would help.

    How many were looked at is told where these are not all.
    """
    for label, why in list(far.items())[:MAX_TOLD]:
        click.echo(f'{label}: looks far from what the network was trained on ({why}); --align=search may help, and '
                   'for faces as FFHQ has them --align=detect or a file of landmarks', err=True)  # fmt: skip
    if len(far) > MAX_TOLD:
        click.echo(f'… and {len(far) - MAX_TOLD} more, far_from_alignment in results.json', err=True)
    if far and checked < total:
        click.echo(f'Of {total} images {checked}, spread over all, were looked at for this', err=True)
