"""`edit.py paste`: edited crops back into their full pictures."""

from __future__ import annotations

import click

from lia_plugin.edit_options import paste_style_options


@click.command(name='paste', context_settings={'show_default': True})
@click.option('--edited', required=True, multiple=True, metavar='PATH',
              help='Edited crop, folder, pattern or zip; may be given several times')
@click.option('--latents', required=True, metavar='NAME.npz',
              help='File of invert.py that says where the crop lies; of several in one, latents.npz:NAME. Without NAME '
                   "each edited file goes by its own name's beginning")
@click.option('--picture', metavar='FILE', help='The full picture, if it has moved  [default: as stored in --latents]')
@click.option('--reconstruction', metavar='FILE',
              help='What the edit began from, for --paste-mode=difference  [default: NAME_recon.png beside --latents]')
@paste_style_options
@click.option('--outdir', default='out', metavar='DIR', help='Where to write')
def edit_paste(
    edited: tuple[str, ...], latents: str, picture: str | None, reconstruction: str | None, paste_mode: str,
    feather: float, outdir: str,
) -> int:
    """Put edited crops back into the full pictures that invert.py cut them from.

    Writes NAME_pasted.png for each, of the picture's full size, upright. Outside the crop nothing changes.

    Any square of the network's size can go back: what a painting program made of a crop, or a path's frames:

    \b
    python edit.py interpolate --network=net.pkl inv/anna.npz edits/edited.npz:anna_06 --frames --outdir=path
    python edit.py paste --edited=path/frames --latents=inv/anna.npz

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin import code_files, codes, paste_back, targets
    from lia_plugin.edit_session import report_failures
    from lia_plugin.host import UserError
    from lia_plugin.outputs import check_output

    check_output('--outdir', outdir, folder=True)
    if reconstruction is not None and paste_mode != paste_back.DIFFERENCE:
        raise click.UsageError(f'--reconstruction: only with --paste-mode={paste_back.DIFFERENCE}')
    path, name = codes.split_name(latents)
    known = paste_back.choose(code_files.read_placements(path), name, path)
    if len(known) > 1 and (picture is not None or reconstruction is not None):
        option = '--picture' if picture is not None else '--reconstruction'
        raise click.UsageError(f'{option}: is of one image, {path} has {len(known)}: --latents={path}:NAME')
    items = targets.collect(edited, option='--edited', outdir=outdir)
    style = paste_back.Style(paste_mode, feather)
    written, failures = paste_back.paste_files(items, path, known, outdir, style, picture, reconstruction)
    if not written:
        first = failures[0][1]
        raise UserError(first if len(items) == 1 else f'--edited: none of {len(items)} images can be used: {first}')
    for file in written:
        click.echo(file)
    return report_failures(failures)
