"""Leaky ReLU on an upsampled image, low-passed on both ways: the alias-free non-linearity of StyleGAN3."""

import math
from collections.abc import Sequence

import torch

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import parse_padding, upfirdn2d


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
    if x.ndim != 4 or (b is not None and b.shape != x.shape[1:2]):
        raise ValueError(f'x, b: got {list(x.shape)} and {None if b is None else list(b.shape)}, expected NCHW and [C]')
    if not (gain > 0 and slope >= 0):
        raise ValueError(f'gain, slope: got {gain} and {slope}, expected numbers > 0 and ≥ 0')
    if b is not None:
        x = x + b[:, None, None]    # Before the zeros come in between and around, which are not biased.
    x = _resample(x, fu, up, 1, parse_padding(padding), flip_filter, up ** 2, impl)
    x = bias_act(x, act='lrelu', alpha=slope, gain=gain, clamp=clamp, impl=impl)
    return _resample(x, fd, 1, down, (0, 0, 0, 0), flip_filter, 1, impl)


def _resample(x: torch.Tensor, f: torch.Tensor | None, up: int, down: int, padding: tuple[int, int, int, int],
              flip_filter: bool, gain: float, impl: str) -> torch.Tensor:
    if f is None and up == down == 1 and impl != 'ref':
        return torch.nn.functional.pad(x, padding) if any(padding) else x
    return upfirdn2d(x, f, up, down, padding, flip_filter, gain, impl)
