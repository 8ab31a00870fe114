"""`edit.py variations`: images that are like an image."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options, paste_options
from lia_plugin.params import FiniteRange, NumberSet


@click.command(name='variations', context_settings={'show_default': True})
@click.argument('inputs', nargs=-1, required=True, metavar='INPUT…')
@click.option('--num', type=click.IntRange(min=1, max=1000), default=8, help='Variations of each input')
@click.option('--rho', type=FiniteRange(min=0, max=1), multiple=True, metavar='RHO',
              help='Correlation with the input, 1 = the same, 0 = drawn anew; given several times, a row each  '
                   '[default: 0.9; 0 with --resample or --coords]')
@click.option('--resample', type=FiniteRange(min=0, max=1, min_open=True), metavar='SHARE',
              help='Change only this share of the coordinates of z, others for each variation')
@click.option('--coords', type=NumberSet(), metavar='LIST', help='Change only these coordinates of z, such as 0-15,40')
@click.option('--layers', type=NumberSet(), metavar='LIST', help='Change only these layers, such as 0-3')
@click.option('--each-layer', is_flag=True, help='Draw for each layer by itself, not for all together')
@click.option('--tile', type=click.IntRange(min=8, max=4096), metavar='PIXELS',
              help='Side of a picture in the grid  [default: small ones magnified to 128, large ones 256]')
@paste_options
@common_options
def edit_variations(**options: Any) -> int:
    """Make images that are like an image, by a walk in its exact z: z' = rho z + sqrt(1 - rho^2) e, e ~ N(0, I).

    Where z follows the prior, so does z', whatever rho is, and also if only some coordinates are drawn anew; a z that
    is unlikely comes nearer to what is usual. INPUTs are images, seeds or stored latents: see `edit --help`. The
    network needs φ, without which there is no z.

    \b
    Writes
      variations.png          input after input: original, reconstruction, variations
      NAME.png, NAME_00.png   reconstruction and variations by themselves
      NAME_00_pasted.png …    full pictures, with --paste
      variations.npz          codes of the variations, which other commands take as INPUT
      results.json            how far each went in z, y and the picture, log p(y), typicality

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin.edit_session import Session, report_failures
    from lia_plugin.variations_run import Variations, VariationsOptions

    own = {name: options.pop(name) for name in VariationsOptions.__dataclass_fields__}
    inputs = options.pop('inputs')
    asked = VariationsOptions(**own)
    session = Session.open(**options)
    asked.check(session)
    failures: list[tuple[str, str]] = []
    Variations(session, session.read(inputs, failures=failures), asked).run()
    return report_failures(failures)
