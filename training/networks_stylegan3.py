"""StyleGAN3's alias-free generator (Karras et al. 2021, arXiv 2106.12423), configurations T and R.

Signals are functions on the plane that happen to be stored as samples. Each layer knows the band its features live in
(cutoff, transition half-width, sampling rate), and every operation keeps to it: the picture moves and turns with its
features instead of sticking to the pixels. Class names, constructor keywords, attributes and state-dict names are those
of NVIDIA's networks_stylegan3, so weights move in both directions by name. The discriminator is StyleGAN2's.

The source of this file travels inside network pickles and is then run by hosts that bring only their own `torch_utils`.
Hence: absolute imports of stdlib, numpy, scipy, torch and torch_utils alone, only op signatures that such hosts have,
nothing but plain Python numbers as attributes, and a few helpers that other files of networks have, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.signal
import scipy.special
import torch

from torch_utils import persistence
from torch_utils.ops import bias_act, conv2d_gradfix, filtered_lrelu, fma

NOISE_MODES = ('random', 'const', 'none')  # Of other hosts' networks. These have no noise, so they all mean the same.
MAX_TAPS, MAX_LAYERS = 1024, 1024  # Far more than any published network has, and still soon refused if a file asks.

# ---------------------------------------------------------------------------------------------------------- helpers


def _expect(name: str, tensor: torch.Tensor | None, *shape: int) -> torch.Tensor:
    """Returns `tensor` if it is [N, *shape] for any N; raises ValueError naming it if not."""
    got = None if tensor is None else list(tensor.shape)
    if tensor is None or (not torch.jit.is_tracing() and tuple(tensor.shape[1:]) != shape):
        raise ValueError(f'{name}: expected shape [N, {", ".join(map(str, shape))}], got {got}')
    return tensor


def _summary(module: torch.nn.Module, *names: str) -> str:
    return ', '.join(f'{name}={getattr(module, name)}' for name in names)


def _pair(size: int | Sequence[int]) -> list[int]:
    """[width, height] as plain numbers."""
    sides = [size, size] if isinstance(size, (int, np.integer)) else list(size)
    return [int(side) for side in sides]


def _unit_power(x: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Scales `x` so that its mean square over `dims` is 1. What is all zero stays so."""
    return x * (x.square().mean(dim=list(dims), keepdim=True) + torch.finfo(torch.float32).tiny).rsqrt()


def normalize_2nd_moment(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scales each row of `x` [N, features] so that its mean square is 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


# ---------------------------------------------------------------------------------------------------------- filters


def lowpass_filter(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> torch.Tensor | None:
    """Kaiser-windowed low-pass of unit DC gain for samples at `rate`: float32 [taps], or [taps, taps] if radial.

    The paper's appendix C.1: passes up to `cutoff`, over a transition band of `width`. A radial one is the jinc, the
    ideal low-pass of the plane: the same in all directions. One tap filters nothing, and is None.
    """
    if not 1 <= taps <= MAX_TAPS:
        raise ValueError(f'filter_size: gives a filter of {taps} taps, expected 1 to {MAX_TAPS}')
    if taps == 1:
        return None
    if not radial:
        kernel = scipy.signal.firwin(taps, cutoff, width=width, fs=rate)
        return torch.as_tensor(kernel, dtype=torch.float32)
    position = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(position[:, None], position[None, :])
    angle = 2 * math.pi * cutoff * radius
    # J1(a) / a goes to 1/2 at the centre, which an odd number of taps has. The sum is set below.
    jinc = np.divide(scipy.special.j1(angle), angle, out=np.full_like(angle, 0.5), where=angle > 0)
    attenuation = scipy.signal.kaiser_atten(taps, width / (rate / 2))
    window = np.kaiser(taps, scipy.signal.kaiser_beta(attenuation))
    kernel = jinc * window[:, None] * window[None, :]
    return torch.as_tensor(kernel / kernel.sum(), dtype=torch.float32)


class Band(NamedTuple):
    """What a layer puts out: the signal's band, in cycles across the picture, and its samples."""

    cutoff: float  # f_c: up to here the spectrum is kept.
    half_width: float  # f_h: half of the filter's transition band.
    rate: int  # s: samples across the picture.
    size: int  # Samples across the canvas: the picture and its margins.
    channels: int


def layer_bands(
    img_resolution: int,
    img_channels: int,
    channel_base: float,
    channel_max: float,
    num_layers: int,
    num_critical: int,
    first_cutoff: float,
    first_stopband: float,
    last_stopband_rel: float,
    margin_size: int,
) -> list[Band]:
    """Output of each layer and, last, of ToRGB: the paper's appendix C.1.

    Cutoff and stopband grow geometrically from layer to layer and stay at their last values in the critically sampled
    layers, whose stopband exceeds half the sampling rate.
    """
    if num_layers > MAX_LAYERS:
        raise ValueError(f'num_layers: expected at most {MAX_LAYERS}, got {num_layers}')
    if not 0 <= num_critical < num_layers:
        raise ValueError(f'num_critical: expected 0 to num_layers - 1 = {num_layers - 1}, got {num_critical}')
    nyquist = img_resolution / 2
    # NumPy's powers, not Python's: they may differ in the last bit, and what follows rounds.
    progress = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
    cutoff = first_cutoff * (nyquist / first_cutoff) ** progress
    stopband = first_stopband * (nyquist * last_stopband_rel / first_stopband) ** progress
    rate = np.exp2(np.ceil(np.log2(np.minimum(2 * stopband, img_resolution))))
    half_width = np.maximum(stopband, rate / 2) - cutoff
    size = np.append((rate + 2 * margin_size)[:-2], [img_resolution] * 2)  # The last layer crops the margins away.
    channels = np.rint(np.minimum(channel_base / 2 / cutoff, channel_max))
    channels[-1] = img_channels
    rows = zip(cutoff, half_width, rate, size, channels, strict=True)
    return [Band(float(f_c), float(f_h), *(int(number) for number in counts)) for f_c, f_h, *counts in rows]


def _factor(name: str, high: float, low: float) -> int:
    factor = round(high / low)
    if low * factor != high:
        raise ValueError(f'{name}: expected a divisor of the sampling rate {high} inside the layer, got {low}')
    return factor


# -------------------------------------------------------------------------------------------------- modulated conv


def modulated_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    s: torch.Tensor,
    demodulate: bool = True,
    padding: int = 0,
    input_gain: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolution whose input channels are scaled per sample and, if demodulated, whose outputs have unit variance.

    The factors go to the activations, before and after one convolution that all samples share; weights per sample, the
    same by linearity, are never built.

    Args:
        x: [N, I, H, W], expected to have unit variance once `input_gain` is on it.
        w: [O, I, k, k].
        s: [N, I].
        input_gain: factor that demodulation does not undo: a number, [I] or [N, I]. None = 1.
        bias: [O]. None = none.
    """
    scale = None
    if demodulate:
        # Unit-power factors are half precision's friends, and cancel in the result.
        w = _unit_power(w, (1, 2, 3)) / math.sqrt(w[0].numel())
        s = _unit_power(s, (1,))
        energy = s.square() @ w.square().sum(dim=(2, 3)).t()  # [N, O]
        scale = (energy + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]
    if input_gain is not None:
        s = s * input_gain
    column = None if bias is None else bias.to(x.dtype)[:, None, None]
    y = conv2d_gradfix.conv2d(input=x * s.to(x.dtype)[:, :, None, None], weight=w.to(x.dtype), padding=padding)
    if scale is None:
        return y if column is None else y + column
    return y * scale if column is None else fma.fma(y, scale, column)


# ----------------------------------------------------------------------------------------------------------- layers


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """[N, in_features] -> [N, out_features] with the learning rate equalised at run time."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = 'linear',  # A key of bias_act.activation_funcs.
        bias: bool = True,
        lr_multiplier: float = 1,  # Effective learning rate over the optimiser's.
        weight_init: float = 1,  # Standard deviation of the effective weight, in units of its He constant.
        bias_init: float | Sequence[float] = 0,  # Effective bias: a number, or one for each output.
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) * (weight_init / lr_multiplier))
        start = torch.as_tensor(bias_init, dtype=torch.float32) / lr_multiplier
        self.bias = torch.nn.Parameter(torch.zeros([out_features]) + start) if bias else None
        self.weight_gain = float(lr_multiplier / math.sqrt(in_features))
        self.bias_gain = float(lr_multiplier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight.to(x.dtype).t()
        if self.bias is None:
            y = (x * self.weight_gain) @ w
        else:
            y = torch.addmm(self.bias.to(x.dtype), x, w, beta=self.bias_gain, alpha=self.weight_gain)
        return y if self.activation == 'linear' else bias_act.bias_act(y, act=self.activation)

    def extra_repr(self) -> str:
        return _summary(self, 'in_features', 'out_features', 'activation')


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """z [N, z_dim] and c [N, c_dim] -> ws [N, num_ws, w_dim]."""

    w_avg: torch.Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,  # 0 = no label.
        w_dim: int,
        num_ws: int,  # Copies of w to give.
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,  # Decay of the running mean of w.
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.num_ws, self.num_layers, self.w_avg_beta = num_ws, num_layers, w_avg_beta
        self.embed = FullyConnectedLayer(c_dim, w_dim) if c_dim > 0 else None
        fan_in = z_dim + (w_dim if c_dim > 0 else 0)
        for index in range(num_layers):
            self.add_module(f'fc{index}', FullyConnectedLayer(
                fan_in, w_dim, activation='lrelu', lr_multiplier=lr_multiplier))
            fan_in = w_dim
        self.register_buffer('w_avg', torch.zeros([w_dim]))

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,  # Truncate only the first so many ws. None = all.
        update_emas: bool | None = None,  # Track w. None = in training, and the next says otherwise.
        skip_w_avg_update: bool = False,  # The older host's keyword.
    ) -> torch.Tensor:
        w = normalize_2nd_moment(_expect('z', z, self.z_dim).to(torch.float32))
        if self.embed is not None:
            label = self.embed(_expect('c', c, self.c_dim).to(torch.float32))
            w = torch.cat([w, normalize_2nd_moment(label)], dim=1)
        for index in range(self.num_layers):
            w = getattr(self, f'fc{index}')(w)
        if self.training and not skip_w_avg_update if update_emas is None else update_emas:
            with torch.no_grad():
                self.w_avg.lerp_(w.mean(dim=0), 1 - self.w_avg_beta)
        # Callers write into single ws (style mixing), so these are copies and no view of one w.
        ws = w.unsqueeze(1).repeat([1, self.num_ws, 1])
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)

    def extra_repr(self) -> str:
        return _summary(self, 'z_dim', 'c_dim', 'w_dim', 'num_ws')


# -------------------------------------------------------------------------------------------------------- synthesis


@persistence.persistent_class
class SynthesisInput(torch.nn.Module):
    """w [N, w_dim] -> Fourier features [N, channels, height, width], which w and the user may turn and shift.

    A feature is a plane wave sin(2 pi (f . x + phase)), x counted in pictures from the centre; f is uniform in the disc
    of radius `bandwidth`. `transform` is the user's 3x3 matrix, from points of the picture asked for to points of the
    one that the network has in mind; w's own rotation and translation come after it (appendix F).
    """

    transform: torch.Tensor
    freqs: torch.Tensor
    phases: torch.Tensor

    def __init__(
        self,
        w_dim: int,
        channels: int,
        size: int | Sequence[int],  # Samples across the canvas: int or [width, height].
        sampling_rate: float,  # Samples across the picture.
        bandwidth: float,  # Cycles across the picture.
    ) -> None:
        super().__init__()
        self.w_dim, self.channels, self.size = w_dim, channels, _pair(size)
        self.sampling_rate, self.bandwidth = float(sampling_rate), float(bandwidth)
        self.weight = torch.nn.Parameter(torch.randn([channels, channels]))
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0, bias_init=[1, 0, 0, 0])  # No turn, no shift.
        direction, radius = 2 * math.pi * torch.rand([channels]), self.bandwidth * torch.rand([channels]).sqrt()
        self.register_buffer('transform', torch.eye(3))
        self.register_buffer('freqs', radius[:, None] * torch.stack([direction.cos(), direction.sin()], dim=1))
        self.register_buffer('phases', torch.rand([channels]) - 0.5)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        matrix = self._placement(_expect('w', w, self.w_dim).to(torch.float32))
        phases = self.phases + (self.freqs @ matrix[:, :, 2:]).squeeze(2)  # [N, channels]
        freqs = self.freqs @ matrix[:, :, :2]  # [N, channels, 2]
        x, y = ((torch.arange(side, device=w.device) + 0.5 - side / 2) / self.sampling_rate for side in self.size)
        along_x = freqs[:, None, :, 0] * x[:, None] + phases[:, None]  # [N, width, channels]
        along_y = freqs[:, None, :, 1] * y[:, None]  # [N, height, channels]
        waves = torch.sin(2 * math.pi * (along_x[:, None] + along_y[:, :, None]))  # [N, height, width, channels]
        # Frequencies that a user's transform has enlarged fade out before the samples can't carry them.
        room = self.sampling_rate / 2 - self.bandwidth
        amplitudes = (1 - (freqs.norm(dim=2) - self.bandwidth) / room).clamp(0, 1)
        waves = waves * amplitudes[:, None, None]
        mixed = (waves @ (self.weight.t() / math.sqrt(self.channels))).permute(0, 3, 1, 2)
        # All layers go on in this memory format. On a CPU NHWC runs 1.2 to 1.5 times faster, trained or not.
        return mixed if mixed.device.type == 'cpu' else mixed.contiguous()

    def _placement(self, w: torch.Tensor) -> torch.Tensor:
        """[N, 2, 3]: the user's transform, then the translation and the rotation that w asks for."""
        numbers = self.affine(w)
        numbers = numbers / numbers[:, :2].norm(dim=1, keepdim=True)
        cos, sin, shift = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:, None]
        moved = self.transform[:2] - shift * self.transform[2]
        turn = torch.stack([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)], dim=1)
        return turn @ moved

    def extra_repr(self) -> str:
        return _summary(self, 'w_dim', 'channels', 'size', 'sampling_rate', 'bandwidth')


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """x [N, in_channels, *in_size] and w [N, w_dim] -> [N, out_channels, *out_size], from one band to another.

    Modulated convolution, then leaky ReLU on a finer grid between two low-pass filters (section 3 and figure 4b).
    """

    up_filter: torch.Tensor | None
    down_filter: torch.Tensor | None
    magnitude_ema: torch.Tensor

    def __init__(
        self,
        w_dim: int,
        is_torgb: bool,  # The last layer: 1x1, linear, not demodulated.
        is_critically_sampled: bool,  # Its band fills the samples; its filter is never radial.
        use_fp16: bool,  # Half precision on CUDA.
        in_channels: int,
        out_channels: int,
        in_size: int | Sequence[int],  # Samples across the canvas: int or [width, height].
        out_size: int | Sequence[int],
        in_sampling_rate: int,  # Samples across the picture.
        out_sampling_rate: int,
        in_cutoff: float,  # Cycles across the picture, as the next three.
        out_cutoff: float,
        in_half_width: float,
        out_half_width: float,
        conv_kernel: int = 3,
        filter_size: int = 6,  # Taps of a filter per sample of the coarser of its two grids.
        lrelu_upsampling: int = 2,  # Leaky ReLU's sampling rate over the larger of input and output.
        use_radial_filters: bool = False,  # For downsampling.
        conv_clamp: float | None = 256,  # Bound of what leaky ReLU gives. None = no bound.
        magnitude_ema_beta: float = 0.999,  # Decay of the running mean square of the input.
    ) -> None:
        super().__init__()
        self.w_dim, self.is_torgb, self.is_critically_sampled = w_dim, is_torgb, is_critically_sampled
        self.use_fp16, self.conv_clamp, self.magnitude_ema_beta = use_fp16, conv_clamp, magnitude_ema_beta
        self.in_channels, self.out_channels = in_channels, out_channels
        self.in_size, self.out_size = _pair(in_size), _pair(out_size)
        self.in_sampling_rate, self.out_sampling_rate = in_sampling_rate, out_sampling_rate
        self.tmp_sampling_rate = max(in_sampling_rate, out_sampling_rate) * (1 if is_torgb else lrelu_upsampling)
        self.in_cutoff, self.out_cutoff = float(in_cutoff), float(out_cutoff)
        self.in_half_width, self.out_half_width = float(in_half_width), float(out_half_width)
        self.conv_kernel = 1 if is_torgb else conv_kernel
        self.down_radial = use_radial_filters and not is_critically_sampled
        self.up_factor = _factor('in_sampling_rate', self.tmp_sampling_rate, in_sampling_rate)
        self.down_factor = _factor('out_sampling_rate', self.tmp_sampling_rate, out_sampling_rate)
        self.up_taps, self.down_taps = (
            1 if factor == 1 or is_torgb else filter_size * factor for factor in (self.up_factor, self.down_factor))
        self.padding = [side for axis in zip(self.in_size, self.out_size) for side in self._margins(*axis)]

        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn([out_channels, in_channels, self.conv_kernel, self.conv_kernel]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.register_buffer('magnitude_ema', torch.ones([]))
        rate = self.tmp_sampling_rate
        self.register_buffer('up_filter', lowpass_filter(
            self.up_taps, self.in_cutoff, 2 * self.in_half_width, rate))
        self.register_buffer('down_filter', lowpass_filter(
            self.down_taps, self.out_cutoff, 2 * self.out_half_width, rate, radial=self.down_radial))

    def _margins(self, in_size: int, out_size: int) -> tuple[int, int]:
        """Padding before and after an axis on leaky ReLU's grid, so that centres of input and output coincide."""
        wanted = (out_size - 1) * self.down_factor + 1 + self.down_taps - 1 + self.up_taps - 1
        total = wanted - (in_size + self.conv_kernel - 1) * self.up_factor
        # Inserted zeros all lie behind their sample: half of them count as padding before (appendix C.3).
        before = (total + self.up_factor) // 2
        return before, total - before

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        noise_mode: str = 'random',  # One of NOISE_MODES, without effect.
        force_fp32: bool = False,
        update_emas: bool | None = None,  # Track the input's magnitude. None = if this layer is being trained.
    ) -> torch.Tensor:
        if noise_mode not in NOISE_MODES:
            raise ValueError(f'noise_mode: expected one of {", ".join(NOISE_MODES)}, got {noise_mode!r}')
        x = _expect('x', x, self.in_channels, *self.in_size[::-1])
        # Older hosts don't say when. Weights of a frozen network, or one whose turn it isn't, want no gradient.
        if self.training and self.weight.requires_grad if update_emas is None else update_emas:
            with torch.no_grad():
                self.magnitude_ema.lerp_(x.to(torch.float32).square().mean(), 1 - self.magnitude_ema_beta)
        styles = self.affine(_expect('w', w, self.w_dim))
        if self.is_torgb:
            styles = styles / math.sqrt(self.in_channels * self.conv_kernel**2)
        # As this process has chosen; where a host knows no choice half precision is for CUDA.
        chosen = getattr(bias_act, 'layer_dtype', None)
        half = torch.float16 if self.use_fp16 and x.device.type == 'cuda' else torch.float32
        dtype = half if chosen is None else chosen(x.device, self.use_fp16, min(self.in_size))
        y = modulated_conv2d(
            x.to(torch.float32 if force_fp32 else dtype), self.weight, styles, demodulate=not self.is_torgb,
            padding=self.conv_kernel - 1, input_gain=self.magnitude_ema.rsqrt(), bias=self.bias)
        gain, slope = (1.0, 1.0) if self.is_torgb else (math.sqrt(2), 0.2)
        return filtered_lrelu.filtered_lrelu(
            x=y, fu=self.up_filter, fd=self.down_filter, up=self.up_factor, down=self.down_factor,
            padding=self.padding, gain=gain, slope=slope, clamp=self.conv_clamp)

    def extra_repr(self) -> str:
        kind = _summary(self, 'w_dim', 'is_torgb', 'is_critically_sampled', 'use_fp16')
        sides = ('channels', 'size', 'sampling_rate', 'cutoff', 'half_width')
        return '\n'.join([kind] + [_summary(self, *(f'{end}_{name}' for name in sides)) for end in ('in', 'out')])


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """ws [N, num_ws, w_dim] -> image [N, img_channels, img_resolution, img_resolution], float32, about [-1, 1]."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,  # A layer has channel_base / (2 * cutoff) channels ...
        channel_max: int = 512,  # ... but no more than this.
        num_layers: int = 14,  # Without the input and ToRGB.
        num_critical: int = 2,  # So many of the last layers are critically sampled.
        first_cutoff: float = 2,  # Cycles across the picture.
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,  # Over the last cutoff, which is half of img_resolution.
        margin_size: int = 10,  # Samples around the picture, on each side of each layer's canvas.
        output_scale: float = 0.25,
        num_fp16_res: int = 4,  # Layers of so many of the highest sampling rates run in half precision on CUDA.
        **layer_kwargs: Any,  # For SynthesisLayer.
    ) -> None:
        super().__init__()
        self.w_dim, self.num_ws = w_dim, num_layers + 2
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.num_layers, self.num_critical = num_layers, num_critical
        self.margin_size, self.output_scale, self.num_fp16_res = margin_size, output_scale, num_fp16_res
        bands = layer_bands(img_resolution, img_channels, channel_base, channel_max, num_layers, num_critical,
                            first_cutoff, first_stopband, last_stopband_rel, margin_size)
        self.input = SynthesisInput(
            w_dim, bands[0].channels, bands[0].size, sampling_rate=bands[0].rate, bandwidth=bands[0].cutoff)
        self.layer_names: list[str] = []
        # The first layer stays in the input's band.
        for index, (band, previous) in enumerate(zip(bands, bands[:1] + bands)):
            layer = SynthesisLayer(
                w_dim, is_torgb=index == num_layers, is_critically_sampled=index >= num_layers - num_critical,
                use_fp16=band.rate * 2**num_fp16_res > img_resolution,
                **_ends('in', previous), **_ends('out', band), **layer_kwargs)
            self.layer_names.append(f'L{index}_{band.size}_{band.channels}')
            self.add_module(self.layer_names[-1], layer)

    def forward(self, ws: torch.Tensor, **layer_kwargs: Any) -> torch.Tensor:
        first, *rest = _expect('ws', ws, self.num_ws, self.w_dim).to(torch.float32).unbind(dim=1)
        x = self.input(first)
        for name, w in zip(self.layer_names, rest):
            x = getattr(self, name)(x, w, **layer_kwargs)
        return x.to(dtype=torch.float32, memory_format=torch.contiguous_format) * self.output_scale

    def extra_repr(self) -> str:
        return _summary(self, 'w_dim', 'num_ws', 'img_resolution', 'img_channels', 'num_layers', 'num_critical',
                        'margin_size', 'num_fp16_res')


def _ends(end: str, band: Band) -> dict[str, Any]:
    """SynthesisLayer's arguments for the band at one of its ends, 'in' or 'out'."""
    values = dict(channels=band.channels, size=band.size, sampling_rate=band.rate, cutoff=band.cutoff,
                  half_width=band.half_width)
    return {f'{end}_{name}': value for name, value in values.items()}


@persistence.persistent_class
class Generator(torch.nn.Module):
    """z [N, z_dim] and c [N, c_dim] -> image [N, img_channels, img_resolution, img_resolution], float32."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: Mapping[str, Any] | None = None,  # For MappingNetwork.
        synthesis_kwargs: Mapping[str, Any] | None = None,  # For SynthesisNetwork, as this project writes them.
        **more_synthesis_kwargs: Any,  # The same, as the original has them.
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        options = {**(synthesis_kwargs or {}), **more_synthesis_kwargs}
        self.synthesis = SynthesisNetwork(
            w_dim=w_dim, img_resolution=img_resolution, img_channels=img_channels, **options)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(
            z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool | None = None,
        **synthesis_kwargs: Any,  # noise_mode, force_fp32.
    ) -> torch.Tensor:
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas=update_emas)
        return self.synthesis(ws, update_emas=update_emas, **synthesis_kwargs)

    def extra_repr(self) -> str:
        return _summary(self, 'z_dim', 'c_dim', 'w_dim', 'num_ws', 'img_resolution', 'img_channels')
