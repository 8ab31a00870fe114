"""`edit.py retarget`: apply the change between two images to others."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options, paste_options
from lia_plugin.params import FiniteRange, Numbers


@click.command(name='retarget', context_settings={'show_default': True})
@click.argument('inputs', nargs=-1, required=True, metavar='INPUT…')
@click.option('--before', required=True, metavar='INPUT', help='One image without the edit')
@click.option('--after', required=True, metavar='INPUT', help='The same with it')
@click.option('--space', type=click.Choice(['y', 'y+', 'z']),
              help='Where the difference is taken and added  [default: y+ if the codes have it, else y]')
@click.option('--layers', type=Numbers(), metavar='LIST', help='Only these layers change, as 0-3  [default: all]')
@click.option('--strength', 'strengths', multiple=True, type=FiniteRange(), default=(1.0,),
              help='So much of the edit; less than 0 undoes it; may be given several times')
@click.option('--images', is_flag=True, help='Write each image as a file of its own, too')
@click.option('--tile', type=click.IntRange(min=8, max=4096), metavar='PIXELS',
              help='Side of a picture in the strip  [default: small ones magnified to 128, large ones 256]')
@paste_options
@common_options
def edit_retarget(**options: Any) -> int:
    """Apply the change between two images to others: --after minus --before, added to each INPUT's code.

    The two may be photographs of one person, or an image and what another command made of it.

    \b
    python edit.py retarget --network=net.pkl --before=anna.png --after=laughs.png --strength=0.5 --strength=1 ben.png
    python edit.py retarget --network=net.pkl --before=anna.png --after=out/edited.npz:anna_06 --layers=2-5 photos/

    \b
    Writes
      strip.png       the two images; then a row for each INPUT: original, as it is, a column for each strength
      edited.npz      codes, which other commands take as INPUT
      results.json    for each image: log p, typicality, difference from before
      NAME.png, NAME_pasted.png    with --images, --paste

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin import retargeting_run
    from lia_plugin.edit_session import Session, report_failures

    inputs = options.pop('inputs')
    asked = retargeting_run.RetargetOptions(
        **{name: options.pop(name) for name in retargeting_run.RetargetOptions.__dataclass_fields__})
    session = Session.open(**options)
    asked.check_network(session)
    before, after = (retargeting_run.read_one(session, text, option)
                     for option, text in (('--before', asked.before), ('--after', asked.after)))  # fmt: skip
    failures: list[tuple[str, str]] = []
    targets = session.read(inputs, failures=failures)
    retargeting_run.Retargeting(session, before, after, targets, asked).run()
    return report_failures(failures)
