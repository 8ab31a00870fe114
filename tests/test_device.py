"""What runs on a GPU gives the CPU's numbers: operators, networks, losses, augmentation, features, training.

Skipped without CUDA. LIA_TEST_DEVICE names another device; with `cpu` the tests test themselves.
"""

import copy
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import legacy
from lia_plugin import networks as lia_networks
from lia_plugin.loss import EncoderLoss
from lia_plugin.perceptual import DiscriminatorFeatures
from metrics.detectors import RandomFeatures
from torch_utils.ops import bias_act, conv2d_resample, filtered_lrelu, grid_sample_gradfix, upfirdn2d
from training import networks
from training.augment import AugmentPipe, augpipe_specs
from training.loss import StyleGAN2Loss
from training.training_loop import training_loop

DEVICE = os.environ.get('LIA_TEST_DEVICE') or ('cuda' if torch.cuda.is_available() else '')
DATA = str(pathlib.Path(__file__).parents[1] / 'demo' / 'people64_val.zip')
CPU = torch.device('cpu')
IMAGE = dict(c_dim=0, img_resolution=32, img_channels=3)
WIDTHS = dict(channel_base=512, channel_max=32)
HALF = dict(num_fp16_res=2, conv_clamp=256)

pytestmark = pytest.mark.skipif(not DEVICE, reason='no CUDA device; LIA_TEST_DEVICE names another one')


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """TF32 would be off by 1e-3."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before):
        switch.allow_tf32 = value


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal within a share of the largest value, since single small ones are sums of large ones."""
    error = (got.detach().cpu() - expected).abs().max().item()
    assert error <= tolerance * max(expected.abs().max().item(), 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Operators

FILTER = [1, 3, 3, 1]


def setup_filter(x: torch.Tensor) -> torch.Tensor:
    return upfirdn2d.setup_filter(FILTER, device=x.device)


def sample(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    theta = torch.tensor([[0.9, 0.2, 0.1], [-0.2, 0.8, 0.05]], device=x.device).expand(len(x), 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample_gradfix.grid_sample(x, grid)


OPERATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    'upsample': lambda x, w: upfirdn2d.upsample2d(x, setup_filter(x)),
    'downsample': lambda x, w: upfirdn2d.downsample2d(x, setup_filter(x)),
    'bias, lrelu, clamp': lambda x, w: bias_act.bias_act(x, w[0, :, 0, 0], act='lrelu', clamp=1.5),
    'bias, swish': lambda x, w: bias_act.bias_act(x, w[0, :, 0, 0], act='swish'),
    'conv': lambda x, w: conv2d_resample.conv2d_resample(x, w, padding=1),
    'conv up': lambda x, w: conv2d_resample.conv2d_resample(x, w, setup_filter(x), up=2, padding=1, flip_weight=False),
    'conv down': lambda x, w: conv2d_resample.conv2d_resample(x, w, setup_filter(x), down=2, padding=1),
    'modulated conv': lambda x, w: networks.modulated_conv2d(x, w, x.mean(dim=(2, 3)) + 1, padding=1),
    'grid sample': sample,
    'filtered lrelu': lambda x, w: filtered_lrelu.filtered_lrelu(
        x, setup_filter(x), setup_filter(x), w[0, :, 0, 0], up=2, down=2, padding=3, clamp=2),
}


def derivatives(fn: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The value, first and second derivatives."""
    options: dict[str, Any] = dict(allow_unused=True, materialize_grads=True)
    value = fn(*inputs)
    first = torch.autograd.grad(value.pow(3).mean(), inputs, create_graph=True, **options)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, **options)
    return [value, *first, *second]


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_operators_and_two_derivatives_are_the_cpus(name: str, memory_format: torch.memory_format) -> None:
    stream = torch.Generator().manual_seed(0)
    x, w = torch.randn([2, 4, 8, 8], generator=stream), torch.randn([4, 4, 3, 3], generator=stream)
    results = []
    for device in (DEVICE, 'cpu'):
        moved = x.to(device).contiguous(memory_format=memory_format), w.to(device)
        results.append(derivatives(OPERATORS[name], [t.requires_grad_() for t in map(torch.clone, moved)]))
        results[-1] = [t.detach() for t in results[-1]]
    for got, expected in zip(*results):
        assert_close(got, expected, 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Networks and losses


class Nets:
    """Small networks and a batch, twice: on the CPU and, with the same numbers, on the device."""

    def __init__(self, **precision: Any) -> None:
        torch.manual_seed(0)
        synthesis = dict(WIDTHS, use_noise=False, **precision)  # Noise would be drawn differently on each device.
        shape = dict(z_dim=16, w_dim=16, synthesis_kwargs=synthesis, **IMAGE)
        self.G = networks.Generator(mapping_kwargs=dict(num_layers=2), **shape)
        self.L = lia_networks.Generator(encoder_kwargs=dict(WIDTHS, **precision), **shape)
        self.D = networks.Discriminator(**WIDTHS, **precision, **IMAGE)
        self.img = torch.nn.functional.interpolate(torch.randn([4, 3, 8, 8]), scale_factor=4.0, mode='bilinear')
        self.z = torch.randn([4, 16])
        self.c = torch.zeros([4, 0])
        for net in (self.G, self.L, self.D):
            net.requires_grad_(False)

    def to(self, device: str) -> 'Nets':
        twin = copy.copy(self)
        twin.__dict__ = {name: copy.deepcopy(value).to(device) for name, value in self.__dict__.items()}
        return twin

    def gan_gradients(self, phase: str) -> dict[str, torch.Tensor]:
        device, module = self.z.device, self.G if phase[0] == 'G' else self.D
        loss = StyleGAN2Loss(device, self.G.mapping, self.G.synthesis, self.D, style_mixing_prob=0, r1_gamma=1)
        return self._gradients(loss, phase, module)

    def encoder_gradients(self, phase: str) -> dict[str, torch.Tensor]:
        loss = EncoderLoss(self.z.device, self.L.mapping, self.L.synthesis, self.D, percep='none', percep_weight=0.1,
                           adv_weight=0.1, latent_weight=0.1, mix=0.5)
        loss.percep = DiscriminatorFeatures(self.D)
        return self._gradients(loss, phase, self.L if phase[0] == 'G' else self.D)

    def _gradients(self, loss: Any, phase: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        module.requires_grad_(True)
        loss.accumulate_gradients(phase, self.img, self.c, self.z, self.c, True, 1)
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Path lengths project on noise, which each device draws from a stream of its own."""
    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like.device)

    monkeypatch.setattr(torch, 'randn_like', draw)


def test_networks_give_the_cpus_images_codes_and_logits() -> None:
    nets = Nets()
    there = nets.to(DEVICE)
    assert_close(there.G(there.z, None), nets.G(nets.z, None))
    assert_close(there.L.encode(there.img), nets.L.encode(nets.img))
    assert_close(there.D(there.img, None), nets.D(nets.img, None))
    y = there.L.mapping.z_to_y(there.z)
    assert_close(there.L.mapping.y_to_z(y), nets.z, 1e-5)


@pytest.mark.parametrize('phase', ['Gmain', 'Greg', 'Dmain', 'Dreg'])
def test_gan_gradients_are_the_cpus(phase: str, same_noise: None) -> None:
    nets = Nets()
    got, expected = nets.to(DEVICE).gan_gradients(phase), nets.gan_gradients(phase)
    assert got.keys() == expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        assert (got[name].cpu() - grad).abs().max().item() <= 1e-3 * largest, name


@pytest.mark.parametrize('phase', ['Gmain', 'Dmain', 'Dreg'])
def test_encoder_gradients_are_the_cpus(phase: str) -> None:
    nets = Nets()
    got, expected = nets.to(DEVICE).encoder_gradients(phase), nets.encoder_gradients(phase)
    assert got.keys() == expected.keys() and expected
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        assert (got[name].cpu() - grad).abs().max().item() <= 1e-3 * largest, name


def test_half_precision_layers_are_finite_and_near_float32() -> None:
    nets = Nets(**HALF).to(DEVICE)
    dtypes = []
    nets.G.synthesis.b32.conv1.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    img, exact = nets.G(nets.z, None), nets.G(nets.z, None, force_fp32=True)
    half = torch.float16 if DEVICE.startswith('cuda') else torch.float32
    assert dtypes == [half, torch.float32]
    assert img.dtype == torch.float32
    assert_close(img, exact.cpu(), 0.02)
    assert_close(nets.D(nets.img, None), nets.D(nets.img, None, force_fp32=True).cpu(), 0.05)
    assert torch.isfinite(nets.L.encode(nets.img)).all()


@pytest.mark.parametrize('phase', ['Gmain', 'Greg', 'Dmain', 'Dreg'])
def test_half_precision_gradients_are_finite(phase: str) -> None:
    grads = Nets(**HALF).to(DEVICE).gan_gradients(phase)
    assert grads and all(torch.isfinite(grad).all() for grad in grads.values())


# ---------------------------------------------------------------------------------------------------------------------
# The rest of a training


def test_augmentation_at_zero_is_the_identity_and_at_one_finite() -> None:
    pipe = AugmentPipe(**augpipe_specs['bgcfnc']).to(DEVICE)
    img = torch.rand([4, 3, 32, 32], device=DEVICE) * 2 - 1
    pipe.p.fill_(1)
    changed = pipe(img)
    assert changed.shape == img.shape and changed.device == img.device and torch.isfinite(changed).all()
    assert (changed - img).abs().max() > 0.1
    pipe.p.fill_(0)
    assert_close(pipe(img), img.cpu(), 1e-3)


def test_detector_features_are_the_cpus() -> None:
    img = torch.randint(0, 256, [2, 3, 32, 32], dtype=torch.uint8)
    assert_close(RandomFeatures(0).to(DEVICE)(img.to(DEVICE)), RandomFeatures(0)(img))


def test_training_runs_and_its_files_go_on_there_and_open_on_the_cpu(tmp_path: pathlib.Path) -> None:
    adam = dict(class_name='torch.optim.Adam', lr=0.002, betas=[0, 0.99], eps=1e-8)
    kwargs: dict[str, Any] = dict(
        run_dir=str(tmp_path), device=DEVICE, G_opt_kwargs=adam, D_opt_kwargs=adam, batch_size=4, batch_gpu=4,
        training_set_kwargs=dict(class_name='training.dataset.ImageFolderDataset', path=DATA, max_size=8),
        G_kwargs=dict(class_name='lia_plugin.networks.Generator', z_dim=8, w_dim=8,
                      synthesis_kwargs=dict(channel_base=256, channel_max=8, **HALF)),
        D_kwargs=dict(class_name='training.networks.Discriminator', channel_base=256, channel_max=8, **HALF),
        augment_kwargs=dict(class_name='training.augment.AugmentPipe', **augpipe_specs['bgc']), augment_p=0.1,
        loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss'),
    )  # fmt: skip
    training_loop(total_kimg=0.008, **kwargs)
    snapshot = training_loop(total_kimg=0.016, resume_state=str(tmp_path / 'training-state.pt'), **kwargs)
    assert snapshot is not None and snapshot.endswith('000000.pkl')
    with open(snapshot, 'rb') as f:
        G = legacy.load_network_pkl(f)['G_ema']
    assert {p.device for p in G.parameters()} == {CPU}
    assert torch.isfinite(G(torch.randn([2, 8]), None)).all()
