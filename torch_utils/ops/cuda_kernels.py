"""Calls of the compiled CUDA kernels (csrc/cuda_*.cu): pointers and sizes from tensors, nothing that autograd sees.

Functions that `cpu_kernels` has too mean the same there. Callers ask `usable` first. Tensors are of one of TYPES;
scales, noise, biases, filters and their gradients are float32, beside float64 tensors float64. All work goes to the
current stream of the tensors' device; memory is torch's, and nothing waits, so that CUDA graphs can record it.
"""

import contextlib
import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from torch_utils import custom_ops
from torch_utils.ops.asked import is_recorded
from torch_utils.ops.cpu_kernels import Rectifier, is_last, limit, noise_stride, pointer, sizes

DEVICE = 'cuda'  # The type of device that the kernels run on; the tests' emulator runs them on 'cpu'.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
CURVES = ('linear', 'relu', 'lrelu', 'tanh', 'sigmoid', 'elu', 'selu', 'softplus', 'swish')
SOURCES = ('cuda_act.cu', 'cuda_curve.cu', 'cuda_upfirdn2d.cu', 'cuda_filtered_lrelu.cu')
TWICE = -2  # Says upfirdn2d of a separable filter that takes two calls.
ALIGNMENT = 16  # Bytes that kernels read at once.

_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
SIGNATURES = {
    'act_forward': [_P] * 5 + [_I] * 6 + [_D] * 4 + [_I] * 2 + [_P],
    'act_backward': [_P] * 9 + [_I] * 5 + [_D] * 4 + [_I] * 2 + [_P],
    'bias_curve': [_P] * 6 + [_I] * 5 + [_D] * 3 + [_I] * 2 + [_P],
    'squared_norms': [_P] * 2 + [_I] * 5 + [_P],
    'upfirdn2d': [_P] * 3 + [_I] * 4 + [_D] + [_I] * 2 + [_P] * 2 + [_I] * 3 + [_P],
    'filtered_lrelu': [_P] * 6 + [_I] * 3 + [_P] * 2 + [_I] * 6 + [_D] * 3 + [_I] * 2 + [_P],
    'probe': [_I],
}

_ready: dict[tuple[int, int], Any] = {}  # By id of the library and GPU: itself, or None if it doesn't run there.
_raw_stream = getattr(torch._C, '_cuda_getCurrentRawStream', None)  # A tenth of the time that a Stream object takes.


class Curve(NamedTuple):
    """`clamp(gain * act(x + bias))`; the bias runs along `dim`."""

    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float | None


class FilteredAxis(NamedTuple):
    """Sizes along one axis of filtered_lrelu, zeros before what is filtered, and taps."""

    size: int
    fine: int
    out: int
    before_up: int
    before_down: int
    up_taps: int
    down_taps: int

    def transposed(self) -> 'FilteredAxis':
        return FilteredAxis(self.out, self.fine, self.size, self.down_taps - 1 - self.before_down,
                            self.up_taps - 1 - self.before_up, self.down_taps, self.up_taps)


class Filtered(NamedTuple):
    """What filtered_lrelu does but for its rectifier. separable: of the filters up and down; flips: they convolve."""

    x: FilteredAxis
    y: FilteredAxis
    up: int
    down: int
    separable: tuple[bool, bool]
    flips: tuple[bool, bool]
    gain: float  # Of the upsampled image.

    def transposed(self) -> 'Filtered':
        """Between its filters the same pixels are bent by the same slopes."""
        flips = not self.flips[1], not self.flips[0]
        return Filtered(self.x.transposed(), self.y.transposed(), self.down, self.up, self.separable[::-1], flips,
                        self.gain)

    def arguments(self) -> list[Any]:
        axes = (_I * 10)(*self.x[:5], *self.y[:5])
        taps = (_I * 4)(self.x.up_taps, self.y.up_taps, self.x.down_taps, self.y.down_taps)
        return [axes, taps, *self.separable, *self.flips, self.up, self.down, self.gain]


def library(device: torch.device | None = None) -> Any:
    """The kernels, or None if there are none for this GPU; None = the current one."""
    found = custom_ops.load('cuda', SOURCES, cuda=True)
    if found is None:
        return None
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    if (id(found), index) not in _ready:
        _ready[id(found), index] = prepare(found) if custom_ops.works('cuda', lambda: _probe(found, index)) else None
    return _ready[id(found), index]


def prepare(found: Any) -> Any:
    """The library with its functions' types set."""
    for name, types in SIGNATURES.items():
        getattr(found, name).argtypes, getattr(found, name).restype = types, ctypes.c_int
    found.act_workspace.argtypes, found.act_workspace.restype = [_I] * 5, _I
    found.error_text.argtypes, found.error_text.restype = [ctypes.c_int], ctypes.c_char_p
    return found


def _probe(found: Any, index: int) -> str | None:
    """Why the library does not run on a GPU, or None."""
    with torch.cuda.device(index):
        code = prepare(found).probe(index)
    return None if code == 0 else f'{found.error_text(code).decode()} (GPU {index})'


def usable(x: torch.Tensor) -> bool:
    """Whether the kernels for layers can work on x, an image tensor."""
    return x.ndim == 4 and usable_on_any(x)


def usable_on_any(x: torch.Tensor) -> bool:
    """Whether `bias_curve` can work on x: a real tensor of TYPES, and no tracer that wants to see operators."""
    return (x.device.type == DEVICE and x.dtype in TYPES and type(x) in (torch.Tensor, torch.nn.Parameter)
            and not is_recorded() and x.numel() > 0 and library(x.device) is not None)


def is_dense(x: torch.Tensor) -> bool:
    """Whether kernels can work in x's own memory."""
    form = torch.channels_last if is_last(x) else torch.contiguous_format
    return x.is_contiguous(memory_format=form) and x.data_ptr() % ALIGNMENT == 0


def dense(x: torch.Tensor, last: bool) -> torch.Tensor:
    """x with its memory in the order of NHWC or NCHW, without gaps, from a multiple of 16 bytes on."""
    form = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=form)
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone(memory_format=form)


def act_forward(x: torch.Tensor, scale: torch.Tensor | None, noise: torch.Tensor | None, bias: torch.Tensor | None,
                factor: float, act: Rectifier, inplace: bool = False) -> torch.Tensor:
    """`clamp(gain * lrelu(x * factor * scale + noise + bias))`, of x's type and format.

    scale: [N, C]; noise: [N or 1, 1, H, W]; bias: [C]; any of them may be None. inplace: x itself, see `is_dense`.
    """
    last = is_last(x)
    x, stride = _images(x, last)
    scale, noise, bias = (_computing(part, x) for part in (scale, noise, bias))
    y = x if inplace else _new(x.shape, x, last)
    _call('act_forward', x, x.data_ptr(), y.data_ptr(), pointer(scale), pointer(noise), pointer(bias), *sizes(x), last,
          stride, noise_stride(noise), factor, act.alpha, act.gain, limit(act.clamp, x.dtype), TYPES[x.dtype])
    return y


def act_backward(grad: torch.Tensor, y: torch.Tensor | None, x: torch.Tensor | None, scale: torch.Tensor | None,
                 factor: float, act: Rectifier, wants: Sequence[bool]) -> list[torch.Tensor | None]:
    """Gradients of `act_forward` in x, scale [N, C], noise [N, 1, H, W] and bias [C], where `wants` says so.

    y: the result, or None where there was no rectifier; x: needed for the gradient in scale alone.
    """
    last = is_last(grad if y is None else y)
    grad, scale = dense(grad, last), _computing(scale, grad)
    y = None if y is None else dense(y, last)
    x, stride = (None, 0) if x is None or not wants[1] else _images(x, last)
    n, c, pixels = sizes(grad)
    wide = _computing_type(grad)
    code = TYPES[grad.dtype]
    results = [
        _new(grad.shape, grad, last) if wants[0] else None,
        *(grad.new_empty(shape, dtype=wide) if wanted else None
          for shape, wanted in zip(([n, c], [n, 1, *grad.shape[2:]], [c]), wants[1:], strict=True)),
    ]
    size = library(grad.device).act_workspace(n, c, pixels, last, code) if any(wants[1:]) else 0
    room = grad.new_empty([size], dtype=wide)
    _call('act_backward', grad, grad.data_ptr(), pointer(y), pointer(x), pointer(scale), *map(pointer, results),
          room.data_ptr(), n, c, pixels, last, stride, factor, act.alpha, act.gain, limit(act.clamp, grad.dtype), code)
    return results


def bias_curve(x: torch.Tensor, bias: torch.Tensor | None, curve: Curve, grad: torch.Tensor | None = None,
               second: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The curve of an x of any shape; with grad: dx = grad * its slope instead.

    With second, which has come back for dx, also: what goes on to grad and to x. In channels_last, dim is 1.
    """
    last = x.ndim == 4 and is_last(x)
    x, bias = _any_dense(x, last), _computing(bias, x)
    grad, second = (None if part is None else _any_dense(part, last) for part in (grad, second))
    step = 1 if last else x[(0,) * (curve.dim + 1)].numel()  # From one channel to the next.
    to = torch.empty_like(x)
    more = None if second is None else torch.empty_like(x)
    order = 0 if grad is None else 1 if second is None else 2
    _call('bias_curve', x, x.data_ptr(), pointer(grad), pointer(second), pointer(bias), to.data_ptr(), pointer(more),
          x.numel(), step, x.shape[curve.dim], CURVES.index(curve.act), order, curve.alpha, curve.gain,
          limit(curve.clamp, x.dtype), TYPES[x.dtype])
    return to, more


def upfirdn2d(x: torch.Tensor, f: torch.Tensor, axis_x: Sequence[int], axis_y: Sequence[int], flip: bool, gain: float,
              out_size: Sequence[int]) -> torch.Tensor:
    """The filter of ops/upfirdn2d.py, of any x, whatever its strides.

    axes: up, down, before, after; out_size: H', W'. flip: convolve.
    """
    f = cast(torch.Tensor, _computing(f, x))
    y = _filter(x, f, f.shape[-1], f.shape[0], f.ndim == 1, axis_x, axis_y, flip, gain, out_size)
    if y is not None:
        return y
    idle = 1, 1, 0, 0
    passes = [(len(f), 1, axis_x, idle, gain, (x.shape[2], out_size[1])), (1, len(f), idle, axis_y, 1.0, out_size)]
    if axis_y[1] > 1:  # Whole rows are the cheaper to drop.
        passes = [(*passes[1][:5], (out_size[0], x.shape[3])), (*passes[0][:5], out_size)]
    for width, height, along_x, along_y, factor, size in passes:
        filtered = _filter(x, f, width, height, False, along_x, along_y, flip, factor, size)
        assert filtered is not None, 'one axis takes one call'
        x = filtered
    return x


def _filter(x: torch.Tensor, f: torch.Tensor, width: int, height: int, separable: bool, axis_x: Sequence[int],
            axis_y: Sequence[int], flip: bool, gain: float, out_size: Sequence[int]) -> torch.Tensor | None:
    """One call; None if it takes two."""
    last = is_last(x)
    n, c, *size = x.shape
    y = _new([n, c, *out_size], x, last)
    axes = (_I * 10)(size[1], out_size[1], *axis_x[:3], size[0], out_size[0], *axis_y[:3])
    code = _call('upfirdn2d', x, x.data_ptr(), y.data_ptr(), f.data_ptr(), height, width, separable, flip, gain, n, c,
                 axes, (_I * 4)(*x.stride()), last, TYPES[x.dtype])
    return None if code == TWICE else y


FORGET, WRITE, READ, ASK = 0, 1, 2, -1  # What filtered_lrelu does with its mask; ASK: nothing at all.


@functools.cache
def fits(plan: Filtered, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a tile of the upsampled image has room in a block's shared memory, on the way back, too."""
    for way in (plan, plan.transposed()):
        code = library(device).filtered_lrelu(*[None] * 6, ASK, 1, 1, *way.arguments(), 1.0, 1.0, TYPES[dtype], 0, None)
        if code == TWICE:
            return False
    return True


def filtered_lrelu(x: torch.Tensor, b: torch.Tensor | None, fu: torch.Tensor | None, fd: torch.Tensor | None,
                   plan: Filtered, slope: float, clamp: float | None, mode: int,
                   mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The result, of x's type and format, and what its gradients need if mode is WRITE; see `fits`.

    mask: uint8 [N, C, fine rows, fine columns / 4, rounded up], two bits a pixel. With READ they stand for the
    rectifier: the operator is then linear.
    """
    last, form = is_last(x), torch.channels_last
    x = dense(x, False)
    b, fu, fd = (_computing(part, x) for part in (b, fu, fd))
    n, c = x.shape[:2]
    y = _new([n, c, plan.y.out, plan.x.out], x, False)
    if mode == WRITE:
        mask = torch.empty([n, c, plan.y.fine, -(-plan.x.fine // 4)], dtype=torch.uint8, device=x.device)
    _call('filtered_lrelu', x, x.data_ptr(), y.data_ptr(), pointer(b), pointer(fu), pointer(fd), pointer(mask), mode, n,
          c, *plan.arguments(), slope, limit(clamp, _computing_type(x)), TYPES[x.dtype])
    return y.contiguous(memory_format=form) if last else y, mask


def squared_norms(weight: torch.Tensor) -> torch.Tensor:
    """float32 [O, I, kh, kw] → [O, I]: the sums of squares over the last two axes."""
    outputs, inputs, height, width = weight.shape
    last = inputs > 1 and weight.stride(1) == 1
    weight = dense(weight.detach(), last)
    result = weight.new_empty([outputs, inputs])
    _call('squared_norms', weight, weight.data_ptr(), result.data_ptr(), outputs, height * width, inputs, last)
    return result


# ---------------------------------------------------------------------------------------------------------------------


def _call(name: str, on: torch.Tensor, *args: Any) -> int:
    """Launches on `on`'s device and its current stream: 0 or TWICE. Raises RuntimeError if CUDA refuses."""
    index, stream, guard = _place(on.device)
    kernels = library(on.device)
    with guard:
        code = getattr(kernels, name)(*args, index, stream)
    if code not in (0, TWICE):
        raise RuntimeError(f'CUDA kernel {name} on {list(on.shape)}, {on.dtype}: {kernels.error_text(code).decode()}')
    return code


def _place(device: torch.device) -> tuple[int, int, contextlib.AbstractContextManager[Any]]:
    """A GPU's number and current stream, and what makes it the thread's own meanwhile, as kernels expect it."""
    index = device.index or 0
    stream = torch.cuda.current_stream(device).cuda_stream if _raw_stream is None else _raw_stream(index)
    return index, stream, _NOTHING if index == torch.cuda.current_device() else torch.cuda.device(index)


_NOTHING = contextlib.nullcontext()


def _computing_type(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _computing(part: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """A scale, noise, bias or filter as the kernels want it beside x. Raises ValueError for one on another device."""
    if part is None:
        return None
    if part.device != x.device:  # A kernel that reads it would end the process's use of the GPU.
        raise ValueError(f'got tensors on {x.device} and {part.device}, expected them on one device')
    wide = _computing_type(x)
    if part.dtype == wide and part.is_contiguous():  # Three calls of PyTorch less, in what is called for each layer.
        return part
    return part.detach().to(wide).contiguous()


def _new(shape: Sequence[int], like: torch.Tensor, last: bool) -> torch.Tensor:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _any_dense(x: torch.Tensor, last: bool) -> torch.Tensor:
    if x.ndim == 4:
        return dense(x, last)
    x = x.contiguous()
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()


def _images(x: torch.Tensor, last: bool) -> tuple[torch.Tensor, int]:
    """x, dense, and the elements from one image to the next: 0 where one image stands for all, as `expand` makes it."""
    if x.stride(0) == 0 and x.shape[0] > 1:
        return dense(x[:1], last).expand(x.shape), 0
    x = dense(x, last)
    return x, x[0].numel()

