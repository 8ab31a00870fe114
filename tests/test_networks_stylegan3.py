"""Contracts of training.networks_stylegan3: bands, filters, equivariance, names, precision, copies, training."""

import copy
import io
import json
import math
import pathlib
import pickle
import time
import warnings
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import legacy
from dnnlib.util import UserError
from lia_plugin import networks as lia_networks
from lia_plugin.loss import EncoderLoss
from lia_plugin.stages import prepare_encoder_stage
from torch_utils import network_pickle
from training import networks, networks_stylegan3
from training.training_loop import training_loop

SMALL: dict[str, Any] = dict(channel_base=256, channel_max=16, num_layers=5, num_critical=1)
R: dict[str, Any] = dict(conv_kernel=1, use_radial_filters=True)
SYNTHESIS_CLASS = 'training.networks_stylegan3.SynthesisNetwork'


def make_generator(c_dim: int = 0, channels: int = 3, resolution: int = 16, **synthesis: Any) -> Any:
    torch.manual_seed(0)
    return networks_stylegan3.Generator(8, c_dim, 8, resolution, channels, **{**SMALL, **synthesis})


def stir(G: Any) -> Any:
    """What starts at zero or one (biases, the input's own transform) would hide mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if '.input.' in name else 0.3))
    return G


def make_inputs(samples: int, c_dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(samples, 8), torch.randn(samples, c_dim)


def calibrate(G: Any) -> Any:
    """Sets the tracked magnitudes to those of the inputs, layer by layer, as long training would."""
    layers = [getattr(G.synthesis, name) for name in G.synthesis.layer_names]
    for layer in layers:
        layer.magnitude_ema_beta = 0.0
    G(*make_inputs(16), update_emas=True)
    return G.eval()


# -------------------------------------------------------------------------------------------------- bands and filters


def test_layers_are_those_of_the_published_networks() -> None:
    """The names in NVIDIA's pickles of configuration T at 1024x1024."""
    bands = networks_stylegan3.layer_bands(1024, 3, 32768, 512, 14, 2, 2, 2**2.1, 2**0.3, 10)
    assert [f'{band.size}_{band.channels}' for band in bands] == (
        '36_512 36_512 52_512 52_512 84_512 148_512 148_512 276_323 276_203 532_128 1044_81 1044_51 1044_32 1024_32 '
        '1024_3').split()


@pytest.mark.parametrize('resolution, num_layers, num_critical', [(16, 5, 1), (64, 14, 2), (1024, 14, 2), (32, 4, 0)])
def test_bands_are_the_papers(resolution: int, num_layers: int, num_critical: int) -> None:
    bands = networks_stylegan3.layer_bands(resolution, 3, 32768, 512, num_layers, num_critical, 2, 2**2.1, 2**0.3, 10)
    assert len(bands) == num_layers + 1 and bands[0].cutoff == 2
    growing = bands[:num_layers - num_critical + 1]
    ratios = [b.cutoff / a.cutoff for a, b in zip(growing, growing[1:])]
    assert ratios == pytest.approx([(resolution / 4) ** (1 / (num_layers - num_critical))] * len(ratios))
    for band in bands[-num_critical - 1:]:
        assert band.cutoff == pytest.approx(resolution / 2) and band.rate == resolution
    for band in bands:
        assert band.rate & (band.rate - 1) == 0 and band.rate >= 2 * band.cutoff * (1 - 1e-9)
        # The stopband begins at the geometric line, or where the samples can't carry more.
        stopband = 2**2.1 * (resolution / 2 * 2**0.3 / 2**2.1) ** (math.log(band.cutoff / 2) / math.log(resolution / 4))
        assert band.cutoff + band.half_width == pytest.approx(max(stopband, band.rate / 2))
    assert [band.size for band in bands[-2:]] == [resolution] * 2
    assert all(band.size == band.rate + 20 for band in bands[:-2])
    assert bands[-1].channels == 3


@pytest.mark.parametrize('radial', [False, True])
@pytest.mark.parametrize('taps', [12, 24, 15])
def test_filters_pass_and_stop(taps: int, radial: bool) -> None:
    """Unit gain at zero, half at the cutoff, next to nothing beyond the transition band; equal on both sides."""
    rate, cutoff = 64.0, 12.0
    # The transition band that so many taps reach with an attenuation of 40 dB, by Kaiser's formula.
    width = rate / 2 * (40 - 7.95) / (2.285 * math.pi * (taps - 1))
    kernel = networks_stylegan3.lowpass_filter(taps, cutoff, width, rate, radial)
    assert kernel is not None and kernel.dtype == torch.float32
    flat = (kernel if not radial else kernel.sum(dim=0)).double()
    assert flat.sum() == pytest.approx(1, abs=1e-6) and torch.allclose(flat, flat.flip(0), atol=1e-7)
    position = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2

    def response(frequency: float) -> float:
        return float((flat * torch.cos(2 * math.pi * frequency / rate * position)).sum())

    assert response(cutoff) == pytest.approx(0.5, abs=0.05)
    assert response(cutoff - width / 2) > 0.97
    assert max(abs(response(float(f))) for f in np.linspace(cutoff + width / 2, rate / 2, 20)) < 0.02


def test_radial_filters_are_the_same_in_all_directions() -> None:
    kernel = networks_stylegan3.lowpass_filter(24, 6, 4, 64, radial=True)
    assert kernel is not None and kernel.shape == (24, 24)
    assert torch.equal(kernel, kernel.t()) and torch.allclose(kernel, kernel.rot90(), atol=1e-8)
    separable = networks_stylegan3.lowpass_filter(24, 6, 4, 64)
    assert separable is not None

    def unevenness(plane: torch.Tensor) -> float:
        """Largest difference of the responses at the cutoff along the axis and along the diagonal."""
        position = torch.arange(24) - 11.5
        across, along = torch.meshgrid(position, position, indexing='xy')
        waves = [torch.cos(2 * math.pi * 6 / 64 * step) for step in (across, (across + along) / math.sqrt(2))]
        straight, oblique = [float((plane * wave).sum()) for wave in waves]
        return abs(straight - oblique)

    assert unevenness(kernel) < 0.03 < 0.1 < unevenness(torch.outer(separable, separable))


def test_filters_belong_to_layers_that_resample() -> None:
    synthesis = make_generator(resolution=32, use_radial_filters=True).synthesis
    layers = [getattr(synthesis, name) for name in synthesis.layer_names]
    assert layers[-1].up_filter is None and layers[-1].down_filter is None  # ToRGB
    radial = [layer.down_filter.ndim == 2 for layer in layers[:-1]]
    assert radial == [not layer.is_critically_sampled for layer in layers[:-1]] and any(radial) and not all(radial)
    assert all(len(layer.up_filter) == 6 * layer.up_factor for layer in layers[:-1])
    assert {layer.up_factor for layer in layers[:-1]} == {2, 4}


# ---------------------------------------------------------------------------------------------------------- the input


def test_input_is_plane_waves_where_the_transforms_put_them() -> None:
    torch.manual_seed(0)
    layer = networks_stylegan3.SynthesisInput(4, 6, [12, 10], sampling_rate=8, bandwidth=2)
    with torch.no_grad():
        layer.affine.weight.normal_(std=0.3)
        layer.affine.bias.copy_(torch.tensor([0.6, -0.9, 0.2, -0.1]))
    user = np.array([[0.8, -0.7, 0.3], [0.7, 0.9, -0.2], [0, 0, 1]])
    layer.transform.copy_(torch.from_numpy(user))
    w = torch.randn(2, 4)
    weight, freqs, phases = (t.detach().double().numpy() for t in (layer.weight, layer.freqs, layer.phases))
    for sample, result in zip(layer.affine(w).detach().double().numpy(), layer(w).detach().double().numpy()):
        cos, sin, x, y = sample / np.hypot(*sample[:2])
        matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ [[1, 0, -x], [0, 1, -y], [0, 0, 1]] @ user
        fade = np.clip(1 - (np.linalg.norm(freqs @ matrix[:2, :2], axis=1) - 2) / (8 / 2 - 2), 0, 1)
        for row, column in ((0, 0), (3, 7), (9, 11)):
            point = matrix @ [(column + 0.5 - 6) / 8, (row + 0.5 - 5) / 8, 1]
            waves = np.sin(2 * np.pi * (freqs @ point[:2] + phases)) * fade
            np.testing.assert_allclose(result[:, row, column], weight @ waves / math.sqrt(6), atol=1e-5)


def test_frequencies_fill_the_disc_and_fade_beyond_it() -> None:
    torch.manual_seed(0)
    layer = networks_stylegan3.SynthesisInput(4, 4000, 4, sampling_rate=16, bandwidth=2)
    radius = layer.freqs.norm(dim=1)
    assert radius.max() <= 2
    assert (radius < 1).float().mean() == pytest.approx(1 / 4, abs=0.03)  # Areas.
    assert (layer.freqs[:, 0] > 0).float().mean() == pytest.approx(1 / 2, abs=0.03)
    layer.transform.mul_(torch.tensor([[1e6, 1e6, 1]] * 3))
    assert not (layer(torch.zeros(1, 4)).abs() > 1e-3).any()


def moved(G: Any, matrix: Any) -> torch.Tensor:
    G.synthesis.input.transform.copy_(torch.as_tensor(matrix))
    with torch.no_grad():
        return G(make_inputs(2)[0], None)


def translation(x: float, y: float) -> list[list[float]]:
    return [[1, 0, x], [0, 1, y], [0, 0, 1]]


@pytest.mark.parametrize('options', [{}, R], ids=['t', 'r'])
def test_shifts_by_whole_samples_of_every_grid_are_exact(options: dict[str, Any]) -> None:
    """Only what the canvas' edges let in differs: here 3 layers of at most 7 samples, 10 of them outside."""
    G = calibrate(stir(make_generator(resolution=64, num_layers=2, **options)))
    still, shifted = moved(G, translation(0, 0)), moved(G, translation(4 / 64, -8 / 64))
    inside = shifted[:, :, 24:-24, 24:-24]
    torch.testing.assert_close(inside, still[:, :, 16:-32, 28:-20], atol=1e-4 * float(still.std()), rtol=0)
    assert (inside - still[:, :, 24:-24, 24:-24]).abs().max() > still.std()


def coarsen(G: Any) -> Any:
    """Filters of the same size that repeat pixels and average pairs of them."""
    for layer in G.synthesis.children():
        for name in ('up_filter', 'down_filter'):
            kernel = getattr(layer, name, None)
            if kernel is not None:
                half = layer.up_factor // 2 if name == 'up_filter' else 1
                middle = slice(len(kernel) // 2 - half, len(kernel) // 2 + half)
                kernel.zero_()[(middle,) * kernel.ndim] = (2 * half) ** -kernel.ndim
    return calibrate(G)


@pytest.mark.parametrize('options', [{}, R], ids=['t', 'r'])
def test_shifts_between_samples_alias_hardly_at_all(options: dict[str, Any]) -> None:
    """Two pixels of the picture are half a coarse sample: below -80 dB here, above -20 dB with crude filters."""
    G = calibrate(stir(make_generator(resolution=64, num_layers=6, **options)))
    errors = []
    for network in (G, coarsen(copy.deepcopy(G))):
        still, shifted = moved(network, translation(0, 0)), moved(network, translation(2 / 64, 0))
        errors.append(float((shifted[..., 8:-8, 8:-8] - still[..., 8:-8, 10:-6]).square().mean() / still.var()))
    assert errors[0] < 1e-8 and errors[1] > 1e-2


def test_r_turns_with_its_input_and_t_does_not() -> None:
    quarter = [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]
    errors = []
    for options in (R, {}):
        G = calibrate(stir(make_generator(**options)))
        with torch.no_grad():
            G.synthesis.input.affine.weight.zero_()  # Its own rotation and shift would come in between.
            G.synthesis.input.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        still, turned = moved(G, np.eye(3)), moved(G, quarter)
        errors.append(float((turned - still.rot90(1, dims=(2, 3))).abs().max() / still.std()))
    assert errors[0] < 1e-4 and errors[1] > 0.1


# --------------------------------------------------------------------------------------------------- the arithmetic


def test_modulated_convolution_is_that_with_weights_per_sample() -> None:
    torch.manual_seed(0)
    x, w, s = torch.randn(3, 5, 6, 7), torch.randn(4, 5, 3, 3) * 7, torch.randn(3, 5)
    gain, bias = torch.tensor(0.3), torch.randn(4)
    for demodulate in (True, False):
        rows = []
        for sample, style in zip(x, s):
            weight = w * style[:, None, None]
            if demodulate:
                weight = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
            rows.append(torch.nn.functional.conv2d(sample[None] * gain, weight, padding=2) + bias[:, None, None])
        y = networks_stylegan3.modulated_conv2d(x, w, s, demodulate, padding=2, input_gain=gain, bias=bias)
        torch.testing.assert_close(y, torch.cat(rows), rtol=1e-4, atol=1e-4)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    G = stir(make_generator())
    z, _ = make_inputs(3)
    torch.testing.assert_close(G.eval()(z, None)[1:2], G(z[1:2], None), rtol=1e-4, atol=1e-5)


def test_pictures_have_the_scale_asked_for() -> None:
    for scale in (0.25, 1.0):
        img = calibrate(make_generator(resolution=32, output_scale=scale))(*make_inputs(16))
        assert 0.5 * scale < img.std() < 1.5 * scale


def test_magnitudes_are_tracked_by_the_formula() -> None:
    G = make_generator(magnitude_ema_beta=0.75)
    layer = getattr(G.synthesis, G.synthesis.layer_names[0])
    x, w = torch.randn(2, layer.in_channels, layer.in_size[1], layer.in_size[0]) * 3, torch.randn(2, 8)
    before = layer(x, w, update_emas=False)
    assert layer.magnitude_ema == 1
    after = layer(x, w, update_emas=True)
    assert float(layer.magnitude_ema) == pytest.approx(0.75 + 0.25 * float(x.square().mean()), rel=1e-5)
    assert not torch.allclose(before, after)


def test_magnitudes_are_tracked_while_a_layer_is_trained_and_else_on_demand() -> None:
    def tracks(G: Any, **kwargs: Any) -> bool:
        before = G.synthesis.input.weight.new_tensor([float(b) for n, b in G.named_buffers() if n.endswith('_ema')])
        G.synthesis(torch.randn(2, G.num_ws, 8), **kwargs)
        after = before.new_tensor([float(b) for n, b in G.named_buffers() if n.endswith('_ema')])
        return not torch.equal(before, after)

    G = make_generator().train()
    assert tracks(G) and not tracks(G, update_emas=False)
    assert not tracks(G.requires_grad_(False)) and tracks(G, update_emas=True)
    assert not tracks(G.requires_grad_(True).eval())
    lia_networks.freeze(G.train().synthesis)
    assert not tracks(G)


def test_mapping_truncates_and_tracks() -> None:
    G = make_generator(c_dim=3).train()
    z, c = make_inputs(4, c_dim=3)
    ws = G.mapping(z, c, skip_w_avg_update=True)
    assert ws.shape == (4, G.num_ws, 8) and not G.mapping.w_avg.any()
    G.mapping(z, c)
    torch.testing.assert_close(G.mapping.w_avg, ws[:, 0].mean(dim=0) * (1 - 0.998))
    cut = G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=2, update_emas=False)
    assert torch.equal(cut[:, 2:], ws[:, 2:])
    torch.testing.assert_close(cut[:, :2], (G.mapping.w_avg + ws[:, :2]) / 2)
    torch.testing.assert_close(G.mapping(z * 9, c, update_emas=False), ws)  # z is normalised.


def test_options_reach_both_ways_of_writing_them() -> None:
    flat = make_generator(output_scale=0.5)
    nested = networks_stylegan3.Generator(8, 0, 8, 16, 3, synthesis_kwargs=dict(SMALL, output_scale=0.5))
    nested.load_state_dict(flat.state_dict())
    z, _ = make_inputs(2)
    assert torch.equal(flat.eval()(z, None), nested.eval()(z, None))


@pytest.mark.parametrize('options, words', [
    (dict(num_critical=5), 'num_critical'), (dict(filter_size=10**6), '1 to 1024'), (dict(filter_size=0), '1 to 1024'),
    (dict(lrelu_upsampling=1.5), 'sampling rate'),
])  # fmt: skip
def test_what_does_not_fit_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_generator(**options)


def test_wrong_inputs_are_named() -> None:
    G = make_generator(c_dim=2)
    with pytest.raises(ValueError, match=r'c: expected shape \[N, 2\], got None'):
        G(make_inputs(1)[0], None)
    with pytest.raises(ValueError, match=r'ws: expected shape \[N, 7, 8\]'):
        G.synthesis(torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match='noise_mode'):
        G.synthesis(torch.zeros(1, 7, 8), noise_mode='loud')


# ------------------------------------------------------------------------------------------- names, copies, pickles


@pytest.mark.parametrize('c_dim, channels, options', [(0, 3, {}), (4, 1, R)], ids=['t', 'r'])
def test_images_names_and_gradients(c_dim: int, channels: int, options: dict[str, Any]) -> None:
    G = stir(make_generator(c_dim, channels, **options))
    img = G(*make_inputs(2, c_dim), noise_mode='const')
    assert img.shape == (2, channels, 16, 16) and img.dtype == torch.float32 and img.is_contiguous()
    assert G.num_ws == G.mapping.num_ws == G.synthesis.num_ws == 7
    img.square().sum().backward()
    assert not [name for name, p in G.named_parameters() if p.grad is None or not p.grad.any()]
    layer = {f'{kind}.{name}' for kind, names in (('affine', ('weight', 'bias')),) for name in names}
    layer |= {'weight', 'bias', 'magnitude_ema'}
    names = {f'synthesis.input.{n}' for n in ('weight', 'affine.weight', 'affine.bias', 'transform', 'freqs', 'phases')}
    for index, layer_name in enumerate(G.synthesis.layer_names):
        assert layer_name.startswith(f'L{index}_')
        filters = set() if index == 5 else {'up_filter', 'down_filter'}
        names |= {f'synthesis.{layer_name}.{n}' for n in layer | filters}
    names |= {f'mapping.fc{i}.{n}' for i in range(2) for n in ('weight', 'bias')} | {'mapping.w_avg'}
    names |= {f'mapping.embed.{n}' for n in ('weight', 'bias')} if c_dim else set()
    assert set(G.state_dict()) == names


def test_second_derivatives_pass_through() -> None:
    """Path length regularisation can be asked for, though the paper does without."""
    G = stir(make_generator())
    ws = torch.randn(1, G.num_ws, 8, requires_grad=True)
    (first,) = torch.autograd.grad(G.synthesis(ws).sin().sum(), ws, create_graph=True)
    first.square().sum().backward()
    assert ws.grad is not None and ws.grad.isfinite().all() and ws.grad.any()


@pytest.mark.parametrize('options', [{}, R], ids=['t', 'r'])
def test_copies_and_pickles_keep_every_number(options: dict[str, Any], tmp_path: pathlib.Path) -> None:
    G = calibrate(stir(make_generator(c_dim=0, **options))).eval().requires_grad_(False)
    G.synthesis.input.transform.copy_(torch.tensor(translation(0.1, 0.2)))
    network_pickle.save(tmp_path / 'net.pkl', dict(G_ema=G))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read = legacy.load_network_pkl(str(tmp_path / 'net.pkl'))['G_ema']
    z, _ = make_inputs(2)
    for twin in (copy.deepcopy(G), pickle.loads(pickle.dumps(G)), read):
        assert torch.equal(twin(z, None), G(z, None))
    for module in G.modules():
        for name, value in vars(module).items():
            assert type(value).__module__ != 'numpy', f'{type(module).__name__}.{name}'


def test_half_precision_is_rebuilt_from_either_way_of_writing_options(tmp_path: pathlib.Path) -> None:
    for G in (make_generator(num_fp16_res=0), networks_stylegan3.Generator(
            8, 0, 8, 16, 3, synthesis_kwargs=dict(SMALL, num_fp16_res=0, conv_clamp=None))):
        assert not any(getattr(layer, 'use_fp16', False) for layer in G.modules())
        network_pickle.save(tmp_path / 'net.pkl', dict(G_ema=G.eval()))
        half = legacy.load_network_pkl(str(tmp_path / 'net.pkl'), force_fp16=True)['G_ema']
        layers = [getattr(half.synthesis, name) for name in half.synthesis.layer_names]
        assert all(layer.use_fp16 and layer.conv_clamp == 256 for layer in layers)
        z, _ = make_inputs(1)
        torch.testing.assert_close(half(z, None), G(z, None))  # On a CPU half precision is float32.


def test_hostile_options_cost_nothing() -> None:
    G, started = make_generator(use_radial_filters=True), time.process_time()
    for key, value in (('filter_size', 50_000), ('num_layers', 1_000_000), ('lrelu_upsampling', 2**19)):
        G._init_kwargs[key] = value
        with pytest.raises(UserError, match="can't be built|do not fit"):
            network_pickle.load(io.BytesIO(pickle.dumps(dict(G_ema=G))))
        G._init_kwargs.pop(key)
    assert time.process_time() - started < 2


# --------------------------------------------------------------------------------------------------------------- LIA


def make_lia(encoder: dict[str, Any] | None, c_dim: int = 0, **options: Any) -> Any:
    torch.manual_seed(0)
    return lia_networks.Generator(
        8, c_dim, 8, 16, 3, synthesis_kwargs=dict(class_name=SYNTHESIS_CLASS, **SMALL, **options),
        encoder_kwargs=encoder)


ENCODER: dict[str, Any] = dict(channel_base=128, channel_max=8)


@pytest.mark.parametrize('options', [{}, R], ids=['t', 'r'])
def test_lia_takes_the_alias_free_synthesis(options: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """Stage 2: only the encoder learns, the reader gives all of it back."""
    G = make_lia(ENCODER, **options).train().requires_grad_(True)
    before = {name: buffer.clone() for name, buffer in G.named_buffers()}
    D = networks.Discriminator(0, 16, 3, channel_base=128, channel_max=8)
    loss = EncoderLoss(torch.device('cpu'), G=G, D=D, percep='none', adv_weight=0.1, latent_weight=0.1, mix=0.5)
    optimizer = torch.optim.Adam(G.parameters(), lr=1e-3)
    batch = dict(real_img=torch.rand(2, 3, 16, 16), real_c=torch.zeros(2, 0), gen_z=torch.randn(2, 8),
                 gen_c=torch.zeros(2, 0))
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        values.append(float(loss.accumulate_gradients('Gmain', **batch)))
        assert not [name for name, p in G.named_parameters() if p.grad is None]
        optimizer.step()
    assert values[-1] < values[0]
    assert all(name.startswith('mapping.encoder.') for name, _ in G.named_parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in G.named_buffers())
    network_pickle.save(tmp_path / 'net.pkl', dict(G_ema=G.eval()))
    read = legacy.load_network_pkl(str(tmp_path / 'net.pkl'))['G_ema']
    y, z = read.invert(batch['real_img'])
    torch.testing.assert_close(y, G.encode(batch['real_img']))
    torch.testing.assert_close(read(z, None, noise_mode='const'), G.decode(y, noise_mode='const'), atol=1e-4, rtol=1e-4)


def test_both_stages_train_in_the_loop(tmp_path: pathlib.Path) -> None:
    rng = np.random.RandomState(0)
    folder = tmp_path / 'faces'
    folder.mkdir()
    for i in range(6):
        PIL.Image.fromarray(rng.randint(0, 256, [16, 16, 3], dtype=np.uint8)).save(folder / f'img{i}.png')
    adam = dict(class_name='torch.optim.Adam', lr=0.002, betas=[0, 0.99], eps=1e-8)
    synthesis = dict(class_name=SYNTHESIS_CLASS, **SMALL)
    common: dict[str, Any] = dict(
        training_set_kwargs=dict(class_name='training.dataset.ImageFolderDataset', path=str(folder)),
        D_kwargs=dict(class_name='training.networks.Discriminator', channel_base=128, channel_max=8),
        G_opt_kwargs=adam, D_opt_kwargs=adam, batch_size=4, batch_gpu=4, kimg_per_tick=0.008,
        network_snapshot_ticks=1, image_snapshot_ticks=None, G_reg_interval=None, augment_kwargs=None, augment_p=0,
        ada_target=None, device='cpu')  # fmt: skip
    G_kwargs: dict[str, Any] = dict(class_name='lia_plugin.networks.Generator', z_dim=8, w_dim=8)
    loss: dict[str, Any] = dict(class_name='training.loss.StyleGAN2Loss', pl_weight=0)
    (tmp_path / '1').mkdir()
    path = training_loop(run_dir=str(tmp_path / '1'), G_kwargs=dict(G_kwargs, synthesis_kwargs=synthesis),
                         loss_kwargs=loss, total_kimg=0.008, **common)
    assert path is not None
    stage1 = legacy.load_network_pkl(path)['G']
    tracked = [float(b) for name, b in stage1.named_buffers() if name.endswith('magnitude_ema')]
    assert len(tracked) == 6 and all(value != 1 for value in tracked)

    init = str(tmp_path / 'init.pkl')
    stage2_kwargs = prepare_encoder_stage(path, init, dict(ENCODER))
    loss = dict(class_name='lia_plugin.loss.EncoderLoss', percep='none', adv_weight=0.1)
    (tmp_path / '2').mkdir()
    path = training_loop(
        run_dir=str(tmp_path / '2'), G_kwargs=dict(class_name='lia_plugin.networks.Generator', **stage2_kwargs),
        loss_kwargs=loss, stage='encoder', start_kimg=0.008, total_kimg=0.016, resume_pkl=init, **common)
    assert path is not None
    first, last = legacy.load_network_pkl(init)['G_ema'], legacy.load_network_pkl(path)['G_ema']
    ws = torch.randn(1, first.num_ws, 8)
    assert torch.equal(first.synthesis(ws), last.synthesis(ws))
    img = torch.rand(1, 3, 16, 16)
    assert not torch.equal(first.encode(img), last.encode(img))
    assert json.loads(json.dumps(stage2_kwargs))['synthesis_kwargs']['class_name'] == SYNTHESIS_CLASS
