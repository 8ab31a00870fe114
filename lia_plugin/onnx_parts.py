"""A network's parts as ONNX takes them: modules of tensors alone, with names, shapes and ranges of their ends.

    encoder        img [, c] -> y (or y+)              phi_inverse    z [, c] -> y
    phi            y [, c] -> z, log|det|              mapping        z [, c], truncation_psi -> ws
    y_to_ws        y or y+ [, c], truncation_psi -> ws synthesis      ws [, noise …] -> img
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lia_plugin import noise_maps, spaces

NOISE = ('const', 'none', 'input')
MEANINGS = {
    'img': 'image, RGB or grey, values in [-1, 1] (a level of 0 to 255 divided by 127.5, less 1)',
    'c': 'label, one-hot for a class',
    'y': 'code y; the encoder gives it, the generator draws it',
    'y_plus': 'code y+, one y for each layer; the first is the base code, whose z phi gives',
    'z': 'latent z; standard normal for generated images',
    'log_det': "log|det| of phi's Jacobian: log p(y) = -|z|²/2 - z_dim·log(2π)/2 + log_det",
    'ws': "the synthesis network's input, a w for each layer",
    'truncation_psi': '1 = no truncation, 0 = the mean w',
}


@dataclass
class Part:
    """One file to be: `module` takes `inputs` in their order and gives `outputs`."""

    name: str
    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]  # Examples, of a batch of BATCH; scalars have no batch.
    outputs: tuple[str, ...]
    facts: dict[str, str] = field(default_factory=dict)

    def draw(self, batch: int, seed: int) -> dict[str, torch.Tensor]:
        """Random inputs of the same shapes and ranges for so many images."""
        stream = torch.Generator().manual_seed(seed)
        found = {}
        for name, example in self.inputs.items():
            if example.ndim == 0:
                found[name] = torch.tensor(0.7)
                continue
            value = torch.randn([batch, *example.shape[1:]], generator=stream)
            if name == 'img':
                value = value.clamp(-1, 1)
            elif name == 'c':
                classes = torch.arange(batch) % example.shape[1]
                value = torch.nn.functional.one_hot(classes, example.shape[1]).float()
            found[name] = value
        return found


BATCH = 2  # Of the examples; 1 would be taken for a number that never changes.


def parts(G: Any, noise: str = 'const') -> tuple[list[Part], dict[str, str]]:
    """What ONNX can have of a network, and what it can't: name -> why.

    noise: the synthesis layers' own, 'const'; 'none'; or 'input', [N, 1, R, R] of normal numbers for each layer.
    """
    found, left_out = [], {}
    img = torch.zeros([BATCH, G.img_channels, G.img_resolution, G.img_resolution])
    c = {'c': torch.eye(G.c_dim)[torch.zeros([BATCH], dtype=torch.long)]} if G.c_dim else {}
    z, psi = torch.zeros([BATCH, G.z_dim]), torch.ones([])
    if spaces.has_prior(G):
        found += [Part('phi', _Phi(G), {'y': z, **c}, ('z', 'log_det')),
                  Part('phi_inverse', _PhiInverse(G), {'z': z, **c}, ('y',))]  # fmt: skip
        encoder = getattr(G, 'encoder', None)
        layered = encoder is not None and encoder.space == 'y+'
        code = {'y_plus': z[:, None].repeat(1, G.num_ws, 1)} if layered else {'y': z}
        labels = c if getattr(G.mapping, 'base', None) is not None else {}
        found.append(Part('y_to_ws', _YToWs(G), {**code, **labels, 'truncation_psi': psi}, ('ws',)))
        if encoder is not None and encoder.iters > 1:
            left_out['encoder'] = f'it is asked {encoder.iters} times, with gradients of its reconstructions'
        elif encoder is not None:
            labels = c if encoder.space == 'z' else {}
            found.append(Part('encoder', _Encode(G), {'img': img, **labels}, tuple(code)))
    truncation = {'truncation_psi': psi} if getattr(G.mapping, 'w_avg', None) is not None else {}
    found.append(Part('mapping', _Map(G), {'z': z, **c, **truncation}, ('ws',)))
    maps = {name: value.repeat(BATCH, 1, 1, 1) for name, value in noise_maps.initial_noise(G.synthesis, 1).items()}
    ws = torch.zeros([BATCH, G.num_ws, G.w_dim])
    extra = {_noise_input(name): value for name, value in maps.items()} if noise == 'input' else {}
    synthesis = _Synthesize(G, tuple(maps), noise)
    found.append(Part('synthesis', synthesis, {'ws': ws, **extra}, ('img',), {'noise': noise if maps else 'none'}))
    return found, left_out


def _noise_input(buffer: str) -> str:
    """'b4.conv1.noise_const' -> 'noise.b4.conv1'."""
    return 'noise.' + buffer.rsplit('.', 1)[0]


def meaning(name: str) -> str:
    return MEANINGS.get(name, 'normal numbers, the noise of one layer')


# ---------------------------------------------------------------------------------------------------------------------
# Modules


class _Of(torch.nn.Module):
    """All take their inputs one after the other: the recorder wants to know no more about them."""

    def __init__(self, G: Any) -> None:
        super().__init__()
        self.mapping = G.mapping
        self.c_dim = G.c_dim

    def truncated(self, ws: torch.Tensor, *psi: torch.Tensor) -> torch.Tensor:
        w_avg: Any = self.mapping.w_avg if psi else None
        return w_avg + psi[0] * (ws - w_avg) if psi else ws


class _Phi(_Of):
    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mapping.phi(*inputs)


class _PhiInverse(_Of):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.mapping.z_to_y(*inputs)


class _Encode(_Of):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.mapping.encode(*inputs)


class _YToWs(_Of):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        *code, psi = inputs
        return self.truncated(self.mapping.y_to_ws(*code), psi)


class _Map(_Of):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        z, *more = inputs
        c = more.pop(0) if self.c_dim else None
        return self.truncated(self.mapping(z, c), *more)


class _Synthesize(torch.nn.Module):
    def __init__(self, G: Any, maps: tuple[str, ...], noise: str) -> None:
        super().__init__()
        self.synthesis = G.synthesis
        self.maps = maps
        self.kwargs: dict[str, Any] = dict(noise_mode='none' if noise == 'none' else 'const', force_fp32=True)
        if not hasattr(G.synthesis, 'input'):  # Of stylegan3's. The others' fused weights would fix the batch's size.
            self.kwargs['fused_modconv'] = False

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        ws, *noise = inputs
        if not noise:
            return self.synthesis(ws, **self.kwargs)
        return torch.func.functional_call(self.synthesis, dict(zip(self.maps, noise)), (ws,), self.kwargs)


def described(part: Part) -> Mapping[str, Any]:
    """A part's names, shapes and meanings, for JSON; the batch is 'N'."""
    def shape(value: torch.Tensor) -> list[Any]:
        return ['N', *value.shape[1:]] if value.ndim else []

    with torch.no_grad():
        result = part.module(*part.inputs.values())
    results = result if isinstance(result, tuple) else (result,)
    return dict(
        file=f'{part.name}.onnx',
        inputs={name: dict(shape=shape(value), meaning=meaning(name)) for name, value in part.inputs.items()},
        outputs={name: dict(shape=shape(value), meaning=meaning(name)) for name, value in zip(part.outputs, results)},
        **part.facts,
    )  # fmt: skip
