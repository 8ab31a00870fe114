"""`make demo`: trains LIA on the emoji people, puts people it has never seen into its latent space, shows it all.

Everything is done by the commands that users have; each is printed before it runs. Started again, the demo goes on
where it was stopped.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import click

HERE = os.path.dirname(os.path.abspath(__file__))
TABLE = os.path.join(HERE, 'people_labels.csv')
RESOLUTION = 32
METRICS = 'recon_mse,recon_psnr,recon_ssim'

# Narrow networks and a short run, chosen for two CPU cores; what is left out is as --cfg=lia has it.
TRAINING: dict[str, Any] = {
    'cfg': 'lia', 'kimg': 28, 'enc_kimg': 24, 'batch': 8, 'gamma': 5, 'glr': 0.004, 'dlr': 0.003,
    'cbase': 512, 'cmax': 128, 'latent_dim': 128, 'phi_layers': 2, 'noise_inputs': False, 'aug': 'noaug',
    'tick': 1, 'snap': 4, 'workers': 0,
}  # fmt: skip


def command_line(script: str, options: dict[str, Any]) -> list[str]:
    """Script and arguments as a user types them in the project's folder."""
    said = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
    return [f'{script}.py', *(f'--{name.replace("_", "-")}={value}' for name, value in said.items())]


def run_command(script: str, options: dict[str, Any]) -> None:
    """Prints a command line and runs it here. Leaves with its exit code unless that is 0."""
    from lia_plugin import cli

    words = command_line(script, options)
    click.echo(f'\n$ python {shlex.join(words)}')
    code = cli.run(cli.load_command(script), words[1:], prog_name=words[0])
    if code == cli.EXIT_INTERRUPTED:
        click.echo('The demo goes on from here with `make demo`.')
    if code:
        sys.exit(code)


def scale_pictures(outdir: str) -> tuple[str, str]:
    """The demo set at the size of training: paths of its training and held-out zips, made unless they are there."""
    made = []
    for suffix in ('', '_val'):
        source = os.path.join(HERE, f'people64{suffix}.zip')
        dest = os.path.join(outdir, f'people{RESOLUTION}{suffix}.zip')
        made.append(dest)
        if not os.path.exists(dest) or os.path.getmtime(dest) < os.path.getmtime(source):
            size = f'{RESOLUTION}x{RESOLUTION}'
            run_command('dataset_tool', dict(source=os.path.relpath(source), dest=dest, resolution=size))
    return made[0], made[1]


def finished_run(outdir: str, options: dict[str, Any]) -> Any:
    """The newest run in `outdir` that has these options and has finished, or None."""
    from lia_plugin import run_dir
    from lia_plugin.host import UserError

    paths = {name: os.path.abspath(options[name]) for name in ('data', 'val')}
    for run in run_dir.list_runs(outdir):
        try:
            then = run.recorded.get('options', {})
            if run.is_complete() and all(then.get(k) == v for k, v in {**options, **paths}.items()):
                return run
        except (UserError, KeyError):  # Not a run of this program's.
            continue
    return None


def trained_run(outdir: str, data: str, val: str, changes: dict[str, Any]) -> tuple[Any, list[str]]:
    """The finished run, trained if it isn't there yet, and its command line."""
    options = {**TRAINING, **{name: value for name, value in changes.items() if value is not None}}
    options = {'cfg': options.pop('cfg'), 'data': data, 'val': val, **options}
    words = command_line('train', {**options, 'outdir': outdir})
    run = finished_run(outdir, options)
    if run is None:
        run_command('train', {**options, 'outdir': outdir})
        run = finished_run(outdir, options)
        assert run is not None, 'the command has ended well'
    else:
        click.echo(f'\nTrained already: {run.path}')
    return run, words


@click.command()
@click.option('--outdir', default='demo-run', show_default=True, metavar='DIR', help='Where everything is written.')
@click.option('--kimg', type=float, metavar='NUM', help=f'Length of stage 1.  [default: {TRAINING["kimg"]}]')
@click.option('--enc-kimg', type=float, metavar='NUM', help=f'Length of stage 2.  [default: {TRAINING["enc_kimg"]}]')
@click.option('--device', metavar='NAME', help='cpu, cuda, mps.  [default: the best there is]')
def demo(outdir: str, kimg: float | None, enc_kimg: float | None, device: str | None) -> None:
    """Train LIA on the demo set, invert pictures of people it has never seen, and make a page of it."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # Layers this small gain nothing from more.
    data, val = scale_pictures(outdir)
    run, words = trained_run(outdir, data, val, dict(kimg=kimg, enc_kimg=enc_kimg, device=device))
    # Here, because neither --help nor the conversion needs torch, which takes seconds to load.
    import exhibition

    network = os.path.relpath(run.snapshot('encoder'))
    click.echo(f'\nInverting {os.path.relpath(val)} and drawing the page …')
    commands = [words, command_line('invert', dict(network=network, target=val, outdir='out')),
                command_line('calc_metrics', dict(network=network, data=val, metrics=METRICS))]
    made = exhibition.make(run.path, network, data, val, TABLE, outdir, [shlex.join(c) for c in commands], device)
    click.echo(exhibition.summary(made))
    click.echo(f'\nLook at {os.path.join(outdir, "demo.html")} (in a browser) or {os.path.join(outdir, "demo.png")}.')


if __name__ == '__main__':
    from lia_plugin.cli import run

    sys.exit(run(demo))
