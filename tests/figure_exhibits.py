"""What tests of figures share: small exhibits of tiny networks, and the command."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from test_lia_plugin_inversion import RESOLUTION

from lia_plugin import cli, targets
from lia_plugin.edit_session import Session
from lia_plugin.figure_base import Exhibit, Options
from lia_plugin.networks import Generator


def run(out: Path, *args: str) -> int:
    return cli.run(cli.load_command('figures'), ['--device=cpu', f'--outdir={out}', *args])


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / 'figures.json').read_text(encoding='utf-8'))


def words(out: Path) -> str:
    """The page without its pictures, whose letters could spell anything."""
    return re.sub(r'base64,[^"]*', '', (out / 'index.html').read_text(encoding='utf-8'))


def exhibit(G: Any, data: str | None = None, c: bool = False, **options: Any) -> Exhibit:
    small = dict(num=8, opt_num=3, pairs=2, samples=12, steps=3, refine=2, shown=2)
    items = [] if data is None else targets.collect([data], option='--data')
    session = Session(G, 'lia.pkl', torch.device('cpu'), batch=4, contents=dict(G_ema=G, D=None))
    return Exhibit(Options(**{**small, **options}), session, items)


def deep_generator() -> Any:
    torch.manual_seed(0)
    return Generator(
        z_dim=16, c_dim=0, w_dim=16, img_resolution=RESOLUTION, img_channels=1,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=16)),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
        encoder_kwargs=dict(channel_base=128, channel_max=8, space='y+'),
    ).eval().requires_grad_(False)  # fmt: skip
