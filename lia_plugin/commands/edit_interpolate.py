"""`edit.py interpolate`: from one image to the next."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options


@click.command(name='interpolate', context_settings={'show_default': True})
@click.argument('inputs', nargs=-1, required=True, metavar='INPUT…')
@click.option('--space', 'spaces', multiple=True, type=click.Choice(['z', 'y', 'y+']),
              help='Where paths lie; several are drawn beneath each other  [default: y; y+ where codes have it]')
@click.option('--steps', type=click.IntRange(min=1, max=100_000), default=8,
              help='Frames from each keyframe to the next')
@click.option('--path', type=click.Choice(['linear', 'cubic']), default='linear',
              help='Straight (in z along arcs) from keyframe to keyframe, or a smooth curve through all of them')
@click.option('--loop', is_flag=True, help='Go on from the last keyframe to the first')
@click.option('--grid', is_flag=True, help='Fill the square between four inputs, its corners from top left on')
@click.option('--video', type=click.Choice(['mp4', 'gif', 'webp']), help='Write video.mp4, .gif or .webp, too')
@click.option('--fps', type=click.IntRange(min=1, max=120), default=25, help="The video's frames a second")
@click.option('--frames', is_flag=True, help='Write each frame to frames/')
@click.option('--tile', type=click.IntRange(min=8, max=4096), metavar='PIXELS',
              help='Side of a picture in strips and grids  [default: small ones magnified to 128, large ones 256]')
@common_options
def edit_interpolate(**options: Any) -> int:
    """Interpolate between images, seeds or stored latents.

    INPUTs are keyframes, in their order: see `edit --help`. In z a path goes along the sphere and its length changes
    evenly; in y it is straight. Its ends are the reconstructions of the images.

    Between keyframes of different classes the label goes linearly from one to the other.

    \b
    Writes
      strip.png             the paths, one row a space, originals at the ends (with --grid: grid_SPACE.png)
      path_SPACE.npz        codes of all frames, which other commands take as INPUT
      results.json          figures of each path: length in the picture, |z|^2, log p(y), typicality
      video.*, frames/      on request

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin.edit_session import Session, report_failures
    from lia_plugin.interpolation_run import InterpolateOptions, Interpolation

    own = {name: options.pop(name) for name in InterpolateOptions.__dataclass_fields__}
    inputs = options.pop('inputs')
    asked = InterpolateOptions(**own)
    asked.check()
    session = Session.open(**options)
    failures: list[tuple[str, str]] = []
    keys = session.read(inputs, failures=failures)
    if failures and len(keys) < 2:
        raise click.ClickException(f'{failures[0][1]}; without it there are no two keyframes')
    Interpolation(session, keys, asked).run()
    return report_failures(failures)
