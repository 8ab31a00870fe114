"""`video`: a walk through the latent space that ends where it began."""

from __future__ import annotations

import os

import click

from lia_plugin import params, process_options

FPS = 60
GIF_FPS = 50  # The most that browsers show.


@click.command(context_settings={'show_default': True})
@click.option('--network', required=True, metavar='PATH|URL', help='Network pickle: LIA, StyleGAN2 or StyleGAN3')
@click.option('--seeds', type=params.Numbers(), required=True, metavar='0,1,4-6', help='Random seeds of the keyframes')
@click.option('--output', required=True, metavar='FILE', help='Where to write: FILE.mp4, .gif or .webp; '
              'mp4 is for long ones, the others keep all frames in memory')
@click.option('--shuffle-seed', type=click.IntRange(0, 2**32 - 1), metavar='N', help='Mix the seeds, by this one')
@click.option('--grid', type=params.Pair(), default='1x1', metavar='WxH', help='So many walks side by side')
@click.option('--num-keyframes', type=click.IntRange(min=2), metavar='N',
              help='Keyframes of each walk; seeds begin again where they end  [default: seeds / (W·H)]')
@click.option('--w-frames', type=click.IntRange(min=1), default=120, metavar='N', help='Frames from one to the next')
@click.option('--trunc', type=params.FiniteRange(), default=1.0, metavar='PSI', help='Truncation psi')
@click.option('--space', type=click.Choice(['w', 'y', 'z']), default='w', help='Where the walk is taken')
@click.option('--path', 'kind', type=click.Choice(['cubic', 'linear']),
              help='A spline, or straight (in z: arcs) from keyframe to keyframe  [default: cubic; linear in z]')
@click.option('--fps', type=click.IntRange(1, 240), metavar='N',
              help=f'Frames a second  [default: {FPS}; {GIF_FPS} for gif]')
@click.option('--class', 'class_idx', type=int, metavar='N', help='Class, for a conditional network')
@click.option('--noise-mode', type=click.Choice(['const', 'random', 'none']), default='const', help="The layers' noise")
@click.option('--batch', type=params.Batch(), default=8, metavar='N|auto',
              help='Pictures at once; makes no difference to them. auto = as many as fit into memory')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]')
@process_options.precision_option
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def video(
    network: str, seeds: tuple[int, ...], output: str, shuffle_seed: int | None, grid: tuple[int, int],
    num_keyframes: int | None, w_frames: int, trunc: float, space: str, kind: str | None, fps: int | None,
    class_idx: int | None, noise_mode: str, batch: int | None, device: str | None, precision: str | None,
    trust_pickle: bool,
) -> None:  # fmt: skip
    """Film a walk from seed to seed; its end leads on to its beginning, so that it can play for ever.

    A place of the grid takes seeds that follow each other, and has (seeds / (W·H)) · w-frames frames. In z the length
    of codes goes evenly from keyframe to keyframe; in w and y the path is a periodic cubic spline.

    \b
    python -m lia_plugin video --network=net.pkl --seeds=0-31 --grid=4x2 --output=walk.mp4
    """
    from tqdm import tqdm

    from lia_plugin import inversion
    from lia_plugin import video as video_files
    from lia_plugin.edit_session import Session
    from lia_plugin.latent_walk import Film, place_seeds
    from lia_plugin.outputs import check_output
    from lia_plugin.picture_files import check_grid

    fps = fps or (GIF_FPS if output.lower().endswith('.gif') else FPS)
    check_output('--output', output, folder=False)
    kind_of_file = video_files.check_name(output, fps)
    placed = place_seeds(seeds, grid[0] * grid[1], num_keyframes, shuffle_seed)
    session = Session.open(network, os.path.dirname(output) or os.curdir, device, trust_pickle, precision, batch=batch)
    check_grid(grid, session.G.img_resolution, kind_of_file)
    c = inversion.class_labels(session.G, class_idx, 1, session.device)
    film = Film(session.G, placed, c, trunc, space, w_frames, kind or ('linear' if space == 'z' else 'cubic'))
    frames = film.frames(grid[0], session.batch, noise_mode)
    with tqdm(frames, total=len(film.walk), desc='Filming', unit='frame', disable=None) as bar:
        video_files.save_video(output, bar, fps)
    print(f'{len(film.walk)} frames, {len(film.walk) / fps:.1f} seconds, written to {click.format_filename(output)}')
