"""`lia compare`: LIA beside other ways to reconstruct real images, at equal budget: the paper's comparison."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from lia_plugin.commands.train import normalise, train
from lia_plugin.params import Count

POSITIVE = Count()
# Options of train.py that a comparison decides by itself, or that mean something else in it.
OWN = ('outdir', 'cfg', 'stage', 'dry_run', 'new_run', 'resume', 'seed', 'desc', 'metrics', 'detector', 'enc_space',
       'map_depth', 'freezed')


@click.command(context_settings={'max_content_width': 120})
@click.option('--outdir', metavar='DIR', default='comparison', show_default=True, help='Where everything is kept')
@click.option('--methods', metavar='LIST', help='Which methods, with commas; --methods=list tells which there are')
@click.option('--network', metavar='PATH|URL', help='Stage 1 to use instead of training one; short for --take stage1=…')
@click.option('--take', metavar='NAME=PATH', multiple=True,
              help='Use this pickle or run directory instead of training: stage1, stage1-mlp or a method')
@click.option('--seeds', type=POSITIVE, default=1, show_default=True, help='Train everything so often, seeds 0, 1, …')
@click.option('--num', type=POSITIVE, default=1000, show_default=True, help='Held-out images for methods of one pass')
@click.option('--opt-num', type=POSITIVE, default=64, show_default=True,
              help='Those of them that all methods reconstruct, the optimisers too')
@click.option('--gen-num', type=POSITIVE, default=10_000, show_default=True,
              help='Generated images for the figures of generators')
@click.option('--shown', type=POSITIVE, default=8, show_default=True, help='Images in grid.png')
@click.option('--detector', metavar='FILE|URL|random:SEED',
              help='Feature network of FID  [default: Inception if it was downloaded before, else random:0]')
@click.option('--labels', metavar='FILE', type=click.Path(exists=True, dir_okay=False, resolve_path=True),
              help="Attributes for linear separability: CSV, as in calc_metrics  [default: the data set's labels]")
@click.option('--mlp-depth', type=POSITIVE, default=8, show_default=True, help='Layers of the MLP in the place of φ')
@click.option('--fit-steps', type=click.IntRange(min=0), default=1000, show_default=True,
              help='Steps to fit a φ to the w of that MLP, which starts its encoder and says what is typical')
@click.option('--measure-batch', type=POSITIVE, metavar='INT',
              help='Images at once while measuring  [default: by size]')
@click.option('-n', '--dry-run', is_flag=True, help='Say what would be trained and measured, and stop')
@click.pass_context
def compare(
    ctx: click.Context, outdir: str, methods: str | None, network: str | None, take: tuple[str, ...], seeds: int,
    num: int, opt_num: int, gen_num: int, shown: int, detector: str | None, labels: str | None, mlp_depth: int,
    fit_steps: int, measure_batch: int | None, dry_run: bool, **training: Any,
) -> int:
    """Compare LIA with other encoders, BiGAN/ALI and optimisation, as the paper does: on held-out images, after equal
    budgets.

    Trains what isn't given with --take, measures it, and writes to --outdir: compare.md (tables), compare.json (every
    number), index.html, grid.png (originals beside each method's reconstructions), curve.png (error by seconds).
    After Ctrl-C the same command goes on; what is finished is neither trained nor measured again.

    \b
    python -m lia_plugin compare --data=faces.zip --kimg=5000 --enc-kimg=1000 --seeds=3
    python -m lia_plugin compare --data=faces.zip --network=stage1.pkl --methods=lia-y,opt-100,opt-1000 --enc-kimg=500

    Options from --data on are those of train.py, for every training.
    """
    from lia_plugin import compare as comparison
    from lia_plugin import compare_run, compare_training, outputs
    from lia_plugin.cli import EXIT_INTERRUPTED

    if methods == 'list':
        for each in map(comparison.method, comparison.DEFAULTS):
            click.echo(f'{each.name:<12} {each.label}: {each.about}')
        click.echo(f'Optimisations of any length are named {comparison.PATTERNS}.')
        return 0
    if training['data'] is None:
        raise click.UsageError("Missing option '--data': the folder or zip to train and measure on")
    taken = comparison.parse_taken([*take, *([f'{comparison.STAGE1}={network}'] if network else [])])
    values = normalise({**training, 'resume': 'noresume', 'detector': detector})
    detector = values.pop('detector')
    settings = comparison.Settings(
        outdir=os.path.abspath(outdir), training=values, methods=comparison.parse_methods(methods), seeds=seeds,
        num=num, opt_num=opt_num, gen_num=gen_num, detector=detector, labels=labels, taken=taken,
        mlp_depth=mlp_depth, fit_steps=fit_steps, batch=measure_batch, shown=shown, command=spoken(ctx),
    )  # fmt: skip
    outputs.check_output('--outdir', outdir, folder=True)
    if dry_run:
        click.echo('\n'.join(compare_run.plan_lines(compare_training.complete(settings))))
        return 0
    try:
        failures = compare_run.run(settings)
    except KeyboardInterrupt:
        click.echo(f'\nStopped. What was finished is in {outdir}; the same command goes on.')
        return EXIT_INTERRUPTED
    return finish(failures, settings.path('compare.md'))


def spoken(ctx: click.Context) -> str:
    """The command as it was given, options in the order of --help."""
    words = ctx.command_path.split()
    for param in ctx.command.params:
        name = param.name or ''
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            value = ctx.params[name]
            values = value if isinstance(value, tuple) else [value]
            is_flag = isinstance(param, click.Option) and param.is_flag
            words += [param.opts[-1] if is_flag else f'{param.opts[-1]}={each}' for each in values]
    return shlex.join(words)


def finish(failures: int, table: str) -> int:
    """Shows the tables; the exit code is 1 if a method failed."""
    with open(table, encoding='utf-8') as file:
        click.echo('\n' + file.read().partition('\n## What is compared')[0])
    click.echo(f'Done: {table}; index.html is beside it' + (f'; {failures} failed' if failures else ''))
    return 1 if failures else 0


# What trains is told as train.py is told: the very same options, whatever they are.
compare.params += [param for param in train.params if param.name not in OWN]
