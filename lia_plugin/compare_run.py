"""A comparison from its beginning to its end: method by method, seed by seed; what is done is never done again.

    OUTDIR/runs/seed0-lia-y/         a run of train.py's for everything that is trained
    OUTDIR/measured/seed0-lia-y.*    its figures, and its first reconstructions
    OUTDIR/compare.json, …           the report, written anew after each method
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from click import ClickException

import lia_plugin.metrics  # noqa: F401  Registers LIA's metrics.
from lia_plugin import (
    compare,
    compare_measure,
    compare_report,
    compare_training,
    host,
    perceptual,
    planning,
    run_dir,
)
from lia_plugin.compare import STAGE1, STAGE1_MLP, Method, Settings, work_name
from lia_plugin.host import UserError
from lia_plugin.results import save_json
from metrics import metric_main


class Tools(NamedTuple):
    """What all measurements share."""

    device: torch.device
    detector: str  # Feature network of Fréchet distances …
    path_detector: str  # … and of path lengths: VGG16 if it was downloaded before.
    lpips: perceptual.Perceptual | None
    batch: int


def run(settings: Settings) -> int:
    """Trains, measures and reports; gives the number of methods that failed.

    Raises UsageError or UserError for what can't be compared at all; KeyboardInterrupt when Ctrl-C stops it, with
    everything that was finished on the disk.
    """
    settings = compare_training.complete(settings)
    compare_training.check_runs(settings)
    tools = prepare(settings)
    folder = run_dir.Run(settings.outdir)
    if folder.worker() not in (None, os.getpid()):
        raise UserError(f'--outdir: {settings.outdir}: process {folder.worker()} is at work here; wait for it')
    os.makedirs(settings.outdir, exist_ok=True)
    with folder.at_work():
        return run_all(settings, tools)


def run_all(settings: Settings, tools: Tools) -> int:
    """All methods with all seeds; gives the number of those that failed."""
    results = compare_report.Results(settings)
    for seed in range(settings.seeds):
        for base in settings.bases:
            if seed in settings.seeds_of(base):
                path = compare_training.stage1(settings, seed, base)  # Without it nothing else can be.
                results.add_generator(generator_record(settings, tools, seed, base, path))
        for name in settings.methods:
            if seed in settings.seeds_of(name):
                try:
                    run_method(settings, tools, results, seed, compare.method(name))
                except (UserError, ClickException) as error:
                    results.fail(name, seed, str(error))
                    print(f'{name}: failed: {error}', flush=True)
                results.write()
    return len(results.failures)


def prepare(settings: Settings) -> Tools:
    """What is needed to measure, made before anything is trained."""
    training = settings.training
    device = torch.device(planning.resolve_device(training.get('device', 'auto'), 1))
    vgg16 = perceptual.cached_vgg16()
    detector = settings.detector or host.cached_download(host.detector_url('inception')) or 'random:0'
    host.feature_detector(detector, device)
    resolution = host.open_data_set(**compare_training.held_out_set(settings, 1)).resolution
    batch = settings.batch or max(min(64, 64 * 256**2 // resolution**2), 4)
    lpips = None if vgg16 is None else perceptual.VGG16Features(vgg16).to(device)
    return Tools(device, detector, vgg16 or detector, lpips, batch)


def run_method(
    settings: Settings, tools: Tools, results: compare_report.Results, seed: int, method: Method
) -> None:
    """One method with one seed: its network, its figures, into the results."""
    path = compare_training.network(settings, seed, method.name)
    if method.joint:
        results.add_generator(generator_record(settings, tools, seed, method.name, path))
    results.add(*method_record(settings, tools, seed, method, path))


def load(path: str, settings: Settings, device: torch.device) -> Any:
    """G_ema of a pickle. UserError if it can't be measured."""
    G = host.load_network_pkl(path, trust=settings.training.get('trust_pickle', False)).get('G_ema')
    if G is None:
        raise UserError(f'{path}: holds no generator (no G_ema)')
    return G.eval().requires_grad_(False).to(device)


def method_record(
    settings: Settings, tools: Tools, seed: int, method: Method, path: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of a method, and its first reconstructions: from the disk if they are of these very things."""
    metrics = compare_measure.SET_METRICS + compare_measure.ENCODER_METRICS
    of = {**fingerprint(settings, tools, path), 'lpips': tools.lpips is not None, 'method': what_moves(method),
          'metrics': [name for name in metrics if metric_main.is_valid_metric(name)]}
    file = settings.path('measured', work_name(seed, method.name))
    known = compare.read_json(f'{file}.json')
    if known is not None and known.get('of') == of and os.path.exists(f'{file}.npy'):
        return known, np.load(f'{file}.npy')
    print(f'Measuring {work_name(seed, method.name)}', flush=True)
    G = load(path, settings, tools.device)
    if not method.optimises or method.needs is not None:
        check_encoder(G, method, path)
    record, shown = measured(settings, tools, method, G)
    record.update(of=of, seed=seed, network=path, machine=machine(tools.device))
    record.update(compare_report.budget(settings, method))
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with host.atomic_write(f'{file}.npy') as out:
        np.save(out, shown)
    save_json(f'{file}.json', record)
    return record, shown


def what_moves(method: Method) -> dict[str, Any]:
    """What decides the figures of a method's optimisation, its settings as they are now included, as JSON gives it."""
    if not method.optimises:
        return {}
    said = dict(steps=method.steps, needs=method.needs, optimizer=method.optimizer, prior_weight=method.prior_weight)
    settings = dataclasses.asdict(compare_measure.optimisation(method))
    return json.loads(json.dumps({**settings, **said}))


def machine(device: torch.device) -> str:
    """What times were taken on."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{device}, {threads} thread{"s" if threads > 1 else ""}'


def measured(settings: Settings, tools: Tools, method: Method, G: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The shared images with every method; with those of one pass also the larger set."""
    reconstruct = compare_measure.reconstructor(method, G)
    small, large = min(settings.opt_num, settings.num), settings.num

    def measure(num: int, shown: int) -> compare_measure.Measurement:
        return compare_measure.measure(
            reconstruct, G, compare_training.held_out_set(settings, num), tools.device, tools.batch, method.name,
            dict(detector=tools.detector), shown, tools.lpips)

    shared = measure(small, settings.shown)
    times = compare_measure.seconds_per_image(
        reconstruct, G, compare_training.held_out_set(settings, small), tools.device, tools.batch)
    if 'seconds_batched' not in times:
        n = int(shared.figures['n'])
        times.update(seconds_batched=shared.figures['seconds_measuring'] / n, timed_batch=min(tools.batch, n))
    record: dict[str, Any] = dict(name=method.name, label=method.label, shared={**shared.figures, **times}, all=None)
    if not method.optimises:
        data = compare_training.held_out_set(settings, large)
        encoder = compare_measure.encoder_figures(
            G, data, tools.device, dict(detector=tools.detector), settings.labels)
        record['all'] = {**measure(large, 0).figures, **encoder, **times}
    return record, shared.shown


def check_encoder(G: Any, method: Method, path: str) -> None:
    """UserError if a network that was given has no encoder, or one towards another space."""
    if getattr(G, 'encoder', None) is None:
        raise UserError(f'{path}: has no encoder, which {method.name} needs')
    wanted = 'z' if method.joint else (method.encoder or {}).get('enc_space', G.encoder.space)
    if G.encoder.space != wanted:
        raise UserError(f'{path}: its encoder leads to {G.encoder.space}, that of {method.name} to {wanted}')


def generator_record(settings: Settings, tools: Tools, seed: int, name: str, path: str) -> dict[str, Any]:
    """Figures of a generator's own images, from the disk if they are of these very things."""
    jobs = ((compare_measure.GENERATOR_METRICS, tools.detector), (compare_measure.PATH_METRICS, tools.path_detector))
    of = {**fingerprint(settings, tools, path), 'gen_num': settings.gen_num,
          'metrics': [[name for name in names if metric_main.is_valid_metric(name)] + [seen] for names, seen in jobs]}
    file = settings.path('measured', f'{work_name(seed, name)}-generator.json')
    known = compare.read_json(file)
    if known is not None and known.get('of') == of:
        return known
    print(f'Measuring the generator of {work_name(seed, name)}', flush=True)
    found: dict[str, Any] = {}
    G, data = load(path, settings, tools.device), compare_training.training_set(settings)
    for names, seen in jobs:
        options = dict(detector=seen, num=settings.gen_num)
        found.update(compare_measure.registry(names, G, data, tools.device, options))
    record = dict(name=name, seed=seed, network=path, of=of, figures=found)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    save_json(file, record)
    return record


def fingerprint(settings: Settings, tools: Tools, path: str) -> dict[str, Any]:
    """What a measurement is of: if it is the same, so are the figures."""
    data = str(settings.training['data'])
    return dict(
        network=_version(path), data=_version(data), val=str(settings.training['val']), num=settings.num,
        opt_num=settings.opt_num, shown=settings.shown, detector=tools.detector, batch=tools.batch,
        labels=settings.labels, device=str(tools.device),
    )  # fmt: skip


def _version(path: str) -> Mapping[str, Any]:
    stat = os.stat(path)
    return dict(path=os.path.abspath(path), size=stat.st_size, time=stat.st_mtime_ns)


def plan_lines(settings: Settings) -> list[str]:
    """What a run would do, for --dry-run."""
    lines = []
    for seed in range(settings.seeds):
        for name in [*settings.bases, *settings.trained]:
            if seed not in settings.seeds_of(name):
                continue
            if name in settings.taken:
                lines.append(f'{name}: {compare_training.taken_pickle(name, settings.taken[name])}, given')
                continue
            kimg = settings.training['kimg' if name in (STAGE1, STAGE1_MLP) else 'enc_kimg']
            if name == 'bigan':
                kimg += settings.training['kimg']
            lines.append(f'{work_name(seed, name)}: trained for {kimg:g} kimg in {settings.path("runs")}')
    lines += [f'{name}: {compare.method(name).about}' for name in settings.methods]
    return lines
