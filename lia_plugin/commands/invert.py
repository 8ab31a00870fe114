"""`invert.py`: real images into the latent space of a LIA network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from lia_plugin.calibration import Calibration
    from lia_plugin.images import LoadedImage
    from lia_plugin.perceptual import Perceptual
    from lia_plugin.results import InversionWriter
    from lia_plugin.targets import Target

MAX_NOTES = 5  # So many images that had to be fitted are named on the screen; all are in results.json.


def parse_finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f'{value} is not a finite number', ctx, param)
    return value


@click.command(context_settings={'show_default': True})
@click.option('--network', required=True, metavar='PATH|URL', help='Network pickle with an encoder')
@click.option('--target', 'targets', required=True, multiple=True, metavar='PATH',
              help='Image, folder, pattern or zip; may be given several times')
@click.option('--outdir', default='out', metavar='DIR', help='Where to write')
@click.option('--trunc', type=float, default=1.0, callback=parse_finite, help='Truncation psi of the reconstruction')
@click.option('--batch', type=click.IntRange(min=1), default=8, help='Images at once')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]')
@click.option('--seed', type=click.IntRange(min=0), default=0, help='Random seed, for --noise-mode=random')
@click.option('--noise-mode', type=click.Choice(['const', 'random', 'none']), default='const', help="The layers' noise")
@click.option('--class', 'class_idx', type=int, metavar='N',
              help='Class of all images, for a conditional network  [default: by dataset.json of their folder or zip]')
@click.option('--lpips', 'lpips_source', metavar='PATH|URL|none',
              help="NVIDIA's vgg16.pt, for LPIPS  [default: if it was downloaded before]")
@click.option('--calibration', 'calibration_file', metavar='FILE|none',
              help="What audit found usual among a set's codes  [default: NAME.calibration.npz beside NAME.pkl]")
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def invert(
    network: str,
    targets: tuple[str, ...],
    outdir: str,
    trunc: float,
    batch: int,
    device: str | None,
    seed: int,
    noise_mode: str,
    class_idx: int | None,
    lpips_source: str | None,
    calibration_file: str | None,
    trust_pickle: bool,
) -> int:
    """Find the latents y and z of real images and reconstruct the images from them.

    Writes for each image NAME_recon.png, NAME_side.png and its latents (projected_w.npz for one image, NAME.npz for
    several, with keys w, y, z), results.json with every figure, and for several images grid.png, index.html and
    latents.npz with all of them.

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    import torch

    from lia_plugin import inversion, perceptual, results
    from lia_plugin.targets import collect

    items = collect(targets)
    run_device = inversion.pick_device(device)
    G = load_generator(network, run_device, trust_pickle)
    labels = inversion.target_labels(G, class_idx, items)
    lpips, lpips_name = load_lpips(lpips_source, run_device)
    usual = load_calibration(calibration_file, network, G)
    torch.manual_seed(seed)
    writer = results.InversionWriter(outdir, single=len(items) == 1)
    for group in read_batches(items, batch, G, writer):
        img = stack_images(group).to(run_device)
        c = None if labels is None else torch.stack([labels[target.name] for target, _ in group]).to(run_device)
        if not writer.rows:
            # The first pass through a network sets things up; it would spoil the timing.
            inversion.invert_images(G, img[:1], None if c is None else c[:1], trunc, noise_mode)
        writer.add(group, inversion.invert_images(G, img, c, trunc, noise_mode, lpips, usual))
    if writer.rows:
        settings = dict(network=network, resolution=G.img_resolution, channels=G.img_channels, z_dim=G.z_dim)
        options = dict(trunc=trunc, noise_mode=noise_mode, seed=seed, class_idx=class_idx, lpips=lpips_name)
        told = None if usual is None else dict(data=usual.data, n=usual.n)
        writer.finish({**settings, **options, 'calibration': told, 'device': str(run_device)})
        print(results.format_table(writer.names, writer.rows))
        print(f'n = {len(writer.rows)}, {G.img_resolution}x{G.img_resolution}, images in [-1, 1]; written to {outdir}')
        if lpips is None and lpips_source is None:
            click.echo(f'LPIPS left out: --lpips={perceptual.VGG16_URL} fetches its weights', err=True)
    return report_failures(writer, len(items))


def load_generator(network: str, device: torch.device, trust: bool) -> Any:
    """G_ema of a pickle, frozen, on the device. Raises UserError unless it can invert images."""
    from lia_plugin import host, inversion

    G = host.load_network_pkl(network, trust=trust).get('G_ema')
    if G is None:
        raise host.UserError(f'{network}: holds no generator (G_ema)')
    inversion.check_invertible(G, network)
    return G.eval().requires_grad_(False).to(device)


def load_lpips(source: str | None, device: torch.device) -> tuple[Perceptual | None, str | None]:
    """The extractor and its name; (None, None) if it is unwanted, or not asked for and not in the cache."""
    from lia_plugin import host, perceptual

    if source == 'none':
        return None, None
    found = source or perceptual.cached_vgg16()
    if found is None:
        return None, None
    try:
        return perceptual.VGG16Features(found).to(device), found
    except host.UserError as error:
        raise host.UserError(f'{error}; or do without it: --lpips=none') from None


def load_calibration(source: str | None, network: str, G: Any) -> Calibration | None:
    """The calibration named, or the one beside the network; None if it is unwanted, or not named and not there."""
    from lia_plugin import calibration, host

    if source == 'none':
        return None
    found = source or calibration.beside(network)
    if found is None:
        return None
    try:
        return calibration.load(found, G)
    except host.UserError as error:
        raise host.UserError(f'--calibration: {error}; or do without it: --calibration=none') from None


def read_batches(
    items: Sequence[Target], batch: int, G: Any, writer: InversionWriter
) -> Iterator[list[tuple[Target, LoadedImage]]]:
    """Readable images in groups; unreadable ones go to the writer's failures, and to stderr by name."""
    from tqdm import tqdm

    from lia_plugin.host import UserError

    group: list[tuple[Target, LoadedImage]] = []
    noted = 0
    for target in tqdm(items, desc='Inverting', unit='image', disable=None if len(items) > 1 else True):
        try:
            loaded = target.read(G.img_resolution, G.img_channels)
        except UserError as error:
            writer.fail(target, str(error))
            if len(items) > 1:
                click.echo(str(error), err=True)
            continue
        if loaded.notes and noted <= MAX_NOTES:
            noted += 1
            text = f'{target.label}: {"; ".join(loaded.notes)}'
            click.echo(text if noted <= MAX_NOTES else 'changes to further images: see results.json', err=True)
        group.append((target, loaded))
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def stack_images(group: Sequence[tuple[Target, LoadedImage]]) -> torch.Tensor:
    """Pixels of a group -> NCHW, float32, [-1, 1]."""
    import torch

    from lia_plugin.images import to_float

    return to_float(torch.stack([loaded.pixels for _target, loaded in group]))


def report_failures(writer: InversionWriter, total: int) -> int:
    """Gives the exit code, and tells a count and names of the images that could not be used.

    Raises UserError if none could: with its own reason for a single one.
    """
    from lia_plugin.host import UserError

    if not writer.failures:
        return 0
    if total == 1:
        raise UserError(writer.failures[0]['reason'])
    names = [failure['image'] for failure in writer.failures]
    listed = ', '.join(names[:MAX_NOTES]) + (' …' if len(names) > MAX_NOTES else '')
    message = f'{len(names)} of {total} images could not be used: {listed}'
    if not writer.rows:
        raise UserError(message)
    click.echo(f'Error: {message}', err=True)
    return 1
