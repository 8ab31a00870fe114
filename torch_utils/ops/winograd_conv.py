"""Float32 convolutions with 3×3 kernels and stride 1 by Winograd's algorithm, on any CPU.

Four times fewer products than the definition has, in tiles of 4×4 outputs (2×2: 2.25 times). `csrc/cpu_winograd.h` says
how. Results are off by 1e-6 to 2e-6 of their root mean square, where a direct sum is by 0.3e-6 to 1.2e-6. Of NaN or
infinity in an input all outputs of the tiles that see it are NaN (a direct sum's: of the pixels within the kernel), and
numbers above 1e37 may overflow.

These are the bare operators, without gradients: `conv2d_gradfix` makes differentiable ones of them.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

import torch

from torch_utils import custom_ops

TILE = 4  # Outputs in a row of a tile: 4 or 2.
KEPT_BYTES = 256 << 20  # Of transformed weights, at most, over all layers.
SOURCES = ('cpu_winograd.cpp', 'cpu_winograd_gradient.cpp')

Pair = tuple[int, int]

_P, _I = ctypes.c_void_p, ctypes.c_int64
_typed: set[int] = set()


def _library() -> Any:
    """The kernels, or None."""
    found = custom_ops.load('cpu_winograd', SOURCES)  # Asked each time: LIA_KERNELS may change.
    if found is not None and id(found) not in _typed:
        found.winograd_weights_size.argtypes, found.winograd_weights_size.restype = [_I] * 3, _I
        found.winograd_weights.argtypes, found.winograd_weights.restype = [_I] + [_P] * 4 + [_I], None
        found.winograd_conv2d.argtypes = found.winograd_weight_gradient.argtypes = [_I] + [_P] * 6
        found.winograd_checksum.argtypes, found.winograd_checksum.restype = [_P, _I], ctypes.c_uint64
        _typed.add(id(found))
    return found


def available() -> bool:
    """Whether the kernels could be built, and may be used."""
    return _library() is not None


def tiles(images: int, height: int, width: int, tile: int = TILE) -> int:
    """How many tiles these outputs make: what the transformation of weights is shared by."""
    return images * -(-height // tile) * -(-width // tile)


def conv2d(x: torch.Tensor, w: torch.Tensor, padding: Pair = (0, 0), keep: bool = False,
           tile: int = TILE) -> torch.Tensor:
    """`torch.nn.functional.conv2d` of float32 CPU tensors; the result is channels_last.

    x: [N, I, H, W]. w: [O, I, 3, 3], any strides. padding: rows and columns of zeros on each side.
    keep: whether the transformed weights are kept for as long as w lives and has the same values.
    """
    return _run(x, w, w.stride(), padding, False, keep, tile)


def conv_transpose2d(x: torch.Tensor, w: torch.Tensor, padding: Pair = (0, 0), keep: bool = False,
                     tile: int = TILE) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d` of float32 CPU tensors; the result is channels_last.

    x: [N, I, h, w]. w: [I, O, 3, 3], any strides. The rest as in `conv2d`.
    """
    strides = (w.stride(1), w.stride(0), w.stride(2), w.stride(3))
    return _run(x, w, strides, (2 - padding[0], 2 - padding[1]), True, keep, tile)


def weight_gradient(small: torch.Tensor, big: torch.Tensor, padding: Pair = (0, 0), tile: int = TILE) -> torch.Tensor:
    """Gradient [A, B, 3, 3] of a convolution's weight, from float32 CPU tensors.

    Of conv2d: small is the output's gradient [N, A, h, w] and big the input [N, B, H, W]. Of conv_transpose2d: small is
    the input and big the output's gradient.
    """
    small, big = (t.contiguous(memory_format=torch.channels_last) for t in (small, big))
    out = torch.empty([small.shape[1], big.shape[1], 3, 3])
    if out.numel() == 0 or small.numel() == 0:
        return out.zero_()
    n, channels, height, width = small.shape
    _check(_must_have().winograd_weight_gradient(
        tile, small.data_ptr(), big.data_ptr(), out.data_ptr(), _numbers(n, height, width, channels),
        _numbers(big.shape[2], big.shape[3], big.shape[1]), _numbers(*padding)))
    return out


def _run(x: torch.Tensor, w: torch.Tensor, strides: tuple[int, ...], padding: Pair, transpose: bool, keep: bool,
         tile: int) -> torch.Tensor:
    channels = w.shape[1 if transpose else 0]
    n, ins, height, width = x.shape
    sizes = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    out = torch.empty([n, channels, *sizes], memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    x = x.contiguous(memory_format=torch.channels_last)
    packed = _packed(w, channels, ins, strides, transpose, keep, tile)
    _check(_must_have().winograd_conv2d(
        tile, x.data_ptr(), packed.data_ptr(), out.data_ptr(), _numbers(n, height, width, ins),
        _numbers(*sizes, channels), _numbers(*padding)))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Transformed weights


class _Kept(NamedTuple):
    owner: weakref.ref[torch.Tensor]
    state: tuple[Any, ...]
    packed: torch.Tensor


_kept: dict[tuple[int, bool, int], _Kept] = {}  # The one used last comes last.


def _packed(w: torch.Tensor, outs: int, ins: int, strides: tuple[int, ...], transpose: bool, keep: bool,
            tile: int) -> torch.Tensor:
    """The weights as the kernels take them; with `keep` from an earlier call if they are the same."""
    library = _must_have()

    def transform() -> torch.Tensor:
        packed = torch.empty([library.winograd_weights_size(tile, outs, ins)])
        library.winograd_weights(
            tile, w.data_ptr(), packed.data_ptr(), _numbers(outs, ins), _numbers(*strides), transpose)
        return packed

    if not keep or w.is_inference() or not is_dense(w):
        return transform()
    # Its version doesn't tell of what was written through `.data` or by another library: the checksum does.
    state = (w._version, w.data_ptr(), w.shape, w.stride(), library.winograd_checksum(w.data_ptr(), w.numel()))
    key = (id(w), transpose, tile)
    kept = _kept.pop(key, None)
    if kept is None or kept.owner() is not w or kept.state != state:
        kept = _Kept(weakref.ref(w, lambda _: _kept.pop(key, None)), state, transform())
    _kept[key] = kept
    while sum(other.packed.nbytes for other in _kept.values()) > KEPT_BYTES:
        del _kept[next(iter(_kept))]
    return kept.packed


def is_dense(w: torch.Tensor) -> bool:
    """Whether w fills its memory without gaps, in either format."""
    return w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last)


def _must_have() -> Any:
    library = _library()
    if library is None:
        raise RuntimeError('winograd_conv: no compiled kernels here; ask available() first')
    return library


def _numbers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _check(code: int) -> None:
    if code:
        raise MemoryError('not enough memory for the workspace of a convolution')
