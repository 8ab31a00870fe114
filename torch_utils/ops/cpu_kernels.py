"""Calls of the compiled CPU kernels (csrc/cpu_*.cpp): pointers and sizes from tensors, nothing that autograd sees.

Callers ask `usable` first. Tensors are float32 or bfloat16, NCHW in either memory format; scales, noise, biases and
their gradients are float32.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from torch_utils import custom_ops
from torch_utils.ops.asked import is_recorded

TYPES = (torch.float32, torch.bfloat16)
SOURCES = ('cpu_elementwise.cpp', 'cpu_upfirdn2d.cpp', 'cpu_checksum.cpp')

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_FORWARD = [_P] * 5 + [_I] * 6 + [_F] * 4 + [_I] * 2
_BACKWARD = [_P] * 8 + [_I] * 5 + [_F] * 4 + [_I] * 2
_SQUARED_NORMS = [_P] * 2 + [_I] * 5
_UPFIRDN2D = [_P] * 3 + [_I] * 3 + [_F] + [_I] * 2 + [_P] + [_I] * 3

_typed: set[int] = set()


class Rectifier(NamedTuple):
    """`clamp(gain * lrelu(·))`; the gain is above 0, or alpha is 1."""

    alpha: float
    gain: float
    clamp: float | None


def library() -> Any:
    """The kernels, or None."""
    found = custom_ops.load('cpu', SOURCES)
    if found is not None and id(found) not in _typed:
        found.act_forward.argtypes, found.act_forward.restype = _FORWARD, None
        found.act_backward.argtypes, found.act_backward.restype = _BACKWARD, None
        found.squared_norms.argtypes, found.squared_norms.restype = _SQUARED_NORMS, None
        found.upfirdn2d.argtypes, found.upfirdn2d.restype = _UPFIRDN2D, _I
        found.checksum.argtypes, found.checksum.restype = [_P, _I], ctypes.c_uint64
        _typed.add(id(found))
    return found


def usable(x: torch.Tensor) -> bool:
    """Whether kernels can work on x: a real tensor of theirs, and no tracer that wants to see operators."""
    return (x.device.type == 'cpu' and x.dtype in TYPES and x.ndim == 4
            and type(x) in (torch.Tensor, torch.nn.Parameter) and not is_recorded()
            and x.numel() > 0 and library() is not None)


def is_last(x: torch.Tensor) -> bool:
    """Whether the kernels see x as NHWC."""
    return x.shape[2] * x.shape[3] == 1 or (x.shape[1] > 1 and x.stride(1) == 1)


def is_dense(x: torch.Tensor) -> bool:
    """Whether kernels can work in x's own memory."""
    return x.is_contiguous(memory_format=torch.channels_last if is_last(x) else torch.contiguous_format)


def dense(x: torch.Tensor, last: bool) -> torch.Tensor:
    """x with its memory in the order of NHWC or NCHW, and without gaps."""
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def new(shape: Sequence[int], like: torch.Tensor, last: bool) -> torch.Tensor:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def act_forward(x: torch.Tensor, scale: torch.Tensor | None, noise: torch.Tensor | None, bias: torch.Tensor | None,
                factor: float, act: Rectifier, inplace: bool = False) -> torch.Tensor:
    """`clamp(gain * lrelu(x * factor * scale + noise + bias))`, of x's type and format.

    scale: [N, C]; noise: [N or 1, 1, H, W]; bias: [C]; any of them may be None. inplace: x itself, see `is_dense`.
    """
    last = is_last(x)
    x, stride = _images(x, last)
    scale, noise, bias = _float(scale), _float(noise), _float(bias)
    y = x if inplace else new(x.shape, x, last)
    n, c, pixels = sizes(x)
    library().act_forward(
        x.data_ptr(), y.data_ptr(), pointer(scale), pointer(noise), pointer(bias), n, c, pixels, last, stride,
        noise_stride(noise), factor, act.alpha, act.gain, limit(act.clamp, x.dtype), x.dtype == torch.bfloat16,
        torch.get_num_threads())
    return y


def act_backward(grad: torch.Tensor, y: torch.Tensor | None, x: torch.Tensor | None, scale: torch.Tensor | None,
                 factor: float, act: Rectifier, wants: Sequence[bool]) -> list[torch.Tensor | None]:
    """Gradients of `act_forward` in x, scale [N, C], noise [N, 1, H, W] and bias [C], where `wants` says so.

    y: the result, or None where there was no rectifier; x: needed for the gradient in scale alone.
    """
    last = is_last(grad if y is None else y)
    grad, scale = dense(grad, last), _float(scale)
    y = None if y is None else dense(y, last)
    x, stride = (None, 0) if x is None or not wants[1] else _images(x, last)
    n, c, pixels = sizes(grad)
    results = [
        new(grad.shape, grad, last) if wants[0] else None,
        torch.empty([n, c], device='cpu') if wants[1] else None,
        torch.empty([n, 1, *grad.shape[2:]], device='cpu') if wants[2] else None,
        torch.empty([c], device='cpu') if wants[3] else None,
    ]
    library().act_backward(
        grad.data_ptr(), pointer(y), pointer(x), pointer(scale), *map(pointer, results), n, c, pixels, last,
        stride, factor, act.alpha, act.gain, limit(act.clamp, grad.dtype), grad.dtype == torch.bfloat16,
        torch.get_num_threads())
    return results


def upfirdn2d(x: torch.Tensor, f: torch.Tensor, axis_x: Sequence[int], axis_y: Sequence[int], flip: bool, gain: float,
              out_size: Sequence[int]) -> torch.Tensor | None:
    """The filter of ops/upfirdn2d.py; None if it is not separable. axes: up, down, before, after; out_size: H', W'."""
    last = is_last(x)
    x = dense(x, last)
    f = f.detach().to(torch.float32)
    f = (torch.outer(f, f) if f.ndim == 1 else f).contiguous()
    n, c, height, width = x.shape
    y = new([n, c, *out_size], x, last)
    axes = (ctypes.c_int64 * 10)(width, out_size[1], *axis_x[:3], height, out_size[0], *axis_y[:3])
    done = library().upfirdn2d(
        x.data_ptr(), y.data_ptr(), f.data_ptr(), *f.shape, flip, gain, n, c, axes, last, x.dtype == torch.bfloat16,
        torch.get_num_threads())
    return y if done else None


def squared_norms(weight: torch.Tensor) -> torch.Tensor:
    """float32 [O, I, kh, kw] → [O, I]: the sums of squares over the last two axes."""
    outputs, inputs, height, width = weight.shape
    last = inputs > 1 and weight.stride(1) == 1
    weight = dense(weight.detach(), last)
    result = torch.empty([outputs, inputs], device='cpu')
    library().squared_norms(
        weight.data_ptr(), result.data_ptr(), outputs, height * width, inputs, last, torch.get_num_threads())
    return result


def checksum(x: torch.Tensor) -> int:
    """Of a dense float32 tensor's memory: 64 bits that change with any of its own."""
    return int(library().checksum(x.data_ptr(), x.numel()))


def _images(x: torch.Tensor, last: bool) -> tuple[torch.Tensor, int]:
    """x, dense, and the elements from one image to the next: 0 where one image stands for all, as `expand` makes it."""
    if x.stride(0) == 0 and x.shape[0] > 1:
        one = dense(x[:1], last)
        return one.expand(x.shape), 0
    x = dense(x, last)
    return x, x[0].numel()


def sizes(x: torch.Tensor) -> tuple[int, int, int]:
    """Of an image tensor: N, C, H * W."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _float(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.detach().to(torch.float32).contiguous()


def noise_stride(noise: torch.Tensor | None) -> int:
    """Elements from one image's noise to the next; 0 where one stands for all."""
    return 0 if noise is None or noise.shape[0] == 1 else noise[0].numel()


def pointer(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@functools.cache
def limit(clamp: float | None, dtype: torch.dtype) -> float:
    """The bound as numbers of this type have it, so that a result tells that it was cut off; infinity for None."""
    return float('inf') if clamp is None else torch.tensor(clamp, dtype=torch.float64).to(dtype).item()
