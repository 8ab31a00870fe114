"""Upsample, filter and downsample images with a small FIR filter."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from torch_utils.ops.asked import is_recorded
from torch_utils.ops.kernels import compiled

Factor = int | Sequence[int]


class _Axis(NamedTuple):
    """What happens along one axis: `up - 1` zeros behind each pixel, padding or cropping, every `down`-th kept."""

    up: int
    down: int
    before: int
    after: int

    def out_size(self, size: int, taps: int) -> int:
        return (size * self.up + self.before + self.after - taps) // self.down + 1

    def transposed(self, size: int, taps: int) -> '_Axis':
        """The axis of the transposed operator, which brings back `size` pixels."""
        kept = self.out_size(size, taps) * self.down
        return _Axis(self.down, self.up, taps - 1 - self.before, (size - 1) * self.up + 1 + self.before - kept)


_IDLE = _Axis(1, 1, 0, 0)


def setup_filter(f: Any, device: torch.device | str = 'cpu', normalize: bool = True, flip_filter: bool = False,
                 gain: float = 1, separable: bool | None = None) -> torch.Tensor:
    """Float32 filter for the functions below, from numbers, array or tensor of 0, 1 or 2 dimensions; None: identity.

    A 1-D filter stands for its outer product with itself. It stays 1-D (run as two passes) from 8 taps on, or as
    `separable` says. normalize: taps sum to 1 first. gain: factor on the filtered image's amplitude.
    """
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f'f: got shape {list(taps.shape)}, expected at most two dimensions and at least one tap')
    taps = taps.reshape(1) if taps.ndim == 0 else taps
    if separable is None:
        separable = taps.ndim == 1 and len(taps) >= 8
    if separable and taps.ndim == 2:
        raise ValueError('f: a 2-D filter cannot be made separable; give its 1-D taps')
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(*range(taps.ndim))
    return (taps * gain ** (taps.ndim / 2)).to(device)


def upfirdn2d(x: torch.Tensor, f: torch.Tensor | None, up: Factor = 1, down: Factor = 1, padding: Factor = 0,
              flip_filter: bool = False, gain: float = 1, impl: str = 'cuda') -> torch.Tensor:
    """Insert zeros, pad with zeros, convolve with `f`, drop pixels; `x` [N, C, H, W], each channel for itself.

    f: [taps] for both axes, [height, width], or None. up, down: int or [x, y]; the zeros come behind each pixel.
    padding: around the upsampled image, int, [x, y] or [x0, x1, y0, y1]; negative crops. flip_filter: True correlates.
    gain: factor on the result. impl: 'cuda' takes the fast path on any device, 'ref' the readable one.
    Differentiable any number of times in x; f is a constant. Raises ValueError where nothing would remain.
    """
    if impl not in ('ref', 'cuda'):
        raise ValueError(f"impl: got {impl!r}, expected 'ref' or 'cuda'")
    f = torch.ones([1, 1], device=x.device) if f is None else f
    if x.ndim != 4 or f.ndim not in (1, 2) or f.requires_grad:
        raise ValueError(f'x, f: got {list(x.shape)}, {list(f.shape)}, expected NCHW and a constant 1-D or 2-D filter')
    x0, x1, y0, y1 = parse_padding(padding)
    (up_x, up_y), (down_x, down_y) = _pair(up, 'up'), _pair(down, 'down')
    axis_x, axis_y = _Axis(up_x, down_x, x0, x1), _Axis(up_y, down_y, y0, y1)
    width, height = filter_size(f)
    if axis_x.out_size(x.shape[3], width) < 1 or axis_y.out_size(x.shape[2], height) < 1:
        raise ValueError(f'padding: {padding} leaves nothing of {list(x.shape)} under a filter of {list(f.shape)}')
    if impl == 'ref':
        return _upfirdn2d_ref(x, f, axis_x, axis_y, flip_filter, gain)
    if is_recorded():
        return _upfirdn2d_recorded(x, f, axis_x, axis_y, flip_filter, gain)
    return _UpFirDn.apply(x, f, axis_x, axis_y, flip_filter, gain)


def filter2d(x: torch.Tensor, f: torch.Tensor | None, padding: Factor = 0, flip_filter: bool = False, gain: float = 1,
             impl: str = 'cuda') -> torch.Tensor:
    """`upfirdn2d` without resampling; the result has x's size, and `padding` adds to that."""
    return upfirdn2d(x, f, 1, 1, _centred(f, (1, 1), (1, 1), padding), flip_filter, gain, impl)


def upsample2d(x: torch.Tensor, f: torch.Tensor | None, up: Factor = 2, padding: Factor = 0, flip_filter: bool = False,
               gain: float = 1, impl: str = 'cuda') -> torch.Tensor:
    """`upfirdn2d` to `up` times x's size, brightness kept; `padding` adds to that."""
    factors = _pair(up, 'up')
    gain = gain * factors[0] * factors[1]  # makes up for the inserted zeros
    return upfirdn2d(x, f, factors, 1, _centred(f, factors, (1, 1), padding), flip_filter, gain, impl)


def downsample2d(x: torch.Tensor, f: torch.Tensor | None, down: Factor = 2, padding: Factor = 0,
                 flip_filter: bool = False, gain: float = 1, impl: str = 'cuda') -> torch.Tensor:
    """`upfirdn2d` to a `down`-th of x's size; `padding` adds zeros around x."""
    factors = _pair(down, 'down')
    return upfirdn2d(x, f, 1, factors, _centred(f, (1, 1), factors, padding), flip_filter, gain, impl)


def parse_padding(padding: Factor) -> tuple[int, int, int, int]:
    """int, [x, y] or [x0, x1, y0, y1] -> (x0, x1, y0, y1)."""
    sides = [padding] * 2 if isinstance(padding, int) else list(padding)
    if len(sides) == 2:
        sides = [sides[0], sides[0], sides[1], sides[1]]
    if len(sides) != 4:
        raise ValueError(f'padding: got {padding}, expected an int, [x, y] or [x0, x1, y0, y1]')
    return sides[0], sides[1], sides[2], sides[3]


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter in taps."""
    return (1, 1) if f is None else (int(f.shape[-1]), int(f.shape[0]))


def resample_margin(taps: int, up: int, down: int) -> tuple[int, int]:
    """Zeros before and after an axis that keep the filtered and resampled image centred (one of up, down is 1)."""
    return (taps + up - down) // 2, (taps - up - down + 1) // 2


def _centred(f: torch.Tensor | None, up: tuple[int, int], down: tuple[int, int], padding: Factor) -> list[int]:
    margins = [side for axis in zip(filter_size(f), up, down, strict=True) for side in resample_margin(*axis)]
    return [side + more for side, more in zip(parse_padding(padding), margins, strict=True)]


def _pair(factor: Factor, name: str) -> tuple[int, int]:
    x, y = (factor, factor) if isinstance(factor, int) else factor
    if min(x, y) < 1:
        raise ValueError(f'{name}: got {factor}, expected whole numbers ≥ 1')
    return x, y


def _upfirdn2d_ref(x: torch.Tensor, f: torch.Tensor, axis_x: _Axis, axis_y: _Axis, flip_filter: bool,
                   gain: float) -> torch.Tensor:
    """The definition, step by step."""
    n, channels, height, width = x.shape
    sparse = x.new_zeros(n, channels, height * axis_y.up, width * axis_x.up)
    sparse[:, :, ::axis_y.up, ::axis_x.up] = x
    padded = functional.pad(sparse, [axis_x.before, axis_x.after, axis_y.before, axis_y.after])
    exact = f.double()
    plane = ((exact if f.ndim == 2 else torch.outer(exact, exact)) * gain).to(x.dtype)
    plane = plane if flip_filter else plane.flip(0, 1)  # conv2d correlates
    dense = functional.conv2d(padded, plane.expand(channels, 1, -1, -1), groups=channels)
    return dense[:, :, ::axis_y.down, ::axis_x.down]


def _upfirdn2d_recorded(x: torch.Tensor, f: torch.Tensor, axis_x: _Axis, axis_y: _Axis, flip_filter: bool,
                        gain: float) -> torch.Tensor:
    """The definition in as few operators as there are: a transposed convolution inserts the zeros."""
    plane = ((f if f.ndim == 2 else torch.outer(f, f)) * gain).to(x.dtype)
    height, width = int(plane.shape[0]), int(plane.shape[1])
    if axis_x.up * axis_y.up > 1:
        plane = (plane.flip(0, 1) if flip_filter else plane).expand(x.shape[1], 1, -1, -1)  # It convolves.
        dense = functional.conv_transpose2d(x, plane, stride=(axis_y.up, axis_x.up), groups=x.shape[1])
        # It has padded by all taps but one, and has left out the zeros behind the last pixel.
        sides = [axis_x.before + 1 - width, axis_x.after + axis_x.up - width,
                 axis_y.before + 1 - height, axis_y.after + axis_y.up - height]
        return functional.pad(dense, sides)[:, :, ::axis_y.down, ::axis_x.down]
    plane = (plane if flip_filter else plane.flip(0, 1)).expand(x.shape[1], 1, -1, -1)  # conv2d correlates.
    padded = functional.pad(x, [axis_x.before, axis_x.after, axis_y.before, axis_y.after])
    return functional.conv2d(padded, plane, stride=(axis_y.down, axis_x.down), groups=x.shape[1])


class _UpFirDn(torch.autograd.Function):
    """The linear operator. Its transpose is one of its kind: every derivative is one more call of the same kernel."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, f: torch.Tensor, axis_x: _Axis, axis_y: _Axis, flip_filter: bool,
                gain: float) -> torch.Tensor:
        ctx.save_for_backward(f)
        width, height = filter_size(f)
        ctx.transposed = (axis_x.transposed(x.shape[3], width), axis_y.transposed(x.shape[2], height),
                          not flip_filter, gain)
        kernels = compiled(x)
        if kernels is not None:
            out_size = axis_y.out_size(x.shape[2], height), axis_x.out_size(x.shape[3], width)
            y = kernels.upfirdn2d(x, f, axis_x, axis_y, not flip_filter, gain, out_size)
            if y is not None:
                return y
        taps = (f if flip_filter else f.flip(*range(f.ndim))).to(torch.promote_types(f.dtype, x.dtype))
        if f.ndim == 2:
            return _correlate(x, taps * gain, axis_x, axis_y)
        passes = [(taps[None, :] * gain, axis_x, _IDLE), (taps[:, None], _IDLE, axis_y)]
        for pass_taps, pass_x, pass_y in passes[::-1 if axis_y.down > 1 else 1]:  # whole rows are the cheaper to drop
            x = _correlate(x, pass_taps, pass_x, pass_y)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _UpFirDn.apply(grad, ctx.saved_tensors[0], *ctx.transposed), None, None, None, None, None


def _correlate(x: torch.Tensor, taps: torch.Tensor, axis_x: _Axis, axis_y: _Axis) -> torch.Tensor:
    """The operator for a 2-D filter that is applied as it lies.

    On a CPU a depthwise convolution of images with few channels ran 2 to 10 times slower than adding shifted images;
    from 16 channels on, and above all with channels_last, the convolution is ahead.
    """
    one_way = all(axis.up == 1 or axis.down == 1 for axis in (axis_x, axis_y))
    if x.device.type == 'cpu' and x.shape[1] < 16 and one_way and x.dtype in (torch.float32, torch.float64):
        return _add_shifted(x, taps, axis_x, axis_y)
    weight = taps.to(x.dtype).expand(x.shape[1], 1, -1, -1)
    if axis_x.up == axis_y.up == 1:
        return _strided_convolution(x, weight, axis_x, axis_y)
    return _transposed_convolution(x, weight.flip(2, 3), axis_x, axis_y)


def _strided_convolution(x: torch.Tensor, weight: torch.Tensor, axis_x: _Axis, axis_y: _Axis) -> torch.Tensor:
    """No upsampling: only the kept pixels are computed. The convolution's own padding saves a copy where it will do."""
    inside = [max(min(axis.before, axis.after), 0) for axis in (axis_y, axis_x)]
    x = _pad(x, [side - common for axis, common in zip((axis_x, axis_y), inside[::-1], strict=True)
                 for side in (axis.before, axis.after)])
    return functional.conv2d(x, weight, stride=(axis_y.down, axis_x.down), padding=inside, groups=x.shape[1])


def _transposed_convolution(x: torch.Tensor, weight: torch.Tensor, axis_x: _Axis, axis_y: _Axis) -> torch.Tensor:
    """Upsampling without the inserted zeros. What is not kept of the result, the convolution crops itself."""
    excess = []  # what it computes beyond the result, per side: x0, x1, y0, y1; negative where padding is left to do
    for axis, taps in zip((axis_x, axis_y), (weight.shape[3], weight.shape[2]), strict=True):
        excess += [taps - 1 - axis.before, taps - axis.up - axis.after]
    crop = [max(min(excess[2:]), 0), max(min(excess[:2]), 0)]
    x = functional.conv_transpose2d(x, weight, stride=(axis_y.up, axis_x.up), padding=crop, groups=x.shape[1])
    x = _pad(x, [common - side for side, common in zip(excess, [crop[1], crop[1], crop[0], crop[0]], strict=True)])
    return x if axis_x.down == axis_y.down == 1 else x[:, :, ::axis_y.down, ::axis_x.down]


def _pad(x: torch.Tensor, sides: list[int]) -> torch.Tensor:
    return functional.pad(x, sides) if any(sides) else x


def _add_shifted(x: torch.Tensor, taps: torch.Tensor, axis_x: _Axis, axis_y: _Axis) -> torch.Tensor:
    """The sum over taps of the image, shifted and scaled."""
    n, channels, height, width = x.shape
    rows, columns = axis_y.out_size(height, taps.shape[0]), axis_x.out_size(width, taps.shape[1])
    last = channels > 1 and x.stride(1) == 1
    result = torch.zeros(n, channels, rows, columns, dtype=x.dtype, device=x.device)
    result = result.to(memory_format=torch.channels_last) if last else result
    for i, line in enumerate(taps.tolist()):
        from_rows, to_rows = _overlap(axis_y, height, rows, i)
        for j, tap in enumerate(line):
            from_columns, to_columns = _overlap(axis_x, width, columns, j)
            if tap:
                result[:, :, to_rows, to_columns].add_(x[:, :, from_rows, from_columns], alpha=tap)
    return result


def _overlap(axis: _Axis, size: int, out_size: int, tap: int) -> tuple[slice, slice]:
    """The input pixels that this tap reads and the output pixels that they go to, the padding left out."""
    stride, shift = (axis.down, tap - axis.before) if axis.up == 1 else (axis.up, axis.before - tap)
    fine, coarse = (size, out_size) if axis.up == 1 else (out_size, size)  # fine = coarse * stride + shift
    first = max(-(shift // stride), 0)
    start = first * stride + shift
    count = max(min(coarse - first, (fine - 1 - start) // stride + 1), 0)
    every, strided = slice(first, first + count), slice(start, start + count * stride, stride)
    return (strided, every) if axis.up == 1 else (every, strided)
