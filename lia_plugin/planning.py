"""From options to a configuration, and every check that needs the data set, the device or other files.

All of it comes before a run directory is made, so that what can't work leaves nothing behind and costs no training.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from click import UsageError

import lia_plugin.metrics  # noqa: F401  Registers LIA's metrics.
from lia_plugin import __version__, config, host, inversion, metric_traits, run_dir, transfer
from lia_plugin.options import TRANSFER_SOURCES, Options
from lia_plugin.perceptual import VGG16Features, make_perceptual


def plan(options: Options, run: run_dir.Run | None = None, dry: bool = False) -> dict[str, Any]:
    """The whole configuration of a run, as `training_options.json` holds it.

    `run` is the one that goes on, None for a new one. It has taken what it needs from `--resume`, which may be gone.
    With `dry` nothing is downloaded but the pickle of `--resume`.

    Raises click.UsageError or UserError, in one line, for whatever can't be trained.
    """
    host.check_training_options(options)
    device = resolve_device(options.device, options.gpus)
    host.check_processes('--workers', (options.workers or 0) * host.processes_here(options.gpus))
    said, options = options, dataclasses.replace(options, device=device, val=host.default_val(options.val))
    if run is not None:  # What the configuration takes from the number of processes stays as it began.
        options = dataclasses.replace(options, gpus=run.gpus)
    info = describe_data(options)
    options, left_out = name_metrics(options, info)
    gan_metrics, all_metrics = split_metrics(options)
    options, precision_notes = settle_precision(options, run)
    result: dict[str, Any] = dict(
        version=__version__, options=dataclasses.asdict(said), data=dataclasses.asdict(info), device=device,
        first_gpus=options.gpus, gan=None, encoder=None, encoder_source=None, encoder_start=None, attach=None,
        notes=[*left_out, *precision_notes, *graph_notes(options)], transfer=[],
    )  # fmt: skip
    if options.has_gan_stage:
        result['gan'] = host.adapt_stage(config.gan_stage(options, info, augpipe(options), gan_metrics))
        spread(result['gan'], said, result['notes'])
        check_batch(result['gan'], '--batch')
    if options.has_encoder_stage:
        result['encoder_start'] = config.encoder_preset(options).start
        result['encoder'] = host.adapt_stage(config.encoder_stage(options, info))
        spread(result['encoder'], said, result['notes'])
        check_batch(result['encoder'], '--enc-batch')
        if options.stage == 'encoder':
            result['encoder_source'] = resume_source(options)
            source = (None if run is None else run.encoder_source()) or resume_source(options)
            transfer.plan_encoder(result, source, options, info)
        if run is not None and run.has_begun('encoder'):
            # It follows --enc-kimg, which may change; the average that has begun goes on as it was. So do loss and
            # encoder, which depend on what the pickle of --resume held, and on defaults that may have changed since.
            for key in ('ema_kimg', 'loss_kwargs', 'G_kwargs', 'G_opt_kwargs', 'D_opt_kwargs'):
                result['encoder'][key] = keep_length(run.recorded['encoder'][key], result['encoder'][key])
    if options.has_gan_stage and options.transfers:
        if run is None:
            transfer.plan_gan(result, options, info, resume_source(options))
        else:
            transfer.keep_networks(result, run.recorded)
    if run is not None:
        result['attach'] = run.recorded.get('attach')
    check_splits(result)
    if not dry:
        check_downloads(options, result, all_metrics)
    return result


def settle_precision(options: Options, run: run_dir.Run | None) -> tuple[Options, list[str]]:
    """Options with what `--precision` comes to on their device, and what there is to say of it.

    A run goes on in what it began with: auto may be something else on another machine. UserError if this one can't.
    """
    device, choice = torch.device(options.device), options.precision
    then = None if run is None else (run.recorded['gan'] or run.recorded['encoder'] or {}).get('precision')
    resolved = host.resolve_precision(choice if then is None else then, device, says=False)
    notes = []
    if choice in ('auto', 'bf16'):
        began = '' if then is None else ', as it began'
        notes.append(f'--precision={choice}: {host.describe_precision(resolved, device)}{began}')
    return dataclasses.replace(options, precision=resolved), notes


def graph_notes(options: Options) -> list[str]:
    """What there is to say of `--cuda-graphs` on the options' device. UserError where it can't be had."""
    if options.cuda_graphs in (None, 'off') or options.device.startswith('cuda'):
        return []
    if options.cuda_graphs == 'on':
        raise host.UserError(f'--cuda-graphs=on: needs a CUDA GPU, and this run is on {options.device}; auto takes '
                             'them where there are any')
    return [f'--cuda-graphs={options.cuda_graphs}: none on {options.device}; they are for CUDA GPUs']


def keep_length(recorded: Any, planned: Any) -> Any:
    """Arguments as they were when the stage began, but for its length: that may have become another."""
    if not isinstance(recorded, dict):
        return recorded
    return {**recorded, **{k: planned[k] for k in ('total_kimg', 'total_steps') if k in recorded and k in planned}}


def resolve_device(name: str, gpus: int) -> str:
    """'auto' → the best device there is; checked to be there, `gpus` times."""
    return host.check_devices(str(inversion.pick_device(None if name == 'auto' else name)), gpus)


def resume_source(options: Options) -> str:
    """Path or URL of `--resume`, whose short names stand for NVIDIA's transfer-learning sources."""
    return TRANSFER_SOURCES.get(options.resume, options.resume)


# ---------------------------------------------------------------------------------------------------------------------
# Data.


def describe_data(options: Options) -> config.DataInfo:
    """Opens the data set and checks that it can be trained on."""
    data_set = host.open_data_set(
        class_name='training.dataset.ImageFolderDataset', path=options.data, use_labels=options.cond
    )
    resolution = data_set.resolution
    if resolution < 8 or resolution & (resolution - 1):
        raise UsageError(
            f'--data: {options.data}: images are {resolution}x{resolution}, the networks need a power of two '
            'from 8 on; dataset_tool.py --resolution=WxH makes it'
        )
    if options.cond and not data_set.has_labels:
        raise UsageError(f'--cond: {options.data} has no labels (in its dataset.json); leave --cond out')
    host.check_images(data_set)
    info = config.DataInfo(data_set.name, len(data_set), resolution, data_set.num_channels, data_set.label_dim)
    data_set.close()
    return info


def check_splits(result: dict[str, Any]) -> None:
    """Opens both sets as the loop will: enough images for --subset, and a held-out set that fits the networks."""
    stage = result['gan'] or result['encoder']
    training_set = host.open_data_set(**dict(stage['training_set_kwargs'], max_size=None, xflip=False))
    subset = stage['training_set_kwargs']['max_size']
    if subset is not None and subset > len(training_set):
        raise UsageError(f'--subset: {subset} images asked for, there are {len(training_set)} to train on')
    if stage['val_set_kwargs'] is None:
        return
    val_set = host.open_data_set(**stage['val_set_kwargs'])
    host.check_images(val_set)
    for fact in ('image_shape', 'label_shape'):
        got, expected = getattr(val_set, fact), getattr(training_set, fact)
        if got != expected:
            path = stage['val_set_kwargs']['path']
            raise UsageError(f'--val: {path}: {fact.replace("_", " ")} is {got}, the training set has {expected}')


def spread(stage: dict[str, Any], said: Options, notes: list[str]) -> None:
    """Gives the same batch to another number of processes than the run began with.

    Each handles no more images at a time than it did then, unless --batch-gpu says so: that fits its memory.
    """
    before, gpus = stage['num_gpus'], said.gpus
    if gpus == before:
        return
    group = stage['D_kwargs']['epilogue_kwargs'].get('mbstd_group_size') or stage['batch_gpu']
    stage.update(num_gpus=gpus, batch_gpu=min(stage['batch_gpu'], stage['batch_size'] // gpus))
    if stage['batch_gpu'] and stage['batch_gpu'] < group:
        note = (f'{gpus} processes instead of {before}: groups of the minibatch standard deviation have '
                f'{stage["batch_gpu"]} images instead of {group}')
        notes += [note] if note not in notes else []  # The other stage's may be the same.


def check_batch(stage: dict[str, Any], flag: str) -> None:
    """The batch must fall into equal parts, and these into groups of the minibatch standard deviation."""
    batch, part, gpus = stage['batch_size'], stage['batch_gpu'], stage['num_gpus']
    if batch % gpus:  # Also more processes than images.
        raise UsageError(f'{flag}: {batch} images can\'t be divided among --gpus={gpus}')
    if batch % (part * gpus):
        raise UsageError(f'{flag}: {batch} isn\'t a multiple of --batch-gpu={part} times --gpus={gpus}')
    group = stage['D_kwargs']['epilogue_kwargs'].get('mbstd_group_size') or part
    if part % min(group, part):
        raise UsageError(f'{flag}: {part} images at a time don\'t fall into groups of {group}; set --mbstd-group')


def augpipe(options: Options) -> dict[str, Any]:
    """Arguments that `--augpipe` stands for."""
    return {} if options.aug == 'noaug' else host.augpipe(options.augpipe or 'bgc')


# ---------------------------------------------------------------------------------------------------------------------
# Metrics and downloads.


def name_metrics(options: Options, info: config.DataInfo) -> tuple[Options, list[str]]:
    """Options with `all-recon` replaced by names, and what that leaves out. UserError for what can't be measured."""
    missing = None if host.OURS else 'and this loop tells metrics only one data set; calc_metrics tells both'
    situation = metric_traits.Situation(info.resolution, missing, detector=options.detector)
    names, left_out = metric_traits.expand(config.metric_names(options), situation)
    metric_traits.check(names, situation)
    asked = None if options.metrics is None else ','.join(names)
    return dataclasses.replace(options, metrics=asked), left_out


def split_metrics(options: Options) -> tuple[list[str], list[str]]:
    """The metrics of stage 1 and those of stage 2. UserError for an unknown one, or one that has no stage to be in."""
    names = config.metric_names(options)
    needing = [name for name in names if getattr(host.metric_function(name), 'needs_encoder', False)]
    if needing and not options.has_encoder_stage and options.metrics is not None:
        raise UsageError(f'--metrics: {needing[0]} needs an encoder, which this command doesn\'t train')
    return [name for name in names if name not in needing], names


def check_downloads(options: Options, result: dict[str, Any], metrics: list[str]) -> None:
    """Gets now what will be needed later, so that a machine without internet says so before it trains for days."""
    if result['encoder'] is not None:
        loss = result['encoder']['loss_kwargs']
        if loss['percep'].startswith('vgg16') and loss['percep_weight']:
            make_perceptual(loss['percep'])
    if 'recon_lpips' in metrics:
        try:
            VGG16Features()
        except host.UserError as error:
            raise host.UserError(f'--metrics: recon_lpips: {error}; or leave it out') from None
    try:
        host.fetch_detectors(metrics, options.detector)
    except host.UserError as error:
        raise host.UserError(f'{error}; or --metrics=none') from None
