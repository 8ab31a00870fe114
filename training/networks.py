"""StyleGAN2's generator and discriminator (Karras et al. 2020, arXiv 1912.04958 and 2006.06676).

Class names, constructor keywords, attributes and state-dict names are those of StyleGAN2-ADA, so weights move in both
directions by name.

The source of this file travels inside network pickles and is then run by hosts that bring only their own `torch_utils`.
Hence: absolute imports of stdlib, torch and torch_utils alone, only op signatures that every host has, and nothing but
plain Python numbers as attributes. The keyword `update_emas` is the younger host's way of saying what
`skip_w_avg_update` says in the older one; both are understood wherever a host passes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_utils import persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d

ARCHITECTURES = ('orig', 'skip', 'resnet')
NOISE_MODES = ('random', 'const', 'none')
BINOMIAL = (1, 3, 3, 1)  # The low-pass filter of every resampling step unless told otherwise.
HALF_POWER = math.sqrt(0.5)  # Gain of either branch of a residual sum, so that the sum keeps unit variance.

# ---------------------------------------------------------------------------------------------------------- helpers


def _expect(name: str, tensor: torch.Tensor | None, *shape: int) -> torch.Tensor:
    """Returns `tensor` if it is [N, *shape] for any N; raises ValueError naming it if not."""
    got = None if tensor is None else list(tensor.shape)
    if tensor is None or (not torch.jit.is_tracing() and tuple(tensor.shape[1:]) != shape):
        raise ValueError(f'{name}: expected shape [N, {", ".join(map(str, shape))}], got {got}')
    return tensor


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f'{name}: expected one of {", ".join(allowed)}, got {value!r}')
    return value


def _power_of_two(resolution: int, smallest: int) -> int:
    if resolution < smallest or resolution & (resolution - 1):
        raise ValueError(f'img_resolution: expected a power of two of at least {smallest}, got {resolution}')
    return resolution.bit_length() - 1


def _summary(module: torch.nn.Module, *names: str) -> str:
    return ', '.join(f'{name}={getattr(module, name)}' for name in names)


def _format(block: Any, device: torch.device, force_fp32: bool) -> dict[str, Any]:
    """Arguments of `Tensor.to` for the inputs of a block."""
    dtype = torch.float32 if force_fp32 else _layer_dtype(device, block.use_fp16, block.resolution)
    last = block.channels_last or _faster_last(device)
    return {'dtype': dtype, 'memory_format': torch.channels_last if last else torch.contiguous_format}


def _layer_dtype(device: torch.device, use_fp16: bool, resolution: int) -> torch.dtype:
    """As this process has chosen; where a host knows no choice half precision is for CUDA, and the network says where.

    Nothing of a choice is kept in the network, which goes to other processes and hosts.
    """
    chosen = getattr(bias_act, 'layer_dtype', None)
    if chosen is not None:
        return chosen(device, use_fp16, resolution)
    return torch.float16 if use_fp16 and device.type == 'cuda' else torch.float32


def _faster_last(device: torch.device) -> bool:
    """Whether NHWC is the faster memory format where nobody has asked for one.

    On a CPU it convolves 1.2 to 2 times faster forward. With PyTorch's operators alone some of its weight gradients
    take 2.6 times as long, so that it pays only where nothing is recorded; with compiled kernels it pays in training.
    """
    compiled = getattr(bias_act, 'compiled_for', None)
    return device.type == 'cpu' and (not torch.is_grad_enabled() or (compiled is not None and compiled(device)))


def _fuses(x: torch.Tensor) -> bool:
    """Whether this host's operators do a layer's whole epilogue in one pass, so that scalings cost nothing there."""
    fuses = getattr(bias_act, 'fuses', None)
    return fuses is not None and fuses(x)


def _kernel(out_channels: int, in_channels: int, size: int, channels_last: bool) -> torch.Tensor:
    weight = torch.randn([out_channels, in_channels, size, size])
    return weight.to(memory_format=torch.channels_last) if channels_last else weight


def _width(resolution: int, channel_base: int, channel_max: int) -> int:
    return min(channel_base // resolution, channel_max)


def _half_from(img_resolution: int, num_fp16_res: int) -> int:
    """The lowest of the `num_fp16_res` highest resolutions; 4x4 is never one of them."""
    return max(2 * img_resolution >> num_fp16_res, 8)


def normalize_2nd_moment(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """Scales `x` so that its mean square along `dim` is 1."""
    return x * torch.rsqrt(x.square().mean(dim=dim, keepdim=True) + eps)


# -------------------------------------------------------------------------------------------------- modulated conv


def _bounded(weight: torch.Tensor, styles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Brings weight and styles into half precision's range.

    Demodulation divides by the very same factors again, so they are constants to autograd.
    """
    largest = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    fan_in = weight[0].numel()
    return weight / (largest * math.sqrt(fan_in)), styles / styles.detach().abs().amax(dim=1, keepdim=True)


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> torch.Tensor:
    """Convolution whose input channels are scaled per sample and whose outputs have unit variance again.

    Scaling the weights per sample is the same as scaling the activations before and after one shared convolution,
    since 1 / ||s w||  =  rsqrt(s^2 @ sum_k w^2): nothing of size [N, O, I, k, k] is ever built.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k].
        styles: [N, I].
        noise: added to the output, broadcastable to [N, O, H', W']. None = none.
        padding: counted on the upsampled image.
        flip_weight: True = correlation as in PyTorch, False = convolution.
    """
    if demodulate and x.dtype == torch.float16:
        weight, styles = _bounded(weight, styles)
    y = conv2d_resample.conv2d_resample(
        x=_scaled(x, styles), w=weight.to(x.dtype), f=resample_filter,
        up=up, down=down, padding=padding, flip_weight=flip_weight,
    )
    if noise is not None:
        noise = noise.to(y.dtype)
    if not demodulate:
        return y if noise is None else y + noise
    scale = _demodulation(weight, styles).to(y.dtype)[:, :, None, None]
    return y * scale if noise is None else fma.fma(y, scale, noise)


def _scaled(x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] times styles [N, C]."""
    return bias_act.scale_channels(x, styles) if _fuses(x) else x * styles.to(x.dtype)[:, :, None, None]


def _pointwise(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """A modulated 1x1 convolution to few channels as one small matrix for each sample; x is best NHWC, the result is
    NCHW. Nothing of x's size is written, where a scaled copy of x takes longer than the product."""
    matrices = weight.flatten(1).to(x.dtype) * styles.to(x.dtype).unsqueeze(1)  # [N, O, I]
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, H * W, I]
    return _Product.apply(matrices, pixels).unflatten(2, x.shape[2:])


class _Product(torch.autograd.Function):
    """[N, O, I] and [N, P, I] -> [N, O, P]; autograd's own would turn the second one's gradient round in memory."""

    @staticmethod
    def forward(ctx: Any, matrices: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(matrices, pixels)
        return matrices @ pixels.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        matrices, pixels = ctx.saved_tensors
        return grad @ pixels, grad.transpose(1, 2) @ matrices


def _demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """Factors [N, O] that give the outputs unit variance again."""
    norms = bias_act.squared_norms(weight) if _fuses(weight) else weight.square().sum(dim=(2, 3))  # [O, I]
    return torch.rsqrt(styles.square() @ norms.t() + 1e-8)


# ----------------------------------------------------------------------------------------------------------- layers


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """[N, in_features] -> [N, out_features] with the learning rate equalised at run time."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = 'linear',  # A key of bias_act.activation_funcs.
        lr_multiplier: float = 1,  # Effective learning rate over the optimiser's.
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = torch.nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
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
class Conv2dLayer(torch.nn.Module):
    """[N, in_channels, H, W] -> [N, out_channels, H * up / down, W * up / down], activated."""

    resample_filter: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = 'linear',
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = BINOMIAL,
        conv_clamp: float | None = None,  # Outputs are cut to +-conv_clamp * gain. None = not.
        channels_last: bool = False,  # Memory format of the weight.
        trainable: bool = True,  # False = weights are buffers, out of every optimiser's sight.
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.activation, self.conv_clamp = activation, conv_clamp
        self.up, self.down, self.padding = up, down, kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = float(bias_act.activation_funcs[activation].def_gain)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(resample_filter))
        initial = {'weight': _kernel(out_channels, in_channels, kernel_size, channels_last)}
        if bias:
            initial['bias'] = torch.zeros([out_channels])
        else:
            self.bias = None
        for name, value in initial.items():
            if trainable:
                self.register_parameter(name, torch.nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: torch.Tensor, gain: float = 1) -> torch.Tensor:
        # The gain of the weights is left to the epilogue where it costs nothing; in half precision it might overflow.
        later = x.dtype != torch.float16 and _fuses(x)
        weight = self.weight if later else self.weight * self.weight_gain
        y = conv2d_resample.conv2d_resample(
            x=x, w=weight.to(x.dtype), f=self.resample_filter, up=self.up, down=self.down, padding=self.padding,
            flip_weight=(self.up == 1),
        )
        return _finish(y, self, gain, factor=self.weight_gain) if later else _activate(y, self, gain)

    def extra_repr(self) -> str:
        return _summary(self, 'in_channels', 'out_channels', 'activation', 'up', 'down')


def _finish(y: torch.Tensor, layer: Any, gain: float, **more: Any) -> torch.Tensor:
    """What `_activate` does, after y * factor * scale + noise, in one pass."""
    clamp = None if layer.conv_clamp is None else layer.conv_clamp * gain
    return bias_act.modulated_bias_act(
        y, b=layer.bias, act=layer.activation, gain=layer.act_gain * gain, clamp=clamp, inplace=True, **more)


def _activate(y: torch.Tensor, layer: Any, gain: float) -> torch.Tensor:
    """Bias, activation, gain and clamp of a convolution layer; the clamp scales with the gain of the branch."""
    bias = None if layer.bias is None else layer.bias.to(y.dtype)
    clamp = None if layer.conv_clamp is None else layer.conv_clamp * gain
    return bias_act.bias_act(y, bias, act=layer.activation, gain=layer.act_gain * gain, clamp=clamp)


# ---------------------------------------------------------------------------------------------------------- mapping


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """z [N, z_dim] and c [N, c_dim] -> ws [N, num_ws, w_dim], or w [N, w_dim] if num_ws is None."""

    w_avg: torch.Tensor

    def __init__(
        self,
        z_dim: int,  # 0 = no latent.
        c_dim: int,  # 0 = no label.
        w_dim: int,
        num_ws: int | None,  # Copies of w to give. None = w itself.
        num_layers: int = 8,
        embed_features: int | None = None,  # Width of the label's embedding. None = w_dim.
        layer_features: int | None = None,  # Width of the hidden layers. None = w_dim.
        activation: str = 'lrelu',
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,  # Decay of the running mean of w. None = don't track it.
    ) -> None:
        super().__init__()
        if z_dim == 0 and c_dim == 0:
            raise ValueError('z_dim, c_dim: expected at least one above 0, got 0 and 0')
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.num_ws, self.num_layers, self.w_avg_beta = num_ws, num_layers, w_avg_beta
        embed_width = 0 if c_dim == 0 else w_dim if embed_features is None else embed_features
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_width)
        hidden = w_dim if layer_features is None else layer_features
        fan_in = z_dim + embed_width
        for index in range(num_layers):
            fan_out = w_dim if index == num_layers - 1 else hidden
            self.add_module(f'fc{index}', FullyConnectedLayer(
                fan_in, fan_out, activation=activation, lr_multiplier=lr_multiplier))
            fan_in = fan_out
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer('w_avg', torch.zeros([w_dim]))

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,  # Truncate only the first so many ws. None = all.
        skip_w_avg_update: bool = False,
        update_emas: bool | None = None,
    ) -> torch.Tensor:
        w = self._inputs(z, c)
        for index in range(self.num_layers):
            w = getattr(self, f'fc{index}')(w)
        wants_update = self.training and not skip_w_avg_update if update_emas is None else update_emas
        if wants_update and self.w_avg_beta is not None and self.num_ws is not None:
            with torch.no_grad():
                self.w_avg.lerp_(w.mean(dim=0), 1 - self.w_avg_beta)
        # Callers write into single ws (style mixing), so these are copies and no view of one w.
        ws = w if self.num_ws is None else w.unsqueeze(1).repeat([1, self.num_ws, 1])
        return ws if truncation_psi == 1 else self._truncate(ws, truncation_psi, truncation_cutoff)

    def _inputs(self, z: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
        parts = []
        if self.z_dim > 0:
            parts.append(normalize_2nd_moment(_expect('z', z, self.z_dim).to(torch.float32)))
        if self.c_dim > 0:
            label = _expect('c', c, self.c_dim).to(torch.float32)
            parts.append(normalize_2nd_moment(self.embed(label)))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _truncate(self, ws: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
        if self.w_avg_beta is None or self.num_ws is None:
            raise ValueError(f'truncation_psi: expected 1 for a mapping that tracks no w_avg, got {psi}')
        if cutoff is None:
            return self.w_avg.lerp(ws, psi)
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)

    def extra_repr(self) -> str:
        return _summary(self, 'z_dim', 'c_dim', 'w_dim', 'num_ws')


# -------------------------------------------------------------------------------------------------------- synthesis


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """x [N, in_channels, resolution / up, ...] and w [N, w_dim] -> [N, out_channels, resolution, resolution]."""

    resample_filter: torch.Tensor
    noise_const: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = 'lrelu',
        resample_filter: Sequence[float] = BINOMIAL,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.w_dim = in_channels, out_channels, w_dim
        self.resolution, self.up, self.padding = resolution, up, kernel_size // 2
        self.use_noise, self.activation, self.conv_clamp = use_noise, activation, conv_clamp
        self.act_gain = float(bias_act.activation_funcs[activation].def_gain)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(resample_filter))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(_kernel(out_channels, in_channels, kernel_size, channels_last))
        if use_noise:
            self.register_buffer('noise_const', torch.randn([resolution, resolution]))
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        noise_mode: str = 'random',  # 'random', 'const' or 'none'.
        fused_modconv: bool | None = None,  # For callers of the hosts' layers; either choice gives the same numbers.
        gain: float = 1,
    ) -> torch.Tensor:
        size = self.resolution // self.up
        _expect('x', x, self.in_channels, size, size)
        styles, noise = self.affine(w), self._noise(x, _choice('noise_mode', noise_mode, NOISE_MODES))
        options: dict[str, Any] = dict(
            up=self.up, padding=self.padding, resample_filter=self.resample_filter, flip_weight=(self.up == 1))
        if _fuses(x):
            half = x.dtype == torch.float16
            weight, styles = _bounded(self.weight, styles) if half else (self.weight, styles)
            y = modulated_conv2d(x, weight, styles, demodulate=False, **options)
            return _finish(y, self, gain, scale=_demodulation(weight, styles), noise=noise)
        return _activate(modulated_conv2d(x, self.weight, styles, noise, **options), self, gain)

    def _noise(self, x: torch.Tensor, mode: str) -> torch.Tensor | None:
        if not self.use_noise or mode == 'none':
            return None
        if mode == 'const':
            return self.noise_const * self.noise_strength
        shape = [x.shape[0], 1, self.resolution, self.resolution]
        return torch.randn(shape, device=x.device) * self.noise_strength

    def extra_repr(self) -> str:
        return _summary(self, 'in_channels', 'out_channels', 'w_dim', 'resolution', 'up', 'activation')


@persistence.persistent_class
class ToRGBLayer(torch.nn.Module):
    """x [N, in_channels, H, W] and w [N, w_dim] -> image [N, out_channels, H, W]; no demodulation, no activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.w_dim = in_channels, out_channels, w_dim
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(_kernel(out_channels, in_channels, kernel_size, channels_last))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: torch.Tensor, w: torch.Tensor, fused_modconv: bool | None = None) -> torch.Tensor:
        styles = self.affine(w) * self.weight_gain
        if self.weight.shape[-1] == 1 and _fuses(x):
            return bias_act.bias_act(_pointwise(x, self.weight, styles), self.bias, clamp=self.conv_clamp)
        y = modulated_conv2d(x, self.weight, styles, padding=self.weight.shape[-1] // 2, demodulate=False)
        return bias_act.bias_act(y, self.bias.to(y.dtype), clamp=self.conv_clamp)

    def extra_repr(self) -> str:
        return _summary(self, 'in_channels', 'out_channels', 'w_dim')


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    """One resolution of the synthesis network: features and image at half of it -> features and image at all of it."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,  # 0 = the first block, which starts from a learned constant.
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = 'skip',
        resample_filter: Sequence[float] = BINOMIAL,
        conv_clamp: float | None = None,
        use_fp16: bool = False,  # Half precision; on CUDA only.
        fp16_channels_last: bool = False,  # NHWC where use_fp16 is set.
        channels_last: bool = False,  # NHWC whatever the precision.
        fused_modconv_default: bool | str | None = None,  # In the younger host's pickles; makes no difference here.
        **layer_kwargs: Any,  # For SynthesisLayer.
    ) -> None:
        super().__init__()
        self.architecture = _choice('architecture', architecture, ARCHITECTURES)
        self.in_channels, self.out_channels, self.w_dim = in_channels, out_channels, w_dim
        self.resolution, self.img_channels, self.is_last = resolution, img_channels, is_last
        self.use_fp16, self.channels_last = use_fp16, channels_last or (use_fp16 and fp16_channels_last)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(resample_filter))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = int(is_last or architecture == 'skip')
        shared: dict[str, Any] = {'conv_clamp': conv_clamp, 'channels_last': self.channels_last}
        layer_kwargs.update(shared, w_dim=w_dim, resolution=resolution)
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, up=2, resample_filter=resample_filter, **layer_kwargs)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **layer_kwargs)
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, **shared)
        if in_channels != 0 and architecture == 'resnet':
            self.skip = Conv2dLayer(
                in_channels, out_channels, kernel_size=1, bias=False, up=2, resample_filter=resample_filter,
                channels_last=self.channels_last)

    def forward(
        self,
        x: torch.Tensor | None,  # [N, in_channels, resolution / 2, resolution / 2], None in the first block.
        img: torch.Tensor | None,  # [N, img_channels, resolution / 2, resolution / 2] float32, None before any ToRGB.
        ws: torch.Tensor,  # [N, num_conv + num_torgb, w_dim].
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        update_emas: bool | None = None,
        **layer_kwargs: Any,  # noise_mode.
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        _expect('ws', ws, self.num_conv + self.num_torgb, self.w_dim)
        form = _format(self, ws.device, force_fp32)
        styles = ws.unbind(dim=1)
        if self.in_channels == 0:
            constant = self.const.unsqueeze(0).to(**form)
            x = self.conv1(constant.expand(ws.shape[0], -1, -1, -1), styles[0], **layer_kwargs)
        else:
            size = self.resolution // 2
            x = self._convolve(_expect('x', x, self.in_channels, size, size).to(**form), styles, **layer_kwargs)
        return x, self._image(x, img, styles[-1])

    def _convolve(self, x: torch.Tensor, styles: Sequence[torch.Tensor], **layer_kwargs: Any) -> torch.Tensor:
        if self.architecture != 'resnet':
            return self.conv1(self.conv0(x, styles[0], **layer_kwargs), styles[1], **layer_kwargs)
        shortcut = self.skip(x, gain=HALF_POWER)
        x = self.conv0(x, styles[0], **layer_kwargs)
        return shortcut.add_(self.conv1(x, styles[1], gain=HALF_POWER, **layer_kwargs))

    def _image(self, x: torch.Tensor, img: torch.Tensor | None, style: torch.Tensor) -> torch.Tensor | None:
        if img is not None:
            size = self.resolution // 2
            img = upfirdn2d.upsample2d(_expect('img', img, self.img_channels, size, size), self.resample_filter)
        if not self.num_torgb:
            return img
        rgb = self.torgb(x, style).to(dtype=torch.float32, memory_format=torch.contiguous_format)
        return rgb if img is None else img + rgb

    def extra_repr(self) -> str:
        return _summary(self, 'resolution', 'architecture')


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """ws [N, num_ws, w_dim] -> image [N, img_channels, img_resolution, img_resolution], float32, about [-1, 1]."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,  # A layer has channel_base / resolution channels ...
        channel_max: int = 512,  # ... but no more than this.
        num_fp16_res: int = 0,  # So many of the highest resolutions run in half precision on CUDA.
        **block_kwargs: Any,  # For SynthesisBlock.
    ) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.img_resolution_log2 = _power_of_two(img_resolution, smallest=4)
        self.num_fp16_res = num_fp16_res
        self.block_resolutions = [2**level for level in range(2, self.img_resolution_log2 + 1)]
        self.num_ws = 0
        in_channels = 0
        for res in self.block_resolutions:
            out_channels = _width(res, channel_base, channel_max)
            precision = {'use_fp16': res >= _half_from(img_resolution, num_fp16_res)}
            block = SynthesisBlock(
                in_channels, out_channels, w_dim=w_dim, resolution=res, img_channels=img_channels,
                is_last=(res == img_resolution), **{**precision, **block_kwargs})
            self.add_module(f'b{res}', block)
            self.num_ws += block.num_conv
            in_channels = out_channels
        self.num_ws += 1  # The last ToRGB has a style of its own; the others share the next block's first.

    def forward(self, ws: torch.Tensor, **block_kwargs: Any) -> torch.Tensor:
        ws = _expect('ws', ws, self.num_ws, self.w_dim).to(torch.float32)
        x: Any = None
        img: Any = None
        first = 0
        for res in self.block_resolutions:
            block = getattr(self, f'b{res}')
            x, img = block(x, img, ws.narrow(1, first, block.num_conv + block.num_torgb), **block_kwargs)
            first += block.num_conv
        return img

    def extra_repr(self) -> str:
        return _summary(self, 'w_dim', 'num_ws', 'img_resolution', 'img_channels', 'num_fp16_res')


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
        synthesis_kwargs: Mapping[str, Any] | None = None,  # For SynthesisNetwork.
        **more_synthesis_kwargs: Any,  # The same, as the younger host writes them.
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
        return self.synthesis(ws, **synthesis_kwargs)

    def extra_repr(self) -> str:
        return _summary(self, 'z_dim', 'c_dim', 'w_dim', 'num_ws', 'img_resolution', 'img_channels')


# ---------------------------------------------------------------------------------------------------- discriminator


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    """One resolution of the discriminator: features and image -> features at half of it and the image for the next."""

    resample_filter: torch.Tensor
    fromrgb: torch.nn.Module
    conv0: torch.nn.Module
    conv1: torch.nn.Module
    skip: torch.nn.Module

    def __init__(
        self,
        in_channels: int,  # 0 = the first block, which sees only the image.
        tmp_channels: int,
        out_channels: int,
        resolution: int,
        img_channels: int,
        first_layer_idx: int,  # Index of the block's first layer in the network, for freeze_layers.
        architecture: str = 'resnet',
        activation: str = 'lrelu',
        resample_filter: Sequence[float] = BINOMIAL,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,  # Freeze-D: so many of the network's first layers are not trained.
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if in_channels not in (0, tmp_channels):
            raise ValueError(f'in_channels: expected 0 or tmp_channels = {tmp_channels}, got {in_channels}')
        self.architecture = _choice('architecture', architecture, ARCHITECTURES)
        self.in_channels, self.resolution, self.img_channels = in_channels, resolution, img_channels
        self.first_layer_idx, self.num_layers = first_layer_idx, 0
        self.use_fp16, self.channels_last = use_fp16, channels_last or (use_fp16 and fp16_channels_last)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(resample_filter))

        def add(name: str, channels: tuple[int, int], kernel_size: int, **kwargs: Any) -> None:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            layer = Conv2dLayer(
                *channels, kernel_size, trainable=trainable, channels_last=self.channels_last, **kwargs)
            self.add_module(name, layer)
            self.num_layers += 1

        usual = {'activation': activation, 'conv_clamp': conv_clamp}
        shrink = {'down': 2, 'resample_filter': resample_filter}
        if in_channels == 0 or architecture == 'skip':
            add('fromrgb', (img_channels, tmp_channels), 1, **usual)
        add('conv0', (tmp_channels, tmp_channels), 3, **usual)
        add('conv1', (tmp_channels, out_channels), 3, **usual, **shrink)
        if architecture == 'resnet':
            add('skip', (tmp_channels, out_channels), 1, bias=False, **shrink)

    def forward(
        self,
        x: torch.Tensor | None,  # [N, in_channels, resolution, resolution], None in the first block.
        img: torch.Tensor | None,  # [N, img_channels, resolution, resolution], None where nobody looks at it any more.
        force_fp32: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = self.resolution
        form = _format(self, self.resample_filter.device, force_fp32)
        if x is not None:
            x = _expect('x', x, self.in_channels, size, size).to(**form)
        if self.in_channels == 0 or self.architecture == 'skip':
            pixels = _expect('img', img, self.img_channels, size, size).to(**form)
            seen = self.fromrgb(pixels)
            x = seen if x is None else x + seen
            img = upfirdn2d.downsample2d(pixels, self.resample_filter) if self.architecture == 'skip' else None
        if self.architecture != 'resnet':
            return self.conv1(self.conv0(x)), img
        shortcut = self.skip(x, gain=HALF_POWER)
        return shortcut.add_(self.conv1(self.conv0(x), gain=HALF_POWER)), img

    def extra_repr(self) -> str:
        return _summary(self, 'resolution', 'architecture')


@persistence.persistent_class
class MinibatchStdLayer(torch.nn.Module):
    """Appends the standard deviation over groups of the batch: [N, C, H, W] -> [N, C + num_channels, H, W]."""

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = group_size  # None = the whole batch is one group.
        self.num_channels = num_channels

    def members(self, n: int) -> int:
        """Samples of a group, of a batch of n."""
        return n if self.group_size is None else min(self.group_size, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = (int(size) for size in x.shape)
        members = self.members(n)
        if n % members or channels % self.num_channels:
            raise ValueError(f'x: expected N a multiple of {members} and C of {self.num_channels}, got {list(x.shape)}')
        # [members, groups, num_channels, values]: sample i belongs to group i % groups.
        grouped = x.reshape(members, n // members, self.num_channels, -1)
        variance = (grouped - grouped.mean(dim=0)).square().mean(dim=0)
        std = (variance + 1e-8).sqrt().mean(dim=2)  # [groups, num_channels]
        extra = std.repeat(members, 1)[:, :, None, None].expand(-1, -1, height, width)
        return torch.cat([x, extra], dim=1)

    def extra_repr(self) -> str:
        return _summary(self, 'group_size', 'num_channels')


@persistence.persistent_class
class DiscriminatorEpilogue(torch.nn.Module):
    """Features [N, in_channels, 4, 4] -> logits [N, 1], in float32."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,  # Width of the mapped label that the output is projected on. 0 = no label.
        resolution: int,
        img_channels: int,
        architecture: str = 'resnet',
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,  # 0 = no minibatch standard deviation.
        activation: str = 'lrelu',
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.architecture = _choice('architecture', architecture, ARCHITECTURES)
        self.in_channels, self.cmap_dim = in_channels, cmap_dim
        self.resolution, self.img_channels = resolution, img_channels
        if architecture == 'skip':
            self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(
        self,
        x: torch.Tensor,
        img: torch.Tensor | None,
        cmap: torch.Tensor | None,  # [N, cmap_dim].
        force_fp32: bool = False,  # It always is float32; here for callers that treat all blocks alike.
    ) -> torch.Tensor:
        size = self.resolution
        form: dict[str, Any] = {'dtype': torch.float32, 'memory_format': torch.contiguous_format}
        x = _expect('x', x, self.in_channels, size, size).to(**form)
        if self.architecture == 'skip':
            x = x + self.fromrgb(_expect('img', img, self.img_channels, size, size).to(**form))
        if self.mbstd is not None:
            x = self.mbstd(x)
        logits = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim == 0:
            return logits
        projected = logits * _expect('cmap', cmap, self.cmap_dim)
        return projected.sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)

    def extra_repr(self) -> str:
        return _summary(self, 'resolution', 'architecture')


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    """Image [N, img_channels, img_resolution, img_resolution] and c [N, c_dim] -> logits [N, 1]."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = 'resnet',
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,  # None = the width of the 4x4 block.
        block_kwargs: Mapping[str, Any] | None = None,  # For DiscriminatorBlock.
        mapping_kwargs: Mapping[str, Any] | None = None,  # For MappingNetwork.
        epilogue_kwargs: Mapping[str, Any] | None = None,  # For DiscriminatorEpilogue.
    ) -> None:
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.img_resolution_log2 = _power_of_two(img_resolution, smallest=8)
        self.block_resolutions = [2**level for level in range(self.img_resolution_log2, 2, -1)]
        shared = {'img_channels': img_channels, 'architecture': architecture, 'conv_clamp': conv_clamp}
        in_channels, layers = 0, 0
        for res in self.block_resolutions:
            out_channels = _width(res // 2, channel_base, channel_max)
            precision = {'use_fp16': res >= _half_from(img_resolution, num_fp16_res)}
            block = DiscriminatorBlock(
                in_channels, _width(res, channel_base, channel_max), out_channels, resolution=res,
                first_layer_idx=layers, **{**precision, **shared, **(block_kwargs or {})})
            self.add_module(f'b{res}', block)
            in_channels, layers = out_channels, layers + block.num_layers
        cmap_dim = 0 if c_dim == 0 else in_channels if cmap_dim is None else cmap_dim
        if c_dim > 0:
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None, **(mapping_kwargs or {}))
        self.b4 = DiscriminatorEpilogue(
            in_channels, cmap_dim=cmap_dim, resolution=4, **{**shared, **(epilogue_kwargs or {})})

    def forward(
        self,
        img: torch.Tensor,
        c: torch.Tensor | None,
        update_emas: bool | None = None,  # Nothing to update here; the younger host passes it to every network.
        **block_kwargs: Any,  # force_fp32.
    ) -> torch.Tensor:
        features = None
        remaining: torch.Tensor | None = img
        for res in self.block_resolutions:
            block = getattr(self, f'b{res}')
            features, remaining = block(features, remaining, **block_kwargs)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(features, remaining, cmap)

    def statistics_groups(self, batch: int) -> int | None:
        """In how many groups samples of a batch meet: sample i only those j with j % groups == i % groups.

        None if the batch can't be divided so.
        """
        members = 1 if self.b4.mbstd is None else self.b4.mbstd.members(batch)
        return None if batch % members else batch // members

    def extra_repr(self) -> str:
        return _summary(self, 'c_dim', 'img_resolution', 'img_channels')
