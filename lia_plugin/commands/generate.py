"""`generate.py`: pictures of seeds and of stored latents."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin import params, process_options


@click.command(context_settings={'show_default': True})
@click.option('--network', required=True, metavar='PATH|URL', help='Network pickle: LIA, StyleGAN2 or StyleGAN3')
@click.option('--seeds', type=params.Numbers(), metavar='0,1,4-6', help='Random seeds')
@click.option('--projected-w', 'files', multiple=True, metavar='FILE',
              help='Latents, an .npz that invert.py, a projector or --save-latents wrote; may be given several times')
@click.option('--outdir', default='out', metavar='DIR', help='Where to write')
@click.option('--trunc', type=params.FiniteRange(), default=1.0, metavar='PSI', help='Truncation psi')
@click.option('--trunc-cutoff', type=click.IntRange(min=0), metavar='N', help='Truncate only the first N layers')
@click.option('--trunc-space', type=click.Choice(['w', 'y']), default='w',
              help='Whose mean codes are pulled to; in the paper y is w')
@click.option('--class', 'classes', type=params.Numbers('all', 2**31 - 1), metavar='N,…|all',
              help='Class, for a conditional network; of several each seed is drawn in each')
@click.option('--noise-mode', type=click.Choice(['const', 'random', 'none']), default='const',
              help="The layers' noise; random is a seed's own, the same in every call")
@click.option('--translate', type=params.Point(), default='0,0', metavar='X,Y',
              help='Move the picture right and down, in pictures; StyleGAN3 only')
@click.option('--rotate', type=params.FiniteRange(), default=0.0, metavar='DEG',
              help='Turn the picture counter-clockwise, in degrees; StyleGAN3 only')
@click.option('--grid', type=params.Pair(), metavar='WxH', help='So many in one picture, grid00.png …, not a file each')
@click.option('--captions', is_flag=True, help='Write above each picture of --grid what it is')
@click.option('--format', 'kind', type=click.Choice(['png', 'jpg', 'webp']), default='png',
              help='Of pictures; webp without loss, jpg at quality 95')
@click.option('--save-latents', is_flag=True, help='Write latents.npz too, with keys w, y, z and names')
@click.option('--batch', type=params.Batch(), default=8, metavar='N|auto',
              help='Pictures at once; makes no difference to them. auto = as many as fit into memory')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]')
@process_options.precision_option
@process_options.keep_memory_option
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def generate(**options: Any) -> None:
    """Draw pictures of random seeds, or of latents that were stored.

    Writes seed0000.png … for seeds, and proj00.png … or NAME.png for latents; and generate.json, which says how they
    were made and, where the network has φ, how likely each code is.

    \b
    python generate.py --network=net.pkl --seeds=0-35 --trunc=0.7 --outdir=out
    python generate.py --network=net.pkl --seeds=0-9 --class=all --grid=10x10
    python generate.py --network=net.pkl --projected-w=out/latents.npz
    """
    from lia_plugin.generate_run import GenerateOptions, Generation

    asked = GenerateOptions(**options)
    asked.check()
    Generation(asked).run()
