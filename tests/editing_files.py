"""What tests of editing commands share: tiny networks as files, pictures, and a way to run a command."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures
from test_lia_plugin_refinement import make_stock

from lia_plugin import cli, images
from lia_plugin.networks import Generator


def make_layered() -> Any:
    """A network whose encoder gives y+."""
    torch.manual_seed(0)
    return Generator(
        z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=1,
        mapping_kwargs=dict(phi_kwargs=dict(hidden_features=16)),
        synthesis_kwargs=dict(channel_base=128, channel_max=8),
        encoder_kwargs=dict(channel_base=128, channel_max=8, space='y+'),
    ).eval().requires_grad_(False)  # fmt: skip


class Files:
    """Networks and pictures in a folder."""

    def __init__(self, folder: Path) -> None:
        self.G = make_generator()
        self.network = save_pickle(folder / 'lia.pkl', self.G)
        self.conditional = save_pickle(folder / 'conditional.pkl', make_generator(c_dim=3))
        self.stock = save_pickle(folder / 'stock.pkl', make_stock())
        self.stage1 = save_pickle(folder / 'stage1.pkl', make_generator(encoder=False))
        self.pictures = save_pictures(folder / 'in', 4)
        self.images = [str(self.pictures / f'picture{i}.png') for i in range(4)]


def edit(name: str, *args: Any) -> int:
    """Exit code of `edit NAME`."""
    return cli.run(cli.load_command('edit'), [name, '--device=cpu', *map(str, args)])


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def picture(path: Path) -> torch.Tensor:
    """uint8 CHW."""
    return images.read_image(path).pixels


def drawn(G: Any, code: np.ndarray | torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 NCHW of codes."""
    return images.to_uint8(G.decode(torch.as_tensor(code), c, noise_mode='const'))


def refused(capsys: Any, code: int, words: str, folder: Path | None = None) -> None:
    """Exit code 2, one line on stderr with these words, nothing written."""
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(said) == 1 and said[0].startswith('Error: ') and words in said[0], said
    assert folder is None or not folder.exists()
