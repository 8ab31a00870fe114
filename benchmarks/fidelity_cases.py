"""The networks that `fidelity.py` compares: one for each option of the architectures, as plain data.

A case's dicts are keyword arguments, added to those that all cases share. To compare another network, add a case; one
of another module names it in `module`, and how its module takes synthesis options in `loose`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

FROM_ADA, FROM_SG3 = ('ada',), ('sg3',)

NET = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=32, img_channels=3)
WIDTHS = dict(channel_base=512, channel_max=24)

# 'linear' is the others' baseline; all that bias_act knows.
ACTIVATIONS = ('linear', 'relu', 'lrelu', 'tanh', 'sigmoid', 'elu', 'selu', 'softplus', 'swish')
FILTERS: dict[str, Any] = {
    '[1, 1]': [1, 1], '[1, 2, 1]': [1, 2, 1], '[1, 4, 6, 4, 1]': [1, 4, 6, 4, 1], '[1, 2, 5]': [1, 2, 5],
    '[4, 1, 2, 1, 7, 2]': [4, 1, 2, 1, 7, 2], '8 taps, separable': [1, 7, 21, 35, 35, 21, 7, 1],
    '2-D': [[1, 2], [3, 5]], 'none': None,
}
_BLIT = dict(xflip=1, rotate90=1, xint=1)
_GEOM = dict(scale=1, rotate=1, aniso=1, xfrac=1)
_COLOR = dict(brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1)
_FILTER, _NOISE, _CUTOUT = dict(imgfilter=1), dict(noise=1), dict(cutout=1)
AUGMENTS: dict[str, dict[str, Any]] = {
    'blit': _BLIT, 'geom': _GEOM, 'color': _COLOR, 'filter': _FILTER, 'noise': _NOISE, 'cutout': _CUTOUT,
    'bg': {**_BLIT, **_GEOM}, 'bgc': {**_BLIT, **_GEOM, **_COLOR}, 'bgcf': {**_BLIT, **_GEOM, **_COLOR, **_FILTER},
    'bgcfn': {**_BLIT, **_GEOM, **_COLOR, **_FILTER, **_NOISE},
    'bgcfnc': {**_BLIT, **_GEOM, **_COLOR, **_FILTER, **_NOISE, **_CUTOUT},
    'all ranges': dict(
        xint=0.5, xint_max=0.25, scale=1, scale_std=0.3, rotate=1, rotate_max=0.3, aniso=1, aniso_std=0.1, xfrac=1,
        xfrac_std=0.05, brightness=1, brightness_std=0.4, contrast=1, contrast_std=0.2, hue=1, hue_max=0.4,
        saturation=1, saturation_std=0.5, imgfilter=1, imgfilter_bands=[1, 0.5, 0, 1], imgfilter_std=0.5, noise=1,
        noise_std=0.3, cutout=1, cutout_size=0.3),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One pickle to make, and what to ask its networks."""

    name: str
    net: dict[str, Any] = dataclasses.field(default_factory=dict)  # Of G and, where D has them, of D.
    mapping: dict[str, Any] = dataclasses.field(default_factory=dict)
    synthesis: dict[str, Any] = dataclasses.field(default_factory=dict)
    more: dict[str, Any] = dataclasses.field(default_factory=dict)  # Other arguments of G: LIA's encoder_kwargs.
    D: dict[str, Any] | None = dataclasses.field(default_factory=dict)  # None = no D.
    augment: dict[str, Any] | None = None  # None = no augment_pipe.
    hosts: tuple[str, ...] = ('ada', 'sg3')
    module: str | None = None  # Of the Generator. None = the host's StyleGAN2.
    loose: bool | None = None  # Whether G takes synthesis options as its own. None = as the host does.
    positional: bool = False  # Whether arguments go in by position where they can.
    plain: bool = False  # Without the shared options: widths by default.
    psi: float = 0.7
    batch: int = 4
    protocol: int = 4

    def arguments(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Of G itself, its mapping, its synthesis, and D."""
        net = {**NET, **self.net}
        widths = {} if self.plain else WIDTHS
        image = {key: net[key] for key in ('c_dim', 'img_resolution', 'img_channels')}
        mapping = {**({} if self.plain or self.module else dict(num_layers=2)), **self.mapping}
        return {**net, **self.more}, mapping, {**widths, **self.synthesis}, {**image, **widths, **(self.D or {})}


def both(name: str, synthesis: dict[str, Any], block: dict[str, Any] | None = None, **rest: Any) -> Case:
    """An option of G's synthesis that D has too: among its own arguments, or (`block`) those of its blocks."""
    D = synthesis if block is None else dict(block_kwargs=block)
    return Case(name, synthesis=synthesis, D=D, **rest)


def _networks() -> list[Case]:
    return [
        Case('default widths', plain=True, net=dict(img_resolution=16), synthesis=dict(channel_max=64),
             D=dict(channel_max=64)),
        *(both(f'architecture {a}', dict(architecture=a)) for a in ('skip', 'resnet', 'orig')),
        *(Case(f'resolution {r}', net=dict(img_resolution=r)) for r in (8, 64)),
        Case('resolution 4', net=dict(img_resolution=4), D=None),
        *(Case(f'{n} channels', net=dict(img_channels=n)) for n in (1, 2, 4)),
        Case('z wider than w', net=dict(z_dim=24, w_dim=12)),
        Case('arguments by position', positional=True),
        Case('arguments by position, D', positional=True, D=dict(architecture='skip', num_fp16_res=2, conv_clamp=9)),
        *(Case(f'mapping depth {n}', mapping=dict(num_layers=n)) for n in (0, 1, 2, 8)),
        *(Case(f'labels c_dim {n}', net=dict(c_dim=n)) for n in (1, 5)),
        Case('labels, mapping depth 1, embed_features', net=dict(c_dim=5),
             mapping=dict(num_layers=1, embed_features=7),
             D=dict(mapping_kwargs=dict(num_layers=1, embed_features=6))),
        Case('labels, cmap_dim', net=dict(c_dim=3), D=dict(cmap_dim=10)),
        Case('labels, no latent', net=dict(z_dim=0, c_dim=5)),
        Case('layer_features', net=dict(c_dim=2), mapping=dict(num_layers=3, layer_features=20),
             D=dict(mapping_kwargs=dict(layer_features=9, num_layers=2))),
        Case('mapping lr_multiplier, activation', mapping=dict(lr_multiplier=0.1, activation='relu')),
        Case('w_avg_beta None', mapping=dict(w_avg_beta=None), psi=1),
        Case('w_avg_beta 0.9', mapping=dict(w_avg_beta=0.9)),
    ]


def _precision() -> list[Case]:
    return [
        *(both(f'num_fp16_res {n}', dict(num_fp16_res=n)) for n in (0, 2, 4)),
        both('num_fp16_res 4, batch 1', dict(num_fp16_res=4), batch=1),
        both('num_fp16_res 4, conv_clamp 256', dict(num_fp16_res=4, conv_clamp=256)),
        *(both(f'conv_clamp {c}', dict(conv_clamp=c)) for c in (0.5, 256, None)),
        both('conv_clamp 0.5, resnet', dict(conv_clamp=0.5, architecture='resnet')),
        Case('fp16_channels_last', synthesis=dict(num_fp16_res=4, fp16_channels_last=True),
             D=dict(num_fp16_res=4, block_kwargs=dict(fp16_channels_last=True))),
        Case('fused_modconv_default', synthesis=dict(fused_modconv_default='inference_only'), hosts=FROM_SG3),
    ]


def _layers() -> list[Case]:
    return [
        *(both(f'filter {name}', dict(resample_filter=f, architecture='resnet'), dict(resample_filter=f))
          for name, f in FILTERS.items()),
        *(Case(f'filter {name}, skip', synthesis=dict(resample_filter=FILTERS[name]),
               D=dict(architecture='skip', block_kwargs=dict(resample_filter=FILTERS[name])))
          for name in ('[1, 2, 5]', '2-D', '[4, 1, 2, 1, 7, 2]')),
        *(Case(f'kernel_size {k}', synthesis=dict(kernel_size=k)) for k in (1, 5, 7)),
        *(both(f'activation {a}', dict(activation=a), dict(activation=a)) for a in ACTIVATIONS),
        Case('use_noise off', synthesis=dict(use_noise=False)),
        *(Case(f'freeze_layers {n}', D=dict(block_kwargs=dict(freeze_layers=n))) for n in (1, 5)),
        *(Case(f'mbstd group {g}, channels {c}', batch=8,
               D=dict(epilogue_kwargs=dict(mbstd_group_size=g, mbstd_num_channels=c)))
          for g, c in ((4, 1), (2, 1), (None, 1), (8, 4), (32, 2), (1, 1), (4, 0))),
        Case('epilogue activation', D=dict(epilogue_kwargs=dict(activation='tanh'))),
        Case('epilogue skip', net=dict(c_dim=2), D=dict(architecture='skip', conv_clamp=0.7)),
    ]


def _lia() -> list[Case]:
    """LIA as it is trained in a host's checkout: our Generator, the host's synthesis network and discriminator."""
    lia: dict[str, Any] = dict(module='lia_plugin.networks', loose=False)
    small = dict(channel_base=512, channel_max=24)
    return [
        Case('LIA stage 1', **lia),
        Case('LIA stage 1, all synthesis options by default', net=dict(img_resolution=16), plain=True, **lia),
        Case('LIA stage 1, labels, affine, depth 2', net=dict(c_dim=5),
             mapping=dict(num_layers=2, phi_kwargs=dict(coupling='affine')), **lia),
        Case('LIA stage 2', more=dict(encoder_kwargs=small), **lia),
        Case("LIA stage 2, the paper's encoder", more=dict(encoder_kwargs=dict(arch='paper')), **lia),
        Case('LIA stage 2, resnet, half precision', more=dict(encoder_kwargs=small),
             synthesis=dict(architecture='resnet', num_fp16_res=4, conv_clamp=256), **lia),
        Case('LIA, synthesis class named', hosts=FROM_ADA,
             synthesis=dict(class_name='training.networks.SynthesisNetwork'), **lia),
        Case('LIA, synthesis class named', hosts=FROM_SG3,
             synthesis=dict(class_name='training.networks_stylegan2.SynthesisNetwork'), **lia),
    ]


CASES: list[Case] = [
    *_networks(), *_precision(), *_layers(),
    *(Case(f'augment {name}', net=dict(img_resolution=16), D=None, augment=kwargs)
      for name, kwargs in AUGMENTS.items()),
    *(Case(f'protocol {p}', net=dict(c_dim=2), synthesis=dict(architecture='resnet'), augment=AUGMENTS['bgc'],
           protocol=p) for p in (2, 3, 4, 5)),
    *_lia(),
]
