"""Options that commands share which edit. Imports no torch, so that --help is instant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lia_plugin.params import FiniteRange

Command = TypeVar('Command', bound=Callable[..., Any])


def common_options(command: Command) -> Command:
    """The options of every command that edits, for `Session.open(**options)`."""
    options = [
        click.option('--network', required=True, metavar='PATH|URL', help='Network pickle'),
        click.option('--outdir', default='out', show_default=True, metavar='DIR', help='Where to write'),
        click.option('--trunc', type=FiniteRange(), default=1.0, show_default=True,
                     help="Truncation psi of seeds' codes; real images are left as they are"),
        click.option('--class', 'class_idx', type=int, metavar='N',
                     help='Class, for a conditional network  [default: as stored with images and .npz]'),
        click.option('--noise-mode', type=click.Choice(['const', 'random', 'none']), default='const',
                     show_default=True, help="The layers' noise"),
        click.option('--batch', type=click.IntRange(min=1), default=8, show_default=True, help='Images at once'),
        click.option('--seed', type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True,
                     help='Of everything random'),
        click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]'),
        click.option('--trust-pickle', is_flag=True,
                     help='Run the code inside the network pickle; only for files you trust'),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
