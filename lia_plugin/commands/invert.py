"""`invert.py`: real images into the latent space of a network."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click

from lia_plugin import params, process_options

if TYPE_CHECKING:
    import torch


def parse_finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f'{value} is not a finite number', ctx, param)
    return value


@click.command(context_settings={'show_default': True})
@click.option('--network', required=True, metavar='PATH|URL',
              help='Network pickle; one without an encoder needs --refine, or --tune with --init=FILE')
@click.option('--target', 'targets', required=True, multiple=True, metavar='PATH',
              help='Image, folder, pattern or zip; may be given several times. Of a folder, --outdir in it is left out')
@click.option('--outdir', default='out', metavar='DIR', help='Where to write')
@click.option('--trunc', type=float, default=1.0, callback=parse_finite, help='Truncation psi of the reconstruction')
@click.option('--batch', type=params.Batch(), default='auto', metavar='N|auto',
              help='Images at once, also in optimisations; auto = as many as fit into memory, and for --tune 8')
@click.option('--gpus', type=click.IntRange(min=1), metavar='INT',
              help='Number of GPUs, or of processes on a CPU, to share the images  [default: 1, or those of torchrun]')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]')
@process_options.precision_option
@process_options.keep_memory_option
@click.option('--seed', type=click.IntRange(min=0), default=0, help='Random seed, for --noise-mode=random and --tune')
@click.option('--noise-mode', type=click.Choice(['const', 'random', 'none']), default='const', help="The layers' noise")
@click.option('--class', 'class_idx', type=int, metavar='N',
              help='Class of all images, for a conditional network  [default: by dataset.json of their folder or zip]')
@click.option('--lpips', 'lpips_source', metavar='PATH|URL|none',
              help="NVIDIA's vgg16.pt, for LPIPS  [default: if it was downloaded before]")
@click.option('--calibration', 'calibration_file', metavar='FILE|none',
              help="What audit found usual among a set's codes  [default: NAME.calibration.npz beside NAME.pkl]")
# Crops.
@click.option('--align', metavar='FILE|beside|detect|search',
              help="Crop faces as FFHQ does, for networks trained so: by landmarks (68 or 5, in pixels) in a JSON or "
                   "CSV file, in NAME.npy or NAME.txt 'beside' each image, or by a detector, lia-plugin[align]. "
                   "'search' takes the crop that the network draws best, of anything  [default: the centre]")
@click.option('--check-alignment/--no-check-alignment', default=True,
              help='Say so if a centre crop looks far from what the network was trained on; of more than 16 images '
                   'a sample is looked at')
# Refinement of codes.
@click.option('--space', type=click.Choice(['y', 'y+', 'z']),
              help="One code, one per layer, or z; w and w+ in a stock network  "
                   "[default: as the encoder, or --init's file, has it]")
@click.option('--init', metavar='encoder|mean|FILE',
              help='Where codes start; FILE is an .npz of this command or of a projector  [default: encoder, if any]')
@click.option('--refine', type=click.IntRange(min=1), metavar='N', help='Improve the codes by N steps of optimisation')
@click.option('--refine-optimizer', type=click.Choice(['lbfgs', 'adam']),
              help='L-BFGS needs a third of the steps  [default: lbfgs; adam with --refine-noise]')
@click.option('--refine-lr', type=params.FiniteRange(min=0, min_open=True),
              help="Adam's learning rate, or L-BFGS's first step, in standard deviations of the code  "
                   "[default: Adam 0.3; L-BFGS 0.03 from given codes, from the mean 0.3, in y+ 0.1]")
@click.option('--prior-weight', type=params.FiniteRange(min=0), default=0.0,
              help='Of -log p(y) per dimension; 1e-4 to 1e-3 keep the codes likely and cost little of the picture')
@click.option('--consistency-weight', type=params.FiniteRange(min=0), default=0.0,
              help='Of |f(g(y)) - y|², in variances of y')
@click.option('--offset-weight', type=params.FiniteRange(min=0), default=0.0,
              help="Of the layers' squared offsets in y+, in variances of y")
@click.option('--refine-noise', is_flag=True, help="Let the layers' noise move, too; each image gets its own")
@click.option('--percep', type=click.Choice(['disc', 'vgg16', 'vgg16-conv4_3', 'none']),
              help="Features in the loss of --refine and --tune  [default: disc, the pickle's own D, if it has one]")
@click.option('--percep-weight', type=params.FiniteRange(min=0),
              help='Their weight beside the pixels\'  [default: disc 0.1, vgg16 0.8, vgg16-conv4_3 5e-5]')
@click.option('--save-video', is_flag=False, flag_value='auto', type=click.Choice(['auto', 'mp4', 'gif', 'webp']),
              help='Write NAME_refine.mp4, .gif or .webp of the optimisation  [auto: mp4, if imageio-ffmpeg is there]')
# Tuning of the generator.
@click.option('--tune', type=click.IntRange(min=1), metavar='N',
              help='Then tune the generator by N steps, for all images together (pivotal tuning)')
@click.option('--tune-lr', type=params.FiniteRange(min=0, min_open=True),
              help='Its learning rate, relative to the weights  [default: 3e-4]')
@click.option('--tune-save', type=click.Choice(['network', 'delta']),
              help='Write tuned.pkl, or only the difference, tuned.safetensors  [default: network]')
@click.option('--delta', metavar='FILE', help='Add such a difference to the network first')
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def invert(gpus: int | None, **options: Any) -> int:
    """Find the latents y and z of real images and reconstruct the images from them.

    One pass of the encoder gives them. --refine=N goes on from there by optimisation, and works without an encoder and
    for stock StyleGAN2 and 3 pickles too, from the mean. --tune=N then moves the generator itself a little.

    Writes for each image NAME_recon.png, NAME_side.png and its latents (projected_w.npz for one image, NAME.npz for
    several, with keys w, y, z and y_plus), results.json with every figure, and for several images grid.png, index.html
    and latents.npz with all of them.

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    import torch

    from lia_plugin import host, inversion
    from lia_plugin.invert_options import InvertOptions
    from lia_plugin.invert_shares import invert_share
    from lia_plugin.targets import collect

    asked = InvertOptions(**options)
    asked.check()
    processes = host.number_of_processes(gpus)
    device = host.check_devices(str(inversion.pick_device(asked.device)), processes)
    precision = host.resolve_precision(asked.precision, torch.device(device))
    asked = dataclasses.replace(asked, precision=precision)
    items = collect(asked.targets, outdir=asked.outdir)
    return host.spawn(invert_share, processes, (asked, items, device), device=device)


def load_generator(network: str, device: torch.device, trust: bool) -> Any:
    """G_ema of a pickle, frozen, on the device. Raises UserError unless it can invert images."""
    from lia_plugin.invert_run import load_networks

    return load_networks(network, device, trust)['G_ema']
