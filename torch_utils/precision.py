"""What layers compute in: this process's choice, `--precision` of the commands, and what a device can do.

    fp32    everything in float32
    bf16    layers from 8x8 pixels on in bfloat16: it has float32's range, so that every network can, whether or not it
            was made with clamps
    fp16    the layers that a network was made with for float16: `num_fp16_res` of its highest resolutions
    None    nothing was chosen: fp16 on CUDA, fp32 elsewhere, as the networks' hosts have it

Only activations and the weights of a convolution at hand are ever rounded. Weights, optimisers, moving averages, φ and
mapping, demodulation, 4x4 pixels, the sum of RGB images, minibatch statistics, logits and losses stay float32.

The choice belongs to the process, and nothing of it is in a network or its pickle: a network that was trained in
bfloat16 runs in float16 or float32 elsewhere, on hosts that know nothing of this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dnnlib.util import UserError
from torch_utils import custom_ops

CHOICES = ('auto', 'fp32', 'bf16', 'fp16')
# CPUs' instructions for bfloat16, as /proc/cpuinfo calls them. On matrix tiles (AMX) an iteration took half of
# float32's time; on vectors alone, tried on the same CPU, a third more: nothing that auto would take.
TILES, VECTORS = 'amx_bf16', 'avx512_bf16'
CAPABILITY = {'bf16': (8, 0), 'fp16': (7, 0)}  # Of CUDA devices whose matrix units have the type.
SMALLEST = 8  # Pixels: below, layers cost nothing, and the last ones of D see what is left of a whole image.

_chosen: str | None = None


def layer_dtype(device: torch.device, use_fp16: bool, resolution: int) -> torch.dtype:
    """What a block of such a resolution computes in. use_fp16: whether the network was made with float16 for it."""
    if _chosen == 'bf16':
        return torch.bfloat16 if resolution >= SMALLEST else torch.float32
    half = use_fp16 and (_chosen == 'fp16' or _chosen is None and device.type == 'cuda')
    return torch.float16 if half else torch.float32


def chosen() -> str | None:
    """fp32, bf16, fp16, or None: nothing was chosen."""
    return _chosen


def choose(choice: str | None) -> None:
    """Sets what this process computes in, for good: fp32, bf16, fp16 or None. See `resolve` for what comes from users.

    Raises ValueError for another one.
    """
    global _chosen
    if choice is not None and choice not in CHOICES[1:]:
        raise ValueError(f'choice: expected {", ".join(CHOICES[1:])} or None, got {choice!r}')
    _chosen = choice


@contextlib.contextmanager
def using(choice: str | None) -> Iterator[None]:
    """`choose` within a region; on the way out what was before is chosen again."""
    before = _chosen
    choose(choice)
    try:
        yield
    finally:
        choose(before)


def resolve(choice: str | None, device: torch.device) -> str | None:
    """What `--precision=choice` comes to on a device: fp32, bf16, fp16; None if nothing was said.

    auto is the fastest that has been shown to train alike: on CUDA float16, for which the networks are made, on a CPU
    bfloat16 if it has matrix tiles for that. Raises UserError for what the device hasn't, or an unknown choice.
    """
    if choice is None:
        return None
    if choice not in CHOICES:
        raise UserError(f'--precision: expected {", ".join(CHOICES)}, got {choice!r}')
    if choice == 'auto':
        fastest = 'fp16' if device.type == 'cuda' else 'bf16'
        return fastest if missing(fastest, device) is None and is_slow(fastest, device) is None else 'fp32'
    reason = missing(choice, device)
    if reason is not None:
        raise UserError(f'--precision={choice}: {reason}; --precision=auto takes the fastest that there is')
    return choice


def missing(choice: str, device: torch.device) -> str | None:
    """Why a device can't compute in this fast, in a few words; None if it can."""
    if choice == 'fp32':
        return None
    if device.type == 'cuda':
        major, minor = torch.cuda.get_device_capability(device)
        least = CAPABILITY[choice]
        if (major, minor) >= least:
            return None
        return f'{device} has compute capability {major}.{minor}, it needs {least[0]}.{least[1]}'
    if device.type != 'cpu':
        return f'on {device.type} there is float32 alone'
    if choice == 'fp16':
        return 'on a CPU there are bf16 and fp32'
    if custom_ops.cpu_has(TILES) or custom_ops.cpu_has(VECTORS):
        return None
    return f'this CPU has no instructions for bfloat16 ({TILES} or {VECTORS})'


def is_slow(choice: str | None, device: torch.device) -> str | None:
    """Why the device can compute in this, but faster in float32; None if that isn't so."""
    if choice == 'bf16' and device.type == 'cpu' and not custom_ops.cpu_has(TILES):
        return f'this CPU has no matrix tiles ({TILES}), so that fp32 is likely faster'
    return None


def described(choice: str | None, device: torch.device) -> str:
    """What is computed in what, for people, in half a line."""
    name = choice or ('fp16' if device.type == 'cuda' else 'fp32')
    layers = {'fp32': 'float32', 'bf16': 'bfloat16 layers from 8x8 pixels on, the rest float32',
              'fp16': "float16 in the networks' highest resolutions, the rest float32"}
    return layers[name]
