"""Convolutions under the host's names and switches.

The host replaced these operators because old PyTorch computed weight gradients that nobody had asked for. Today's
autograd asks a convolution for just the gradients on the way to the requested inputs: the plain operators do the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

enabled = False  # Host's switch. Both values select the same operators.
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
    return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
                     padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d`: NCHW input, [in, out / groups, height, width] weight."""
    return torch.nn.functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
