"""The networks of a comparison: given ones taken, the others trained, each in a run of its own, as train.py makes them.

A run that is there already is not trained again, one that was interrupted goes on exactly; a run of other options stops
everything, for one table must not mix them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from click import UsageError

from lia_plugin import attach, attach_files, bigan, compare, config, host, launch, planning, run_dir
from lia_plugin import options as opts
from lia_plugin.compare import STAGE1, STAGE1_MLP, Settings
from lia_plugin.host import UserError
from lia_plugin.options import Options
from lia_plugin.phi_fit import Fit

MAY_CHANGE = ('snap', 'tick', 'workers', 'cache')  # Budgets may not: they must stay equal.
Planner = Callable[[run_dir.Run | None], dict[str, Any]]


# ---------------------------------------------------------------------------------------------------------------------
# Options of the runs


def complete(settings: Settings) -> Settings:
    """The settings with all budgets and the held-out share in them. UsageError or UserError for what can't be."""
    if not host.OURS:
        raise UserError(f'compare: needs held-out images and exact resumption; {host.NAME} has neither: run it outside')
    training = dict(settings.training)
    base = Options(**{k: v for k, v in training.items() if k not in opts.ENCODER_ONLY}, stage='gan')
    opts.check(base)
    info = planning.describe_data(base)
    share = config.held_out(base, info.num_images)
    if share is None:
        raise UsageError(f'--val={training.get("val")}: nothing is held out; name a share of the images or a data set')
    training['val'] = str(share)
    if training.get('enc_kimg') is None:
        training['enc_kimg'] = config.EncoderPreset.kimg
    if training.get('kimg') is None:
        training['kimg'] = given_kimg(settings)
    settings = dataclasses.replace(settings, training=training)
    for name, options in example_options(settings):
        opts.check(options)
        if name in (STAGE1, STAGE1_MLP):
            planning.plan(options, dry=True)
    for name, path in settings.taken.items():
        check_taken(settings, name, taken_pickle(name, path))
    check_generators(settings)
    return settings


def given_kimg(settings: Settings) -> float:
    """The budget of stage 1 if none is said: what a given network's file name tells of it, else the preset's.

    UsageError where a given network's is unknown, and others must be trained as long.
    """
    given = settings.taken.get(STAGE1)
    if given is None:
        return config.PRESETS['lia'].kimg
    told = snapshot_kimg(taken_pickle(STAGE1, given))
    if told is None and {'bigan', STAGE1_MLP} & {*settings.trained, *settings.bases} - {*settings.taken}:
        raise UsageError('--kimg: needed: what is still to be trained must see as many images as the network that was '
                         'given; say how many that were')
    return told or config.PRESETS['lia'].kimg


def snapshot_kimg(path: str) -> int | None:
    """The thousands of images in a snapshot's name; None for a file of another name."""
    found = re.fullmatch(r'network-snapshot-(\d{6,})\.pkl', os.path.basename(path))
    return int(found[1]) if found else None


def check_taken(settings: Settings, name: str, path: str) -> None:
    """UserError for a network that would make the comparison unfair: of another size, or it knows held-out images.

    What it was trained on is told by its run's directory alone; of a pickle that lies elsewhere nobody knows.
    """
    content = host.load_network_pkl(path, trust=settings.training.get('trust_pickle', False))
    if content.get('G_ema') is None:
        raise UserError(f'--take {name}: {path}: holds no generator (no G_ema)')
    ours, theirs = training_set(settings), recorded_set(path) or {}
    same_data = os.path.basename(str(theirs.get('path'))) == os.path.basename(ours['path'])
    shares = ours.get('split') == 'train'  # Else other data is held out.
    if same_data and shares and any(theirs.get(key) != ours[key] for key in ('split', 'val_share', 'val_seed')):
        raise UserError(f'--take {name}: {path} was trained on images that are held out here: its share of them is '
                        f'{theirs.get("val_share") or "none"}, here it is --val={settings.training["val"]}')
    told, kimg = snapshot_kimg(path), settings.training['kimg']
    if name in (STAGE1, STAGE1_MLP) and told is not None and told != int(kimg):
        raise UserError(f'--kimg: {kimg:g}, but {path} has seen {told}: budgets must be equal; say --kimg={told}, or '
                        'wait until it has finished')
    if name == STAGE1 and STAGE1_MLP in settings.bases and STAGE1_MLP not in settings.taken:
        wanted = planning.plan(stage1_options(settings, 0, STAGE1_MLP), dry=True)['gan']['G_kwargs']
        has = {**attach.synthesis_kwargs(content['G_ema']), 'w_dim': content['G_ema'].w_dim}
        for key, field in dict(channel_base='cbase', channel_max='cmax', w_dim='latent_dim').items():
            planned = wanted['synthesis_kwargs'].get(key, wanted.get(key))
            if has.get(key, planned) != planned:
                raise UserError(f'{opts.flag(field)}: {planned}, but {path} has {has[key]}: networks that are compared '
                                'must be of one size')


def check_generators(settings: Settings) -> None:
    """UserError for a given encoder whose generator is not that of the given stage 1: all must decode alike."""
    trust = settings.training.get('trust_pickle', False)
    for name, path in settings.taken.items():
        method = None if name in (STAGE1, STAGE1_MLP) else compare.method(name)
        if method is None or method.joint or method.base not in settings.taken:
            continue
        pickles = [taken_pickle(n, settings.taken[n]) for n in (method.base, name)]
        ours, theirs = (host.load_network_pkl(p, trust=trust)['G_ema'].synthesis.state_dict() for p in pickles)
        if ours.keys() != theirs.keys() or any(not torch.equal(ours[key], theirs[key]) for key in ours):
            raise UserError(f'--take {name}: {path}: its generator is another than that of {method.base}, '
                            f'{settings.taken[method.base]}; give the one that it was trained with')


def recorded_set(path: str) -> dict[str, Any] | None:
    """The training set that the run directory of a pickle tells of, with its split; None if it tells of none."""
    options = compare.read_json(os.path.join(os.path.dirname(path), run_dir.OPTIONS_FILE)) or {}
    stages = [options.get(stage) for stage in ('encoder', 'gan')]
    found = next((stage.get('training_set_kwargs') for stage in stages if isinstance(stage, dict)), None)
    return found if isinstance(found, dict) else None


def example_options(settings: Settings) -> Iterator[tuple[str, Options]]:
    """Options of everything that is trained, the first seed's, to be checked before anything begins."""
    for base in settings.bases:
        if base not in settings.taken:
            yield base, stage1_options(settings, 0, base)
    for name in settings.trained:
        if name not in settings.taken:
            yield name, encoder_options(settings, 0, name, 'stage1.pkl')


def _options(settings: Settings, seed: int, without: Sequence[str], **changes: Any) -> Options:
    said = {k: v for k, v in settings.training.items() if k not in without}
    return Options(**{**said, 'seed': seed, 'metrics': 'none', 'detector': None, **changes})


def stage1_options(settings: Settings, seed: int, base: str) -> Options:
    """Options of a stage 1: φ's, or a plain StyleGAN2's that differs in nothing but its mapping network."""
    if base == STAGE1:
        return _options(settings, seed, opts.ENCODER_ONLY, stage='gan')
    return _options(settings, seed, opts.ENCODER_ONLY + opts.PHI_ONLY, cfg='auto', map_depth=settings.mlp_depth)


def encoder_options(settings: Settings, seed: int, name: str, resume: str) -> Options:
    """Options of a method's stage 2; BiGAN's are of the encoder that it trains along."""
    method = compare.method(name)
    changes = method.encoder or dict(enc_space='z')
    without = opts.GAN_ONLY + opts.FIXED_BY_PICKLE + method.without
    return _options(settings, seed, without, stage='encoder', resume=resume, **changes)


def joint_options(settings: Settings, seed: int) -> Options:
    """Options of BiGAN's training: a stage 1 that sees the images of both stages."""
    both = settings.training['kimg'] + settings.training['enc_kimg']
    return dataclasses.replace(stage1_options(settings, seed, STAGE1), kimg=both)


def held_out_set(settings: Settings, num: int) -> dict[str, Any]:
    """Arguments of `num` held-out images, the same ones each time; those of a smaller `num` are among them."""
    base = stage1_options(settings, 0, STAGE1)
    kwargs = config.val_set_kwargs(base, planning.describe_data(base))
    assert kwargs is not None, 'complete() has seen that something is held out'
    return {**kwargs, 'max_size': num, 'random_seed': 0}


def training_set(settings: Settings) -> dict[str, Any]:
    base = stage1_options(settings, 0, STAGE1)
    return config.training_set_kwargs(base, planning.describe_data(base))


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def stage1(settings: Settings, seed: int, base: str) -> str:
    """Pickle of a stage 1, given, found or trained now."""
    if base in settings.taken:
        return taken_pickle(base, settings.taken[base])
    options = stage1_options(settings, seed, base)
    return _train(settings, compare.work_name(seed, base), options, lambda run: planning.plan(options, run))


def network(settings: Settings, seed: int, name: str) -> str:
    """Pickle of a method's network: given, found or trained now. For optimisers, whose generator they use."""
    if name in settings.taken:
        return taken_pickle(name, settings.taken[name])
    method = compare.method(name)
    if not method.trains:
        return network(settings, seed, method.needs) if method.needs else stage1(settings, seed, method.base)
    before = stage1(settings, seed, method.base)
    if method.base == STAGE1_MLP:
        before = with_phi(settings, seed, before)
    options = encoder_options(settings, seed, name, before)
    if not method.joint:
        return _train(settings, compare.work_name(seed, name), options, lambda run: planning.plan(options, run))
    joint = joint_options(settings, seed)
    return _train(settings, compare.work_name(seed, name), joint, lambda _run: bigan.plan(joint, options))


def with_phi(settings: Settings, seed: int, mlp: str) -> str:
    """Pickle of the MLP generator with a φ fitted to its w in the MLP's place: y is w, an encoder to y one to w."""
    out = settings.path('runs', compare.work_name(seed, 'stage1-mlp-phi.pkl'))
    report = compare.read_json(out.replace('.pkl', '.json')) if os.path.exists(out) else None
    if report is None or report.get('network') != mlp or report['fit']['steps'] != settings.fit_steps:
        print(f'Fitting φ to the w of {mlp}', flush=True)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        options = stage1_options(settings, seed, STAGE1_MLP)
        attach_files.attach_file(
            mlp, out, fit=Fit(steps=settings.fit_steps), data=options.data if options.cond else None, detector=None,
            device=planning.resolve_device(options.device, options.gpus), trust=options.trust_pickle,
        )  # fmt: skip
    return out


def taken_pickle(name: str, path: str) -> str:
    """The pickle that `--take` means: itself, or the newest snapshot of a run directory. UserError if there is none."""
    if not os.path.isdir(path):
        local = host.fetch(path)
        if not os.path.isfile(local):
            raise UserError(f'--take {name}={path}: no such file')
        return os.path.abspath(local)
    newest, _kimg = host.newest_snapshot(path)
    if newest is None:
        raise UserError(f'--take {name}={path}: holds no network-snapshot-….pkl')
    return os.path.abspath(newest)


def _train(settings: Settings, name: str, options: Options, planner: Planner) -> str:
    """The last snapshot of a run, which is trained, or goes on, if need be. KeyboardInterrupt if Ctrl-C stops it."""
    run = run_dir.Run(settings.path('runs', name))
    stage = 'gan' if options.has_gan_stage else 'encoder'
    there = os.path.exists(run.file(run_dir.OPTIONS_FILE))
    if there:
        _check_same(run, options)
        if run.is_complete():
            return run.snapshot(stage)
    plan = planner(run if there else None)
    os.makedirs(run.path, exist_ok=True)
    with run.at_work():
        run.write_options(plan)
        print(f'{"Going on with" if there else "Training"} {name}: {plan[stage]["total_kimg"]:g} kimg', flush=True)
        try:
            snapshot = launch.train(run, plan)
        except UserError:
            if not run.has_trained():
                shutil.rmtree(run.path)
            raise
    if snapshot is None:
        raise KeyboardInterrupt
    return snapshot


def check_runs(settings: Settings) -> None:
    """UserError if the folder holds a run of other options, whatever has to be trained before it."""
    for seed in range(settings.seeds):
        for name in (*settings.bases, *settings.trained):
            run = run_dir.Run(settings.path('runs', compare.work_name(seed, name)))
            if name not in settings.taken and os.path.exists(run.file(run_dir.OPTIONS_FILE)):
                _check_same(run, _options_of(settings, seed, name), but=('resume',))


def _options_of(settings: Settings, seed: int, name: str) -> Options:
    """Options of a run; those of a stage 2 name no pickle."""
    if name in (STAGE1, STAGE1_MLP):
        return stage1_options(settings, seed, name)
    return joint_options(settings, seed) if compare.method(name).joint else encoder_options(settings, seed, name, '')


def _check_same(run: run_dir.Run, options: Options, but: tuple[str, ...] = ()) -> None:
    then, now = run.options or {}, dataclasses.asdict(options)
    wrong = next((k for k in now if k not in MAY_CHANGE + but and k in then and then[k] != now[k]), None)
    if wrong is not None:
        raise UserError(f'{opts.flag(wrong)}: {now[wrong]} now, {then[wrong]} in {run.path}; one table must not mix '
                        'them: give another --outdir')
