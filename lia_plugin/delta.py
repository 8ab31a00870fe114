"""A tuned generator as a file of differences: small to hand on, and of use only to who has the network itself.

A safetensors file: for each tuned weight of the synthesis network, under its name, tuned − original in float32; the
header's metadata names the format and the SHA-256 of the network file that it belongs to. No code can hide in it.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch

from lia_plugin import host
from lia_plugin.tuning import synthesis_weights

FORMAT = 'lia-delta 1'
FOLDER_WEIGHTS = 'model.safetensors'  # Of a network without pickles.


def file_sha256(network: str) -> str:
    """SHA-256 of a network file (path or URL; of an exported folder, that of its weights), in hexadecimal.

    Raises:
        UserError: no such file.
    """
    path = os.path.join(network, FOLDER_WEIGHTS) if os.path.isdir(network) else host.fetch(network)
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') else _digest(file)
    except OSError as error:
        raise host.UserError(f'{network}: cannot be read ({error.strerror})') from None


def _digest(file: Any) -> str:
    """For Python 3.10."""
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def save_delta(path: str, original: Any, tuned: Any, network: str) -> None:
    """Writes what separates two generators that differ in their synthesis weights; `network` is the original's file."""
    codec = load_safetensors()
    before, after = synthesis_weights(original.synthesis), synthesis_weights(tuned.synthesis)
    tensors = {name: (after[name].detach() - value.detach()).cpu().contiguous() for name, value in before.items()}
    metadata = dict(format=FORMAT, base_sha256=file_sha256(network), base_name=os.path.basename(network.rstrip('/')))
    with host.atomic_write(path) as file:
        file.write(codec.save(tensors, metadata=metadata))


def apply_delta(G: Any, path: str, network: str) -> None:
    """Adds a file's differences to the synthesis weights of G, in place; G comes from the file `network`.

    Raises:
        UserError: no such file, none of this format, or one that belongs to another network.
    """
    tensors, metadata = _read(path)
    if metadata.get('format') != FORMAT:
        raise host.UserError(f'--delta={path}: not a delta that invert --tune-save=delta wrote')
    found = file_sha256(network)
    if metadata.get('base_sha256') != found:
        raise host.UserError(
            f'--delta={path}: belongs to {metadata.get("base_name")} with SHA-256 {metadata.get("base_sha256")}, '
            f'but that of {network} is {found}'
        )
    weights = synthesis_weights(G.synthesis)
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in weights.items()}:
        raise host.UserError(f'--delta={path}: its weights are not those of {network}')
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(tensors[name].to(weight.device))


def _read(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    load_safetensors()
    import safetensors

    if not os.path.isfile(path):
        raise host.UserError(f'--delta={path}: no such file')
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except Exception as error:  # Damaged headers raise SafetensorError, which isn't exported everywhere.
        raise host.UserError(f'--delta={path}: not a safetensors file ({host.one_line(error)})') from None


def load_safetensors() -> Any:
    """The library, which NVIDIA's checkouts don't bring.

    Raises:
        UserError: it is not installed. To be asked before long work.
    """
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise host.UserError('deltas need safetensors: pip install safetensors') from None
    return safetensors.torch
