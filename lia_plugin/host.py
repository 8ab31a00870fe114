"""Everything that differs between the hosts that the plugin lives in: ours, stylegan2-ada-pytorch, stylegan3."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
from collections.abc import Iterable
from typing import Any

import torch

import dnnlib
import legacy
from lia_plugin.files import atomic_write


class _UserError(ValueError):
    """An input of the user's is wrong. The message is one line: what, why, and what to do."""


# NVIDIA's checkouts have no such class; there the plugin raises its own.
UserError: type[ValueError] = getattr(dnnlib.util, 'UserError', _UserError)


def load_network_pkl(path: str, trust: bool = False) -> dict[str, Any]:
    """Reads a network pickle (path or URL) or an exported folder: the snapshot's dict, modules on the CPU.

    Raises UserError for a missing or foreign file, and for one that needs its own code while `trust` is off.
    """
    if os.path.isdir(path):
        network_folders()
        return legacy.load_network_pkl(path)
    with dnnlib.util.open_url(path, verbose=False) as f:
        if 'trust' in inspect.signature(legacy.load_network_pkl).parameters:
            return legacy.load_network_pkl(f, trust=trust)
        return legacy.load_network_pkl(f)


def network_folders() -> Any:
    """The module that writes and reads networks without pickles. UserError in NVIDIA's checkouts, which have none."""
    try:
        return importlib.import_module('torch_utils.network_folder')
    except ModuleNotFoundError as error:
        if error.name == 'safetensors':
            raise UserError('safetensors is missing: pip install safetensors') from None
        raise UserError('folders without pickles need our own torch_utils: run this outside of the checkout') from None


def save_network_pkl(path: str, data: dict[str, Any]) -> None:
    """Writes a snapshot's dict, whole or not at all, as protocol 4: what the oldest hosts' Python reads."""
    with atomic_write(path) as f:
        pickle.dump(data, f, protocol=4)


def loss_must_sync_gradients() -> bool:
    """Whether a loss has to average over ranks the gradients of modules that the host didn't wrap in DDP.

    stylegan2-ada-pytorch leaves all gradient exchange to DDP; our loop and stylegan3's average them themselves.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from training import training_loop

    return 'DistributedDataParallel' in inspect.getsource(training_loop)


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Averages over all ranks the gradients that are there, in one message."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
