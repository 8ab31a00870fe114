"""`python -m lia_plugin audit`: a data set through the eyes of a network."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from lia_plugin.params import Count, FiniteRange

if TYPE_CHECKING:
    import torch

    from lia_plugin.audit import Judged, Measured
    from lia_plugin.targets import Target

SHARE = FiniteRange(min=0, max=1, max_open=True)
MAX_NAMED = 5  # So many images are named on the screen; all are in audit.csv.


@dataclasses.dataclass
class Job:
    """What each process needs; plain values, so that it can be sent to others."""

    network: str  # A file: a URL has been fetched by now.
    trust: bool
    targets: list[Target]
    class_index: int | None
    batch: int
    device: str


@click.command(context_settings={'show_default': True})
@click.option('--network', required=True, metavar='PATH|URL', help='Network pickle with an encoder')
@click.option('--data', required=True, metavar='PATH|URL', help='Data set: folder or zip of images')
@click.option('--outdir', default='audit', metavar='DIR', help='Where to write')
@click.option('--calibration', 'calibration_file', metavar='FILE',
              help="Compare codes with this set's, as another audit wrote it  [default: with those of --data itself]")
@click.option('--drop-worst', type=SHARE, default=0.0, metavar='SHARE',
              help='Drop this share of images, those with the largest reconstruction error')
@click.option('--drop-atypical', type=SHARE, default=0.0, metavar='SHARE',
              help='Drop this share of images, those with the least typical codes')
@click.option('--drop-duplicates', type=click.Choice(['yes', 'no', 'all']), default='yes',
              help='Drop all but the first of equal images; all = also of nearly equal and of mirrored ones')
@click.option('--near', type=SHARE, default=0.05, metavar='SHARE',
              help='Near-duplicates differ by at most this share of what two random images of the set differ by (MSE); '
                   '0 = look for equal pixels only')
@click.option('--num', type=click.IntRange(min=1), metavar='INT',
              help='Look at so many images, spread evenly over the set  [default: all]')
@click.option('--class', 'class_idx', type=int, metavar='N',
              help='Class of all images, for a conditional network  [default: by dataset.json]')
@click.option('--gpus', type=click.IntRange(min=1), metavar='INT',
              help='Number of GPUs, or of processes on a CPU  [default: 1, or those that torchrun started]')
@click.option('--batch', type=Count(), default=32, help='Images at once')
@click.option('--device', default='auto', metavar='NAME', help='cpu, cuda, cuda:1, mps …; auto = the best there is')
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def audit(
    network: str,
    data: str,
    outdir: str,
    calibration_file: str | None,
    drop_worst: float,
    drop_atypical: float,
    drop_duplicates: str,
    near: float,
    num: int | None,
    class_idx: int | None,
    gpus: int | None,
    batch: int,
    device: str,
    trust_pickle: bool,
) -> int:
    """Look at a data set through a network: odd images, duplicates, and a list of what to keep.

    Ranks all images by reconstruction error and by how typical their codes are, finds duplicates (equal, nearly equal,
    mirrored), and writes into --outdir:

    \b
      index.html       the worst, the least typical, the duplicates, beside their reconstructions
      audit.csv        one line for each image, with all figures and what is suggested
      audit.json       figures of the whole set
      keep.txt         names of the images to keep; nothing in --data is changed
      calibration.npz  what is usual for codes of this set, for invert.py --calibration

    \b
    Only equal images are dropped unless more is asked for. The filtered set:
      dataset_tool.py --source=set.zip --dest=clean.zip --include=audit/keep.txt

    Exit codes: 0 done; 1 done, but some images could not be read; 2 nothing written.
    """
    from lia_plugin import audit as work
    from lia_plugin import calibration, evaluation, host, outputs, planning

    outputs.check_output('--outdir', outdir, folder=True)
    path, source = host.fetch(network), host.fetch(data)
    processes = host.number_of_processes(gpus)
    run_device = planning.resolve_device(device, processes)
    G = load_network(path, trust_pickle)
    targets, others = choose_targets(source, num)
    work.label_reader(G, class_idx, targets)  # Says now what is wrong with the labels.
    usual = None if calibration_file is None else calibration.load(calibration_file, G)
    measured = look_at_all(Job(path, trust_pickle, targets, class_idx, batch, run_device), processes, data)
    rules = work.Rules(drop_worst, drop_atypical, drop_duplicates, near)
    evaluation.full_precision()  # Of this process too: it compares images, and reconstructs those of the page.
    name = os.path.basename(os.path.abspath(source))
    hashed = calibration.network_hash(G)
    judged = work.judge(measured, usual, rules, pixel_reader(G, targets, measured), hashed, name, run_device)
    settings = dict(
        network=network, network_hash=hashed, data=data, resolution=G.img_resolution, channels=G.img_channels,
        z_dim=G.z_dim, images_in_set=len(targets) + len(others), rules=rules._asdict(), class_idx=class_idx, num=num,
        batch=batch, gpus=processes, device=run_device,
    )  # fmt: skip
    return report(G, targets, others, measured, judged, settings, outdir)


def look_at_all(job: Job, gpus: int, data: str) -> Measured:
    """What all processes have measured. UserError if none of the images could be read."""
    from lia_plugin import host

    measured: Measured = host.spawn(look, gpus, (job,), device=job.device)
    if len(measured.items) == 0:
        raise host.UserError(f'--data={data}: none of its {len(job.targets)} images can be read: '
                             f'{next(iter(measured.failures.values()))}')
    return measured


def load_network(path: str, trust: bool) -> Any:
    """G_ema, frozen, on the CPU. UserError unless it can invert images."""
    import torch

    from lia_plugin.commands.invert import load_generator

    return load_generator(path, torch.device('cpu'), trust)


def choose_targets(source: str, num: int | None) -> tuple[list[Target], list[Target]]:
    """The images to look at, and the others. UserError for what is no folder or zip of images."""
    from lia_plugin.host import UserError
    from lia_plugin.targets import collect

    everything = collect([source], option='--data')
    places = {target.source for target in everything}
    if None in places or len(places) > 1:  # Names in keep.txt are relative to one place.
        found = 'a single image' if len(everything) == 1 else 'several places or images'
        raise UserError(f'--data={source}: {found}; an audit takes one folder or zip')
    count = min(num or len(everything), len(everything))
    chosen = {i * len(everything) // count for i in range(count)}
    return ([target for i, target in enumerate(everything) if i in chosen],
            [target for i, target in enumerate(everything) if i not in chosen])


def look(rank: int, world_size: int, job: Job) -> Measured | None:
    """One process's part; the first one gives what all have measured."""
    from lia_plugin import audit as work
    from lia_plugin import evaluation, host, machines
    from lia_plugin.commands.dataset_tool import show_progress

    evaluation.full_precision()
    device = host.own_device(job.device, rank)
    machines.check_files({'--network': job.network, '--data': job.targets[0].source})
    G = load_network(job.network, job.trust).to(device)
    progress, close_progress = show_progress() if rank == 0 else (lambda done, total: None, lambda: None)
    try:
        part = work.measure(G, job.targets, device, job.class_index, job.batch, rank, world_size, progress)
    finally:
        close_progress()
    parts = host.gather_objects(part)
    return work.merge(parts) if rank == 0 else None


def pixel_reader(G: Any, targets: list[Target], measured: Measured) -> Any:
    """Place in `measured` → that image again, floats [C, H, W] in [-1, 1]."""
    from lia_plugin.images import to_float

    def read(index: int) -> torch.Tensor:
        target = targets[int(measured.items[index])]
        return to_float(target.read(G.img_resolution, G.img_channels).pixels)

    return read


def make_gallery(G: Any, targets: list[Target], measured: Measured, settings: dict[str, Any]) -> Any:
    """Places in `measured` → (originals, reconstructions), NCHW on the CPU."""
    import torch

    from lia_plugin import audit as work

    device = torch.device(settings['device'])
    read = pixel_reader(G, targets, measured)
    label_of = work.label_reader(G, settings['class_idx'], targets)
    G = G.to(device)

    @torch.no_grad()
    def gallery(order: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        img = torch.stack([read(index) for index in order])
        labels = [label_of(targets[int(measured.items[index])]) for index in order]
        given = [label for label in labels if label is not None]
        recons = []
        for start in range(0, len(img), settings['batch']):
            c = torch.stack(given[start : start + settings['batch']]).to(device) if given else None
            y = G.invert(img[start : start + settings['batch']].to(device), c)[0]
            recons.append(G.decode(y, c, noise_mode='const').to(torch.float32).clamp(-1, 1).cpu())
        return img, torch.cat(recons)

    return gallery


def report(
    G: Any, targets: list[Target], others: list[Target], measured: Measured, judged: Judged, settings: dict[str, Any],
    outdir: str,
) -> int:
    """Writes everything, tells what was found, and gives the exit code."""
    from lia_plugin import audit_report, calibration

    gallery = make_gallery(G, targets, measured, settings)
    content = audit_report.save_all(outdir, targets, others, measured, judged, settings, gallery)
    if judged.is_own:
        calibration.save(os.path.join(outdir, 'calibration.npz'), judged.usual)
    found = ', '.join(f'{count} {kind}' for kind, count in content['duplicates'].items())
    click.echo(f'{content["n"]} images: mean MSE {content["mean"]["mse"]:.4f}, mean |z|^2 '
               f'{content["mean"]["z_norm2"]:.1f} (prior: {settings["z_dim"]})')
    for kind in ('error', 'code'):
        names = content[f'odd_by_{kind}']
        click.echo(f'odd by {kind}: {content["odd"][kind]}{": " if names else ""}{named(names)}')
    click.echo(f'duplicates: {found}')
    page = printable(os.path.join(outdir, 'index.html'))
    click.echo(f'keep {content["kept"]}, drop {content["dropped"]}; look at {page}')
    failed = content['unreadable']
    if failed:
        click.echo(f'Error: {len(failed)} of {len(targets)} images could not be read: {named(failed)}', err=True)
    return 1 if failed else 0


def named(names: list[str]) -> str:
    return ', '.join(map(printable, names[:MAX_NAMED])) + (' …' if len(names) > MAX_NAMED else '')


def printable(text: str) -> str:
    """A file's name may hold anything, and a terminal obeys some of it."""
    return ''.join(
        letter if letter.isprintable() else letter.encode('unicode_escape').decode('ascii') for letter in text)
