"""All gradients of all phases of training: compiled kernels against PyTorch's operators and against float64."""

from collections.abc import Callable

import pytest
import torch

from torch_utils.ops import bias_act
from training import networks
from training.loss import PHASES, StyleGAN2Loss

SIZE = dict(img_resolution=16, img_channels=3, c_dim=0)
WIDTH = dict(channel_base=16 * 40, channel_max=40)  # Wide enough for the convolutions on matrix tiles.


def build(architecture: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    inner = 'resnet' if architecture == 'resnet' else 'skip'
    G = networks.Generator(z_dim=16, w_dim=16, mapping_kwargs=dict(num_layers=2),
                           synthesis_kwargs=dict(WIDTH, architecture=inner), **SIZE)
    D = networks.Discriminator(architecture=architecture, **WIDTH, **SIZE)
    for module in G.modules():
        if hasattr(module, 'noise_strength'):
            module.noise_strength.data.fill_(0.3)
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        if name.endswith('bias'):
            parameter.data.normal_(0, 0.3)
    return G, D


def gradients(nets: tuple[torch.nn.Module, torch.nn.Module], dtype: torch.dtype,
              seed: int = 1) -> dict[str, torch.Tensor]:
    """Of every parameter in every phase, in float64. Noise is drawn in float32 whatever the type."""
    G, D = (net.to(dtype) for net in nets)
    generator = torch.Generator().manual_seed(seed)
    z, img = (torch.randn(shape, generator=generator).to(dtype) for shape in ([4, 16], [4, 3, 16, 16]))
    loss = StyleGAN2Loss(torch.device('cpu'), G.mapping, G.synthesis, D, r1_gamma=1, style_mixing_prob=0)
    loss.pl_mean = loss.pl_mean.to(dtype)
    found = {}
    for phase in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
        net = G if PHASES[phase][0] == 'G' else D
        G.requires_grad_(net is G), D.requires_grad_(net is D)
        net.zero_grad(set_to_none=True)
        torch.manual_seed(2)
        loss.accumulate_gradients(phase, img, img[:, :0, 0, 0], z, z[:, :0], sync=True, gain=1)
        found.update({f'{phase} {name}': parameter.grad.double() for name, parameter in net.named_parameters()})
    return found


@pytest.fixture
def exact(monkeypatch) -> Callable[..., dict[str, torch.Tensor]]:
    """The same in float64: where networks and losses say float32, they mean that."""
    def run(architecture: str) -> dict[str, torch.Tensor]:
        draw, draw_like = torch.randn, torch.randn_like
        nets = build(architecture)
        with monkeypatch.context() as patch:
            narrow = torch.float32
            patch.setenv('LIA_KERNELS', 'off')  # They would take what is called float32 for it.
            patch.setattr(torch, 'randn', lambda *size, **kwargs: draw(*size, **{'dtype': narrow, **kwargs}).double())
            patch.setattr(torch, 'randn_like', lambda x: draw_like(x, dtype=narrow).double())
            patch.setattr(torch, 'float32', torch.float64)
            return gradients(nets, torch.float64)
    return run


@pytest.mark.parametrize('architecture', ['resnet', 'skip'])
def test_all_gradients_of_all_phases(architecture, exact, monkeypatch) -> None:
    ours = gradients(build(architecture), torch.float32)
    compiled = bias_act.compiled_for(torch.device('cpu'))
    with monkeypatch.context() as patch:
        patch.setenv('LIA_KERNELS', 'off')
        plain = gradients(build(architecture), torch.float32)
    reference = exact(architecture)
    assert compiled or all(torch.equal(ours[name], plain[name]) for name in ours)
    assert len(ours) == len(plain) == len(reference) > 100
    for name, right in reference.items():
        scale = right.abs().max().clamp(min=1e-4)
        errors = [float((side[name] - right).abs().max() / scale) for side in (ours, plain)]
        assert errors[0] < max(1e-4, 4 * errors[1]), f'{name}: {errors[0]:.1e}, without kernels {errors[1]:.1e}'
        assert errors[0] < 1.5e-3, name
