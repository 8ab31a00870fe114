"""`lia attach`: φ for an existing StyleGAN2 or StyleGAN3 network."""

from __future__ import annotations

import os

import click

from lia_plugin.params import Count, FiniteRange

POSITIVE = Count()


@click.command(context_settings={'show_default': True})
@click.option('--network', required=True, metavar='PATH|URL', help='Network pickle of a plain StyleGAN2 or StyleGAN3')
@click.option('--out', metavar='FILE', help='Where to write; report and pictures beside it  [default: NETWORK-phi.pkl '
              'in --outdir]')
@click.option('--outdir', metavar='DIR', default='.', help='Folder to write to')
@click.option('--mode', type=click.Choice(['replace', 'front']), default='replace',
              help='φ in the place of the mapping network, fitted to its w; or before it, changing no picture')
@click.option('--data', metavar='PATH', help='Data set with the label vectors that the network was trained with')
@click.option('--steps', type=click.IntRange(min=0), default=1000, help='Length of the fit; 0 = the Gaussian alone')
@click.option('--batch', type=POSITIVE, default=256, help='Samples of w a step')
@click.option('--couplings', type=POSITIVE, default=6, help="φ's coupling steps")
@click.option('--hidden', type=POSITIVE, metavar='INT', help="Width of the networks in them  [default: w's]")
@click.option('--noise', type=FiniteRange(min=0), default=0.03, help="Noise while fitting, in units of w's own spread")
@click.option('--lr', type=FiniteRange(min=0, min_open=True), default=2e-3, help='Learning rate of the fit')
@click.option('--detector', metavar='FILE|URL|random:SEED|none',
              help='Feature network of the Fréchet distance  [default: random:0; none in a checkout of NVIDIA\'s]')
@click.option('--num', type=click.IntRange(min=2), default=1000, help='Pictures that the report compares')
@click.option('--seed', type=click.IntRange(0, 2**31 - 1), default=0, help='Random seed')
@click.option('--device', default='auto', metavar='NAME', help='cpu, cuda, cuda:1, mps …; auto = the best there is')
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def attach(
    network: str, out: str | None, outdir: str, mode: str, data: str | None, steps: int, batch: int, couplings: int,
    hidden: int | None, noise: float, lr: float, detector: str | None, num: int, seed: int, device: str,
    trust_pickle: bool,
) -> None:
    """Give an existing StyleGAN generator its invertible φ, so that stage 1 can be skipped.

    Its pictures, discriminator and everything else stay. Writes a network pickle, a report (.json) and pictures of the
    old mapping network above those of φ (.png).

    \b
    python -m lia_plugin attach --network=theirs.pkl
    python -m lia_plugin train --stage=encoder --resume=theirs-phi.pkl --data=faces.zip
    """
    from lia_plugin import attach_files, attach_report, host, inversion
    from lia_plugin.phi_fit import Fit

    path = out or os.path.join(outdir, default_name(network))
    check_paths(path, network)
    report = attach_files.attach_file(
        network, path, mode, Fit(steps, batch, couplings, hidden, noise, lr, seed), data=data,
        detector=None if detector == 'none' else detector or host.local_detector(), num=num, trust=trust_pickle,
        device=inversion.pick_device(None if device == 'auto' else device),
    )  # fmt: skip
    for line in [*attach_files.notes(report), *attach_report.lines(report)]:
        print(line)
    print(f'{report["seconds"]:.0f} s. Done: {path}; the report is beside it, and pictures to look at')


def default_name(network: str) -> str:
    """theirs.pkl or its URL → theirs-phi.pkl."""
    stem = os.path.splitext(os.path.basename(network.split('?')[0].rstrip('/')))[0]
    return f'{stem or "network"}-phi.pkl'


def check_paths(path: str, network: str) -> None:
    """UsageError for a result that would take the place of its source, UserError for one that can't be written."""
    from lia_plugin.outputs import check_output

    if os.path.exists(network) and os.path.exists(path) and os.path.samefile(network, path):
        raise click.UsageError(f'--out: {path} is the network itself; name another file')
    if os.path.splitext(path)[1] != '.pkl':
        raise click.UsageError(f'--out: {path}: expected the name of a .pkl file')
    check_output('--out', path, folder=False, makes_folders=True)
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
