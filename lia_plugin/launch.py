"""From a configuration to a trained network: the stages of a run, one after the other, each where it stopped."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import dnnlib
from lia_plugin import attach_files, attach_report, host, machines, perceptual, run_dir, stages
from lia_plugin.host import UserError
from lia_plugin.phi_fit import Fit


def unfinished(run: run_dir.Run, config: dict[str, Any]) -> list[str]:
    """The stages of a configuration that the run has still to train, in order.

    Raises UserError if that can't be: stage 1 should get longer, but stage 2 has already begun from its end.
    """
    left = [s for s in ('gan', 'encoder') if config[s] is not None and not run.has_finished(s, config[s]['total_kimg'])]
    if 'gan' in left and run.has_begun('encoder'):
        raise UserError(
            f'--kimg: stage 1 of {run.path} ended at {run.progress["gan"]["kimg"]} kimg and stage 2 has begun; '
            'start afresh with --new-run'
        )
    return left


def train(run: run_dir.Run, config: dict[str, Any]) -> str | None:
    """Trains what is left of a run; gives the path of its last snapshot, None if Ctrl-C stopped it.

    A first Ctrl-C saves the state; after a second one, or one before the loop could listen, the last saved one stands.

    `config` is what `training_options.json` holds: device, and per stage the training loop's arguments or None.
    """
    for stage in unfinished(run, config):
        snapshot = _train_stage(run, config, stage)
        if snapshot is None:
            return None
        run.note_finished(stage, config[stage]['total_kimg'], snapshot)
    return run.snapshot('encoder' if config['encoder'] is not None else 'gan')


def _train_stage(run: run_dir.Run, config: dict[str, Any], stage: str) -> str | None:
    kwargs = dict(config[stage], run_dir=run.path, trust_pickle=config['options']['trust_pickle'])
    if stage == 'encoder':
        _begin_encoder(run, config)
        start = run.progress.get('gan', {}).get('kimg', 0)
        init_pkl = run.file(run_dir.ENCODER_INIT_FILE)
        kwargs.update(start_kimg=start, total_kimg=start + kwargs['total_kimg'], resume_pkl=init_pkl)
        if kwargs['loss_kwargs']['percep'] == 'disc':
            kwargs['loss_kwargs'] = dict(kwargs['loss_kwargs'], percep_network=init_pkl)
    elif config.get('attach'):
        kwargs['resume_pkl'] = _attached(run, config)
    kwargs = host.place_stage(kwargs, run_dir.STATE_FILE)
    try:
        return host.spawn(_worker, kwargs['num_gpus'], (kwargs, config['device'], run.path), device=config['device'])
    except KeyboardInterrupt:  # A second Ctrl-C, or one before the loop could listen: the last saved state stands.
        return None


def _begin_encoder(run: run_dir.Run, config: dict[str, Any]) -> None:
    """Writes encoder-init.pkl, once; if that is interrupted it is done again, so nothing is noted before the end."""
    if run.has_begun('encoder'):
        return
    source = config['encoder_source'] or run.snapshot('gan')
    if config.get('attach') and config['encoder_source']:
        source = _attached(run, config)
    print(f'Stage encoder begins from {source}', flush=True)
    kwargs = config['encoder']
    stages.prepare_encoder_stage(
        network_pkl=source,
        out_pkl=run.file(run_dir.ENCODER_INIT_FILE),
        encoder_kwargs=kwargs['G_kwargs']['encoder_kwargs'],
        device=config['device'],
        seed=kwargs['random_seed'],
        trust=config['options']['trust_pickle'],
        D_kwargs=kwargs['D_kwargs'],
        start=config.get('encoder_start', 'random'),  # Runs that began before there was a choice.
    )
    # The state in the directory is stage 1's, which stage 2 must not go on from; it writes its own.
    with contextlib.suppress(FileNotFoundError):
        os.remove(run.file(run_dir.STATE_FILE))
    run.note_begun('encoder')


def _attached(run: run_dir.Run, config: dict[str, Any]) -> str:
    """Path of the network of --resume with φ attached, which is done once in a run."""
    path = run.file(run_dir.ATTACHED_FILE)
    if not os.path.exists(path):
        wanted = dict(config['attach'])
        print(f'Fitting φ to the mapping network of {wanted["network"]}', flush=True)
        wanted['fit'] = Fit(**wanted['fit'])
        report = attach_files.attach_file(
            out=path, device=config['device'], trust=config['options']['trust_pickle'], **wanted
        )
        print('\n'.join([*attach_files.notes(report), *attach_report.lines(report)]), flush=True)
    return path


def _worker(rank: int, world_size: int, kwargs: dict[str, Any], device: str, run_path: str) -> str | None:
    """One process of a stage: all of them run the loop, the first one keeps the log."""
    import lia_plugin.metrics  # noqa: F401  Registers LIA's metrics in this process.

    own = host.own_device(device, rank)
    machines.check_folder('--outdir', run_path)
    sets = {flag: (kwargs.get(f'{name}_set_kwargs') or {}).get('path')
            for flag, name in (('--data', 'training'), ('--val', 'val'))}  # fmt: skip
    machines.check_files(sets)
    needs_vgg16 = kwargs['loss_kwargs'].get('percep', '').startswith('vgg16')
    machines.fetch_here([kwargs.get('resume_pkl'), perceptual.VGG16_URL if needs_vgg16 else None])
    log = os.path.join(run_path, 'log.txt') if rank == 0 else None
    with dnnlib.util.Logger(file_name=log, file_mode='a', should_flush=True):
        return host.run_loop(kwargs, rank=rank, device=own)
