"""`python -m lia_plugin export`: networks with and without pickles."""

from __future__ import annotations

import click


@click.command()
@click.option('--network', required=True, metavar='PATH|URL',
              help='Network pickle, or a folder that this command wrote')
@click.option('--outdir', metavar='DIR', help='New folder for model.safetensors, config.json and README.md')
@click.option('--to-pickle', 'pickle_path', metavar='FILE',
              help='Write a network pickle instead, for every StyleGAN tool')
@click.option('--license', 'license_name', default='other', show_default=True, metavar='ID',
              help="The model's licence, for the card: apache-2.0, cc-by-nc-4.0 …; it is yours to know")
@click.option('--title', metavar='TEXT', help="The card's headline  [default: the folder's name]")
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def export(
    network: str,
    outdir: str | None,
    pickle_path: str | None,
    license_name: str,
    title: str | None,
    trust_pickle: bool,
) -> None:
    """Turn a network pickle into a folder without pickles, or back, weights bit for bit.

    The folder has the layout of a Hugging Face model. Everything that takes --network takes it, too.

    \b
    python -m lia_plugin export --network=net.pkl --outdir=net --license=cc-by-nc-4.0
    python -m lia_plugin export --network=net --to-pickle=net.pkl
    """
    if (outdir is None) == (pickle_path is None):
        raise click.UsageError('--outdir, --to-pickle: give one of them')
    from lia_plugin import export as work

    if pickle_path is not None:
        work.to_pickle(network, pickle_path, trust_pickle)
        click.echo(f'Wrote {pickle_path}')
        return
    left_out = work.to_folder(network, outdir or '', license_name, title, trust_pickle)
    click.echo(f'Wrote {outdir}; its README.md is to be completed')
    if left_out:
        click.echo(f'Left out: {", ".join(left_out)}', err=True)
