"""Everything that differs between the hosts that the plugin lives in: ours, stylegan2-ada-pytorch, stylegan3."""

from __future__ import annotations

import inspect
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
    """Reads a network pickle (path or URL): the snapshot's dict, modules on the CPU.

    Raises UserError for a missing or foreign file, and for one that needs its own code while `trust` is off.
    """
    with dnnlib.util.open_url(path, verbose=False) as f:
        if 'trust' in inspect.signature(legacy.load_network_pkl).parameters:
            return legacy.load_network_pkl(f, trust=trust)
        return legacy.load_network_pkl(f)


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


def plain(value: Any) -> Any:
    """EasyDict → dict, all the way down: what goes into JSON and pickles must need no class of a host."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def feature_detector(url: str, device: torch.device | str) -> tuple[Any, str]:
    """A detector as metrics have it, uint8 NCHW → [N, features], and its name. UserError if it can't be had."""
    from metrics import metric_utils

    if url.startswith('random:') and not hasattr(dnnlib.util, 'UserError'):
        raise UserError(f"--detector: {url}: NVIDIA's checkouts have none of random weights; give a file or a URL")
    return metric_utils.get_feature_detector(url, torch.device(device)), metric_utils.get_feature_detector_name(url)


def local_detector() -> str | None:
    """A detector that needs no download; None where there is none."""
    return 'random:0' if hasattr(dnnlib.util, 'UserError') else None


def describe_transfer(network: str, wanted: Iterable[str], there: Iterable[str], fresh: str) -> list[str]:
    """Which tensors of a pickle a network takes over, as lines for people; none where the host can't tell."""
    try:
        from training.transfer import describe
    except ImportError:
        return []
    return [describe(network, wanted, there, fresh)]
