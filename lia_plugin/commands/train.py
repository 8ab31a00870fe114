"""`train.py`: train LIA in its two stages, or a plain StyleGAN2-ADA."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lia_plugin import config, process_options
from lia_plugin import options as opts
from lia_plugin.options import Options
from lia_plugin.params import Count, FiniteRange, Memory
from lia_plugin.process_options import KEEP_MEMORY_HELP, PRECISIONS

if TYPE_CHECKING:
    from lia_plugin.run_dir import Run

POSITIVE = Count()
AMOUNT = FiniteRange(min=0, min_open=True)
WEIGHT = FiniteRange(min=0)
SHARE = FiniteRange(min=0, max=1)


def option(flag: str, kind: Any, text: str, **kwargs: Any) -> Callable[..., Any]:
    """A click option for the field of Options that has its name, with that field's default."""
    field = next(f for f in dataclasses.fields(Options) if opts.flag(f.name) == flag)
    default = None if field.default is dataclasses.MISSING else field.default
    told = default is not None and default is not False
    return click.option(flag, type=kind, help=text, default=default, show_default=told, **kwargs)


def switch(flag: str, text: str) -> Callable[..., Any]:
    """Yes or no, said as people are used to from both hosts: `--mirror`, `--mirror=1`, `--mirror=false`."""
    return option(flag, click.BOOL, text, is_flag=False, flag_value='true', metavar='[BOOL]')


@click.command(context_settings={'max_content_width': 120})
# General.
@click.option('--outdir', metavar='DIR', default='training-runs', show_default=True, help='Where runs are kept')
@option('--data', str, 'Training set: folder or zip of dataset_tool.py', metavar='PATH')
@option('--cfg', click.Choice(list(config.PRESETS)), 'What to train, and its base configuration')
@option('--stage', click.Choice(opts.STAGES), '[lia] Stage 1 (gan), stage 2 (encoder, needs --resume), or both')
@option('--gpus', POSITIVE, 'Processes that train together, one a GPU', metavar='INT')
@option('--device', str, 'cpu, cuda, mps, or auto = the best there is', metavar='NAME')
@click.option('-n', '--dry-run', is_flag=True, help='Print the configuration and stop')
@click.option('--new-run', is_flag=True, help='Start afresh, where else an unfinished run of the same options goes on')
@option('--resume', str, 'Where to start from: noresume, latest (go on with the newest run), a pickle or its URL, '
        + ', '.join(opts.TRANSFER_SOURCES), metavar='WHAT')
@option('--trust-pickle', None, 'Run the code inside the pickle of --resume; only for files you trust', is_flag=True)
@option('--seed', click.IntRange(min=0), 'Random seed', metavar='INT')
@option('--desc', str, "Added to the run directory's name", metavar='TEXT')
# Data.
@switch('--cond', 'Train with the labels of the data set')
@switch('--mirror', 'Add the mirror image of each training image')
@option('--subset', POSITIVE, 'Train on so many images only', metavar='INT')
@option('--val', str, 'Held-out images for metrics and grids: a share of --data, a data set, or none  '
        '[default: 0.05, at most 5000 images, for lia]', metavar='SHARE|PATH')
# Length, reports.
@option('--kimg', AMOUNT, 'Length of stage 1 in thousands of images  [default: 25000]', metavar='NUM')
@option('--enc-kimg', AMOUNT, f'[lia] Length of stage 2  [default: {config.EncoderPreset.kimg}]', metavar='NUM')
@option('--snap', POSITIVE, 'Ticks between snapshots  [default: 50, or 10 snapshots in a short run]', metavar='INT')
@option('--tick', AMOUNT, 'Length of a tick in kimg  [default: 4, or 50 ticks in a short run]', metavar='NUM')
@option('--metrics', str, 'Metrics at each snapshot, with commas, or none  '
        f'[default: {config.DEFAULT_METRICS["lia"]} for lia, else {config.HOST_METRICS}]', metavar='LIST')
@option('--detector', str, 'Feature network of FID and KID: TorchScript file, URL or random:SEED  [default: Inception]',
        metavar='PATH|URL')
# Hyperparameters of stage 1.
@option('--batch', POSITIVE, 'Images of one iteration, over all processes', metavar='INT')
@option('--batch-gpu', POSITIVE, 'Images that a process handles at a time; less needs less memory', metavar='INT')
@option('--gamma', WEIGHT, 'R1 weight, in both stages', metavar='NUM')
@option('--glr', AMOUNT, "G's learning rate", metavar='NUM')
@option('--dlr', AMOUNT, "D's learning rate, in both stages", metavar='NUM')
@option('--cbase', POSITIVE, 'Channels at resolution r are cbase / r …', metavar='INT')
@option('--cmax', POSITIVE, '… but no more than this  [default: 512]', metavar='INT')
@option('--latent-dim', click.IntRange(min=2), 'Width of z, y and w', metavar='INT')
@option('--map-depth', click.IntRange(min=0), 'Mapping layers  [default: 0 for lia, where φ stands in their place]',
        metavar='INT')
@switch('--noise-inputs', 'Random detail in each layer of G; a short run on flat artwork does better without')
@option('--coupling', click.Choice(['additive', 'affine']), "[lia] φ's kind of coupling")
@option('--phi-layers', POSITIVE, "[lia] φ's coupling steps", metavar='INT')
@option('--mbstd-group', POSITIVE, 'Group of the minibatch standard deviation', metavar='INT')
@option('--aug', click.Choice(['noaug', 'ada', 'fixed']), 'Augmentation')
@option('--p', SHARE, 'Its probability, for --aug=fixed', metavar='NUM')
@option('--target', SHARE, 'Aim of --aug=ada  [default: 0.6]', metavar='NUM')
@option('--augpipe', click.Choice(opts.AUGPIPES), 'Kinds of augmentation  [default: bgc]')
@option('--freezed', click.IntRange(min=0), "Freeze so many of D's first layers", metavar='INT')
# Stage 2.
@option('--enc-loss', click.Choice(list(config.ENCODER_PRESETS)), '[lia] Recipe of stage 2: ours, or the paper\'s')
@option('--enc-arch', click.Choice(['resnet', 'paper']), "[lia] The encoder: like D, or the paper's with batch norm")
@option('--enc-space', click.Choice(opts.SPACES), '[lia] What it gives: one y, one a layer (y+), or z, the ablation')
@option('--enc-iters', POSITIVE, '[lia] Times that it is asked; from the second on it sees the result', metavar='INT')
@option('--enc-batch', POSITIVE, '[lia] Batch of stage 2  [default: --batch]', metavar='INT')
@option('--enc-lr', AMOUNT, "[lia] The encoder's learning rate", metavar='NUM')
@option('--enc-pixel', WEIGHT, '[lia] Weight of the pixel loss', metavar='NUM')
@option('--enc-percep', WEIGHT, '[lia] Weight of the perceptual loss', metavar='NUM')
@option('--enc-adv', WEIGHT, '[lia] Weight of the adversarial loss', metavar='NUM')
@option('--enc-adv-start', SHARE, '[lia] Share of stage 2 after which it counts', metavar='SHARE')
@option('--enc-latent', WEIGHT, '[lia] Weight of the supervision on generated images', metavar='NUM')
@option('--enc-mix', SHARE, '[lia] Share of generated images in a batch', metavar='SHARE')
@option('--enc-offset', WEIGHT, "[lia] Weight of the penalty on y+'s offsets", metavar='NUM')
@option('--enc-prior', WEIGHT, "[lia] Weight of the codes' likelihood under the exact prior", metavar='NUM')
@option('--enc-start', click.Choice(opts.STARTS), "[lia] The encoder begins with D's convolutions and a head fitted to "
        'generated images (network), with such a head alone, or at random')
@option('--enc-schedule', click.Choice(opts.SCHEDULES), "[lia] The encoder's learning rate: down along a cosine, by a "
        'fifth each quarter, or as it is')
@option('--percep', click.Choice(opts.PERCEPTUAL), "[lia] Perceptual features: stage 1's D, or VGG16 (a download)")
# Speed.
@option('--precision', click.Choice(PRECISIONS), 'What this run computes in: fp32; bf16, on CPUs with AMX (half of '
        'the time) and GPUs from Ampere on; fp16, on GPUs; auto, the fastest. Weights, φ, losses and optimisers are '
        'always float32, and snapshots the same  [default: fp16 on CUDA, but for the encoder, else fp32]')
@switch('--fp32', 'Make networks without float16 layers, which others would use on CUDA, too; else the highest four '
        'resolutions of G and D have them')
@switch('--nhwc', 'Channels-last float16 layers')
@switch('--nobench', 'No cuDNN benchmarking')
@option('--cuda-graphs', click.Choice(['off', 'auto', 'on']), 'Record the work of an iteration once and replay it: for '
        'small images on a GPU, whose launches take longer than the work. auto: up to 256 pixels, and without where it '
        "can't be done. No GPU has run it yet  [default: off]")
@switch('--allow-tf32', 'Allow TF32 in matrix products and convolutions; on a CPU with AMX, half the products')
@switch('--keep-memory', KEEP_MEMORY_HELP)
@option('--workers', click.IntRange(min=0), 'Data loading processes  [default: 3 on a GPU, else 1]', metavar='INT')
@option('--cache', Memory(), 'Keep images decoded in memory: all if they take half of what is free at most (auto), as '
        'many as SIZE holds (8GB), or none (off)', metavar='auto|off|SIZE')
@click.pass_context
def train(ctx: click.Context, outdir: str, dry_run: bool, new_run: bool, **given: Any) -> int:
    """Train LIA, both stages in one run directory, or another --cfg of StyleGAN2-ADA.

    \b
    python train.py --data=faces.zip                    both stages with the default configuration
    python train.py --data=faces.zip --stage=gan        stage 1 alone
    python train.py --data=faces.zip --stage=encoder --resume=network-snapshot-025000.pkl
    python train.py --resume=latest                     go on with the newest run

    Ctrl-C saves and stops. The same command again goes on exactly where the run stopped.
    Options that are not given follow --cfg and the data set; -n shows what they become.
    """
    said = {name for name in given if ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT}
    from lia_plugin import host, launch, memory, outputs, planning, run_dir
    from lia_plugin.host import UserError

    given['gpus'] = host.number_of_processes(given['gpus'] if 'gpus' in said else None)
    if host.started_by_torchrun():
        said.add('gpus')
    run, options = find_run(outdir, new_run, normalise(given), said)
    opts.check(options)
    outputs.check_output('--outdir', outdir, folder=True)
    if options.keep_memory:
        process_options.keep_memory()

    plan = planning.plan(options, run, dry=dry_run)
    if run is not None:
        check_same_data(run, plan)
    print(json.dumps({k: v for k, v in plan.items() if k != 'options'}, indent=2, ensure_ascii=False))
    say_metrics(plan)
    for line in [*plan['notes'], *plan['transfer']]:
        print(line)
    if dry_run:
        print(f'Dry run: would train in {run.path if run else run_dir.next_path(outdir, description(plan))}')
        return 0
    if run is not None and not launch.unfinished(run, plan):
        print(f'{run.path} has finished already; a longer --kimg or --enc-kimg goes on with it')
        return 0
    fresh = run is None
    run = run or run_dir.create(outdir, description(plan))
    with run.at_work():
        run.write_options(plan)
        print(f'Training in {run.path}' if fresh else f'Going on with {run.path}; --new-run starts afresh', flush=True)
        try:
            snapshot = launch.train(run, plan)
        except host.lost_process() as error:
            error.args = (f'{error}. {what_is_saved(run)}',)
            raise
        except Exception as error:
            told = isinstance(error, UserError) or memory.is_out_of_memory(error)  # In one line, without a traceback.
            if told and fresh and not run.has_trained():
                shutil.rmtree(run.path)  # A directory of nothing would only look like a run.
            raise
    return finish(snapshot, run, plan, outdir, ctx.command_path)


def normalise(given: dict[str, Any]) -> dict[str, Any]:
    """Values as they are compared and kept: data sets on the disk, and absolute paths, the same from any folder."""
    from lia_plugin import host

    values = dict(given)
    for name in ('data', 'val'):
        if values[name] is not None:
            values[name] = host.fetch(values[name])
    for name in ('data', 'val', 'resume', 'detector'):
        value = values[name]
        if value is not None and os.path.exists(value):
            values[name] = os.path.abspath(value)
    for name in ('kimg', 'enc_kimg', 'tick'):
        if values[name] is not None and values[name] == int(values[name]):
            values[name] = int(values[name])
    return values


def find_run(outdir: str, new_run: bool, values: dict[str, Any], said: set[str]) -> tuple[Run | None, Options]:
    """The run to go on with, None for a new one, and the options.

    With --resume=latest options that weren't said are as they were; those that were said must be, but for the few
    that may change. Otherwise the newest run of the same options, those few left out, goes on if it hasn't finished.
    """
    from lia_plugin import run_dir

    if values['resume'] == 'latest':
        if new_run:
            raise click.UsageError('--new-run: contradicts --resume=latest')
        run = next(iter(run_dir.list_runs(outdir)), None)
        if run is None:
            raise click.UsageError(f'--resume=latest: there is no run in {outdir}; --outdir says where to look')
        then = run.options
        if then is None:
            raise click.UsageError(f'--resume=latest: {run.path} was made by another program; start with --resume=…pkl')
        now = {name: values[name] for name in values if name in said and name != 'resume'}
        wrong = run_dir.first_difference(now, then)
        if wrong is not None:
            raise click.UsageError(f'{opts.flag(wrong)}: {now[wrong]} now, {then[wrong]} in {run.path}; leave it out '
                                   'to go on with that run, or start another without --resume=latest')
        known = {f.name for f in dataclasses.fields(Options)}
        return run, Options(**{**{k: v for k, v in then.items() if k in known}, **now})
    if values['data'] is None:
        raise click.UsageError("Missing option '--data': the folder or zip to train on (--help lists the options)")
    options = Options(**values)
    same = None if new_run else run_dir.newest_of(outdir, dataclasses.asdict(options))
    return (None if same is None or same.is_complete() else same), options


def check_same_data(run: Run, plan: dict[str, Any]) -> None:
    """A run that goes on must see the images that it has seen."""
    then = run.recorded['data']
    wrong = next((k for k, v in plan['data'].items() if k != 'name' and then.get(k, v) != v), None)
    if wrong is not None:
        raise click.UsageError(
            f'--data: {plan["options"]["data"]} has changed since {run.path} began ({wrong.replace("_", " ")} '
            f'{then[wrong]} then, {plan["data"][wrong]} now); start afresh with --new-run'
        )


def description(plan: dict[str, Any]) -> str:
    """What a run directory's name says: configuration, data set, processes, batch, and the user's own words."""
    said, stage = plan['options'], plan['gan'] or plan['encoder']
    parts = [said['cfg'], plan['data']['name'], f'gpus{said["gpus"]}', f'batch{stage["batch_size"]}']
    if said['cfg'] == 'lia' and said['stage'] != 'both':
        parts.insert(1, said['stage'])
    if plan['gan'] is not None:
        parts.append(f'gamma{plan["gan"]["loss_kwargs"]["r1_gamma"]:g}')
    return '-'.join(parts + ([said['desc']] if said['desc'] else []))


def say_metrics(plan: dict[str, Any]) -> None:
    """Says so if stage 1 is measured by nothing: the metrics that need no download need an encoder."""
    if plan['gan'] is not None and plan['options']['metrics'] is None and not plan['gan']['metrics']:
        others = plan['encoder']['metrics'] if plan['encoder'] is not None else []
        print('stage 1 has no metric that needs no download: '
              f'--metrics={",".join([*others, config.HOST_METRICS])} adds one')


def what_is_saved(run: Run) -> str:
    """Of a run that Ctrl-C stopped: what is on the disk, which a second Ctrl-C or an early one may leave behind."""
    from lia_plugin.run_dir import STATE_FILE

    if os.path.exists(run.file(STATE_FILE)):
        return 'The same command goes on from the last saved state'
    if run.progress.get('gan'):
        return 'Stage 1 is saved, nothing of stage 2 yet: the same command begins stage 2 again'
    return 'Nothing is saved yet: the same command starts again'


def finish(snapshot: str | None, run: Run, plan: dict[str, Any], outdir: str, program: str) -> int:
    """Says what to do next, in the words in which this command was called; gives the exit code."""
    from lia_plugin.cli import EXIT_INTERRUPTED

    # `lia train` stays `lia train`; a script is run by Python.
    train_command = f'python {program}' if program.endswith('.py') else program
    invert_command = train_command.replace('train', 'invert')
    if snapshot is None:
        print(f'\nStopped in {run.path}. {what_is_saved(run)}, or:\n'
              f'  {train_command} --outdir={shlex.quote(outdir)} --resume=latest')
        return EXIT_INTERRUPTED
    print(f'\nDone: {snapshot}')
    if plan['encoder'] is not None:
        print('Real images into its latent space:\n'
              f'  {invert_command} --network={shlex.quote(snapshot)} --target=IMAGE_OR_FOLDER')
    elif plan['options']['cfg'] == 'lia':
        print(f'The encoder comes next:\n  {train_command} --stage=encoder --resume={shlex.quote(snapshot)} '
              f'--data={shlex.quote(plan["options"]["data"])}')
    return 0
