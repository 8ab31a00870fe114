"""From stage 1 to stage 2: detach φ, freeze the generator, give it an encoder (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

import torch

import dnnlib
from lia_plugin import attach, host
from lia_plugin.encoder_start import start_encoder
from lia_plugin.networks import Generator, MappingNetwork
from torch_utils import misc

STATISTICS_SAMPLES = 10_000
STARTS = ('network', 'head', 'random')
LOOP_KEYS = ('c_dim', 'img_resolution', 'img_channels')  # Arguments that a training loop adds from its data.


def prepare_encoder_stage(
    network_pkl: str,
    out_pkl: str,
    encoder_kwargs: dict[str, Any],
    device: torch.device | str = 'cpu',
    seed: int = 0,
    trust: bool = False,
    D_kwargs: dict[str, Any] | None = None,
    start: str = 'network',
) -> dict[str, Any]:
    """Writes the pickle that stage 2 starts from; gives the keyword arguments of its generator.

    The generator is stage 1's exponential average, its weights frozen as buffers, plus a new encoder whose output has
    the mean and spread of the latent space and which begins with what the networks know (lia_plugin.encoder_start):
    with `start='head'` nothing of D's, with 'random' nothing at all. D goes on from stage 1; a pickle without one gets
    a new one if `D_kwargs` (class_name and arguments) say which. A network that has an encoder already keeps it, so
    that its training continues, if `encoder_kwargs` describe the same one.

    Raises UserError if the network has no φ, or another encoder than asked for.
    """
    data = host.load_network_pkl(network_pkl, trust=trust)
    source = data['G_ema']
    if getattr(getattr(source, 'mapping', None), 'phi', None) is None:
        raise host.UserError(
            f'{network_pkl}: its generator has no φ, so an encoder would have no z to lead to; '
            'train stage 1 with --cfg=lia --stage=gan, or give a pickle of such a run'
        )
    if data.get('D') is None and D_kwargs is None:
        raise host.UserError(f'{network_pkl}: holds no discriminator, which stage 2 needs; give a training snapshot')
    G_kwargs = generator_kwargs(source, encoder_kwargs, network_pkl)
    if start not in STARTS:
        raise ValueError(f'start: expected {" or ".join(map(repr, STARTS))}, got {start!r}')
    torch.manual_seed(seed)
    image = dict(img_resolution=source.img_resolution, img_channels=source.img_channels)
    G = Generator(c_dim=source.c_dim, **image, **G_kwargs)
    G.eval().requires_grad_(False)
    misc.copy_params_and_buffers(source, G, require_all=False)
    if source.encoder is None:
        mean, std = code_statistics(G.mapping.to(device), encoder_kwargs.get('space', 'y'), seed=seed)
        assert G.encoder is not None, 'encoder_kwargs were given'
        G.encoder.set_output_statistics(mean.cpu(), std.cpu())
        if start != 'random':
            print(start_encoder(G, data.get('D') if start == 'network' else None, device, seed), flush=True)
    G = G.cpu()
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()  # This process may live on beside those that train.
    D = data.get('D')
    if D is None and D_kwargs is not None:
        D = dnnlib.util.construct_class_by_name(**D_kwargs, c_dim=source.c_dim, **image).eval().requires_grad_(False)
    host.save_network_pkl(out_pkl, {**data, 'G': G, 'D': D, 'G_ema': G})
    return G_kwargs


def generator_kwargs(source: Any, encoder_kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    """Constructor arguments of a stage-1 generator's stage-2 self, without what a training loop adds from its data."""
    own = attach.has_phi(source)
    kwargs = dict(source.init_kwargs) if own else attach.lia_kwargs(source)  # What it will be with φ attached.
    kwargs = {k: v for k, v in kwargs.items() if k not in LOOP_KEYS}
    old = kwargs.get('encoder_kwargs')
    if old is not None and any(old.get(k) != v for k, v in encoder_kwargs.items()):
        changed = next(k for k, v in encoder_kwargs.items() if old.get(k) != v)
        raise host.UserError(
            f'{name}: its encoder has {changed}={old.get(changed)!r}, asked for is {encoder_kwargs[changed]!r}; '
            'leave the option out, or start from the stage-1 pickle'
        )
    return host.plain({**kwargs, 'encoder_kwargs': {**(old or {}), **encoder_kwargs}})


@torch.no_grad()
def code_statistics(mapping: MappingNetwork, space: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [z_dim] of what an encoder towards `space` has to produce.

    With a conditional network classes are drawn evenly.
    """
    if space == 'z':
        return torch.zeros([mapping.z_dim]), torch.ones([mapping.z_dim])
    device = mapping.w_avg.device
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn([STATISTICS_SAMPLES, mapping.z_dim], generator=generator).to(device)
    c = None
    if mapping.c_dim:
        classes = torch.randint(mapping.c_dim, [STATISTICS_SAMPLES], generator=generator)
        c = torch.eye(mapping.c_dim)[classes].to(device)
    y = mapping.z_to_y(z, c)
    return y.mean(dim=0), y.std(dim=0)
