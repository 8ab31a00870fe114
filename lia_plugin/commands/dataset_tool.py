"""`dataset_tool`: a data set for training out of a folder, an archive or a well-known format."""

import sys
import time
from collections.abc import Callable

import click

PLAIN_LINE_SECONDS = 30  # Off a terminal, a line of progress this often.


def parse_resolution(text: str | None) -> tuple[int | None, int | None]:
    """'512x384' → (512, 384), '256' → (256, 256), None → (None, None)."""
    if text is None:
        return None, None
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
        raise click.BadParameter(f'got {text!r}, expected WIDTHxHEIGHT, as 256x256', param_hint='--resolution')
    return int(parts[0]), int(parts[-1])


def show_progress() -> tuple[Callable[[int, int], None], Callable[[], None]]:
    """Progress on stderr: (update(done, total), close()). A bar with ETA on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(unit='img', dynamic_ncols=True, leave=False)

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return advance, bar.close
    started = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_LINE_SECONDS:
            last = now
            left = (now - started) / done * (total - done)
            click.echo(f'{done} of {total} images, {left:.0f} s left', err=True)

    return tell, lambda: None


@click.command(name='dataset_tool')
@click.option('--source', required=True, metavar='PATH|URL', help='Folder or archive of images (see above).')
@click.option('--dest', required=True, metavar='PATH', help='A .zip, or an empty or new folder.')
@click.option('--resolution', metavar='WxH', help='Size of the output, as 256x256 or 256. [default: that of the input]')
@click.option('--width', type=int, metavar='INT', help='Output width (the same as the W of --resolution).')
@click.option('--height', type=int, metavar='INT', help='Output height.')
@click.option('--transform', type=click.Choice(['center-crop', 'center-crop-wide']),
              help='Crop before scaling: to the proportions of the output, or LSUN\'s wide crop with black bars.')
@click.option('--resize-filter', type=click.Choice(['box', 'lanczos']), default='lanczos', show_default=True,
              help='How pixels are scaled.')
@click.option('--alpha', type=click.Choice(['white', 'black', 'refuse']), default='white', show_default=True,
              help='What lies behind transparent pixels; refuse = such an image is an error.')
@click.option('--color', type=click.Choice(['auto', 'rgb', 'grey']), default='auto', show_default=True,
              help='Channels of the output; auto = as the first image has them.')
@click.option('--on-error', type=click.Choice(['stop', 'skip']), default='stop', show_default=True,
              help='What to do about an image that can\'t be used. It is named in either case.')
@click.option('--include', metavar='FILE',
              help='Take only these images: a file of their names within the source, one a line, # for comments.')
@click.option('--max-images', type=int, metavar='INT', help='Write no more images than this. [default: all]')
@click.option('--workers', type=click.IntRange(min=0, max=256), metavar='INT',
              help='Processes; 0 = none besides this one. [default: one for each CPU]')
def dataset_tool(
    source: str, dest: str, resolution: str | None, width: int | None, height: int | None, **options: str | int | None
) -> int:
    """Make a data set for training.

    \b
    --source says what is read:
      path/to/folder/             all images below it, whatever their names
      images.zip                  all images in it
      path/to/something_lmdb/     LSUN (needs the package lmdb)
      cifar-10-python.tar.gz      CIFAR-10
      train-images-idx3-ubyte.gz  MNIST, with its labels file beside it

    --dest gets uncompressed PNGs and a dataset.json with the labels, if the source has any: for folders and zips, in a
    dataset.json of the same form, {"labels": [["name.png", 6], …]}. Grey, palette, 16-bit and CMYK images are
    converted, and EXIF rotation is applied. Training wants squares whose side is a power of two:

    \b
      python dataset_tool.py --source=photos --dest=photos256.zip --resolution=256x256 --transform=center-crop

    --include takes a part of a source, as the list that the command audit writes:

    \b
      python dataset_tool.py --source=set.zip --dest=clean.zip --include=audit/keep.txt

    Exit codes: 0 done; 1 done, but images were skipped; 2 nothing written.
    """
    from lia_plugin.host import convert_data_set

    make_settings, convert = convert_data_set()
    resolution_width, resolution_height = parse_resolution(resolution)
    if resolution is not None and (width is not None or height is not None):
        raise click.UsageError('--resolution: give it, or --width and --height, but not both')
    settings = make_settings(
        width=width if resolution is None else resolution_width,
        height=height if resolution is None else resolution_height,
        **options,  # type: ignore[arg-type]
    )
    progress, close_progress = show_progress()
    try:
        report = convert(source, dest, settings, progress, lambda line: click.echo(f'Skipped: {line}', err=True))
    finally:
        close_progress()
    click.echo(f'{dest}: {report.summary()}')
    for note in report.notes():
        click.echo(f'Note: {note}', err=True)
    return 1 if report.skipped else 0
