"""`python -m lia_plugin export`: networks with and without pickles."""

from __future__ import annotations

import click


@click.command()
@click.option('--network', required=True, metavar='PATH|URL',
              help='Network pickle, or a folder that this command wrote')
@click.option('--outdir', metavar='DIR', help='New folder for the files and a README.md')
@click.option('--format', 'form', type=click.Choice(['safetensors', 'onnx']), default='safetensors', show_default=True,
              help='model.safetensors and config.json, which all commands read; or a NAME.onnx for each part')
@click.option('--to-pickle', 'pickle_path', metavar='FILE',
              help='Write a network pickle instead, for every StyleGAN tool')
@click.option('--noise', type=click.Choice(['const', 'none', 'input']),
              help="[onnx] The layers' noise: the network's own constant, none, or an input for each layer  "
                   '[default: const]')
@click.option('--license', 'license_name', metavar='ID',
              help="The model's licence, for the card: apache-2.0, cc-by-nc-4.0 …; it is yours to know  "
                   "[default: that of an exported folder's card, else other]")
@click.option('--title', metavar='TEXT', help="The card's headline  [default: the folder's name]")
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def export(
    network: str,
    outdir: str | None,
    form: str,
    pickle_path: str | None,
    noise: str | None,
    license_name: str | None,
    title: str | None,
    trust_pickle: bool,
) -> None:
    """Turn a network pickle into a folder without pickles, or back, weights bit for bit; or into ONNX files.

    The folder has the layout of a Hugging Face model. Everything that takes --network takes it, too.

    ONNX: encoder, phi, phi_inverse, mapping, y_to_ws and synthesis, as far as the network has them, in float32, for any
    number of images. onnx.json says what goes in and out. Where onnxruntime is installed, its results are compared with
    the network's before anything is written. Needs lia-plugin[onnx].

    \b
    python -m lia_plugin export --network=net.pkl --outdir=net --license=cc-by-nc-4.0
    python -m lia_plugin export --network=net --to-pickle=net.pkl
    python -m lia_plugin export --network=net.pkl --outdir=net-onnx --format=onnx
    """
    if (outdir is None) == (pickle_path is None):
        raise click.UsageError('--outdir, --to-pickle: give one of them')
    if pickle_path is not None and form == 'onnx':
        raise click.UsageError('--format=onnx: not with --to-pickle')
    if noise is not None and form != 'onnx':
        raise click.UsageError('--noise: only with --format=onnx')
    from lia_plugin import export as work

    license_name = click.format_filename(license_name or work.card_license(network) or 'other')  # In UTF-8.
    if form == 'onnx':
        from lia_plugin import onnx_export

        done = onnx_export.export(network, outdir or '', noise or 'const', license_name, title, trust_pickle)
        tell(outdir or '', done.errors, done.left_out)
        return
    if pickle_path is not None:
        work.to_pickle(network, pickle_path, trust_pickle)
        click.echo(f'Wrote {click.format_filename(pickle_path)}')
        return
    left_out = work.to_folder(network, outdir or '', license_name, title, trust_pickle)
    click.echo(f'Wrote {click.format_filename(outdir or "")}; its README.md is to be completed')
    if left_out:
        click.echo(f'Left out: {", ".join(left_out)}', err=True)


def tell(outdir: str, errors: dict[str, float | None], left_out: dict[str, str]) -> None:
    """What has become of an export to ONNX."""
    for name, error in errors.items():
        click.echo(f'{name}.onnx' + ('' if error is None else f'  largest error {error:.1e} of the largest value'))
    click.echo(f'Wrote {click.format_filename(outdir)}')
    if None in errors.values():
        click.echo('Not checked: onnxruntime is not installed', err=True)
    for name, why in left_out.items():
        click.echo(f'Left out: {name}.onnx: {why}', err=True)
