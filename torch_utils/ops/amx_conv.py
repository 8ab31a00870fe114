"""Float32 convolutions on the matrix tiles of Intel CPUs (AMX), faster than on their vector units.

Numbers are cut into sums of bfloat16, as many as `torch.set_float32_matmul_precision` asks for: 'highest', PyTorch's
default, takes three and is as exact as float32; 'high' takes two (PyTorch's bf16x3, off by 4e-6 of the outputs' root
mean square); 'medium' is bfloat16 with float32 sums. `csrc/cpu_amx.h` says how.

These are the bare operators, without gradients: `conv2d_gradfix` makes differentiable ones of them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any

import torch

from torch_utils import custom_ops
from torch_utils.ops import kept

SOURCES = ('cpu_conv_amx.cpp', 'cpu_conv_amx_gradient.cpp')
PARTS = {'highest': 3, 'high': 2, 'medium': 1}  # By PyTorch's precision of float32 products.
PARTS_OF_CONVOLUTIONS = {'tf32': 2, 'bf16': 1}  # By what newer versions call it.

Pair = tuple[int, int]


def _library() -> ctypes.CDLL | None:
    library = custom_ops.load('cpu_conv_amx', SOURCES)  # Asked each time: LIA_KERNELS may change.
    return library if library is not None and _prepared(library) else None


@functools.cache
def _prepared(library: ctypes.CDLL) -> bool:
    """Whether the kernel lets this process use the tiles; the functions know their arguments then."""
    def trouble() -> str | None:
        return None if library.amx_available() else 'the operating system or the compiler does not know the tiles'

    if not custom_ops.works('cpu_conv_amx', trouble):
        return False
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for function in (library.amx_conv2d, library.amx_conv_transpose2d):
        function.argtypes = [pointer] * 7 + [number, pointer, number, pointer, number]
    library.amx_weight_gradient.argtypes = [pointer] * 6 + [number, pointer, number]
    return True


def available() -> bool:
    """Whether this CPU has the tiles, this process may use them, and the kernels could be built."""
    return custom_ops.cpu_has('amx_bf16') and _library() is not None


def conv2d(x: torch.Tensor, w: torch.Tensor, stride: int = 1, padding: Pair = (0, 0),
           parts: int | None = None) -> torch.Tensor:
    """`torch.nn.functional.conv2d` of float32 CPU tensors; the result is channels_last.

    x: [N, I, H, W]. w: [O, I, kh, kw], any strides. padding: rows and columns of zeros on each side.
    parts: so many bfloat16 make a number, 1 to 3; None = as PyTorch's precision says.
    """
    height, width = (_out_size(x.shape[2 + i], w.shape[2 + i], stride, padding[i]) for i in (0, 1))
    out = _new(x, w.shape[0], height, width)
    _run(_must_have().amx_conv2d, x, w, out, w.stride(), stride, padding, parts)
    return out


def conv_transpose2d(x: torch.Tensor, w: torch.Tensor, stride: int = 1, padding: Pair = (0, 0),
                     output_padding: Pair = (0, 0), parts: int | None = None) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d` of float32 CPU tensors; the result is channels_last.

    x: [N, I, H, W]. w: [I, O, kh, kw], any strides. The rest as in `conv2d`.
    """
    height, width = ((x.shape[2 + i] - 1) * stride - 2 * padding[i] + w.shape[2 + i] + output_padding[i]
                     for i in (0, 1))
    out = _new(x, w.shape[1], height, width)
    strides = (w.stride(1), w.stride(0), w.stride(2), w.stride(3))
    _run(_must_have().amx_conv_transpose2d, x, w, out, strides, stride, padding, parts)
    return out


def weight_gradient(small: torch.Tensor, big: torch.Tensor, kernel_size: Pair, stride: int = 1, padding: Pair = (0, 0),
                    parts: int | None = None) -> torch.Tensor:
    """Gradient [A, B, kh, kw] of a convolution's weight, from float32 CPU tensors.

    Of conv2d: small is the output's gradient [N, A, h, w] and big the input [N, B, H, W]. Of conv_transpose2d: small is
    the input and big the output's gradient.
    """
    small, big = (t.contiguous(memory_format=torch.channels_last) for t in (small, big))
    out = torch.empty([small.shape[1], big.shape[1], *kernel_size], device='cpu')
    if out.numel() == 0 or small.numel() == 0:
        return out.zero_()
    n, left, height, width = small.shape
    code = _must_have().amx_weight_gradient(
        small.data_ptr(), big.data_ptr(), out.data_ptr(), _numbers(n, height, width, left),
        _numbers(big.shape[2], big.shape[3], big.shape[1]), _numbers(*kernel_size), stride, _numbers(*padding),
        _parts(parts))
    _check(code)
    return out


def asked_parts() -> int:
    """How many bfloat16 are to make a float32, by PyTorch's setting."""
    try:
        return PARTS[torch.get_float32_matmul_precision()]
    except RuntimeError:  # It has been set by `torch.backends.….fp32_precision`, which knows convolutions apart.
        convolutions: Any = getattr(torch.backends.mkldnn, 'conv')  # noqa: B009  Its type stubs don't know of it.
        return PARTS_OF_CONVOLUTIONS.get(convolutions.fp32_precision, 3)


def _parts(parts: int | None) -> int:
    return asked_parts() if parts is None else parts


def _must_have() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError('amx_conv: no AMX here; ask available() first')
    return library


def _out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _new(x: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.empty([x.shape[0], channels, height, width], memory_format=torch.channels_last, device='cpu')


def _run(function: ctypes._NamedFuncPointer, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor,
         strides: tuple[int, ...], stride: int, padding: Pair, parts: int | None) -> None:
    if out.numel() == 0 or x.shape[1] == 0:
        out.zero_()
        return
    x = x.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = x.shape
    parts = _parts(parts)
    tiles = _kept_tiles(function.__name__, w, (x.shape[1], out.shape[1]), stride, parts)
    code = function(
        x.data_ptr(), w.data_ptr(), out.data_ptr(), _numbers(n, height, width, channels),
        _numbers(out.shape[2], out.shape[3], out.shape[1]), _numbers(*strides), _numbers(*w.shape[2:]), stride,
        _numbers(*padding), parts, *((None, 0) if tiles is None else (tiles.memory.data_ptr(), tiles.there)))
    _check(code)
    if tiles is not None:
        tiles.there = True


def _kept_tiles(name: str, w: torch.Tensor, channels: Pair, stride: int, parts: int) -> _Tiles | None:
    """Where the weight's tiles are to be kept, if it stays."""
    sides = [-(-number // 32) * 32 for number in channels]
    size = parts * sides[0] * sides[1] * w.shape[2] * w.shape[3]

    def make() -> _Tiles:
        return _Tiles(torch.empty([size], dtype=torch.bfloat16, device='cpu'))

    return kept.get(w, (name, stride, parts), 2 * size, make)


@dataclasses.dataclass
class _Tiles:
    """A weight as the kernel packs it."""

    memory: torch.Tensor
    there: bool = False

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes


def _numbers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _check(code: int) -> None:
    if code:
        raise MemoryError('not enough memory for the workspace of a convolution')
