"""`edit.py`: what can be done with images once they have codes."""

from __future__ import annotations

import click

from lia_plugin.cli import LazyGroup

SUBCOMMANDS = {
    'interpolate': 'Go from one image to the next: strips, grids and videos.',
    'manipulate': 'Move images along directions, as far as a boundary or by so much.',
    'directions': 'Find directions: by labels, by two sets of images, or without either.',
    'mix': 'Coarse layers of some images with fine layers of others.',
    'variations': 'Images that are like an image.',
    'retarget': 'Apply the change between two images to others.',
    'paste': 'Put edited crops back into their full pictures.',
    'evaluate': 'Measure edits on real images: success, identity, leakage.',
}


@click.group(cls=LazyGroup, commands_table=SUBCOMMANDS, module_prefix='edit_', invoke_without_command=True)
@click.pass_context
def edit(ctx: click.Context) -> None:
    """Edit images in the latent space.

    \b
    An INPUT of these commands is
      an image, a folder, a pattern or a zip     real images, through the network's encoder
      out/face.npz, out/latents.npz:face         latents that invert.py or a projector wrote
      7, or 0,1,4-6, or seed:4-6                 seeds of random images

    Images are cropped to their centre square, and neither aligned nor looked at whether they are. For other crops, by
    landmarks or by search, take invert.py --align=… first and give what it writes.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
