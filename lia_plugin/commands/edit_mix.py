"""`edit.py mix`: coarse layers of some images with fine layers of others."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options
from lia_plugin.params import NumberSet


@click.command(name='mix', context_settings={'show_default': True})
@click.option('--rows', multiple=True, required=True, metavar='INPUT', help='What layers are put into; see edit --help')
@click.option('--cols', multiple=True, required=True, metavar='INPUT', help='What these layers are taken from')
@click.option('--styles', multiple=True, type=NumberSet('each'), metavar='LIST|each',
              help="Layers that come from the columns; given several times, one grid each; 'each' is every layer by "
                   'itself  [default: 0-6]')
@click.option('--tile', type=click.IntRange(min=8, max=4096), metavar='PIXELS',
              help='Side of a picture in grids  [default: small ones magnified to 128, large ones 256]')
@common_options
def edit_mix(**options: Any) -> int:
    """Mix the styles of images, seeds or stored latents, every row with every column.

    Layer 0 is the coarsest. Where an image has one code for all layers, as seeds have, every layer starts with that
    one. Label and noise maps are those of the row.

    \b
    python edit.py mix --network=net.pkl --rows=anna.png --rows=85,100 --cols=ben.png --styles=4-7

    \b
    Writes, under style_mixing.py's names,
      ROW-COL.png, NAME-NAME.png    each mixture, and each row and column as it is
      grid.png                      all of them, with what they are made of at the edges
      mixed.npz                     codes of the mixtures, which other commands take as INPUT
    and with several --styles one folder for each, and styles.png to compare them.

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin.edit_session import Session, report_failures
    from lia_plugin.mixing_run import Mixing, chosen_styles, read_both

    rows, columns, styles, tile = (options.pop(name) for name in ('rows', 'cols', 'styles', 'tile'))
    session = Session.open(**options)
    layers = chosen_styles(styles, session.G.num_ws)
    failures: list[tuple[str, str]] = []
    Mixing(session, *read_both(session, rows, columns, failures), layers, tile).run()
    return report_failures(failures)
