"""`calc_metrics.py`: figures of merit of a network, as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

import click

from lia_plugin.params import Count
from lia_plugin.process_options import keep_memory_option, precision_option

DATASET_CLASS = 'training.dataset.ImageFolderDataset'
DATASET_OPTIONS = ('path', 'name', 'max_size', 'xflip', 'random_seed', 'split', 'val_share', 'val_seed')


@dataclasses.dataclass
class Job:
    """All that a process needs; plain values, so that it can be sent to others."""

    network: str  # A file: a URL has been fetched by now.
    trust: bool
    metrics: list[str]
    training_set: dict[str, Any]  # For metrics of generated images; empty if none needs it.
    held_out_set: dict[str, Any]  # For metrics of reconstructions; empty if none needs it.
    device: str
    precision: str | None  # Resolved: no auto.
    num: int | None
    batch: int | None
    detector: str | None
    seed: int
    more: dict[str, Any]  # What all metrics of the command find under its name: see `host.metric_option`.
    verbose: bool
    run_dir: str | None
    snapshot: str  # What results call the network.


def parse_metrics(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    return [name for name in value.replace(' ', '').split(',') if name and name.lower() != 'none']


@click.command(context_settings={'show_default': True})
@click.option('--network', metavar='PATH|URL', help='Network pickle  [required]')
@click.option('--metrics', default='fid50k_full', metavar='NAMES', callback=parse_metrics,
              help='Comma-separated names; all-recon: all of reconstructions that need no other file; list: see all')
@click.option('--data', metavar='PATH|URL', help='Data set to measure on  [default: what the network was trained on]')
@click.option('--mirror', type=bool, metavar='BOOL',
              help='Mirror reals in fid50k, kid50k, pr50k3  [default: as in training]')
@click.option('--gpus', type=click.IntRange(min=1), metavar='INT',
              help='Number of GPUs, or of processes on a CPU  [default: 1, or those that torchrun started]')
@click.option('--num', type=click.IntRange(min=1), metavar='INT', help="Number of images  [default: each metric's own]")
@click.option('--detector', metavar='FILE|URL|random:SEED',
              help="Feature network: TorchScript, or one of fixed random weights  [default: NVIDIA's, per metric]")
@click.option('--lpips', metavar='FILE|URL', help="NVIDIA's vgg16.pt, for recon_lpips  [default: theirs]")
@click.option('--id-detector', metavar='FILE|URL',
              help='Face network for recon_id: TorchScript, RGB images in [-1, 1] → one vector each')
@click.option('--labels', metavar='FILE',
              help="Attributes for ls: CSV, file names first, then a column each  [default: the data set's labels]")
@click.option('--space', type=click.Choice(['y', 'y+', 'z']),
              help="Code to reconstruct from; y: a y+ encoder's base code alone  [default: what the encoder gives]")
@click.option('--batch', type=Count(), metavar='INT', help='Images at once  [default: by resolution]')
@click.option('--device', default='auto', metavar='NAME', help='cpu, cuda, cuda:1, mps …; auto = the best there is')
@precision_option
@keep_memory_option
@click.option('--seed', type=click.IntRange(0, 2**31 - 1), default=0, help='Of latents, noise and subsets')
@click.option('--json', 'json_path', metavar='FILE', help='Write all results to this file too, as one list')
@click.option('--verbose', type=bool, default=True, metavar='BOOL', help='Say on stderr what happens')
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def calc_metrics(
    network: str | None,
    metrics: list[str],
    data: str | None,
    mirror: bool | None,
    gpus: int | None,
    num: int | None,
    detector: str | None,
    lpips: str | None,
    id_detector: str | None,
    labels: str | None,
    space: str | None,
    batch: int | None,
    device: str,
    precision: str | None,
    seed: int,
    json_path: str | None,
    verbose: bool,
    trust_pickle: bool,
) -> None:
    """Evaluate a network.

    Prints one line of JSON for each metric. If the network lies in a training run's directory, the lines are also
    added to its metric-NAME.jsonl. Metrics of reconstructions are taken on images that training held out, where the
    run says which these are; --data names others. Several metrics share one pass through the images.

    \b
    Without any download:
      calc_metrics.py --network=RUN/network-snapshot-001000.pkl --metrics=all-recon,latent_fd
    Distances between features need Inception (fetched once), or another detector:
      calc_metrics.py --network=NET.pkl --metrics=fid50k_full,recon_fid --data=ffhq.zip --detector=random:0
    """
    if metrics == ['list']:
        list_metrics()
        return
    if network is None:
        raise click.UsageError('--network: missing; name a network pickle')
    from lia_plugin import host, outputs

    if json_path is not None:
        outputs.check_output('--json', json_path, folder=False)
    more = {'lpips': lpips, 'id_detector': id_detector, 'labels': labels, 'space': space}
    processes = host.number_of_processes(gpus)
    job = prepare(
        host.fetch(network), None if data is None else host.fetch(data), mirror, device, processes, metrics=metrics,
        more=more, trust=trust_pickle, num=num, batch=batch, detector=detector, seed=seed, verbose=verbose,
        snapshot=network, precision=precision,
    )
    results = host.spawn(evaluate, processes, (job,), device=job.device)
    if json_path is not None:
        with host.atomic_write(json_path, 'w', encoding='utf-8') as f:
            json.dump(outputs.finite(results), f, indent=2, allow_nan=False)


def list_metrics() -> None:
    """Prints every metric's name, what it needs beside a generator, and what it is, in columns."""
    from lia_plugin import host
    from lia_plugin import metrics as _registers_ours  # noqa: F401
    from metrics import metric_main

    networks = dict(inception='Inception*', vgg16='VGG16*')
    rows = [('Metric', 'Needs', 'What it is')]
    for name in metric_main.list_valid_metrics():
        function = host.metric_function(name)
        detector = host.needed_detector(name)
        needs = ['encoder'] if getattr(function, 'needs_encoder', False) else []
        needs += [networks[detector]] if detector is not None else []
        needs += {'lpips': ['VGG16**'], 'id_detector': ['--id-detector']}.get(getattr(function, 'file', ''), [])
        summary = (function.__doc__ or '').strip().splitlines()
        rows.append((name, ', '.join(needs) or '-', summary[0] if summary else ''))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, need, what in rows:
        click.echo(f'{name:<{widths[0]}}  {need:<{widths[1]}}  {what}'.rstrip())
    click.echo("\n*  NVIDIA's network, downloaded once; --detector=FILE does without, or random:0 (not for is50k)\n"
               "** NVIDIA's network, downloaded once; --lpips=FILE does without a download")


def load_generator(path: str, trust: bool) -> tuple[Any, dict[str, Any]]:
    """G_ema and the whole dict of a network file. UserError if it holds no generator."""
    from lia_plugin import host

    contents = host.load_network_pkl(path, trust)
    G = contents.get('G_ema')
    if G is None or not hasattr(G, 'img_resolution'):
        raise host.UserError(f'--network: {path}: holds no generator (no G_ema)')
    return G, contents


def run_options(path: str) -> tuple[str | None, dict[str, Any]]:
    """The run directory that a snapshot lies in and its training_options.json; (None, {}) if it lies elsewhere."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with open(os.path.join(folder, 'training_options.json'), encoding='utf-8') as f:
            options = json.load(f)
    except FileNotFoundError:
        return None, {}
    except (OSError, ValueError):  # Half a file of another tool's: the network can be measured all the same.
        return folder, {}
    return folder, options if isinstance(options, dict) else {}


def used_set(metric: Any, G: Any) -> str | None:
    """Which data set a metric reads: 'training', 'held_out' or none."""
    if getattr(metric, 'labels_only', False) and G.c_dim == 0:
        return None
    return 'held_out' if getattr(metric, 'held_out', False) else 'training'


def choose_data(
    contents: dict[str, Any], options: dict[str, Any], data: str | None, used: set[str | None]
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Arguments of the data sets in use by the names of `used_set`, and what to say if reconstructions are of
    images that the network was trained on.

    The run's own record is preferred to the pickle's: only it knows the split.
    """
    from lia_plugin.host import UserError

    record = stage_record(options)
    training_set = record.get('training_set_kwargs') or contents.get('training_set_kwargs')
    held_out = record.get('val_set_kwargs')
    sets: dict[str, dict[str, Any]]
    if data is not None:
        sets = {name: dict(class_name=DATASET_CLASS, path=data) for name in ('training', 'held_out') if name in used}
        note = 'these images were trained on' if is_path_of(data, training_set) else None
        if note and held_out:
            note += '; without --data those that the run held out are measured'
    else:
        if not training_set and used - {None}:
            raise UserError('--data: missing, and the network file names no data set')
        recorded = dict(training=training_set, held_out=held_out or training_set)
        sets = {name: recorded_data(recorded[name]) for name in ('training', 'held_out') if name in used}
        note = None if held_out else ('nothing is known to be held out, so reconstructions are of training images; '
                                      '--data names others')
    return sets, note if 'held_out' in used else None


def stage_record(options: dict[str, Any]) -> dict[str, Any]:
    """The training loop's arguments out of training_options.json: ours keeps them by stage, the host's at the top."""
    return next((options[stage] for stage in ('encoder', 'gan') if isinstance(options.get(stage), dict)), options)


def known_training_set(contents: dict[str, Any], options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Arguments of the set that a network was trained on, whatever --data says, and why they are unknown if so."""
    from lia_plugin.host import UserError

    recorded = stage_record(options).get('training_set_kwargs') or contents.get('training_set_kwargs')
    if not recorded:
        return {}, 'and the network file names none'
    try:
        return recorded_data(recorded), None
    except UserError:
        return {}, 'and that of the network file is not here'


def is_path_of(path: str, kwargs: Any) -> bool:
    """Whether data set arguments, which may be anybody's, name this file or folder."""
    recorded = kwargs.get('path') if isinstance(kwargs, dict) else None
    return isinstance(recorded, str) and os.path.realpath(recorded) == os.path.realpath(path)


def recorded_data(kwargs: Any) -> dict[str, Any]:
    """Data set arguments out of a file that may be anybody's. Its class is never called: it could be any function."""
    from lia_plugin.host import UserError

    if not isinstance(kwargs, dict) or kwargs.get('class_name', DATASET_CLASS) != DATASET_CLASS:
        raise UserError('--data: missing, and the network was trained on a data set of an unknown kind')
    path = kwargs.get('path')
    if not isinstance(path, str) or not os.path.exists(path):
        raise UserError(f'--data: missing, and the data set of the training is not here: {path}')
    return {'class_name': DATASET_CLASS, **{key: kwargs[key] for key in DATASET_OPTIONS if key in kwargs}}


def check_data(G: Any, kwargs: dict[str, Any]) -> None:
    """UserError now, not after minutes of work, if the data set can't be read or doesn't fit the network."""
    from lia_plugin.host import UserError, open_data_set

    dataset = open_data_set(**kwargs)
    if dataset.num_channels != G.img_channels:
        raise UserError(f'--data: {kwargs.get("path")}: images of {dataset.num_channels} channels, but the network '
                        f'makes {G.img_channels}')
    if G.c_dim > 0 and dataset.label_dim != G.c_dim:
        raise UserError(f'--data: {kwargs.get("path")}: labels of {dataset.label_dim} dimensions, but the network '
                        f'takes {G.c_dim}')
    dataset.close()


def prepare(
    path: str, data: str | None, mirror: bool | None, device: str, gpus: int, metrics: list[str], trust: bool,
    more: dict[str, Any], precision: str | None = None, **plain: Any,
) -> Job:
    """Looks at everything that can be wrong before the work begins."""
    import torch

    from lia_plugin import evaluation, host, metric_checks, metric_traits, planning
    from lia_plugin import metrics as _registers_ours  # noqa: F401

    if not metrics:
        raise click.UsageError('--metrics: none given; --metrics=list tells all')
    # Before a network is read: unknown names, and options that metrics can't take here.
    named = [name for name in metrics if name != metric_traits.ALL_RECON]
    for name in named:
        host.metric_function(name)
    host.check_metric_options(named, plain)
    run_device = planning.resolve_device(device, gpus)
    computed_in = host.resolve_precision(precision, torch.device(run_device))
    G, contents = load_generator(path, trust)
    run_dir, options = run_options(path)
    training_set, no_training_set = known_training_set(contents, options)
    situation = metric_traits.Situation(
        resolution=G.img_resolution, training_set=no_training_set, detector=plain['detector'], lpips=more['lpips'],
        id_detector=more['id_detector'],
    )  # fmt: skip
    metrics, notes = metric_traits.expand(metrics, situation)
    wanted = [host.metric_function(name) for name in metrics]
    host.check_metric_options(metrics, plain)
    if any(getattr(fn, 'needs_encoder', False) for fn in wanted):
        evaluation.check_encoder(G)
        evaluation.check_space(G, more['space'])
    metric_traits.check(metrics, situation)
    metric_checks.check_options(metrics, {**plain, **more})
    sets, note = choose_data(contents, options, data, {used_set(fn, G) for fn in wanted})
    used = [*sets.values()]
    if any(getattr(fn, 'training_set', False) for fn in wanted):
        used.append(training_set)
        more = {**more, 'training_set': training_set}
    for kwargs in used:
        kwargs.update(resolution=G.img_resolution, use_labels=G.c_dim != 0)
        if mirror is not None:
            kwargs['xflip'] = mirror
        check_data(G, kwargs)
    metric_checks.check_labels(metrics, sets.get('held_out', {}), plain['num'], more['labels'])
    metric_checks.check_files(metrics, {**plain, **more}, plain['verbose'])
    for line in [*notes, *([] if note is None else [f'Note: {note}'])]:
        if plain['verbose']:
            print(line, file=sys.stderr)
    return Job(network=path, trust=trust, metrics=metrics, training_set=sets.get('training', {}), more=more,
               held_out_set=sets.get('held_out', {}), device=run_device, run_dir=run_dir,
               precision=computed_in, **plain)


def evaluate(rank: int, world_size: int, job: Job) -> list[dict[str, Any]]:
    """One process's part: all metrics in turn. Rank 0 prints and records them."""
    from lia_plugin import engine, evaluation, host, machines, perceptual
    from lia_plugin import metrics as _registers_ours  # noqa: F401
    from metrics import metric_main

    evaluation.full_precision()
    device = host.own_device(job.device, rank)
    lpips = job.more['lpips'] or perceptual.VGG16_URL
    machines.fetch_here([job.snapshot, lpips if 'recon_lpips' in job.metrics else None])
    machines.check_files({'--network': job.network, '--data': job.training_set.get('path'),
                          '--data (held out)': job.held_out_set.get('path')})  # fmt: skip
    G, _contents = load_generator(job.network, job.trust)
    G = engine.Engine(G.eval().requires_grad_(False).to(device))
    options = dict(detector=job.detector, num=job.num, batch=job.batch, seed=job.seed)
    shared: dict[Any, Any] = {**job.more, 'metrics': list(job.metrics)}
    results = []
    for name in job.metrics:
        if rank == 0 and job.verbose:
            print(f'{name} …', file=sys.stderr, flush=True)
        held_out = getattr(host.metric_function(name), 'held_out', False)
        data = job.held_out_set if held_out else job.training_set
        with host.using_precision(job.precision, device):
            result = host.calc_metric(
                name, data, job.verbose, options, shared, G=G, num_gpus=world_size, rank=rank, device=device)
        if job.precision is not None:
            result = {**result, 'precision': job.precision}
        if rank == 0:
            metric_main.report_metric(result, run_dir=job.run_dir, snapshot_pkl=job.snapshot)
        results.append({**result, 'results': dict(result['results'])})
    return results
