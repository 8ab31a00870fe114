"""Options of commands about the process that does the work: what it computes in, and what it keeps of freed memory.

Imports no torch, so that --help is instant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

Command = TypeVar('Command', bound=Callable[..., Any])

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')  # As torch_utils.precision has them; not every host has that.


def precision_option(command: Command) -> Command:
    """`--precision` of a command that uses a trained network."""
    option = click.option(
        '--precision', type=click.Choice(PRECISIONS),
        help='What layers compute in: fp32; bf16, a third to half of the time on CPUs that have it, differences of one '
             'percent; fp16, on GPUs; auto, the fastest. Codes (φ) and optimisations stay float32  '
             '[default: fp16 on CUDA where the network was made so, else fp32]')  # fmt: skip
    return option(command)


def use_precision(choice: str | None, device: torch.device) -> None:
    """Computes in that until the command has ended. UserError for what the device can't."""
    from lia_plugin import host

    region = host.using_precision(choice, device)
    context = click.get_current_context(silent=True)
    if context is None:
        contextlib.ExitStack().enter_context(region)
    else:
        context.with_resource(region)
