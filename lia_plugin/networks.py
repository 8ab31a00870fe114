"""LIA's networks: the invertible network φ, the mapping z ↔ y → w, the encoder f and the generator that holds them.

    x --f--> y --φ--> z ~ N(0, I)          inference
    z --φ⁻¹-> y --g--> x̃                   generation

Zhu et al., "Disentangled Inference for GANs with Latently Invertible Autoencoder", arXiv 1906.08090, section 3.

The source of this file travels inside network pickles and runs there without the plugin, on any StyleGAN2 host. It
therefore imports only what every host has, and its layers are its own: the synthesis network is the host's, by name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

import dnnlib
from torch_utils import persistence
from torch_utils.ops import bias_act, conv2d_resample, upfirdn2d

# Where the hosts keep their StyleGAN2: stylegan3; ours and stylegan2-ada-pytorch. In this order, for an editable
# install of ours lends its modules to packages of the same name: stylegan3's `training` would get our `networks`.
HOST_MODULES = ('training.networks_stylegan2', 'training.networks')
LRELU_SLOPE, LRELU_GAIN = 0.2, math.sqrt(2)  # Of the activation after each layer of the hosts' mapping networks.


class Inversion(NamedTuple):
    """Latents of images: y = f(x), float32 [N, z_dim] or y+ [N, num_ws, z_dim], and z = φ(base code of y)."""

    y: torch.Tensor
    z: torch.Tensor


class Feedback(NamedTuple):
    """What has come of a code: the reconstruction NCHW, the code, and the squared error's gradient (`code_gradient`).

    The gradient is as long as it may be; only its direction is used.
    """

    recon: torch.Tensor
    code: torch.Tensor
    gradient: torch.Tensor


def code_gradient(
    recon: torch.Tensor, img: torch.Tensor, code: torch.Tensor, retain_graph: bool | None = None
) -> torch.Tensor:
    """Gradient in the code of each image's squared error, whatever else is in the batch; as long as the code."""
    # Neither the sum nor the mean over pixels: float16 layers would overflow or underflow on the way back.
    error = (recon.to(torch.float32) - img).square().sum() / math.sqrt(img[0].numel())
    return torch.autograd.grad(error, [code], retain_graph=retain_graph)[0]


def base_code(y: torch.Tensor) -> torch.Tensor:
    """The code [N, z_dim] that an image has as a whole: y itself, or the first layer's of y+ [N, num_ws, z_dim]."""
    return y if y.ndim == 2 else y[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Layers. Equalised learning rate as in Karras et al. 2018, section 4.1: weights are stored at unit variance.


@persistence.persistent_class
class Dense(torch.nn.Module):
    """Fully connected layer: [N, in_features] → [N, out_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = 'linear',
        lr_multiplier: float = 1.0,  # Effective learning rate of weight and bias, relative to the optimiser's.
        weight_init: float = 1.0,  # Standard deviation of the effective weight, in units of its He constant.
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) * (weight_init / lr_multiplier))
        self.bias = torch.nn.Parameter(torch.zeros([out_features]))
        self.weight_gain = float(lr_multiplier / math.sqrt(in_features))
        self.bias_gain = float(lr_multiplier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x @ (self.weight.to(x.dtype) * self.weight_gain).t()
        return bias_act.bias_act(x, self.bias.to(x.dtype) * self.bias_gain, act=self.activation)


@persistence.persistent_class
class Conv(torch.nn.Module):
    """Square convolution with optional bias and 2× downsampling: [N, in, H, W] → [N, out, H/down, W/down]."""

    resample_filter: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = 'linear',
        down: int = 1,  # 2 = low-pass with [1, 3, 3, 1], then keep every second sample.
        clamp: float | None = None,  # Bound of the output's magnitude, for float16 layers.
    ) -> None:
        super().__init__()
        self.activation = activation
        self.down = down
        self.padding = kernel_size // 2
        self.clamp = clamp
        self.weight = torch.nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels])) if bias else None
        self.weight_gain = float(1 / math.sqrt(in_channels * kernel_size**2))
        self.act_gain = float(bias_act.activation_funcs[activation].def_gain)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter([1, 3, 3, 1]) if down > 1 else None)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        # A host that does all that follows in one pass takes the weights' gain along; half precision might overflow.
        fuses, fused = getattr(bias_act, 'fuses', None), getattr(bias_act, 'modulated_bias_act', None)
        later = fuses is not None and x.dtype != torch.float16 and fuses(x)
        w = (self.weight if later else self.weight * self.weight_gain).to(x.dtype)
        x = conv2d_resample.conv2d_resample(x=x, w=w, f=self.resample_filter, down=self.down, padding=self.padding)
        b = self.bias.to(x.dtype) if self.bias is not None else None
        act: dict[str, Any] = dict(act=self.activation, gain=self.act_gain * gain)
        act['clamp'] = self.clamp * gain if self.clamp is not None else None
        if later and fused is not None:
            return fused(x, b=b, factor=self.weight_gain, inplace=True, **act)
        return bias_act.bias_act(x, b, **act)


@persistence.persistent_class
class BatchNorm(torch.nn.Module):
    """Batch normalisation over all but dimension 1, its statistics shared by all processes of a distributed run.

    torch's SyncBatchNorm is CUDA only, and the stock BatchNorm would leave every rank with buffers of its own.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones([num_features])) if affine else None
        self.bias = torch.nn.Parameter(torch.zeros([num_features])) if affine else None
        self.register_buffer('running_mean', torch.zeros([num_features]))
        self.register_buffer('running_var', torch.ones([num_features]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        x = (x - mean.reshape(shape)) * scale.reshape(shape)
        return x if self.bias is None else x + self.bias.reshape(shape)

    def _batch_statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        moments = torch.stack([x.mean(dims), x.square().mean(dims)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            from torch.distributed.nn.functional import all_reduce  # differentiable, unlike torch.distributed's own

            moments = all_reduce(moments) / torch.distributed.get_world_size()
        mean, var = moments[0], (moments[1] - moments[0].square()).clamp(min=0)
        if torch.is_grad_enabled():  # Once a step: the discriminator's phase encodes the same images without gradients.
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach(), self.momentum)
        return mean, var


# ---------------------------------------------------------------------------------------------------------------------
# φ


@persistence.persistent_class
class Coupling(torch.nn.Module):
    """One coupling step (Dinh et al., arXiv 1410.8516 and 1605.08803) after a reversal of the feature order.

    y → z:  h = reverse(h);  h₂ ← h₂·exp(s(h₁)) + t(h₁)
    z → y:  h₂ ← (h₂ − t(h₁))·exp(−s(h₁));  h = reverse(h)

    Additive coupling is s = 0, as in the paper. |s| stays under `max_log_scale`, which bounds the inverse's error.
    """

    def __init__(
        self,
        features: int,
        cond_features: int = 0,  # Width of the label embedding that the step is conditioned on.
        hidden_features: int = 512,
        coupling: str = 'additive',  # 'additive' or 'affine'.
        lr_multiplier: float = 0.01,
        shift_activation: str = 'lrelu',
        zero_init: bool = False,  # Start as nothing but the reversal.
        max_log_scale: float = 2.0,
    ) -> None:
        super().__init__()
        if coupling not in ('additive', 'affine'):
            raise ValueError(f"coupling: expected 'additive' or 'affine', got {coupling!r}")
        self.split = features // 2
        self.max_log_scale = max_log_scale
        in_features, out_features = self.split + cond_features, features - self.split
        self.hidden = Dense(in_features, hidden_features, activation='lrelu', lr_multiplier=lr_multiplier)
        # The reference code ends τ with a second leaky ReLU; kept, for it gives y its skewed, disentangled start.
        shift_init = 0.0 if zero_init else 1.0
        self.shift = Dense(hidden_features, out_features, shift_activation, lr_multiplier, weight_init=shift_init)
        self.log_scale = None
        if coupling == 'affine':
            self.log_scale = Dense(hidden_features, out_features, lr_multiplier=lr_multiplier, weight_init=0)

    def forward(self, h: torch.Tensor, cond: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        h1, h2 = h.flip(1).tensor_split([self.split], dim=1)
        t, s = self._shift_and_log_scale(h1, cond)
        h2 = h2 + t if s is None else h2 * s.exp() + t
        return torch.cat([h1, h2], dim=1), _log_det(s, h)

    def inverse(self, h: torch.Tensor, cond: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        h1, h2 = h.tensor_split([self.split], dim=1)
        t, s = self._shift_and_log_scale(h1, cond)
        h2 = h2 - t if s is None else (h2 - t) * (-s).exp()
        return torch.cat([h1, h2], dim=1).flip(1), -_log_det(s, h)

    def _shift_and_log_scale(
        self, h1: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden = self.hidden(h1 if cond is None else torch.cat([h1, cond], dim=1))
        if self.log_scale is None:
            return self.shift(hidden), None
        return self.shift(hidden), self.max_log_scale * torch.tanh(self.log_scale(hidden) / self.max_log_scale)


def _undo_lrelu(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of lrelu(x)·√2, and its log|det J|."""
    negative = y < 0
    log_det = -math.log(LRELU_GAIN) * y.shape[1] - math.log(LRELU_SLOPE) * negative.sum(dim=1).to(y.dtype)
    return torch.where(negative, y / LRELU_SLOPE, y) / LRELU_GAIN, log_det


def _log_det(log_scale: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return like.new_zeros([like.shape[0]]) if log_scale is None else log_scale.sum(1)


@persistence.persistent_class
class Standardize(torch.nn.Module):
    """A fixed affine step that makes a Gaussian a standard one.

    y → z:  h = (x − mean − c·label_mean)·white
    z → y:  x = h·color + mean + c·label_mean,  color = white⁻¹

    The identity until it is given a Gaussian. All its numbers are buffers: measured, not trained.
    """

    mean: torch.Tensor
    label_mean: torch.Tensor | None
    white: torch.Tensor
    color: torch.Tensor
    log_det: torch.Tensor

    def __init__(self, features: int, c_dim: int = 0) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros([features]))
        self.register_buffer('label_mean', torch.zeros([c_dim, features]) if c_dim > 0 else None)
        self.register_buffer('white', torch.eye(features))
        self.register_buffer('color', torch.eye(features))
        self.register_buffer('log_det', torch.zeros([]))

    def forward(self, x: torch.Tensor, c: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return (x - self._center(c)) @ self.white, self.log_det.expand(x.shape[0])

    def inverse(self, h: torch.Tensor, c: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return h @ self.color + self._center(c), -self.log_det.expand(h.shape[0])

    def _center(self, c: torch.Tensor | None) -> torch.Tensor:
        if self.label_mean is None or c is None:
            return self.mean
        return self.mean + c.to(self.mean.dtype) @ self.label_mean

    @torch.no_grad()
    def set_gaussian(self, mean: torch.Tensor, cov: torch.Tensor, label_mean: torch.Tensor | None = None) -> None:
        """Takes the Gaussian N(mean + c·label_mean, cov): [features], [features, features], [c_dim, features].

        The new axes are the principal ones, the widest first: halves of them are what couplings tell apart.
        Raises ValueError if `cov` is not positive definite, or too nearly so for float32.
        """
        variances, axes = torch.linalg.eigh(cov.detach().cpu().double())
        if not variances[0] > 1e-12 * variances[-1]:
            ends = f'{float(variances[0]):g} to {float(variances[-1]):g}'
            raise ValueError(f'cov: expected positive definite, its eigenvalues go from {ends}')
        self.mean.copy_(mean)
        if self.label_mean is not None and label_mean is not None:
            self.label_mean.copy_(label_mean)
        self.white.copy_((axes / variances.sqrt()).flip(1))
        rounded = self.white.cpu().double()  # The inverse of what is stored, not of what was measured.
        self.color.copy_(torch.linalg.inv(rounded))
        self.log_det.copy_(torch.linalg.slogdet(rounded)[1])


@persistence.persistent_class
class Phi(torch.nn.Module):
    """The invertible network φ: y → z, and its inverse z → y (paper, section 3.1).

    Both directions take [N, features] and labels [N, c_dim] (None if c_dim is 0) and give (output, log|det J|) of that
    direction, [N, features] and [N]. φ is computed in float32 whatever the input or autocast says, for in half
    precision the round trip is off by 1e-2; float64 weights give float64 results.

    The options from `shift_activation` on are for a y that is given: one that an existing mapping network makes. Then φ
    is, from y on: that network's last activation undone (W becomes nearly Gaussian, Wulff and Torralba, arXiv
    2009.06529), the Gaussian standardised, and couplings that start without effect and learn what is left.
    """

    def __init__(
        self,
        features: int,
        c_dim: int = 0,
        num_couplings: int = 4,
        hidden_features: int = 512,
        coupling: str = 'additive',
        lr_multiplier: float = 0.01,
        shift_activation: str = 'lrelu',  # At the end of each τ; 'linear' learns faster.
        zero_init: bool = False,  # Couplings start without effect; an even number of them is the identity.
        y_activation: str = 'linear',  # 'lrelu' = undo the leaky ReLU that y has gone through.
        standardize: bool = False,  # A Standardize step before the couplings.
    ) -> None:
        super().__init__()
        if y_activation not in ('linear', 'lrelu'):
            raise ValueError(f"phi: y_activation is 'linear' or 'lrelu', got {y_activation!r}")
        if features < 2 or num_couplings < 1:
            raise ValueError(f'phi: needs 2 features and 1 coupling at least, got {features} and {num_couplings}')
        self.features = features
        self.c_dim = c_dim
        self.num_couplings = num_couplings
        self.lr_multiplier = float(lr_multiplier)
        self.y_activation = y_activation
        self.standardize = Standardize(features, c_dim) if standardize else None
        cond_features = min(features, 128) if c_dim > 0 else 0
        self.embed = Dense(c_dim, cond_features) if c_dim > 0 else None
        for i in range(num_couplings):
            step = Coupling(
                features, cond_features, hidden_features, coupling, lr_multiplier, shift_activation, zero_init
            )
            setattr(self, f'coupling{i}', step)

    @property
    def couplings(self) -> list[Coupling]:
        return [getattr(self, f'coupling{i}') for i in range(self.num_couplings)]

    def forward(self, y: torch.Tensor, c: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(y.device.type, enabled=False):
            h, cond = self._prepare(y, c)
            h, log_det = self.to_gaussian(h, c)
            for step in self.couplings:
                h, change = step(h, cond)
                log_det = log_det + change
        return h, log_det

    def inverse(self, z: torch.Tensor, c: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            h, cond = self._prepare(z, c)
            log_det = h.new_zeros([h.shape[0]])
            for step in reversed(self.couplings):
                h, change = step.inverse(h, cond)
                log_det = log_det + change
            h, change = self._from_gaussian(h, c)
        return h, log_det + change

    def to_gaussian(self, y: torch.Tensor, c: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes before the couplings: the activation undone, the Gaussian standardised; (h, log|det J|)."""
        log_det = y.new_zeros([y.shape[0]])
        if self.y_activation == 'lrelu':
            y, log_det = _undo_lrelu(y)
        if self.standardize is not None:
            y, change = self.standardize(y, c)
            log_det = log_det + change
        return y, log_det

    def _from_gaussian(self, h: torch.Tensor, c: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        log_det = h.new_zeros([h.shape[0]])
        if self.standardize is not None:
            h, log_det = self.standardize.inverse(h, c)
        if self.y_activation == 'lrelu':
            h = torch.where(h < 0, h * LRELU_SLOPE, h) * LRELU_GAIN
            log_det = log_det - _undo_lrelu(h)[1]
        return h, log_det

    def _prepare(self, h: torch.Tensor, c: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        if h.ndim != 2 or h.shape[1] != self.features:
            raise ValueError(f'phi: expected [N, {self.features}], got {list(h.shape)}')
        dtype = torch.promote_types(self.couplings[0].hidden.weight.dtype, torch.float32)
        if self.embed is None:
            return h.to(dtype), None
        if c is None or c.shape != (h.shape[0], self.c_dim):
            got = None if c is None else list(c.shape)
            raise ValueError(f'phi: labels expected [{h.shape[0]}, {self.c_dim}], got {got}')
        return h.to(dtype), _normalize(self.embed(c.to(dtype)))

    def extra_repr(self) -> str:
        return f'features={self.features:d}, c_dim={self.c_dim:d}, num_couplings={self.num_couplings:d}'


def _normalize(x: torch.Tensor) -> torch.Tensor:
    """Scales each row to unit second moment."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _direction(x: torch.Tensor) -> torch.Tensor:
    """The same for rows of any length, but for 0."""
    return _normalize(x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-30))


# ---------------------------------------------------------------------------------------------------------------------
# Encoder


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    """NHWC on a CPU whose host has compiled kernels: there it is faster. Else whatever x has."""
    compiled = getattr(bias_act, 'compiled_for', None)
    last = x.device.type == 'cpu' and compiled is not None and compiled(x.device)
    return torch.channels_last if last else torch.preserve_format


def _layer_dtype(device: torch.device, use_fp16: bool, resolution: int) -> torch.dtype:
    """As this process has chosen; where a host knows no choice float16 is for CUDA, and the network says where."""
    chosen = getattr(bias_act, 'layer_dtype', None)
    if chosen is not None:
        return chosen(device, use_fp16, resolution)
    return torch.float16 if use_fp16 and device.type == 'cuda' else torch.float32


@persistence.persistent_class
class EncoderBlock(torch.nn.Module):
    """Residual block that halves the resolution, of the discriminator's kind: [N, in, R, R] → [N, out, R/2, R/2]."""

    def __init__(
        self, in_channels: int, out_channels: int, use_fp16: bool = False, conv_clamp: float | None = None
    ) -> None:
        super().__init__()
        self.use_fp16 = use_fp16
        self.conv0 = Conv(in_channels, in_channels, 3, activation='lrelu', clamp=conv_clamp)
        self.conv1 = Conv(in_channels, out_channels, 3, activation='lrelu', down=2, clamp=conv_clamp)
        self.skip = Conv(in_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(_layer_dtype(x.device, self.use_fp16, x.shape[2]), memory_format=_memory_format(x))
        return self.conv1(self.conv0(x), gain=math.sqrt(0.5)) + self.skip(x, gain=math.sqrt(0.5))


@persistence.persistent_class
class PaperBlock(torch.nn.Module):
    """The reference encoder's stage: 2×2 average pool, then two 3×3 convolutions with BN beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = Conv(in_channels, out_channels, 3, bias=False)
        self.norm0 = BatchNorm(out_channels)
        self.conv1 = Conv(out_channels, out_channels, 3, bias=False)
        self.norm1 = BatchNorm(out_channels)
        change = in_channels != out_channels
        self.skip = Conv(in_channels, out_channels, 1, bias=False) if change else None
        self.norm_skip = BatchNorm(out_channels) if change else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.avg_pool2d(x, 2)
        y = x if self.skip is None or self.norm_skip is None else _lrelu(self.norm_skip(self.skip(x)))
        x = _lrelu(self.norm0(self.conv0(x)))
        return _lrelu(self.norm1(self.conv1(x))) + y


def _lrelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.leaky_relu(x, 0.2)


@persistence.persistent_class
class Encoder(torch.nn.Module):
    """The encoder f: images NCHW in [-1, 1] → a code in y (paper), in z (the ablation), or one y for each layer (y+).

    [N, code_dim], for y+ [N, num_ws, code_dim]: the base code, which is also the first layer's, and the others'
    offsets from it (Tov et al., arXiv 2102.02766), which count once `unlocked` lets them: training does that.

    arch='resnet' mirrors the discriminator's trunk and widths; arch='paper' is the reference code's BN network (64
    channels, doubled per stage). The code is `output_mean + output_std · head(x)`, both learned: the head has unit
    scale, the latent space has not, and a fixed scale would press y into a shape that it hasn't.

    With iters > 1 the encoder is meant to be asked again, with what has come of its last answer (`Feedback`), and then
    gives the change of the code (iterative refinement, Alaluf et al., arXiv 2104.02699).
    """

    unlocked: torch.Tensor

    def __init__(
        self,
        code_dim: int,
        img_resolution: int,
        img_channels: int,
        arch: str = 'resnet',  # 'resnet' or 'paper'.
        space: str = 'y',  # What the code is: 'y', 'y+' or 'z'.
        channel_base: int = 32768,  # Channels at resolution r: channel_base / r …
        channel_max: int = 512,  # … but no more than this.
        num_fp16_res: int = 0,  # So many of the highest resolutions run in float16 on CUDA.
        conv_clamp: float | None = None,
        num_ws: int = 1,  # Layers of y+.
        iters: int = 1,  # Times that it is asked.
        hidden_features: int | None = None,  # Width before the head. None = that of the last convolution.
    ) -> None:
        super().__init__()
        if arch not in ('resnet', 'paper') or space not in ('y', 'y+', 'z'):
            expected = "arch 'resnet' or 'paper', space 'y', 'y+' or 'z'"
            raise ValueError(f'encoder: expected {expected}; got {arch!r} and {space!r}')
        if iters > 1 and space == 'z':
            raise ValueError(f'encoder: iters is 1 for an encoder towards z, got {iters}')
        if iters > 1 and arch == 'paper':
            raise ValueError("encoder: iters > 1 needs arch='resnet', for batch norm would mix first and later answers")
        if img_resolution < 8 or img_resolution & (img_resolution - 1):
            raise ValueError(f'encoder: img_resolution must be a power of two from 8 on, got {img_resolution}')
        self.arch = arch
        self.space = space
        self.code_dim = code_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_ws = num_ws if space == 'y+' else 1
        self.iters = iters
        self.num_stages = int(math.log2(img_resolution)) - 2
        if arch == 'resnet':
            width = self._build_resnet(channel_base, channel_max, num_fp16_res, conv_clamp, hidden_features)
        else:
            width = self._build_paper()
        self.head = Dense(width, code_dim)
        self.offsets = None
        if space == 'y+':
            self.offsets = Dense(width, (num_ws - 1) * code_dim, weight_init=0)
            self.register_buffer('unlocked', torch.zeros([num_ws - 1]))  # 0 or 1 for each layer but the first.
        self.feedback = None
        if iters > 1:
            # Of the code and of the gradient, which are as long as the code: see Feedback.
            self.feedback = Dense(2 * self.num_ws * code_dim, width)
            self.combine = Dense(width, width, activation='lrelu')
            self.change = Dense(width, self.num_ws * code_dim, weight_init=0)  # Later answers begin as the first one.
        self.output_mean = torch.nn.Parameter(torch.zeros([code_dim]))
        self.output_std = torch.nn.Parameter(torch.ones([code_dim]))

    def _build_resnet(
        self,
        channel_base: int,
        channel_max: int,
        num_fp16_res: int,
        conv_clamp: float | None,
        hidden_features: int | None,
    ) -> int:
        widths = [min(channel_base * 2**i // self.img_resolution, channel_max) for i in range(self.num_stages + 1)]
        in_channels = self.img_channels * (2 if self.iters > 1 else 1)
        self.stem = Conv(in_channels, widths[0], 1, activation='lrelu', clamp=conv_clamp)
        for i in range(self.num_stages):
            use_fp16 = i < num_fp16_res
            block = EncoderBlock(widths[i], widths[i + 1], use_fp16, conv_clamp if use_fp16 else None)
            setattr(self, f'stage{i}', block)
        self.conv = Conv(widths[-1], widths[-1], 3, activation='lrelu')
        width = hidden_features or widths[-1]
        self.dense = Dense(widths[-1] * 16, width, activation='lrelu')
        return width

    def _build_paper(self) -> int:
        widths = [min(64 * 2**i, 1024) for i in range(self.num_stages + 1)]
        self.stem = Conv(self.img_channels, widths[0], 3, bias=False)
        self.norm = BatchNorm(widths[0])
        for i in range(self.num_stages):
            setattr(self, f'stage{i}', PaperBlock(widths[i], widths[i + 1]))
        self.head_norm = BatchNorm(self.code_dim, affine=False)
        return widths[-1] * 16

    def forward(self, img: torch.Tensor, feedback: Feedback | None = None) -> torch.Tensor:
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if img.ndim != 4 or tuple(img.shape[1:]) != expected:
            raise ValueError(f'encoder: expected images [N, {", ".join(map(str, expected))}], got {list(img.shape)}')
        if feedback is not None and self.feedback is None:
            raise ValueError('encoder: takes no feedback, for it was made with iters=1')
        features = self.head_input(img.to(torch.float32), feedback)
        if feedback is not None:
            return self._later_answer(features, feedback.code)
        code = self.head(features)
        code = self.output_mean + self.output_std * (self.head_norm(code) if self.arch == 'paper' else code)
        return code if self.offsets is None else self._per_layer(code, self.offsets(features))

    def _per_layer(self, base: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Base code [N, code_dim] and what is to be added to it, [N, (num_ws − 1)·code_dim] → [N, num_ws, code_dim]."""
        offsets = self.output_std * offsets.unflatten(1, [self.num_ws - 1, self.code_dim])
        base = base.unsqueeze(1)
        return torch.cat([base, base + offsets * self.unlocked[:, None]], dim=1)

    def _later_answer(self, features: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """The last code, changed."""
        change = self.change(features)
        if self.offsets is None:
            return code + self.output_std * change
        base, offsets = change.tensor_split([self.code_dim], dim=1)
        return code + self._per_layer(self.output_std * base, offsets)

    def head_input(self, img: torch.Tensor, feedback: Feedback | None = None) -> torch.Tensor:
        """What the heads see of images NCHW in [-1, 1]: [N, features]."""
        if self.feedback is None:
            return self._trunk(img)
        # Before the first answer there is nothing to see: no error, no code, no direction.
        error = torch.zeros_like(img) if feedback is None else img - feedback.recon
        x = self._trunk(torch.cat([img, error], dim=1))
        if feedback is not None:
            code = (feedback.code - self.output_mean) / self.output_std
            direction = _direction((feedback.gradient * self.output_std).flatten(1))
            x = x + self.feedback(torch.cat([code.flatten(1), direction], dim=1))
        return self.combine(x)

    def _trunk(self, x: torch.Tensor) -> torch.Tensor:
        dtype = _layer_dtype(x.device, False, x.shape[2])  # The stem was never made for float16.
        if self.arch == 'resnet' and dtype != torch.float32:
            x = x.to(dtype, memory_format=_memory_format(x))
        x = self.stem(x)
        if self.arch == 'paper':
            x = _lrelu(self.norm(x))
        for i in range(self.num_stages):
            x = getattr(self, f'stage{i}')(x)
        x = x.to(torch.float32)
        if self.arch == 'paper':
            return x.flatten(1)
        return self.dense(self.conv(x).flatten(1))

    @torch.no_grad()
    def set_output_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Starts the output at the mean and standard deviation [code_dim] that the latent space has."""
        self.output_mean.copy_(mean)
        self.output_std.copy_(std)

    def extra_repr(self) -> str:
        return f'arch={self.arch}, space={self.space}, code_dim={self.code_dim}, img_resolution={self.img_resolution}'


# ---------------------------------------------------------------------------------------------------------------------
# Mapping and generator


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """All that stands between latents: z ↔ y by φ, y → w by the host's kind of dense layers, image → y by the encoder.

    With `num_layers=0`, as in the paper, y is w. With `base_kwargs` a whole mapping network of the host's stands
    between y and w. That one begins by scaling its input to a fixed length, so the length of y is free: an encoder's y
    is given unit mean square, which is what N(0, I) has. Called as the host calls its mapping network: z [N, z_dim],
    labels [N, c_dim] or None → ws [N, num_ws, w_dim]. z is not normalised, because that could not be inverted.
    """

    w_avg: torch.Tensor
    encoder: Encoder | None
    base: Any

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 0,  # Dense layers between y and w.
        layer_features: int | None = None,  # Their width. None = w_dim.
        lr_multiplier: float = 0.01,  # Of these layers.
        w_avg_beta: float | None = 0.995,  # Decay of the tracked mean of w. None = don't track.
        phi_kwargs: dict[str, Any] = {},  # noqa: B006  Arguments of Phi; a mutable default as hosts have them.
        encoder_kwargs: dict[str, Any] | None = None,  # Arguments of Encoder. None = stage 1, no encoder yet.
        base_kwargs: dict[str, Any] | None = None,  # Arguments of the host's mapping network y → w. None = none.
    ) -> None:
        super().__init__()
        if num_layers and base_kwargs is not None:
            raise ValueError(f'mapping: base_kwargs bring layers of their own; num_layers must be 0, not {num_layers}')
        if num_layers == 0 and base_kwargs is None and z_dim != w_dim:
            raise ValueError(f'mapping: without dense layers y is w, so z_dim must be w_dim; got {z_dim} and {w_dim}')
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        self.phi = Phi(z_dim, c_dim, **phi_kwargs)
        widths = [z_dim] + [layer_features or w_dim] * (num_layers - 1) + [w_dim]
        for i in range(num_layers):
            layer = Dense(widths[i], widths[i + 1], activation='lrelu', lr_multiplier=lr_multiplier)
            setattr(self, f'fc{i}', layer)
        self.base = None
        if base_kwargs is not None:  # Truncation, w_avg and the copies of w are this network's own.
            shape = dict(z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=1, w_avg_beta=None)
            base_kwargs = {'class_name': _host_class('MappingNetwork'), **base_kwargs, **shape}
            self.base = dnnlib.util.construct_class_by_name(**base_kwargs)
        self.register_buffer('w_avg', torch.zeros([w_dim]))
        self.encoder = None
        if encoder_kwargs is not None:
            freeze(self)
            self.encoder = Encoder(z_dim, **encoder_kwargs)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,  # stylegan2-ada-pytorch's keyword: in training, don't track w.
        update_emas: bool | None = None,  # stylegan3's keyword: track w. None = decide by the line above.
    ) -> torch.Tensor:
        w = self.y_to_w(self.z_to_y(z, c), c)
        track = (self.training and not skip_w_avg_update) if update_emas is None else update_emas
        # In stage 2 φ is frozen, its weights are buffers, and so is the mean of w.
        if track and self.w_avg_beta is not None and any(True for _ in self.phi.parameters()):
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        return self.broadcast(w, truncation_psi, truncation_cutoff)

    def z_to_y(self, z: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """φ⁻¹: [N, z_dim] → [N, z_dim]."""
        return self.phi.inverse(z, c)[0]

    def y_to_z(self, y: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """φ: [N, z_dim] → [N, z_dim]."""
        return self.phi(y, c)[0]

    def y_to_w(self, y: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """[N, z_dim] → [N, w_dim]; labels matter only to a mapping network of the host's."""
        if self.base is not None:
            return self.base(y, c)[:, 0]
        for i in range(self.num_layers):
            y = getattr(self, f'fc{i}')(y)
        return y

    def y_to_ws(
        self,
        y: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
    ) -> torch.Tensor:
        """y [N, z_dim], or y+ [N, num_ws, z_dim] → ws [N, num_ws, w_dim], truncated towards the mean of w."""
        if y.ndim == 2:
            return self.broadcast(self.y_to_w(y, c), truncation_psi, truncation_cutoff)
        if y.ndim != 3 or y.shape[1] != self.num_ws:
            raise ValueError(f'y: expected [N, {self.z_dim}] or [N, {self.num_ws}, {self.z_dim}], got {list(y.shape)}')
        per_layer = None if c is None else c.repeat_interleave(self.num_ws, dim=0)
        ws = self.y_to_w(y.flatten(0, 1), per_layer).unflatten(0, [-1, self.num_ws])
        return self._truncate(ws, truncation_psi, truncation_cutoff)

    def broadcast(self, w: torch.Tensor, truncation_psi: float, truncation_cutoff: int | None) -> torch.Tensor:
        """w [N, w_dim] → one copy for each layer, the first `truncation_cutoff` (None = all) pulled to w_avg."""
        return self._truncate(w.unsqueeze(1).repeat([1, self.num_ws, 1]), truncation_psi, truncation_cutoff)

    def _truncate(self, ws: torch.Tensor, truncation_psi: float, truncation_cutoff: int | None) -> torch.Tensor:
        if truncation_psi != 1:
            cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)
        return ws

    def encode(
        self,
        img: torch.Tensor,
        c: torch.Tensor | None = None,
        synthesis: Any = None,  # Makes images of ws; needed by an encoder that is asked more than once.
    ) -> torch.Tensor:
        """f: images NCHW in [-1, 1] → y [N, z_dim], or y+ [N, num_ws, z_dim] where the encoder is made for it.

        Labels are needed by an encoder towards z, and by one that sees what has come of its answers.
        """
        if self.encoder is None:
            raise ValueError('this network has no encoder: it comes from stage 1')
        code = self.encoder(img)
        for _ in range(1, self.encoder.iters):
            code = self.encoder(img, self.feedback(img, code, c, synthesis))
        return self.code_to_y(code, c)

    def feedback(
        self, img: torch.Tensor, code: torch.Tensor, c: torch.Tensor | None, synthesis: Any
    ) -> Feedback:
        """Decodes a code, and finds where the reconstruction would get better: one pass through g and back."""
        if synthesis is None:
            raise ValueError('this encoder sees reconstructions: encode needs the synthesis network')
        with torch.inference_mode(False), torch.enable_grad():
            img, code = img.detach().clone().to(torch.float32), code.detach().clone().requires_grad_(True)
            recon = synthesis(self.y_to_ws(self.code_to_y(code, c), c), noise_mode='const').to(torch.float32)
            gradient = code_gradient(recon, img, code)
        return Feedback(recon.detach(), code.detach(), gradient)

    def code_to_y(self, code: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """What the encoder gives, y, y+ or z → y or y+."""
        if self.encoder is not None and self.encoder.space == 'z':
            return self.z_to_y(code, c)
        if self.base is None:
            return code
        return _normalize(code.flatten(0, -2)).reshape(code.shape)

    def log_prob(self, y: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """log p(y | c) = log N(φ(y); 0, I) + log|det ∂φ/∂y|, in nats, [N]."""
        z, log_det = self.phi(y, c)
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1) + log_det

    def extra_repr(self) -> str:
        return f'z_dim={self.z_dim:d}, c_dim={self.c_dim:d}, w_dim={self.w_dim:d}, num_ws={self.num_ws:d}'


@persistence.persistent_class
class Generator(torch.nn.Module):
    """A StyleGAN2 generator with φ as its mapping network and, from stage 2 on, an encoder.

    Arguments up to `synthesis_kwargs` are the host's. `encoder_kwargs` starts stage 2: φ and synthesis then keep
    their weights as buffers, so that no optimiser, EMA or gradient exchange of any host touches them.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] = {},  # noqa: B006  Arguments of MappingNetwork.
        synthesis_kwargs: dict[str, Any] = {},  # noqa: B006  Arguments of the host's SynthesisNetwork.
        encoder_kwargs: dict[str, Any] | None = None,  # Arguments of Encoder. None = stage 1.
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        image = dict(img_resolution=img_resolution, img_channels=img_channels)
        synthesis = dict(class_name=_host_class('SynthesisNetwork'), w_dim=w_dim, **image)
        self.synthesis = dnnlib.util.construct_class_by_name(**{**synthesis, **synthesis_kwargs})
        self.num_ws = self.synthesis.num_ws
        if encoder_kwargs is not None:
            freeze(self.synthesis)
            layers = dict(num_ws=self.num_ws) if encoder_kwargs.get('space') == 'y+' else {}
            encoder_kwargs = {**image, **layers, **encoder_kwargs}
        self.mapping = MappingNetwork(
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            num_ws=self.num_ws,
            encoder_kwargs=encoder_kwargs,
            **mapping_kwargs,
        )

    @property
    def encoder(self) -> Encoder | None:
        """f, or None in stage 1. It lives in the mapping network because hosts hand losses only the two halves of G."""
        return self.mapping.encoder

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool | None = None,
        **synthesis_kwargs: Any,
    ) -> torch.Tensor:
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas=update_emas)
        if update_emas:  # Only synthesis networks of stylegan3 know the word, and only its loop says it.
            synthesis_kwargs['update_emas'] = True
        return self.synthesis(ws, **synthesis_kwargs)

    def encode(self, img: torch.Tensor, c: torch.Tensor | None = None, space: str | None = None) -> torch.Tensor:
        """Images NCHW in [-1, 1] → y [N, z_dim], or y+ [N, num_ws, z_dim] if the encoder is made for it.

        space='y' asks for the base code alone; None = whatever the encoder gives. Raises ValueError in stage 1, and for
        a space that the encoder doesn't reach.
        """
        if space not in (None, 'y', 'y+'):
            raise ValueError(f"space: expected 'y', 'y+' or None, got {space!r}")
        y = self.mapping.encode(img, c, self.synthesis)
        if space == 'y+' and y.ndim == 2:
            raise ValueError('space: this encoder gives one y for all layers, not y+')
        return base_code(y) if space == 'y' else y

    def invert(self, img: torch.Tensor, c: torch.Tensor | None = None, space: str | None = None) -> Inversion:
        """Images NCHW in [-1, 1] → y = f(img), as `encode` gives it, and z = φ(y) of the base code."""
        y = self.encode(img, c, space)
        return Inversion(y, self.mapping.y_to_z(base_code(y), c))

    def decode(
        self, y: torch.Tensor, c: torch.Tensor | None = None, truncation_psi: float = 1, **synthesis_kwargs: Any
    ) -> torch.Tensor:
        """y [N, z_dim] or y+ [N, num_ws, z_dim] → images NCHW, about [-1, 1]."""
        return self.synthesis(self.mapping.y_to_ws(y, c, truncation_psi), **synthesis_kwargs)


def freeze(module: torch.nn.Module) -> None:
    """Turns every parameter of a module into a buffer of the same name and value."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())


def _host_class(name: str) -> str:
    """Full name of a network class of the host that this runs in."""
    for module in HOST_MODULES:
        try:
            dnnlib.util.get_obj_by_name(f'{module}.{name}')
            return f'{module}.{name}'
        except (ImportError, AttributeError):
            continue
    raise ImportError(f'no StyleGAN2 host is importable: looked for {name} in {" and ".join(HOST_MODULES)}')
