"""Contracts of training.networks: shapes, names, closed forms, precision, copies."""

import ast
import copy
import io
import pathlib
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch

from training import networks

ARCHITECTURES = ['orig', 'skip', 'resnet']
SMALL: dict[str, Any] = {'channel_base': 64, 'channel_max': 8}


def make_generator(c_dim: int = 0, channels: int = 3, resolution: int = 16, mapping: Any = None,
                   **synthesis: Any) -> Any:
    torch.manual_seed(0)
    return networks.Generator(
        8, c_dim, 8, resolution, channels, mapping_kwargs={'num_layers': 2, **(mapping or {})},
        synthesis_kwargs={**SMALL, **synthesis})


def make_discriminator(c_dim: int = 0, channels: int = 3, resolution: int = 16, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return networks.Discriminator(c_dim, resolution, channels, **{**SMALL, **kwargs})


def make_inputs(samples: int, c_dim: int = 0, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(samples, 8), torch.randn(samples, c_dim)


def stir(module: Any) -> Any:
    """What starts at zero (biases, noise strengths) would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


# ------------------------------------------------------------------------------------------------ shapes and names


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize(('c_dim', 'channels'), [(0, 3), (4, 1)])
def test_images_and_logits(architecture: str, c_dim: int, channels: int) -> None:
    G = stir(make_generator(c_dim, channels, architecture=architecture))
    D = stir(make_discriminator(c_dim, channels, architecture=architecture))
    z, c = make_inputs(4, c_dim)
    ws = G.mapping(z, c)
    img = G.synthesis(ws)
    logits = D(img, c)
    assert ws.shape == (4, G.num_ws, 8) and G.num_ws == G.mapping.num_ws == G.synthesis.num_ws == 6
    assert img.shape == (4, channels, 16, 16) and img.dtype == torch.float32
    assert logits.shape == (4, 1) and logits.dtype == torch.float32
    logits.sum().backward()
    without = [name for net in (G, D) for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_generator_names_are_those_of_the_format() -> None:
    """EMA, resume and NVIDIA's pickles exchange weights under these names."""
    layer = ['affine.bias', 'affine.weight', 'bias', 'noise_const', 'noise_strength', 'resample_filter', 'weight']
    torgb = ['affine.bias', 'affine.weight', 'bias', 'weight']
    expected = {'mapping.w_avg', 'synthesis.b4.const', 'mapping.embed.weight', 'mapping.embed.bias'}
    expected |= {f'mapping.fc{i}.{name}' for i in range(2) for name in ('weight', 'bias')}
    for block, layers in (('b4', ['conv1']), ('b8', ['conv0', 'conv1'])):
        expected.add(f'synthesis.{block}.resample_filter')
        expected |= {f'synthesis.{block}.torgb.{name}' for name in torgb}
        expected |= {f'synthesis.{block}.{conv}.{name}' for conv in layers for name in layer}
    assert set(make_generator(c_dim=2, resolution=8).state_dict()) == expected
    resnet = set(make_generator(c_dim=2, resolution=8, architecture='resnet').state_dict())
    assert resnet - expected == {'synthesis.b8.skip.weight', 'synthesis.b8.skip.resample_filter'}
    assert expected - resnet == {f'synthesis.b4.torgb.{name}' for name in torgb}


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_discriminator_names_are_those_of_the_format(architecture: str) -> None:
    conv = ['weight', 'bias', 'resample_filter']
    layers = ['b8.fromrgb', 'b8.conv0', 'b8.conv1', 'b4.conv'] + ['b4.fromrgb'] * (architecture == 'skip')
    expected = {f'{layer}.{name}' for layer in layers for name in conv} | {'b8.resample_filter'}
    expected |= {f'b4.{layer}.{name}' for layer in ('fc', 'out') for name in ('weight', 'bias')}
    if architecture == 'resnet':
        expected |= {'b8.skip.weight', 'b8.skip.resample_filter'}
    assert set(make_discriminator(resolution=8, architecture=architecture).state_dict()) == expected


def test_discriminator_blocks_can_be_called_one_by_one() -> None:
    D = stir(make_discriminator(architecture='skip', resolution=32))
    img = torch.randn(4, 3, 32, 32)
    assert D.block_resolutions == [32, 16, 8]
    x, remaining = None, img
    for res in D.block_resolutions:
        x, remaining = getattr(D, f'b{res}')(x, remaining, force_fp32=True)
        assert x.shape[2] == remaining.shape[2] == res // 2
    assert torch.equal(D.b4(x, remaining, None), D(img, None))


def test_filters_reach_only_the_layers_that_resample() -> None:
    """conv1 of a synthesis block keeps the default filter in ADA's files, whatever the block has."""
    block = make_generator(architecture='resnet', resample_filter=[1, 2, 1]).synthesis.b8
    assert [tuple(m.resample_filter.shape) for m in (block, block.conv0, block.skip, block.conv1)] == [(3, 3)] * 3 + [
        (4, 4)]


def test_frozen_layers_are_buffers_counted_from_the_image() -> None:
    D = make_discriminator(resolution=16, block_kwargs={'freeze_layers': 5})
    frozen = {name.rsplit('.', 1)[0] for name, _ in D.named_buffers() if name.endswith('.weight')}
    assert frozen == {'b16.fromrgb', 'b16.conv0', 'b16.conv1', 'b16.skip', 'b8.conv0'}
    assert set(D.state_dict()) == set(make_discriminator(resolution=16).state_dict())


# ---------------------------------------------------------------------------------------------------- the arithmetic


def convolve_with_weights_per_sample(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """The paper's equations 1 and 3, sample by sample."""
    outputs = []
    for sample, style in zip(x, styles, strict=True):
        w = weight * style[None, :, None, None]
        w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        outputs.append(torch.nn.functional.conv2d(sample[None], w, padding=weight.shape[-1] // 2))
    return torch.cat(outputs)


@pytest.mark.parametrize('samples', [1, 3])
def test_modulation_equals_weights_per_sample(samples: int) -> None:
    torch.manual_seed(0)
    x, weight, styles, noise = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in (
        (samples, 5, 6, 6), (4, 5, 3, 3), (samples, 5), (samples, 1, 6, 6)))
    got = networks.modulated_conv2d(x, weight, styles, noise=noise, padding=1)
    want = convolve_with_weights_per_sample(x, weight, styles) + noise
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, styles, noise), cotangent) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_modulation_has_second_derivatives() -> None:
    torch.manual_seed(0)
    shapes = (2, 2, 3, 3), (2, 2, 3, 3), (2, 2), (2, 1, 3, 3)
    inputs = tuple(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

    def convolve(x: torch.Tensor, w: torch.Tensor, s: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return networks.modulated_conv2d(x, w, s, noise=n, padding=1)

    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_demodulated_output_does_not_depend_on_the_size_of_styles() -> None:
    torch.manual_seed(0)
    x, weight, styles = torch.randn(2, 16, 8, 8), torch.randn(8, 16, 3, 3), torch.randn(2, 16)
    one, other = (networks.modulated_conv2d(x, weight, styles * scale, padding=1) for scale in (1, 50))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    one, other = (networks.modulated_conv2d(x, weight, styles * scale, demodulate=False) for scale in (1, 64))
    torch.testing.assert_close(other, one * 64)


def test_half_precision_survives_styles_beyond_its_range() -> None:
    torch.manual_seed(0)
    x, weight, styles = torch.randn(2, 64, 8, 8), torch.randn(8, 64, 3, 3) * 30, torch.randn(2, 64) * 1e5
    want = networks.modulated_conv2d(x, weight, styles, padding=1)
    got = networks.modulated_conv2d(x.half(), weight, styles, padding=1)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)


def test_half_precision_is_left_to_cuda() -> None:
    full, half = make_generator(), make_generator(num_fp16_res=2, fp16_channels_last=True)
    assert [getattr(half.synthesis, f'b{res}').use_fp16 for res in (4, 8, 16)] == [False, True, True]
    half.load_state_dict(full.state_dict())
    z, _ = make_inputs(2)
    img, want = (G(z, None, noise_mode='const') for G in (half, full))
    torch.testing.assert_close(img, want, rtol=1e-5, atol=1e-6)
    assert networks._layer_dtype(torch.device('cuda'), True, 8) == torch.float16


def test_memory_format_changes_no_number() -> None:
    plain, last = make_generator(architecture='resnet'), make_generator(architecture='resnet', channels_last=True)
    last.load_state_dict(stir(plain).state_dict())
    assert last.synthesis.b16.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    z, _ = make_inputs(2)
    img = last(z, None, noise_mode='const')
    torch.testing.assert_close(img, plain(z, None, noise_mode='const'), rtol=1e-4, atol=1e-5)
    D, D_last = make_discriminator(), make_discriminator(block_kwargs={'channels_last': True})
    torch.testing.assert_close(D_last(img, None), D(img, None), rtol=1e-4, atol=1e-5)


def test_recording_changes_no_number() -> None:
    G, D = stir(make_generator()), stir(make_discriminator())
    z, _ = make_inputs(2)
    img = G(z, None, noise_mode='const')
    logits = D(img, None)
    with torch.no_grad():
        unrecorded = G(z, None, noise_mode='const')
        assert unrecorded.is_contiguous()
        torch.testing.assert_close(unrecorded, img, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(D(img, None), logits, rtol=1e-4, atol=1e-5)


def test_learning_rate_multiplier_changes_steps_but_no_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    layers = []
    for multiplier in (1, 0.01):
        torch.manual_seed(5)
        layers.append(networks.FullyConnectedLayer(6, 4, lr_multiplier=multiplier))
    slow, fast = layers[1](x), layers[0](x)
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast, x @ layers[0].weight.t() / 6**0.5, rtol=1e-5, atol=1e-6)
    slow.sum().backward()
    fast.sum().backward()
    torch.testing.assert_close(layers[1].weight.grad, layers[0].weight.grad * 0.01, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(layers[1].bias.grad, layers[0].bias.grad * 0.01)


@pytest.mark.parametrize('bias', [True, False])
def test_convolution_layer_closed_form(bias: bool) -> None:
    torch.manual_seed(0)
    layer = stir(networks.Conv2dLayer(3, 5, 3, bias=bias, activation='lrelu', conv_clamp=0.5))
    x = torch.randn(2, 3, 7, 7)
    y = torch.nn.functional.conv2d(x, layer.weight / 27**0.5, layer.bias, padding=1)
    want = (torch.nn.functional.leaky_relu(y, 0.2) * 2**0.5 * 0.7).clamp(-0.35, 0.35)  # The clamp scales with the gain.
    torch.testing.assert_close(layer(x, gain=0.7), want, rtol=1e-5, atol=1e-6)


def test_minibatch_deviation_is_taken_over_strided_groups() -> None:
    """Samples i and i + N / group_size share a group; two that lie 2a apart deviate by a."""
    x = torch.zeros(4, 6, 2, 2)
    x[0], x[2] = 3, -3
    x[3, 2:4] = 1
    y = networks.MinibatchStdLayer(group_size=2, num_channels=3)(x)
    assert y.shape == (4, 9, 2, 2) and torch.equal(y[:, :6], x)
    want = torch.tensor([[3, 3, 3], [1e-4, 0.5, 1e-4]]).repeat(2, 1)[:, :, None, None].expand(-1, -1, 2, 2)
    torch.testing.assert_close(y[:, 6:], want, rtol=1e-6, atol=1e-6)
    assert networks.MinibatchStdLayer(group_size=None)(x).shape == (4, 7, 2, 2)
    assert networks.MinibatchStdLayer(group_size=4)(x[:3]).shape == (3, 7, 2, 2)
    with pytest.raises(ValueError, match='multiple of 4'):
        networks.MinibatchStdLayer(group_size=4)(torch.zeros(6, 1, 2, 2))


def test_labels_project_the_discriminators_output() -> None:
    D = stir(make_discriminator(c_dim=3, cmap_dim=5))
    img, c = torch.randn(2, 3, 16, 16), torch.randn(2, 3)
    features = []
    D.b4.out.register_forward_hook(lambda module, inputs, output: features.append(output))
    logits = D(img, c)
    want = (features[0] * D.mapping(None, c)).sum(dim=1, keepdim=True) / 5**0.5
    torch.testing.assert_close(logits, want)
    assert (D(img, c.flip(0)) - logits).abs().min() > 1e-4


# --------------------------------------------------------------------------------------------------------- mapping


def test_mapping_normalises_z_and_takes_any_float_type() -> None:
    mapping = stir(make_generator().mapping).eval()
    z, _ = make_inputs(3)
    torch.testing.assert_close(mapping(z * 7, None), mapping(z, None))
    assert torch.equal(mapping(z.double(), None), mapping(z, None))
    torch.testing.assert_close(networks.normalize_2nd_moment(z).square().mean(dim=1), torch.ones(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize(('psi', 'cutoff'), [(0.5, None), (0.7, 2), (-1, None), (0, 0), (1.5, 6), (1, 3)])
def test_truncation_closed_form(psi: float, cutoff: int | None) -> None:
    mapping = make_generator(c_dim=2).mapping.eval()
    mapping.w_avg.copy_(torch.randn(8))
    z, c = make_inputs(3, 2)
    ws = mapping(z, c)
    want = ws.clone()
    want[:, :cutoff] = mapping.w_avg + psi * (ws[:, :cutoff] - mapping.w_avg)
    got = mapping(z, c, truncation_psi=psi, truncation_cutoff=cutoff)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert torch.equal(ws, ws[:, :1].expand_as(ws))  # One w, broadcast.


def test_styles_are_copies_that_can_be_written_one_by_one() -> None:
    ws = make_generator().mapping(make_inputs(2)[0], None).detach()
    before = ws[:, 1].clone()
    ws[:, 0] = 0
    assert torch.equal(ws[:, 1], before)


@pytest.mark.parametrize(('training', 'kwargs', 'updates'), [
    (True, {}, True), (False, {}, False), (True, {'skip_w_avg_update': True}, False),
    (True, {'update_emas': False}, False), (False, {'update_emas': True}, True)])
def test_running_mean_of_w(training: bool, kwargs: dict[str, bool], updates: bool) -> None:
    mapping = make_generator(mapping={'w_avg_beta': 0.9}).mapping.train(training)
    start = torch.randn(8)
    mapping.w_avg.copy_(start)
    ws = mapping(make_inputs(5)[0], None, **kwargs)
    want = 0.9 * start + 0.1 * ws[:, 0].mean(dim=0) if updates else start
    torch.testing.assert_close(mapping.w_avg, want, rtol=1e-5, atol=1e-6)
    assert not mapping.w_avg.requires_grad


def test_both_hosts_keywords_reach_every_network() -> None:
    G, D = make_generator(), make_discriminator()
    z, _ = make_inputs(2)
    G.train()
    img = G(z, None, update_emas=False)
    assert not G.mapping.w_avg.any()
    G.synthesis(G.mapping(z, None, update_emas=True), update_emas=True, fused_modconv=True)
    assert G.mapping.w_avg.any()
    assert D(img, None, update_emas=True).shape == (2, 1)


def test_flat_synthesis_keywords_build_the_same_network() -> None:
    nested = make_generator()
    torch.manual_seed(0)
    flat = networks.Generator(8, 0, 8, 16, 3, mapping_kwargs={'num_layers': 2}, **SMALL, fused_modconv_default=True)
    for name, value in nested.state_dict().items():
        assert torch.equal(flat.state_dict()[name], value), name


# ----------------------------------------------------------------------------------------------------------- noise


def test_noise_modes() -> None:
    G = stir(make_generator()).eval()
    z, _ = make_inputs(2)
    const, again, random, other, none = (
        G(z, None, noise_mode=mode) for mode in ('const', 'const', 'random', 'random', 'none'))
    assert torch.equal(const, again)
    assert (random - other).abs().max() > 1e-3 and (const - none).abs().max() > 1e-3
    buffers = {name: value for name, value in G.synthesis.named_buffers() if name.endswith('noise_const')}
    assert len(buffers) == 5 and all(value.ndim == 2 and value.is_leaf for value in buffers.values())
    for value in buffers.values():
        value.zero_()
    torch.testing.assert_close(G(z, None, noise_mode='const'), none)


def test_noise_can_be_optimised() -> None:
    """As projectors do: the buffers become leaves that require gradients."""
    G = stir(make_generator()).eval()
    noise = G.synthesis.b16.conv1.noise_const.requires_grad_(True)
    G.synthesis(torch.randn(1, G.num_ws, 8), noise_mode='const').sum().backward()
    assert noise.grad is not None and noise.grad.any()


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: make_generator(resolution=48), 'img_resolution: .* 48'),
    (lambda: make_discriminator(resolution=4), 'img_resolution: .* at least 8, got 4'),
    (lambda: make_generator(architecture='dense'), "architecture: .*'dense'"),
    (lambda: networks.MappingNetwork(0, 0, 8, 2), 'z_dim, c_dim'),
    (lambda: make_generator()(torch.randn(2, 9), None), r'z: expected shape \[N, 8\], got \[2, 9\]'),
    (lambda: make_generator(c_dim=3)(torch.randn(2, 8), None), r'c: expected shape \[N, 3\], got None'),
    (lambda: make_generator().synthesis(torch.randn(2, 7, 8)), r'ws: expected shape \[N, 6, 8\]'),
    (lambda: make_generator()(torch.randn(2, 8), None, noise_mode='pink'), "noise_mode: .*'pink'"),
    (lambda: make_discriminator()(torch.randn(2, 3, 8, 8), None), r'img: .*16, 16\], got \[2, 3, 8, 8\]'),
    (lambda: make_generator(mapping={'w_avg_beta': None})(torch.randn(2, 8), None, 0.5), 'truncation_psi: .* 0.5'),
])
def test_errors_name_what_does_not_fit(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# -------------------------------------------------------------------------------------------------- copies and files


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda net: pickle.load(io.BytesIO(pickle.dumps(net)))],
                         ids=['deepcopy', 'pickle'])
def test_copies_are_equal_and_independent(copied: Any) -> None:
    G = stir(make_generator(c_dim=2, architecture='resnet')).eval()
    D = stir(make_discriminator(c_dim=2)).eval()
    z, c = make_inputs(2, 2)
    img = G(z, c, noise_mode='const')
    logits = D(img, c)
    G_copy, D_copy = copied(G), copied(D)
    assert type(G_copy).__name__ == 'Generator' and G_copy.init_kwargs['synthesis_kwargs']['architecture'] == 'resnet'
    assert list(G_copy.state_dict()) == list(G.state_dict()) and not G_copy.training
    with torch.no_grad():
        for parameter in (*G.parameters(), *D.parameters()):
            parameter.zero_()
    torch.testing.assert_close(G_copy(z, c, noise_mode='const'), img, rtol=0, atol=0)
    torch.testing.assert_close(D_copy(img, c), logits, rtol=0, atol=0)


def test_attributes_are_plain_python() -> None:
    """NumPy scalars in a module's state would make the pickle depend on the reader's NumPy."""
    for module in (*make_generator(c_dim=2).modules(), *make_discriminator(c_dim=2).modules()):
        for name, value in vars(module).items():
            assert not isinstance(value, (np.generic, np.ndarray)), f'{type(module).__name__}.{name}'


def test_source_is_hermetic() -> None:
    """The file is run from inside pickles, with nothing around it but the host's torch_utils."""
    tree = ast.parse(pathlib.Path(networks.__file__).read_text(encoding='utf-8'))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add((node.module or '').split('.')[0])
        elif isinstance(node, ast.Import):
            roots |= {alias.name.split('.')[0] for alias in node.names}
        assert not (isinstance(node, ast.Name) and node.id == '__file__')
    assert roots - set(sys.stdlib_module_names) <= {'torch', 'torch_utils', 'dnnlib', 'numpy'}


def test_representation_says_what_a_layer_does() -> None:
    text = repr(make_generator()) + repr(make_discriminator())
    for part in ('z_dim=8', 'num_ws=6', 'resolution=16, architecture=skip', 'up=2, activation=lrelu', 'group_size=4'):
        assert part in text, part
