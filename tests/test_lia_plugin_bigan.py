"""BiGAN: its losses against their formulas, what each phase trains, its optimum, and its networks in files."""

import copy
import math
import pathlib
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus

from lia_plugin import bigan
from lia_plugin.bigan_networks import JointDiscriminator
from lia_plugin.networks import Generator
from torch_utils import network_pickle

WIDTHS: dict[str, int] = dict(channel_base=256, channel_max=16)
SHAPE: dict[str, int] = dict(z_dim=8, c_dim=2, w_dim=8, img_resolution=16, img_channels=1)
N = 4
STEPS = 300


@pytest.fixture(scope='module')
def networks() -> tuple[Generator, JointDiscriminator]:
    torch.manual_seed(0)
    G = bigan.generator(**SHAPE, synthesis_kwargs=WIDTHS, encoder_kwargs=dict(WIDTHS, space='z'))
    D = JointDiscriminator(2, 16, 1, code_dim=8, epilogue_kwargs=dict(mbstd_group_size=2), **WIDTHS)
    return G.train().requires_grad_(False), D.train().requires_grad_(False)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    c = torch.eye(2)[torch.arange(N) % 2]
    return dict(real_img=torch.rand([N, 1, 16, 16]) * 2 - 1, real_c=c, gen_z=torch.randn([N, 8]), gen_c=c.flip(0))


def make(G: Any, D: Any, **kwargs: Any) -> bigan.BiganLoss:
    return bigan.BiganLoss(torch.device('cpu'), G.mapping, G.synthesis, D, **kwargs)


def run(loss: bigan.BiganLoss, module: torch.nn.Module, phase: str, batch: dict[str, torch.Tensor]) -> Any:
    """One phase as the loop runs it; gradients stay in the module."""
    module.zero_grad(set_to_none=True)
    module.requires_grad_(True)
    value = loss.accumulate_gradients(phase=phase, **batch)
    module.requires_grad_(False)
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def test_everything_in_the_generator_is_trained(networks: Any) -> None:
    G, _ = networks
    stage1 = Generator(**SHAPE, synthesis_kwargs=WIDTHS)
    frozen = Generator(**SHAPE, synthesis_kwargs=WIDTHS, encoder_kwargs=dict(WIDTHS, space='z'))
    encoder = {name for name, _ in frozen.named_parameters()}
    assert {name for name, _ in G.named_parameters()} == {name for name, _ in stage1.named_parameters()} | encoder
    buffers = {name for name, _ in G.named_buffers() if not name.startswith('mapping.encoder.')}
    assert buffers == {name for name, _ in stage1.named_buffers()}
    assert G.state_dict().keys() == frozen.state_dict().keys(), 'files must not differ'


def test_files_give_back_both_networks(networks: Any, batch: Any, tmp_path: pathlib.Path) -> None:
    G, D = (copy.deepcopy(net).eval() for net in networks)
    path = tmp_path / 'network.pkl'
    network_pickle.save(path, dict(G=G, D=D, G_ema=G))
    found = network_pickle.load(path)
    img, c, z = batch['real_img'], batch['real_c'], batch['gen_z']
    torch.testing.assert_close(found['G_ema'].encode(img, c), G.encode(img, c), rtol=0, atol=0)
    torch.testing.assert_close(found['G_ema'](z, c, noise_mode='const'), G(z, c, noise_mode='const'), rtol=0, atol=0)
    torch.testing.assert_close(found['D'](img, c, z), D(img, c, z), rtol=0, atol=0)


def test_the_discriminator_judges_image_label_and_code_with_its_length(networks: Any, batch: Any) -> None:
    _, D = networks
    img, c, z = batch['real_img'], batch['real_c'], batch['gen_z']
    logits = D(img, c, z)
    assert logits.shape == (N, 1)
    for other in (D(img.flip(3), c, z), D(img, c.flip(1), z), D(img, c, z.flip(1)), D(img, c, 2 * z)):
        assert (other - logits).abs().max() > 1e-4


@pytest.mark.parametrize('shape', [[N, 7], [N - 1, 8], [N, 8, 1]])
def test_codes_of_another_shape_are_refused(shape: list[int], networks: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r'code: expected \[4, 8\]'):
        networks[1](batch['real_img'], batch['real_c'], torch.zeros(shape))


# ---------------------------------------------------------------------------------------------------------------------
# Loss


@pytest.mark.parametrize('phase, trained, other', [('Gboth', 0, 1), ('Gmain', 0, 1), ('Dboth', 1, 0), ('Dmain', 1, 0)])
def test_each_phase_reaches_all_of_its_networks_and_none_of_the_other(
    phase: str, trained: int, other: int, networks: Any, batch: Any
) -> None:
    for net in networks:
        net.zero_grad(set_to_none=True)
    run(make(*networks), networks[trained], phase, batch)
    missing = [name for name, p in networks[trained].named_parameters() if p.grad is None or not p.grad.any()]
    # Zero strength of the random noise and zero-initialised biases still get a gradient; nothing may be left out.
    assert not missing
    assert all(p.grad is None for p in networks[other].parameters())


class Constant(torch.nn.Module):
    """A discriminator that can't tell: one logit for everything."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(logit))

    def forward(self, img: torch.Tensor, c: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        return self.logit + 0 * (img.sum(dim=[1, 2, 3])[:, None] + code.sum(dim=1, keepdim=True))


@pytest.mark.parametrize('logit', [0.0, 1.5, -2.0])
def test_value_for_a_discriminator_that_cannot_tell(logit: float, networks: Any, batch: Any) -> None:
    """softplus(k) + softplus(−k), which is least at k = 0: 2 log 2, the value at the optimum of the game."""
    D = Constant(logit)
    expected = math.log1p(math.exp(logit)) + math.log1p(math.exp(-logit))
    for phase, module in (('Gboth', networks[0]), ('Dboth', D), ('Dmain', D)):
        assert float(run(make(networks[0], D), module, phase, batch)) == pytest.approx(expected, rel=1e-5)
    slope = 1 / (1 + math.exp(-logit)) - 1 / (1 + math.exp(logit))
    assert D.logit.grad is not None and float(D.logit.grad) == pytest.approx(slope, abs=1e-6)


def test_the_discriminators_loss_is_its_formula(networks: Any, batch: Any) -> None:
    G, D = networks
    img, c, z, gen_c = (batch[name] for name in ('real_img', 'real_c', 'gen_z', 'gen_c'))
    loss = make(G, D, r1_gamma=3.0)
    torch.manual_seed(5)
    found = run(loss, D, 'Dboth', batch)
    torch.manual_seed(5)  # The layers' noise.
    pair = [img.clone().requires_grad_(), G.encoder(img).detach().requires_grad_()]
    logits = D(pair[0], c, pair[1])
    grads = torch.autograd.grad(logits.sum(), pair)
    r1 = sum(grad.square().sum() for grad in grads) / N
    expected = softplus(-logits).mean() + softplus(D(G(z, gen_c), gen_c, z)).mean() + 1.5 * r1
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_generators_loss_is_its_formula(networks: Any, batch: Any) -> None:
    G, D = networks
    img, c, z, gen_c = (batch[name] for name in ('real_img', 'real_c', 'gen_z', 'gen_c'))
    torch.manual_seed(5)
    found = run(make(G, D), G, 'Gmain', batch)
    torch.manual_seed(5)
    expected = softplus(-D(G(z, gen_c), gen_c, z)).mean() + softplus(D(img, c, G.encoder(img))).mean()
    torch.testing.assert_close(found, expected.detach())


def test_phases_in_which_nothing_is_due(networks: Any, batch: Any) -> None:
    assert run(make(*networks), networks[0], 'Greg', batch) is None
    assert run(make(*networks, r1_gamma=0.0), networks[1], 'Dreg', batch) is None


# ---------------------------------------------------------------------------------------------------------------------
# Optimum


class Scale(torch.nn.Module):
    """Multiplies by one learned number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class ToyMapping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Scale(0.2)

    def forward(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return z


class SecondMoments(torch.nn.Module):
    """The best discriminator of Gaussian pairs of scalars: linear in x², xz and z²."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, c: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.weights(torch.cat([x * x, x * z, z * z], dim=1))


def test_generator_and_encoder_end_as_each_others_inverse() -> None:
    """x ~ N(0, 4), g(z) = a·z, f(x) = b·x: all second moments of both pairs agree only at |a| = 2 and b = 1 / a."""
    torch.manual_seed(0)
    mapping, synthesis, D = ToyMapping(), Scale(0.7), SecondMoments()
    loss = bigan.BiganLoss(torch.device('cpu'), mapping, synthesis, D, r1_gamma=0.1)
    G = torch.nn.ModuleList([mapping, synthesis])
    optimisers = [torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.99), eps=1e-3)
                  for net, lr in ((G, 0.02), (D, 0.05))]
    z = torch.distributions.Normal(0, 1).icdf(torch.linspace(0.01, 0.99, 50))[:, None]
    z = z / z.square().mean().sqrt()
    batch = dict(real_img=2 * z, gen_z=z, real_c=z[:, :0], gen_c=z[:, :0])
    path = []
    for _ in range(STEPS):
        for phase, net, optimiser in zip(('Gboth', 'Dboth'), (G, D), optimisers):
            run(loss, net, phase, batch)
            optimiser.step()
        path.append((float(synthesis.factor), float(mapping.encoder.factor)))
    a, b = torch.tensor(path[-50:]).mean(dim=0).tolist()
    assert abs(a) == pytest.approx(2, abs=0.1)
    assert a * b == pytest.approx(1, abs=0.05)
