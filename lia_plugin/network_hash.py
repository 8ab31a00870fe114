"""Whose a code or a direction is: files of both carry a hash of the network that they were found with."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def generator_hash(G: Any) -> str:
    """MAPPING-SYNTHESIS, 16 hexadecimal digits each: tells whether two networks mean the same by a code.

    The same on every device, whether weights are parameters or buffers, and whatever encoder is trained beside them.
    """
    return f'{_weights_hash(G.mapping, ("encoder.", "w_avg"))}-{_weights_hash(G.synthesis, ())}'


def _weights_hash(module: torch.nn.Module, without: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.startswith(without) and 'filter' not in name:  # Hosts differ in which filters they store.
            digest.update(f'{name} {list(value.shape)};'.encode())
            digest.update(value.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def same_codes(one: str, other: str) -> bool:
    """Whether a code means the same in two networks by their hashes: the mapping is the same, whatever draws it."""
    return one.split('-')[0] == other.split('-')[0]
