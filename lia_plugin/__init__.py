"""LIA (latently invertible autoencoder) as a plugin of a StyleGAN2-ADA host: networks, losses, metrics and commands.

Source: Zhu, Zhao, Zhang, Zhou, "Disentangled Inference for GANs with Latently Invertible Autoencoder", IJCV 130(5),
2022.

For notebooks: `lia = lia_plugin.load('net.pkl')` is everything that the commands do (`lia_plugin.api`);
`lia_plugin.show(images)` shows what comes of it, and `lia_plugin.save_video('a.mp4', images)` saves it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lia_plugin.api import load as load
    from lia_plugin.api_show import save_video as save_video
    from lia_plugin.api_show import show as show

__version__ = '0.1.0'

_HOMES = {'load': 'lia_plugin.api', 'show': 'lia_plugin.api_show', 'save_video': 'lia_plugin.api_show'}


def __getattr__(name: str) -> Any:
    # On demand, because torch takes seconds to load, and --help of a command needs none.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
