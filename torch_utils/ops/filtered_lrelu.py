"""Leaky ReLU on an upsampled image, low-passed on both ways: the alias-free non-linearity of StyleGAN3."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from torch_utils import custom_ops
from torch_utils.ops import cuda_kernels
from torch_utils.ops.asked import is_asked, is_recorded
from torch_utils.ops.bias_act import bias_act, leaky_relu_
from torch_utils.ops.cuda_kernels import Filtered, FilteredAxis
from torch_utils.ops.upfirdn2d import filter_size, parse_padding, upfirdn2d

# On a CPU, where nothing is recorded, upsampled images are made so many values at a time (16 MB in float32): what
# malloc gets by mmap, from 32 MB on, costs more in page faults than the filters do.
PART_VALUES = 1 << 22
MIN_CHANNELS = 16  # Of a part: images of fewer are filtered in another way, which is slower for many.


def filtered_lrelu(x: torch.Tensor, fu: torch.Tensor | None = None, fd: torch.Tensor | None = None,
                   b: torch.Tensor | None = None, up: int = 1, down: int = 1, padding: int | Sequence[int] = 0,
                   gain: float = math.sqrt(2), slope: float = 0.2, clamp: float | None = None,
                   flip_filter: bool = False, impl: str = 'cuda') -> torch.Tensor:
    """Add `b`, upsample through `fu`, `gain * lrelu`, clamp, low-pass with `fd` and keep every `down`-th pixel.

    x: [N, C, H, W] of any floating type; the result is of the same type and has (W * up + padding - taps of fu - taps
    of fd + 2) / down columns, rounded up, and rows likewise. fu, fd: float32 constants, [taps] for both axes or
    [height, width]; None leaves out the filter. b: [C]. padding: of the upsampled image, int, [x, y] or
    [x0, x1, y0, y1]; negative crops. slope: of negative values. clamp: bound of what lrelu gives; None is off.
    flip_filter: True correlates with both filters. impl: 'cuda' takes the fast path on any device, 'ref' the readable
    one. Differentiable twice in x and b. Raises ValueError for arguments that don't fit.

    Karras et al. 2021, arXiv 2106.12423, section 3.
    """
    _check(x, b, gain, slope, clamp)
    sides = parse_padding(padding)
    if impl == 'ref':
        return _filtered_lrelu_ref(x, fu, fd, b, up, down, sides, gain, slope, clamp, flip_filter)
    if impl != 'cuda':
        raise ValueError(f"impl: got {impl!r}, expected 'ref' or 'cuda'")

    def run(x: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        if b is not None:
            x = x + b[:, None, None]
        if fu is None and up == 1:
            x = torch.nn.functional.pad(x, sides) if any(sides) else x
            x = bias_act(x, act='lrelu', alpha=slope, gain=gain, clamp=clamp)
        else:  # gain · lrelu(x) = lrelu(gain · x), and the filter multiplies anyway.
            x = upfirdn2d(x, fu, up, 1, sides, flip_filter, up**2 * gain)
            x = leaky_relu_(x, slope, clamp)
        return x if fd is None and down == 1 else upfirdn2d(x, fd, 1, down, 0, flip_filter)

    plan = _fused(x, fu, fd, up, down, sides, gain, flip_filter)
    if plan is not None:
        records = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
        return _FilteredLrelu.apply(x, b, fu, fd, plan, slope, clamp, records)
    channels = _channels_at_once(x, up, sides)
    if channels is None:
        return run(x, b)
    biases = [None] * x.shape[1] if b is None else list(b.split(channels))
    return torch.cat([torch.cat([run(part, bias) for part, bias in zip(sample.split(channels, dim=1), biases)], dim=1)
                      for sample in x.split(1)])


def _fused(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, up: int, down: int,
           sides: tuple[int, int, int, int], gain: float, flip_filter: bool) -> Filtered | None:
    """What one CUDA kernel has to do; None if there is none, or an upsampled tile is too large for it."""
    if not cuda_kernels.usable(x) or not all(isinstance(factor, int) for factor in (up, down)):
        return None
    axes = []
    for size, before, after, (up_taps, down_taps) in zip(
            x.shape[:1:-1], sides[::2], sides[1::2], zip(filter_size(fu), filter_size(fd))):
        fine = size * up + before + after - up_taps + 1
        out = (fine - down_taps) // down + 1
        if out < 1:
            return None  # upfirdn2d says what is wrong.
        axes.append(FilteredAxis(size, fine, out, before, 0, up_taps, down_taps))
    separable = fu is None or fu.ndim == 1, fd is None or fd.ndim == 1
    plan = Filtered(axes[0], axes[1], up, down, separable, (not flip_filter,) * 2, up**2 * gain)
    if cuda_kernels.fits(plan, x.dtype, x.device):
        return plan
    custom_ops.say_once('filtered_lrelu: filters too long for the fused CUDA kernel, three slower ones serve')
    return None


class _FilteredLrelu(torch.autograd.Function):
    """One kernel forward, and for gradients two bits of each upsampled pixel."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, b: torch.Tensor | None, fu: torch.Tensor | None, fd: torch.Tensor | None,
                plan: Filtered, slope: float, clamp: float | None, records: bool) -> torch.Tensor:
        mode = cuda_kernels.WRITE if records else cuda_kernels.FORGET
        y, mask = cuda_kernels.filtered_lrelu(x, b, fu, fd, plan, slope, clamp, mode)
        ctx.save_for_backward(mask, fu, fd)
        ctx.plan, ctx.slope, ctx.bias_type = plan, slope, None if b is None else b.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        mask, fu, fd = ctx.saved_tensors
        dx = _Masked.apply(grad, mask, fd, fu, ctx.plan.transposed(), ctx.slope)
        db = None
        if ctx.bias_type is not None and is_asked(ctx, 1):
            db = dx.sum(dim=(0, 2, 3), dtype=torch.promote_types(dx.dtype, torch.float32)).to(ctx.bias_type)
        return dx, db, *[None] * 6


class _Masked(torch.autograd.Function):
    """Its linear part: known slopes between two filters. The transpose is one of its kind, with the filters swapped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None,
                plan: Filtered, slope: float) -> torch.Tensor:
        ctx.save_for_backward(mask, fu, fd)
        ctx.plan, ctx.slope = plan, slope
        return cuda_kernels.filtered_lrelu(x, None, fu, fd, plan, slope, None, cuda_kernels.READ, mask)[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        mask, fu, fd = ctx.saved_tensors
        return _Masked.apply(grad, mask, fd, fu, ctx.plan.transposed(), ctx.slope), *[None] * 5


def _channels_at_once(x: torch.Tensor, up: int, sides: tuple[int, int, int, int]) -> int | None:
    """How many channels of one image to do in a part; None if the batch is not to be divided."""
    channels, height, width = x.shape[1:]
    values = (height * up + sides[2] + sides[3]) * (width * up + sides[0] + sides[1])
    if is_recorded() or x.device.type != 'cpu' or torch.is_grad_enabled():
        return None
    if x.shape[0] * channels * values <= 2 * PART_VALUES:
        return None
    parts = math.ceil(channels * values / PART_VALUES)
    return max(math.ceil(channels / parts), MIN_CHANNELS)


def _filtered_lrelu_ref(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None,
                        up: int, down: int, sides: tuple[int, int, int, int], gain: float, slope: float,
                        clamp: float | None, flip_filter: bool) -> torch.Tensor:
    """The definition, step by step. The bias comes first: inserted zeros and padding have none."""
    x = bias_act(x, b, impl='ref')
    x = upfirdn2d(x, fu, up, 1, sides, flip_filter, up**2, impl='ref')
    x = bias_act(x, act='lrelu', alpha=slope, gain=gain, clamp=clamp, impl='ref')
    return upfirdn2d(x, fd, 1, down, 0, flip_filter, impl='ref')


def _check(x: torch.Tensor, b: torch.Tensor | None, gain: float, slope: float, clamp: float | None) -> None:
    if x.ndim != 4 or (b is not None and b.shape != x.shape[1:2]):
        raise ValueError(f'x, b: got {list(x.shape)} and {None if b is None else list(b.shape)}, expected NCHW and [C]')
    if not (gain > 0 and slope >= 0 and (clamp is None or clamp >= 0)):
        raise ValueError(f'gain, slope, clamp: got {gain}, {slope} and {clamp}, expected numbers > 0, ≥ 0 and ≥ 0')
