"""Convolutions under the host's names and switches, on a CPU by the fastest kernels that there are.

The host replaced these operators because old PyTorch computed weight gradients that nobody had asked for. Today's
autograd asks a convolution for just the gradients on the way to the requested inputs: PyTorch's operators do the work,
on a CPU `winograd_conv` where it is ahead, and on some CPUs `amx_conv`. A convolution's derivatives are convolutions
again, of any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from torch_utils.ops import amx_conv, winograd_conv
from torch_utils.ops.asked import is_asked, is_recorded

enabled = False  # Host's switch. Both values select the same operators.
TYPES = (torch.float32, torch.bfloat16)  # Of the operators below.
weight_gradients_disabled = False  # True inside no_weight_gradients(); for code that looks at it.


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Mark a region without need of weight gradients, as R1 does around `torch.autograd.grad(…, inputs=[images])`.

    Autograd skips them by itself there; the mark is kept in `weight_gradients_disabled` and restored on any way out.
    """
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


def conv2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
           padding: Any = 0, dilation: Any = 1, groups: int = 1) -> torch.Tensor:
    """`torch.nn.functional.conv2d`: NCHW input, [out, in / groups, height, width] weight."""
    geometry = _geometry(stride, padding, dilation, groups)
    if geometry is None or not _plain(input, weight):
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    out = _out_size(input, weight, geometry)
    if not (_ours(math.prod(out), weight) or _winograd_pays(out, weight, geometry, kept=True)):
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    y = _Conv.apply(input, weight, geometry) if _recorded(input, weight) else _convolved(input, weight, geometry)
    return y if bias is None else y + bias[:, None, None]


def conv_transpose2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
                     padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d`: NCHW input, [in, out / groups, height, width] weight."""
    geometry, extra = _geometry(stride, padding, dilation, groups), _pair(output_padding)
    if geometry is None or not _plain(input, weight):
        return functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    out = _transposed_size(input, weight, geometry, extra)
    if out[0] == 0 or not (_ours(_pixels(input), weight) or _winograd_pays(out, weight, geometry, kept=True)):
        return functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    operator = _ConvTranspose.apply if _recorded(input, weight) else _transposed
    y = operator(input, weight, geometry, extra)
    return y if bias is None else y + bias[:, None, None]


# ---------------------------------------------------------------------------------------------------------------------
# What the kernels take


Size = tuple[int, int, int]


class _Geometry(NamedTuple):
    stride: int
    padding: tuple[int, int]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _geometry(stride: Any, padding: Any, dilation: Any, groups: int) -> _Geometry | None:
    """None for what only PyTorch's operators do."""
    if isinstance(padding, str) or groups != 1 or _pair(dilation) != (1, 1):
        return None
    steps, zeros = _pair(stride), _pair(padding)
    return _Geometry(steps[0], zeros) if steps[0] == steps[1] > 0 and min(zeros) >= 0 else None


def _plain(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether these are numbers in a CPU's memory, and nobody records or transforms what is done with them.

    A layout of oneDNN's own and signs yet to be changed (`_neg_view`) are none; of a dual number they are but a half.
    """
    return (
        not is_recorded()  # First: torch.compile would stop at the rest.
        and x.dtype == w.dtype in TYPES and x.device.type == w.device.type == 'cpu' and x.ndim == w.ndim == 4
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout == torch.strided and not t.is_neg()
                for t in (x, w))
        and not torch.is_autocast_enabled('cpu')
    )


def _pixels(x: torch.Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _out_size(x: torch.Tensor, w: torch.Tensor, geometry: _Geometry) -> Size:
    """Of a convolution's result: images, height, width; all 0 where there can be none, which PyTorch then says."""
    height, width = ((x.shape[2 + i] + 2 * geometry.padding[i] - w.shape[2 + i]) // geometry.stride + 1 for i in (0, 1))
    return (x.shape[0], height, width) if min(height, width) > 0 and x.shape[1] == w.shape[1] else (0, 0, 0)


def _transposed_size(x: torch.Tensor, w: torch.Tensor, geometry: _Geometry, output_padding: tuple[int, int]) -> Size:
    """The same of a transposed convolution's."""
    height, width = ((x.shape[2 + i] - 1) * geometry.stride - 2 * geometry.padding[i] + w.shape[2 + i]
                     + output_padding[i] for i in (0, 1))
    fits = x.shape[1] == w.shape[0] and min(height, width) > 0 and min(output_padding) >= 0
    return (x.shape[0], height, width) if fits and max(output_padding) < geometry.stride else (0, 0, 0)


def _ours(pixels: int, w: torch.Tensor) -> bool:
    """Whether the operators below are ahead of PyTorch's own, of a result of so many pixels; 0: there can be none.

    In bfloat16 they are, by the same kernels: the double backward that PyTorch makes of a convolution takes weights'
    gradients for images and is several times slower.
    """
    return pixels > 0 if w.dtype == torch.bfloat16 else _pays(pixels, w)


def _pays(pixels: int, w: torch.Tensor, gradient: bool = False) -> bool:
    """Whether `amx_conv` is ahead of PyTorch's, as measured: `pixels` are those on the smaller side of a stride.

    A kernel of one pixel does too little with what is read; its weight's gradient never is. (At 128 channels it is no
    faster, but the derivatives of its derivatives are: PyTorch makes them in twice the time.)
    """
    if w.dtype != torch.float32 or not amx_conv.available():
        return False
    one = w.shape[2] * w.shape[3] == 1
    return pixels >= 64 and min(w.shape[0], w.shape[1]) >= (128 if one else 32) and not (one and gradient)


def _winograd_pays(out: Size, w: torch.Tensor, geometry: _Geometry, kept: bool = False, gradient: bool = False) -> bool:
    """Whether `winograd_conv` is ahead of the others, as benchmarks/convolutions.py measures it.

    out: the result's images, height and width. kept: whether the transformed weights are there already; else there must
    be enough tiles for it. gradient: of the weight. Where PyTorch's precision asks for fewer products, AMX is ahead.
    """
    if (w.dtype != torch.float32 or w.shape[2:] != (3, 3) or geometry.stride != 1
            or max(geometry.padding) > 2 or min(w.shape[:2]) < 64 or not winograd_conv.available()):
        return False
    tiles = winograd_conv.tiles(*out)
    if amx_conv.available():
        exact = amx_conv.asked_parts() == 3
        return exact and tiles >= (16 if kept else 32 if gradient else 64)
    return tiles >= (48 if kept else 64 if gradient else 128)


def _recorded(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether somebody may differentiate the result."""
    return torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)


def _unkept(w: torch.Tensor) -> torch.Tensor:
    """w; if it is being trained not as the parameter, of which results would be kept (`kept`) until the next step."""
    return w.detach() if w.requires_grad else w


def _like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The result in x's memory format; kernels give channels_last."""
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# The numbers, by whatever is fastest


def _convolved(x: torch.Tensor, w: torch.Tensor, geometry: _Geometry) -> torch.Tensor:
    out = _out_size(x, w, geometry)
    if _winograd_pays(out, w, geometry, kept=True):
        packed = winograd_conv.kept_weights(w)
        if packed is not None or _winograd_pays(out, w, geometry):
            return _like(winograd_conv.conv2d(x, w, geometry.padding, packed), x)
    if _pays(math.prod(out), w):
        return _like(amx_conv.conv2d(x, w, *geometry), x)
    return functional.conv2d(x, w, None, geometry.stride, geometry.padding)


def _transposed(x: torch.Tensor, w: torch.Tensor, geometry: _Geometry, output_padding: tuple[int, int]) -> torch.Tensor:
    out = _transposed_size(x, w, geometry, output_padding)
    if output_padding == (0, 0) and _winograd_pays(out, w, geometry, kept=True):
        packed = winograd_conv.kept_weights(w, transpose=True)
        if packed is not None or _winograd_pays(out, w, geometry):
            return _like(winograd_conv.conv_transpose2d(x, w, geometry.padding, packed), x)
    if _pays(_pixels(x), w):
        return _like(amx_conv.conv_transpose2d(x, w, *geometry, output_padding), x)
    if w.dtype == torch.bfloat16 and geometry.stride > 1:
        return _scattered(x, w, geometry, output_padding)
    return functional.conv_transpose2d(x, w, None, geometry.stride, geometry.padding, output_padding)


def _weight_gradient(small: torch.Tensor, big: torch.Tensor, kernel_size: torch.Size,
                     geometry: _Geometry) -> torch.Tensor:
    w = small.new_empty(()).expand(small.shape[1], big.shape[1], *kernel_size)
    out = small.shape[0], small.shape[2], small.shape[3]
    if _winograd_pays(out, w, geometry, gradient=True):
        return winograd_conv.weight_gradient(small, big, geometry.padding)
    if _pays(_pixels(small), w, gradient=True):
        return amx_conv.weight_gradient(small, big, (w.shape[2], w.shape[3]), *geometry)
    stride, padding = [geometry.stride] * 2, list(geometry.padding)
    return torch.ops.aten.convolution_backward(
        small, big, w, None, stride, padding, [1, 1], False, [0, 0], 1, [False, True, False])[1]


def _scattered(x: torch.Tensor, w: torch.Tensor, geometry: _Geometry, output_padding: tuple[int, int]) -> torch.Tensor:
    """A transposed convolution as the gradient of a convolution, which it is; oneDNN does that in half the time."""
    size = [(x.shape[2 + i] - 1) * geometry.stride - 2 * geometry.padding[i] + w.shape[2 + i] + output_padding[i]
            for i in (0, 1)]  # fmt: skip
    form = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    nothing = torch.empty([x.shape[0], w.shape[1], *size], dtype=x.dtype, memory_format=form)  # Asked for its size.
    return torch.ops.aten.convolution_backward(
        x, nothing, w, None, [geometry.stride] * 2, list(geometry.padding), [1, 1], False, [0, 0], 1,
        [True, False, False])[0]


# ---------------------------------------------------------------------------------------------------------------------
# The three operators. Each one's derivatives are the other two.


class _Conv(torch.autograd.Function):
    """x [N, I, H, W], w [O, I, kh, kw] → [N, O, h, w]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, geometry: _Geometry) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _convolved(x, _unkept(w), geometry)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w = ctx.saved_tensors
        for_x, for_w = is_asked(ctx, 0), is_asked(ctx, 1)
        geometry = ctx.geometry
        return (
            _ConvTranspose.apply(grad, w, geometry, _missing(x, grad, w, geometry)) if for_x else None,
            _WeightGradient.apply(grad, x, w.shape[2:], geometry) if for_w else None, None,
        )  # fmt: skip


class _ConvTranspose(torch.autograd.Function):
    """x [N, I, h, w], w [I, O, kh, kw] → [N, O, H, W]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, geometry: _Geometry,
                output_padding: tuple[int, int]) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _transposed(x, _unkept(w), geometry, output_padding)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w = ctx.saved_tensors
        for_x, for_w = is_asked(ctx, 0), is_asked(ctx, 1)
        return (
            _Conv.apply(grad, w, ctx.geometry) if for_x else None,
            _WeightGradient.apply(x, grad, w.shape[2:], ctx.geometry) if for_w else None, None, None,
        )  # fmt: skip


class _WeightGradient(torch.autograd.Function):
    """small [N, A, h, w], big [N, B, H, W] → [A, B, kh, kw]: of _Conv's weight and, small being x, _ConvTranspose's."""

    @staticmethod
    def forward(ctx: Any, small: torch.Tensor, big: torch.Tensor, kernel_size: torch.Size,
                geometry: _Geometry) -> torch.Tensor:
        ctx.save_for_backward(small, big)
        ctx.geometry = geometry
        return _weight_gradient(small, big, kernel_size, geometry)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        small, big = ctx.saved_tensors
        for_small, for_big = is_asked(ctx, 0), is_asked(ctx, 1)
        geometry = ctx.geometry
        return (
            _Conv.apply(big, grad, geometry) if for_small else None,
            _ConvTranspose.apply(small, grad, geometry, _missing(big, small, grad, geometry)) if for_big else None,
            None, None,
        )  # fmt: skip


def _missing(big: torch.Tensor, small: torch.Tensor, w: torch.Tensor, geometry: _Geometry) -> tuple[int, int]:
    """Rows and columns of `big` that a convolution to `small` left unread: a transposed one's output_padding."""
    rows, columns = (big.shape[i] - ((small.shape[i] - 1) * geometry.stride - 2 * geometry.padding[i - 2] + w.shape[i])
                     for i in (2, 3))
    return rows, columns
