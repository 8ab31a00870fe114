"""Images in batches for a command: read, fitted, counted when they can't be used; and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click
import torch

from lia_plugin import host, results
from lia_plugin.background import ahead
from lia_plugin.cropping import Cropper
from lia_plugin.images import LoadedImage, to_float
from lia_plugin.tally import Tally
from lia_plugin.targets import Target

READERS = 4  # Threads that decode; Pillow lets others run meanwhile.
MAX_FULL = 8  # Whole pictures in memory: a photograph of twelve megapixels has 36 MB.
MAX_NOTES = 5  # So many images that had to be fitted are named on the screen; all are in results.json.

Group = list[tuple[Target, LoadedImage]]


class Progress:
    """A bar over the images, with the time that is left; in a refinement it moves with every step."""

    def __init__(self, total: int, steps: int | None, tally: Tally | None = None) -> None:
        """With a `tally`, `total` is of all processes, and the first one shows how far they are together."""
        from tqdm import tqdm

        self.steps, self.tally = steps, tally
        self.started = False
        self.finished = 0.0
        # None = where nobody looks.
        hidden = True if host.rank() != 0 or (total == 1 and steps is None) else None
        form = '{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}]{postfix}'
        self.bar = tqdm(total=total, desc='Inverting', disable=hidden, bar_format=form)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, images: int, step: int) -> None:
        """A batch has come to this step of its refinement."""
        if self.steps:
            self._move(self.finished + images * step / self.steps)

    def done(self, images: int) -> None:
        """So many images are finished, or out of use."""
        self.started = True
        self.finished += images
        self._move(self.finished)

    def wait(self) -> None:
        """In the first of several processes, until all have come to their end."""
        if self.tally is not None:
            for position in self.tally.finish(self.finished):
                self.bar.update(position - self.bar.n)

    def _move(self, position: float) -> None:
        if self.tally is not None:
            position = self.tally(position)
        self.bar.update(position - self.bar.n)


def read_batches(
    items: Sequence[Target], batch: int, cropper: Cropper, writer: results.InversionWriter, progress: Progress,
) -> Iterator[Group]:
    """Readable images in groups, each as the cropper fits it to the network; the next ones are decoded meanwhile.

    Unreadable ones go to the writer's failures, and to stderr by name.
    """
    group: Group = []
    noted = 0
    early = min(2 * batch, MAX_FULL) if any(map(cropper.wants_full, items)) else 2 * batch
    for target, reading in ahead(cropper.read, items, READERS, early):
        try:
            loaded = cropper.crop(target, reading.result())
        except host.UserError as error:
            writer.fail(target, str(error))
            progress.finished += 1
            if progress.bar.total > 1:
                click.echo(str(error), err=True)
            continue
        if loaded.notes and noted <= MAX_NOTES and progress.tally is None:
            noted += 1
            text = f'{target.label}: {"; ".join(loaded.notes)}'
            click.echo(text if noted <= MAX_NOTES else 'changes to further images: see results.json', err=True)
        group.append((target, loaded))
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def tell_changes(entries: Sequence[dict[str, Any]]) -> None:
    """Tells on stderr how images had to be fitted, of results.json's entries: what one process tells as it goes."""
    changed = [entry for entry in entries if entry['changes']]
    for entry in changed[:MAX_NOTES]:
        click.echo(f'{entry["source"]}: {"; ".join(entry["changes"])}', err=True)
    if len(changed) > MAX_NOTES:
        click.echo('changes to further images: see results.json', err=True)


def stack_images(group: Sequence[tuple[Target, LoadedImage]]) -> torch.Tensor:
    """Pixels of a group -> NCHW, float32, [-1, 1]."""
    return to_float(torch.stack([loaded.pixels for _target, loaded in group]))


def report_failures(writer: results.InversionWriter, total: int) -> int:
    """Gives the exit code, and tells a count and names of the images that could not be used.

    Raises UserError if none could: with its own reason for a single one.
    """
    if not writer.failures:
        return 0
    if total == 1:
        raise host.UserError(writer.failures[0]['reason'])
    names = [failure['image'] for failure in writer.failures]
    listed = ', '.join(names[:MAX_NOTES]) + (' …' if len(names) > MAX_NOTES else '')
    message = f'{len(names)} of {total} images could not be used: {listed}'
    if not writer.rows:
        raise host.UserError(message)
    click.echo(f'Error: {message}', err=True)
    return 1
