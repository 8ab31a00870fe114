"""Options that commands share which edit. Imports no torch, so that --help is instant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lia_plugin.params import Batch, FiniteRange
from lia_plugin.process_options import precision_option

Command = TypeVar('Command', bound=Callable[..., Any])


def common_options(command: Command) -> Command:
    """The options of every command that edits, for `Session.open(**options)`."""
    options = [
        click.option('--network', required=True, metavar='PATH|URL', help='Network pickle'),
        click.option('--outdir', default='out', show_default=True, metavar='DIR', help='Where to write'),
        click.option('--trunc', type=FiniteRange(), default=1.0, show_default=True,
                     help="Truncation psi of seeds' codes, towards the mean of y; real images are left as they are"),
        click.option('--class', 'class_idx', type=int, metavar='N',
                     help='Class, for a conditional network  [default: as stored with images and .npz]'),
        click.option('--noise-mode', type=click.Choice(['const', 'random', 'none']), default='const',
                     show_default=True, help="The layers' noise; random is by --seed"),
        click.option('--batch', type=Batch(), default=8, show_default=True, metavar='N|auto',
                     help='Images at once; makes no difference to them. auto = as many as fit into memory'),
        click.option('--seed', type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True,
                     help='Of everything random'),
        click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]'),
        precision_option,
        click.option('--trust-pickle', is_flag=True,
                     help='Run the code inside the network pickle; only for files you trust'),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def paste_style_options(command: Command) -> Command:
    """How an edited crop goes back into its picture: `paste_mode` and `feather`, for `paste_back.Style`."""
    options = [
        click.option('--paste-mode', type=click.Choice(['difference', 'replace']), default='difference',
                     show_default=True,
                     help="Add what the edit changed, and keep the picture's own detail; or fill in the crop as it is"),
        click.option('--feather', type=FiniteRange(min=0, max=0.5), default=0.08, show_default=True,
                     help="Width of the soft edge, as a share of the crop's side"),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def paste_options(command: Command) -> Command:
    """`--paste` of a command that edits images, with `paste_style_options`: for `paste_back.CodePaster`."""
    switch = click.option('--paste', is_flag=True,
                          help='Put each edit back into its full picture, too: NAME_pasted.png')
    return switch(paste_style_options(command))
