"""Inverts images with the encoder, and with refinement, beside the original's projector.py: time to equal error.

    python train.py --data=demo/people64.zip --val=demo/people64_val.zip --cbase=2048 --cmax=64 --latent-dim=64 \
        --batch=16 --kimg=5 --enc-kimg=5 --gamma=0.1 --metrics=none --outdir=runs        # ten minutes on two cores
    python benchmarks/inversion.py --network=runs/…/network-snapshot-000005.pkl --host=stylegan2-ada-pytorch

Prints a Markdown table on stdout. `project` is that of the checkout, unchanged, in this process, on the same network,
images and threads. Its VGG16 can't be downloaded here: pixels stand for its features, scaled so that its distance is
the mean squared difference, which is also what refinement minimises. VGG16 would cost the projector more.
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import sys
import time
import types
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import click
import common
from common import number
from namespaces import CodeBase

Trace = list[tuple[float, float]]  # (seconds since the start, smallest mean squared error so far) after each step.


class Pixels:
    """Stands for VGG16 in projector.py: its features are pixels, and it notes how near each image comes."""

    def __init__(self) -> None:
        self.trace: Trace = []
        self.target: Any = None
        self.start = time.perf_counter()

    def eval(self) -> Pixels:
        return self

    def to(self, device: Any) -> Pixels:
        return self

    def __call__(self, img: Any, resize_images: bool, return_lpips: bool) -> Any:
        x = img / 127.5 - 1
        if self.target is None:
            self.target = x.detach()
        else:
            note(self.trace, self.start, x, self.target)
        return x.flatten(1) / x[0].numel() ** 0.5


def note(trace: Trace, start: float, img: Any, target: Any) -> None:
    """Adds a step to a trace; images as a file would hold them."""
    error = float((img.detach().clamp(-1, 1) - target).square().mean())
    trace.append((time.perf_counter() - start, min(error, trace[-1][1] if trace else error)))


def reached(trace: Trace, error: float) -> float | None:
    """Seconds until the error was no more than that; None if it never was."""
    return next((seconds for seconds, so_far in trace if so_far <= error), None)


@contextlib.contextmanager
def projector_of(host: str) -> Iterator[Any]:
    """The module projector.py of a checkout, among its own packages, with nothing to download."""
    if 'imageio' not in sys.modules:
        with contextlib.suppress(ImportError):
            import imageio  # noqa: F401
    # It is for videos, which nobody asks for here.
    missing = {} if 'imageio' in sys.modules else {'imageio': types.ModuleType('imageio')}
    with CodeBase([host]).active(), mock.patch.dict(sys.modules, missing):
        import projector  # type: ignore[import-not-found]

        with mock.patch.object(projector.dnnlib.util, 'open_url', lambda url: io.BytesIO()):
            yield projector


def project(host: str, network: str, images: Any, steps: int, device: Any) -> list[Trace]:
    """The original's projection of each image [C, H, W] in [-1, 1]."""
    import torch

    traces = []
    warnings.simplefilter('ignore')
    with projector_of(host) as projector:
        with open(network, 'rb') as f:
            G = projector.legacy.load_network_pkl(f)['G_ema'].requires_grad_(False).to(device)
        for i, img in [(-1, images[0]), *enumerate(images)]:
            torch.manual_seed(i + 1)
            pixels = Pixels()
            with mock.patch.object(torch.jit, 'load', lambda f, pixels=pixels: pixels):
                projector.project(G, (img + 1) * 127.5, num_steps=steps if i >= 0 else 2, device=device)
            if i < 0:  # Untimed, as the encoder's first pass.
                continue
            traces.append(pixels.trace)
            print(f'projected image {i + 1} in {pixels.trace[-1][0]:.0f} s', file=sys.stderr)
    return traces


def refine(G: Any, images: Any, steps: int) -> list[Trace]:
    """Encoder, then refinement of its code, image by image. The first entry is the encoder's alone."""
    from lia_plugin import inversion, refinement, spaces

    statistics_ = spaces.code_statistics(G)  # Once a network.
    traces = []
    for img in images[:, None]:
        trace: Trace = []
        inversion.invert_images(G, img)  # Untimed: buffers and kernels.
        start = time.perf_counter()
        found = inversion.invert_images(G, img)
        note(trace, start, found.recon, img)

        code = found.y_plus if found.y_plus is not None else found.y
        space = 'y+' if found.y_plus is not None else 'y'
        refinement.refine(G, img, code=code, settings=refinement.Settings(steps=steps, space=space),
                          callback=functools.partial(_follow, trace, start, img), statistics=statistics_)
        traces.append(trace)
    return traces


def _follow(trace: Trace, start: float, img: Any, step: int, losses: Any, recon: Any) -> None:
    note(trace, start, recon, img)


def table(ours: list[Trace], theirs: list[Trace], refinements: list[int]) -> list[str]:
    """Medians over the images: of time and error, and of the time that the other side takes to that error."""
    rows = []
    points = [('encoder', [trace[0] for trace in ours])]
    points += [(f'encoder, {steps} steps of refinement', [trace[1 + steps] for trace in ours]) for steps in refinements]
    for name, ends in points:
        rows.append([name, *_cells(ends, theirs)])
    if theirs:
        rows.append([f'projector.py, {len(theirs[0])} steps', *_cells([trace[-1] for trace in theirs], ours)])
    head = ['method', 'seconds an image', 'mean squared error', 'the other to that error, seconds', 'times faster',
            'reached']
    return common.markdown(head, rows)


def _cells(ends: list[tuple[float, float]], others: list[Trace]) -> list[str]:
    seconds, errors = zip(*ends)
    cells = [number(statistics.median(seconds)), number(statistics.median(errors))]
    if not others:
        return [*cells, '–', '–', '–']
    times = [reached(trace, error) for trace, error in zip(others, errors)]
    # Who never gets there has taken at least all of its time.
    least = [trace[-1][0] if time is None else time for trace, time in zip(others, times)]
    sign = '> ' * (times.count(None) * 2 > len(times))
    ratio = statistics.median(other / own for own, other in zip(seconds, least))
    return [*cells, sign + number(statistics.median(least)), sign + number(ratio),
            f'{len(times) - times.count(None)} of {len(times)}']


@click.command(context_settings={'show_default': True})
@common.host_option()
@click.option('--network', required=True, type=click.Path(exists=True, dir_okay=False), help='With an encoder')
@click.option('--data', default='demo/people64_val.zip', type=click.Path(exists=True), help='Images, as for training')
@common.device_option()
@click.option('--num', type=click.IntRange(min=1), default=3, help='Images')
@click.option('--steps', type=click.IntRange(min=1), default=1000, help='Of projector.py')
@click.option('--refine', 'refinements', default='20,100', help='Steps of refinement, with commas')
def main(host: str | None, network: str, data: str, device: str, num: int, steps: int, refinements: str) -> None:
    """Time inversion to equal error."""
    counts = sorted(int(part) for part in refinements.split(','))
    common.settle()
    sys.path.insert(1, common.PROJECT)
    import torch

    import legacy
    from training.dataset import ImageFolderDataset

    device = torch.device(common.pick_device(device))
    with open(network, 'rb') as f:
        contents = legacy.load_network_pkl(f)
    if host and (contents['G'] is None or contents['D'] is None):
        raise click.UsageError(f'--network: {network} has G_ema alone, and the original reads whole snapshots only')
    G = contents['G_ema'].eval().requires_grad_(False).to(device)
    if getattr(G, 'encoder', None) is None:
        raise click.UsageError(f'--network: {network} has no encoder')
    images_ = ImageFolderDataset(path=data, max_size=num, random_seed=0)
    pixels = torch.stack([torch.from_numpy(images_[i][0].copy()) for i in range(len(images_))])
    images = pixels.to(device, torch.float32) / 127.5 - 1
    ours = refine(G, images, counts[-1])
    theirs = project(host, network, images, steps, device) if host else []
    print(f'{len(images)} images of {G.img_resolution}×{G.img_resolution}, one by one, {G.z_dim} latents. '
          + common.here(str(device)) + '\n')
    print('\n'.join(table(ours, theirs, counts)))
    print('\nMedians over the images. `>`: the other has not reached that error for most images with all its steps.')


if __name__ == '__main__':
    main()
