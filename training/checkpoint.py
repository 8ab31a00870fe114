"""The exact state of a run, beside its snapshots: what a pickle of networks doesn't hold, so that a run goes on as if
it had never stopped. One file, read with weights_only, replaced atomically."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from dnnlib.util import EasyDict, UserError, atomic_write
from torch_utils import distributed, training_stats

FILE = 'training-state.pt'
FORMAT = 1


def save(path: str, args: EasyDict, state: Any, last_snapshot: str | None) -> None:
    """Writes the state of all ranks. Every rank calls it; rank 0 writes."""
    random_states = distributed.gather_objects(random_state(args.device))
    losses = [state.loss.state_dict() if hasattr(state.loss, 'state_dict') else {}]  # Alike on all ranks.
    if distributed.is_distributed():  # Alone, a process's pending statistics are all there are.
        training_stats.sync()
    stats = training_stats.state_dict()
    if args.rank == 0:
        data = dict(
            format=FORMAT,
            stage=args.stage,
            progress=_progress(state),
            modules={k: m.state_dict() for k, m in _modules(state).items()},
            optimizers=[opt.state_dict() for opt in _optimizers(state)],
            losses=losses,
            stats=stats,
            collectors=[c.state_dict() for c in _collectors(state)],
            latents=state.latents.get_state(),
            random_states=random_states,
            last_snapshot=last_snapshot,
        )
        with atomic_write(path) as f:
            torch.save(data, f)
    distributed.barrier()


def load(path: str, stage: str) -> dict[str, Any]:
    """Reads a state; UserError if it isn't one, or belongs to another stage."""
    try:
        data = torch.load(path, map_location='cpu', weights_only=True)
        if data['format'] != FORMAT:
            raise UserError(f'{path}: has format {data["format"]}, this version reads {FORMAT}; start from a snapshot')
    except (OSError, UserError):
        raise
    except Exception as error:
        raise UserError(f'{path}: no training state, or a damaged one; start from a snapshot, --resume=…pkl') from error
    if data['stage'] != stage:
        raise UserError(f'{path}: belongs to stage {data["stage"]}, not {stage}')
    return data


def restore(data: dict[str, Any], state: Any, rank: int, device: torch.device) -> None:
    """Puts everything back. The last thing before the loop, since it sets the random state."""
    for name, module in _modules(state).items():
        module.load_state_dict(data['modules'][name])
    for opt, saved in zip(_optimizers(state), data['optimizers'], strict=True):
        opt.load_state_dict(saved)
    losses = data['losses']  # States of earlier versions have one a rank, each with a mean path length of its own.
    if losses[0]:
        state.loss.load_state_dict(losses[rank if len(losses) == distributed.world_size() else 0])
    training_stats.load_state_dict(data['stats'])
    for collector, saved in zip(_collectors(state), data['collectors'], strict=True):
        collector.load_state_dict(saved)
    state.latents.set_state(data['latents'])
    for key, value in data['progress'].items():
        setattr(state, key, value)
    if len(data['random_states']) == distributed.world_size():
        set_random_state(data['random_states'][rank], device)
    else:  # Noise can't be continued on another number of ranks. It must not repeat, and be the same if tried again.
        torch.manual_seed(fresh_seed(data['latents'], data['progress']['cur_nimg'], distributed.world_size(), rank))


def fresh_seed(latents: torch.Tensor, cur_nimg: int, world_size: int, rank: int) -> int:
    """Seed of a rank's noise after `cur_nimg` images, when there are now another number of ranks than there were.

    By what all ranks share, the state of the latents' generator [bytes], and what tells them apart.
    """
    entropy = int.from_bytes(hashlib.sha256(latents.numpy().tobytes()).digest()[:8], 'little')
    words = np.random.SeedSequence([entropy, cur_nimg, world_size, rank]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


def _progress(state: Any) -> dict[str, int]:
    return {k: int(getattr(state, k)) for k in ('cur_nimg', 'cur_tick', 'tick_start_nimg', 'batch_idx')}


def _modules(state: Any) -> dict[str, torch.nn.Module]:
    modules = dict(G=state.G, D=state.D, G_ema=state.G_ema, augment_pipe=state.augment_pipe)
    return {k: m for k, m in modules.items() if m is not None}


def _optimizers(state: Any) -> list[torch.optim.Optimizer]:
    return list({id(phase.opt): phase.opt for phase in state.phases}.values())


def _collectors(state: Any) -> list[training_stats.Collector]:
    return [state.stats] + ([state.ada_stats] if state.ada_stats is not None else [])


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """torch's random state of the CPU and of the device."""
    state = {'cpu': torch.get_rng_state()}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    elif device.type == 'mps':
        state['mps'] = torch.mps.get_rng_state()
    return state


def set_random_state(saved: dict[str, torch.Tensor], device: torch.device) -> None:
    """Undoes whatever was drawn since `random_state`; a device that has none in `saved` is left as it is."""
    torch.set_rng_state(saved['cpu'])
    if device.type == 'cuda' and 'cuda' in saved:
        torch.cuda.set_rng_state(saved['cuda'], device)
    elif device.type == 'mps' and 'mps' in saved:
        torch.mps.set_rng_state(saved['mps'])
