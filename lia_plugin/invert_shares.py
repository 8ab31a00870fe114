"""`invert` in several processes: each takes its share of the images, the first one writes what is about all of them.

Every process writes its own images' files. What they have come to is sent to the first one, which puts it into the
order of one process. With a --batch, batches are those of one process but for the last images, so that codes are the
same to the bit there, on a CPU if the processes have equally many threads; elsewhere they differ as much as batches
make a difference.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch

from lia_plugin import host, machines, perceptual
from lia_plugin.invert_options import InvertOptions
from lia_plugin.results import MAX_SHOWN
from lia_plugin.targets import Target

if TYPE_CHECKING:
    from lia_plugin.invert_run import Done, Job
    from lia_plugin.results import InversionWriter


MOST_COMPARED = 64  # Files or folders of --target that several machines are asked for.


class Share(NamedTuple):
    """What one process has come to. Plain values, to be sent to another."""

    failures: list[dict[str, str]]
    gains: dict[str, float]  # Of the cropper.
    kept: list[Done]  # What is still to be written, when the generator is tuned for all.
    names: list[str]  # The rest is of the images that were written.
    rows: list[dict[str, float]]
    entries: list[dict[str, Any]]
    pictures: list[Any]
    latents: list[dict[str, torch.Tensor]]
    placements: list[Any]


def share_places(count: int, batch: int, world_size: int) -> list[list[int]]:
    """Each process's places among `count` images: whole batches in turn, and of the rest, too few for a whole batch
    each, equal parts. No process has more than one image more than another."""
    whole = count // (batch * world_size) * world_size  # Batches.
    places: list[list[int]] = [[] for _ in range(world_size)]
    for number in range(whole):
        places[number % world_size] += range(number * batch, (number + 1) * batch)
    rest = count - whole * batch
    for rank in range(world_size):
        begin, end = (whole * batch + rest * r // world_size for r in (rank, rank + 1))
        places[rank] += range(begin, end)
    return places


def invert_share(
    rank: int, world_size: int, asked: InvertOptions, items: Sequence[Target], device: str
) -> int | None:
    """One process's part of the command; gives the exit code in the first one, which prints and finishes.

    Raises UserError as `Job` does, and if no image could be used.
    """
    with host.using_precision(asked.precision, host.own_device(device, rank)):
        return _invert_share(rank, world_size, asked, items, device)


def _invert_share(
    rank: int, world_size: int, asked: InvertOptions, items: Sequence[Target], device: str
) -> int | None:
    from lia_plugin.invert_run import Job
    from lia_plugin.target_batches import report_failures, tell_changes

    asked = prepare(asked, items)
    # Where memory decides how large a batch is, no two calls need have the same ones: all of it is in equal parts.
    mine = share_places(len(items), asked.batch or len(items), world_size)[rank]
    job = Job(asked, items, host.own_device(device, rank), mine)
    job.run()
    shares = host.gather_on_first(share_of(job))
    if shares is None:
        return None
    if world_size > 1:
        job.writer = job.open_writer()
        kept = join(job.writer, job.cropper.gains, shares, items)
        tell_changes(job.writer.entries)
        with job.writer:
            job.tune(kept)
    if job.writer.rows:
        job.finish()
    return report_failures(job.writer, len(items))


def prepare(asked: InvertOptions, items: Sequence[Target]) -> InvertOptions:
    """Looks on all machines for what processes share, and downloads on each what it needs. UserError if it can't be."""
    if machines.several() and host.rank() == 0:
        os.makedirs(asked.outdir, exist_ok=True)
    machines.check_folder('--outdir', asked.outdir)
    places = sorted({item.source or item.path for item in items})[:MOST_COMPARED]
    machines.check_files({f'--target={place}': place for place in places})
    machines.check_files({'--network': None if '://' in asked.network else asked.network})
    needs_vgg16 = asked.optimises and (asked.percep or '').startswith('vgg16')
    vgg16 = perceptual.VGG16_URL if needs_vgg16 and asked.lpips_source in (None, 'none') else None
    with host.first_on_machine():
        for url in (asked.network, asked.lpips_source, vgg16):
            if url is not None and '://' in url:
                host.fetch(url)
    if asked.lpips_source is None:  # All figures of all images, or none.
        cached = host.gather_objects(perceptual.cached_vgg16() is not None)
        if any(cached) and not all(cached):
            if host.rank() == 0:
                click.echo('LPIPS left out: its weights are not on all machines', err=True)
            return dataclasses.replace(asked, lpips_source='none')
    return asked


def share_of(job: Job) -> Share:
    writer = job.writer
    return Share(writer.failures, job.cropper.gains, job.kept, writer.names, writer.rows, writer.entries,
                 writer.pictures, writer.latents, writer.placements)  # fmt: skip


def join(
    writer: InversionWriter, gains: dict[str, float], shares: Sequence[Share], items: Sequence[Target]
) -> list[Done]:
    """Gives an empty writer what all processes have come to, as if it had written all images, in the items' order.

    Returns what is still to be written, in that order.
    """
    place = {item.name: i for i, item in enumerate(items)}
    by_label = {item.label: i for i, item in enumerate(items)}

    def chain(field: str) -> list[Any]:
        return [value for share in shares for value in getattr(share, field)]

    writer.failures = sorted(chain('failures'), key=lambda failure: by_label[failure['image']])
    for share in shares:
        gains.update(share.gains)
    names = chain('names')
    order = sorted(range(len(names)), key=lambda i: place[names[i]])
    for field in ('names', 'rows', 'entries', 'placements'):
        values = chain(field)
        setattr(writer, field, [values[i] for i in order])
    # Each process has kept its first pictures, so the first ones of all are among them.
    writer.pictures = sorted(chain('pictures'), key=lambda picture: place[picture.name])[:MAX_SHOWN]
    if names:
        latents = chain('latents')
        writer.latents = [{name: torch.cat([part[name] for part in latents])[order] for name in latents[0]}]
    kept = chain('kept')
    if writer.failures:  # Processes have filled their batches with images from further on.
        kept = [one for done in kept for one in by_image(done)]
    return sorted(kept, key=lambda done: place[done.group[0][0].name])


def by_image(done: Done) -> list[Done]:
    """The batch as batches of one image each."""
    def part(value: Any, i: int) -> Any:
        if isinstance(value, dict):
            return {name: entry[i : i + 1] for name, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(entry[i : i + 1] for entry in value)
        return None if value is None else value[i : i + 1]

    return [done._replace(group=done.group[i : i + 1], c=part(done.c, i),
                          result=type(done.result)(*(part(value, i) for value in done.result)))
            for i in range(len(done.group))]  # fmt: skip
