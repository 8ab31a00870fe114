"""Recorded phases of training on a GPU give what eager ones give, over several iterations.

Skipped without CUDA. LIA_TEST_DEVICE names another device; with `cpu` a stand-in for graphs tests the tests.
"""

import copy
import os
from typing import Any

import pytest
import torch
from test_device import float32_is_float32  # noqa: F401  A fixture of every test here.

from dnnlib.util import EasyDict
from lia_plugin import networks as lia_networks
from lia_plugin.loss import EncoderLoss
from lia_plugin.perceptual import DiscriminatorFeatures
from training import cuda_graphs, iteration, networks
from training.augment import AugmentPipe, augpipe_specs
from training.loss import StyleGAN2Loss

DEVICE = os.environ.get('LIA_TEST_DEVICE') or ('cuda' if torch.cuda.is_available() else '')
WIDTHS: dict[str, Any] = dict(channel_base=256, channel_max=16)
IMAGE: dict[str, Any] = dict(c_dim=0, img_resolution=16, img_channels=3)
ITERATIONS = 8

pytestmark = pytest.mark.skipif(not DEVICE, reason='no CUDA device; LIA_TEST_DEVICE names another one')


class StandIn:
    def capture(self, work: Any) -> None:
        self.work = work

    def replay(self) -> Any:
        return self.work()


def make_graphs() -> cuda_graphs.Graphs:
    if not DEVICE.startswith('cuda'):
        return cuda_graphs.Graphs(StandIn)
    graphs = cuda_graphs.make('on', torch.device(DEVICE), IMAGE['img_resolution'])
    assert graphs is not None
    return graphs


def train(stage: str, graphs: cuda_graphs.Graphs | None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of all phases of a few iterations in two rounds, and the weights after them."""
    device = torch.device(DEVICE)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(z_dim=16, w_dim=16, synthesis_kwargs=WIDTHS, **IMAGE)
    G: Any = lia_networks.Generator(encoder_kwargs=WIDTHS if stage == 'encoder' else None, **shape).to(device)
    D = networks.Discriminator(epilogue_kwargs=dict(mbstd_group_size=2), **WIDTHS, **IMAGE).to(device)
    pipe = AugmentPipe(**augpipe_specs['bgc']).to(device)
    for net in (G, D, pipe):
        net.requires_grad_(False)
    loss: Any = StyleGAN2Loss(device, G.mapping, G.synthesis, D, pipe)
    if stage == 'encoder':
        loss = EncoderLoss(device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, percep='none', percep_weight=0.1,
                           adv_weight=0.1, latent_weight=0.1, mix=0.5)
        loss.percep = DiscriminatorFeatures(copy.deepcopy(D)).to(device)
    names = ['Gmain', 'Greg', 'Dmain', 'Dreg'] if stage == 'gan' else ['Gboth', 'Dmain', 'Dreg']
    phases = []
    for name in names:
        module = G if name[0] == 'G' else D
        opt = torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.0, 0.99), fused=True)
        phases.append(EasyDict(name=name, module=module, interval=1, opt=opt))
    state, args = EasyDict(loss=loss, graphs=graphs), EasyDict(num_gpus=1)
    torch.manual_seed(1)
    values = []
    for _ in range(ITERATIONS):
        img, z = torch.rand(8, 3, 16, 16).mul(2).sub(1).to(device).split(4), torch.randn(8, 16).to(device).split(4)
        c = torch.zeros(8, 0, device=device).split(4)
        for phase in phases:
            values += [float(value) for value in iteration.run_phase(args, state, phase, img, c, z, c)]
    return values, {name: p.detach().cpu() for net in (G, D) for name, p in net.named_parameters()}


@pytest.mark.parametrize('stage', ['gan', 'encoder'])
def test_replayed_iterations_give_the_eager_ones_losses(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    graphs = make_graphs()
    eager, weights = train(stage, None)
    replayed, weights_too = train(stage, graphs)
    assert len(graphs.captured) >= 3 and not graphs.failed
    assert replayed == pytest.approx(eager, rel=2e-2, abs=1e-3)  # Rounding grows from step to step.
    for name, weight in weights.items():
        assert (weights_too[name] - weight).abs().mean() <= 1e-3, name
