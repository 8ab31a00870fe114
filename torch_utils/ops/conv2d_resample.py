"""Convolution with filtered up- and downsampling."""

from collections.abc import Sequence

import torch

from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.upfirdn2d import filter_size, parse_padding, resample_margin, upfirdn2d


def conv2d_resample(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor | None = None, up: int = 1, down: int = 1,
                    padding: int | Sequence[int] = 0, groups: int = 1, flip_weight: bool = True,
                    flip_filter: bool = False) -> torch.Tensor:
    """Upsample `x` [N, C, H, W] by `up`, convolve with `w` [O, C / groups, kh, kw], downsample by `down`.

    f: low-pass filter from `setup_filter` for whichever resampling happens, None for none. padding: zeros around the
    upsampled image, put there once, before everything else: int, [x, y] or [x0, x1, y0, y1]; negative crops.
    flip_weight, flip_filter: True is correlation (what networks call convolution), False convolution.
    """
    if min(up, down) < 1:
        raise ValueError(f'up, down: got {up} and {down}, expected whole numbers ≥ 1')
    pads = _total_padding(f, up, down, padding)
    pointwise = w.shape[2] == w.shape[3] == 1
    if up > 1 and not (pointwise and down == 1):
        # A transposed convolution scatters with its kernel as it lies: a convolution. Flipped, it correlates.
        return _transposed(x, w.flip([2, 3]) if flip_weight else w, f, up, down, pads, groups, flip_filter)
    if not flip_weight and not pointwise:
        w = w.flip([2, 3])
    if up > 1:  # A 1x1 convolution commutes with the filter: do it on the smaller image.
        x = conv2d_gradfix.conv2d(x, w, groups=groups)
        return upfirdn2d(x, f, up=up, padding=pads, gain=up ** 2, flip_filter=flip_filter)
    if down > 1:  # So does any convolution without padding of its own; then only the kept pixels are computed.
        first = down if pointwise else 1
        x = upfirdn2d(x, f, down=first, padding=pads, flip_filter=flip_filter)
        return conv2d_gradfix.conv2d(x, w, stride=down // first, groups=groups)
    if pads[0] == pads[1] >= 0 and pads[2] == pads[3] >= 0:
        return conv2d_gradfix.conv2d(x, w, padding=[pads[2], pads[0]], groups=groups)
    return conv2d_gradfix.conv2d(torch.nn.functional.pad(x, pads), w, groups=groups)


def _conv2d_resample_ref(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor | None = None, up: int = 1, down: int = 1,
                         padding: int | Sequence[int] = 0, groups: int = 1, flip_weight: bool = True,
                         flip_filter: bool = False) -> torch.Tensor:
    """The definition: pad and upsample, then convolve, then downsample."""
    pads = _total_padding(f, up, down, padding)
    x = upfirdn2d(x, f if up > 1 else None, up, 1, pads, flip_filter, up ** 2, impl='ref')
    x = torch.nn.functional.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d(x, f if down > 1 else None, 1, down, 0, flip_filter, impl='ref')


def _total_padding(f: torch.Tensor | None, up: int, down: int, padding: int | Sequence[int]) -> list[int]:
    """The caller's padding and what keeps a filtered image centred, as [x0, x1, y0, y1]."""
    total = list(parse_padding(padding))
    for factors, active in (((up, 1), up > 1), ((1, down), down > 1)):
        if active:
            margins = [margin for taps in filter_size(f) for margin in resample_margin(taps, *factors)]
            total = [old + more for old, more in zip(total, margins, strict=True)]
    return total


def _transposed(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor | None, up: int, down: int, pads: list[int],
                groups: int, flip_filter: bool) -> torch.Tensor:
    """Upsample and convolve in one transposed convolution, which never touches the inserted zeros; then filter."""
    out_channels, in_per_group, kh, kw = w.shape
    w = w.reshape(groups, out_channels // groups, in_per_group, kh, kw)
    w = w.transpose(1, 2).reshape(groups * in_per_group, out_channels // groups, kh, kw)
    x = conv2d_gradfix.conv_transpose2d(x, w, stride=up, groups=groups)
    # It has padded by k - 1 on both sides, and has left out the up - 1 zeros behind the last pixel.
    rest = [pads[0] - (kw - 1), pads[1] - (kw - up), pads[2] - (kh - 1), pads[3] - (kh - up)]
    x = upfirdn2d(x, f, padding=rest, gain=up ** 2, flip_filter=flip_filter)
    return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
