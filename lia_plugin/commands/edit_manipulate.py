"""`edit.py manipulate`: move images along a direction."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options, paste_options
from lia_plugin.params import FiniteRange, Numbers

TYPICAL_P = 0.05


@click.command(name='manipulate', context_settings={'show_default': True})
@click.argument('inputs', nargs=-1, required=True, metavar='INPUT…')
@click.option('--direction', required=True, metavar='FILE[:NAME]',
              help="What edit directions wrote, or others' .npy, .npz and .pt: [dim], [1, dim] or [num_ws, dim]")
@click.option('--from', 'start', type=FiniteRange(), default=-3.0, metavar='VALUE', help='First value')
@click.option('--to', 'stop', type=FiniteRange(), default=3.0, metavar='VALUE', help='Last value')
@click.option('--steps', type=click.IntRange(min=1, max=1000), default=7, help='So many values, both included')
@click.option('--mode', type=click.Choice(['shift', 'distance']), default='shift',
              help='What values are. shift: how far each image moves; distance: where it ends, at that signed distance '
                   'from the boundary')
@click.option('--unit', type=click.Choice(['std', 'raw']), default='std',
              help="Of values: standard deviations of codes along the direction, or the space's own unit")
@click.option('--layers', type=Numbers(), metavar='LIST',
              help='Only these layers move, as 0-3  [default: those that the direction names, else all]')
@click.option('--conditions', multiple=True, metavar='FILE[:NAME]',
              help='Directions along which nothing is to move: they are projected out; may be given several times')
@click.option('--stay-typical', is_flag=False, flag_value=str(TYPICAL_P), metavar='[P]', show_default=False,
              type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
              help=f'Stop where the two-sided p-value of |z|² falls to P ({TYPICAL_P:g} if not said), or under that of '
                   'the image itself if that is less')
@click.option('--images', is_flag=True, help='Write each image as a file of its own, too')
@click.option('--video', type=click.Choice(['mp4', 'gif', 'webp']), help='Write a video: all images, there and back')
@click.option('--fps', type=click.IntRange(min=1, max=120), default=25, help='Its frames a second')
@click.option('--tile', type=click.IntRange(min=8, max=4096), metavar='PIXELS',
              help='Side of a picture in strip and video  [default: small ones magnified to 128, large ones 256]')
@click.option('--direction-space', type=click.Choice(['y', 'z', 'w']),
              help='Of files that do not tell  [default: by their name: a_w_boundary w, a_boundary z, .pt w; else y]')
@click.option('--force', is_flag=True, help='Take a direction that was found with another network')
@paste_options
@common_options
def edit_manipulate(**options: Any) -> int:
    """Move images along a direction that means something.

    \b
    python edit.py manipulate --network=net.pkl --direction=directions.npz:smile anna.png ben.png
    python edit.py manipulate --network=net.pkl --direction=d.npz:smile --mode=distance --from=0 --to=2 photos/
    python edit.py manipulate --network=net.pkl --direction=d.npz:old --conditions=d.npz:glasses --stay-typical=0.05 0-3

    \b
    Writes
      strip.png       a row for each image, a column for each value; red frames: stopped by --stay-typical
      edited.npz      codes, NAME_00 and on, which other commands take as INPUT
      results.json    for each image and value: shift, distance, log p, typicality, difference from before
      video.mp4, NAME_00.png, NAME_00_pasted.png …    with --video, --images, --paste

    Give --stay-typical its P with a =, or an INPUT behind it may be taken for one.

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin import manipulation_run
    from lia_plugin.edit_session import Session, report_failures

    inputs = options.pop('inputs')
    asked = manipulation_run.ManipulateOptions(
        **{name: options.pop(name) for name in manipulation_run.ManipulateOptions.__dataclass_fields__})
    asked.check()
    session = Session.open(**options)
    move = manipulation_run.make_move(session, asked)
    failures: list[tuple[str, str]] = []
    images = session.read(inputs, failures=failures)
    manipulation_run.Manipulation(session, images, asked, move).run()
    return report_failures(failures)
