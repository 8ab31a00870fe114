"""Float32 convolutions with 3×3 kernels and stride 1 by Winograd's algorithm, on any CPU.

Four times fewer products than the definition has, in tiles of 4×4 outputs (2×2: 2.25 times). `csrc/cpu_winograd.h` says
how. Results are off by 1e-6 to 2e-6 of their root mean square, on the matrix tiles of CPUs with AMX by 0.6e-6 to 1e-6,
where a direct sum is by 0.3e-6 to 1.2e-6; gradients of weights, sums over all pixels, by up to 4e-6. Of NaN or infinity
in an input all outputs of the tiles that see it are NaN (a direct sum's: of the pixels within the kernel), and numbers
above 1e37 may overflow.

These are the bare operators, without gradients: `conv2d_gradfix` makes differentiable ones of them.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch

from torch_utils import custom_ops
from torch_utils.ops import amx_conv, kept

TILE = 4  # Outputs in a row of a tile: 4 or 2.
SOURCES = ('cpu_winograd.cpp', 'cpu_winograd_amx.cpp', 'cpu_winograd_gradient.cpp')

Pair = tuple[int, int]

_P, _I = ctypes.c_void_p, ctypes.c_int64
_typed: set[int] = set()


def _library() -> Any:
    """The kernels, or None."""
    found = custom_ops.load('cpu_winograd', SOURCES)  # Asked each time: LIA_KERNELS may change.
    if found is not None and id(found) not in _typed:
        for _, size, weights, convolve in _kinds(found):
            size.argtypes, size.restype = [_I] * 3, _I
            weights.argtypes, weights.restype = [_I] + [_P] * 4 + [_I], None
            convolve.argtypes = [_I] + [_P] * 6
        found.winograd_space.argtypes, found.winograd_space.restype = [_I], _P
        found.winograd_weight_gradient.argtypes = [_I] + [_P] * 6 + [_I]
        _typed.add(id(found))
    return found


class _Kind(NamedTuple):
    """One kind of units: how many bytes its packed weights have, what packs them, and what takes them."""

    name: str
    size: Any
    weights: Any
    convolve: Any


def _kinds(library: Any) -> list[_Kind]:
    """Those that the library has been compiled for; the best comes last."""
    names = ['winograd', 'winograd_amx'] if hasattr(library, 'winograd_amx_conv2d') else ['winograd']
    return [_Kind(name, *(getattr(library, f'{name}_{what}') for what in ('weights_size', 'weights', 'conv2d')))
            for name in names]


def _kind() -> _Kind:
    """The best of this CPU. (Its tiles have to be asked for, which `amx_conv` does.)"""
    return _kinds(_must_have())[-1 if amx_conv.available() else 0]


def available() -> bool:
    """Whether the kernels could be built, and may be used."""
    return _library() is not None


def tiles(images: int, height: int, width: int, tile: int = TILE) -> int:
    """How many tiles these outputs make: what the transformation of weights is shared by."""
    return images * -(-height // tile) * -(-width // tile)


def conv2d(x: torch.Tensor, w: torch.Tensor, padding: Pair = (0, 0), packed: torch.Tensor | None = None,
           tile: int = TILE) -> torch.Tensor:
    """`torch.nn.functional.conv2d` of float32 CPU tensors; the result is channels_last.

    x: [N, I, H, W]. w: [O, I, 3, 3], any strides. padding: rows and columns of zeros on each side.
    packed: What `kept_weights` gave.
    """
    return _run(x, w, padding, False, packed, tile)


def conv_transpose2d(x: torch.Tensor, w: torch.Tensor, padding: Pair = (0, 0), packed: torch.Tensor | None = None,
                     tile: int = TILE) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d` of float32 CPU tensors; the result is channels_last.

    x: [N, I, h, w]. w: [I, O, 3, 3], any strides. The rest as in `conv2d`.
    """
    return _run(x, w, (2 - padding[0], 2 - padding[1]), True, packed, tile)


def kept_weights(w: torch.Tensor, transpose: bool = False, tile: int = TILE) -> torch.Tensor | None:
    """Transformed weights for either operator, if w is one that stays (`kept`), so that they need not be made again."""
    kind = _kind()
    size = kind.size(tile, *_channels(w, transpose))

    def make() -> torch.Tensor:
        packed = torch.empty([size], dtype=torch.uint8, device='cpu')
        _pack(kind, w, transpose, tile, packed.data_ptr())
        return packed

    return kept.get(w, ('winograd', kind.name, transpose, tile), size, make)


def weight_gradient(small: torch.Tensor, big: torch.Tensor, padding: Pair = (0, 0), tile: int = TILE) -> torch.Tensor:
    """Gradient [A, B, 3, 3] of a convolution's weight, from float32 CPU tensors.

    Of conv2d: small is the output's gradient [N, A, h, w] and big the input [N, B, H, W]. Of conv_transpose2d: small is
    the input and big the output's gradient.
    """
    small, big = (t.contiguous(memory_format=torch.channels_last) for t in (small, big))
    out = torch.empty([small.shape[1], big.shape[1], 3, 3], device='cpu')
    if out.numel() == 0 or small.numel() == 0:
        return out.zero_()
    n, channels, height, width = small.shape
    _check(_must_have().winograd_weight_gradient(
        tile, small.data_ptr(), big.data_ptr(), out.data_ptr(), _numbers(n, height, width, channels),
        _numbers(big.shape[2], big.shape[3], big.shape[1]), _numbers(*padding), amx_conv.available()))
    return out


def _channels(w: torch.Tensor, transpose: bool) -> Pair:
    """Of the result and of the input."""
    return (w.shape[1], w.shape[0]) if transpose else (w.shape[0], w.shape[1])


def _run(x: torch.Tensor, w: torch.Tensor, padding: Pair, transpose: bool, packed: torch.Tensor | None,
         tile: int) -> torch.Tensor:
    channels = _channels(w, transpose)
    n, ins, height, width = x.shape
    sizes = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    out = torch.empty([n, channels[0], *sizes], memory_format=torch.channels_last, device='cpu')
    if out.numel() == 0 or ins == 0:
        return out.zero_()
    x = x.contiguous(memory_format=torch.channels_last)
    kind = _kind()
    if packed is None:
        weights = _must_have().winograd_space(kind.size(tile, *channels))
        _check(weights is None)
        _pack(kind, w, transpose, tile, weights)
    else:
        weights = packed.data_ptr()
    _check(kind.convolve(tile, x.data_ptr(), weights, out.data_ptr(), _numbers(n, height, width, ins),
                         _numbers(*sizes, channels[0]), _numbers(*padding)))
    return out


def _pack(kind: _Kind, w: torch.Tensor, transpose: bool, tile: int, memory: int) -> None:
    strides = w.stride()
    if transpose:
        strides = (strides[1], strides[0], *strides[2:])
    kind.weights(tile, w.data_ptr(), memory, _numbers(*_channels(w, transpose)), _numbers(*strides), transpose)


def _must_have() -> Any:
    library = _library()
    if library is None:
        raise RuntimeError('winograd_conv: no compiled kernels here; ask available() first')
    return library


def _numbers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _check(code: int | bool) -> None:
    if code:
        raise MemoryError('not enough memory for the workspace of a convolution')
