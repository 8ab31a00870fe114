"""The joint discriminator of BiGAN and ALI: it judges pairs of an image and a code, not images alone.

Donahue, Krähenbühl, Darrell, "Adversarial Feature Learning", arXiv 1605.09782; Dumoulin et al., "Adversarially Learned
Inference", arXiv 1606.00704.

The source of this file travels inside network pickles, so it imports only what every host has.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from torch_utils import persistence

HOST_MODULES = ('training.networks_stylegan2', 'training.networks')  # As in lia_plugin.networks, which doesn't travel.


@persistence.persistent_class
class CodeNetwork(torch.nn.Module):
    """What is said of a code and its label: [N, code_dim], [N, c_dim] or None → [N, out_features].

    Unlike a label's mapping network it doesn't normalise: a code's length is half of what there is to judge.
    """

    def __init__(self, code_dim: int, c_dim: int, out_features: int, num_layers: int = 3) -> None:
        super().__init__()
        self.code_dim, self.c_dim, self.num_layers = code_dim, c_dim, num_layers
        widths = [code_dim + c_dim] + [out_features] * num_layers
        for i in range(num_layers):
            activation = 'linear' if i == num_layers - 1 else 'lrelu'
            layer = _host_module().FullyConnectedLayer(widths[i], widths[i + 1], activation=activation)
            setattr(self, f'fc{i}', layer)

    def forward(self, _none: None, code: torch.Tensor) -> torch.Tensor:
        """Called as a discriminator calls the mapping network of its labels; `code` is [N, code_dim + c_dim]."""
        for i in range(self.num_layers):
            code = getattr(self, f'fc{i}')(code)
        return code


@persistence.persistent_class
class JointDiscriminator(torch.nn.Module):
    """Image NCHW in [-1, 1], labels [N, c_dim] or None and code [N, code_dim] → logits [N, 1].

    The host's discriminator, which projects what it sees in the image on what `CodeNetwork` makes of the code, as it
    else does with labels (Miyato and Koyama, arXiv 1802.05637). Arguments from `architecture` on are its own.
    """

    def __init__(
        self, c_dim: int, img_resolution: int, img_channels: int, code_dim: int, **discriminator_kwargs: Any
    ) -> None:
        super().__init__()
        self.c_dim, self.code_dim = c_dim, code_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.pair = _host_module().Discriminator(
            c_dim=code_dim + c_dim, img_resolution=img_resolution, img_channels=img_channels, **discriminator_kwargs
        )
        self.pair.mapping = CodeNetwork(code_dim, c_dim, self.pair.b4.cmap_dim)

    def forward(self, img: torch.Tensor, c: torch.Tensor | None, code: torch.Tensor) -> torch.Tensor:
        if code.ndim != 2 or code.shape != (len(img), self.code_dim):
            raise ValueError(f'code: expected [{len(img)}, {self.code_dim}], got {list(code.shape)}')
        return self.pair(img, code if c is None or self.c_dim == 0 else torch.cat([code, c], dim=1))


def _host_module() -> Any:
    """The module with the host's StyleGAN2 networks."""
    for name in HOST_MODULES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise ImportError(f'no StyleGAN2 host is importable: looked for {" and ".join(HOST_MODULES)}')
