"""Bilinear sampling that can be differentiated more than once.

PyTorch's own `grid_sample` has no second derivative. With a fixed grid the operator is linear in the image, so its
gradient is the transposed operator, and the gradient of that is `grid_sample` again: no further rule is needed.
"""

from typing import Any

import torch

enabled = False  # Host's switch. Both values select the operator below.


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample `input` [N, C, H, W] at `grid` [N, h, w, 2] (x, y in [-1, 1] from edge to edge) -> [N, C, h, w].

    Bilinear, zeros outside, `align_corners=False`. Gradients of any order, with respect to the grid too.
    """
    if torch.is_grad_enabled() and grid.requires_grad:
        return _grid_sample_ref(input, grid)
    return _Sample.apply(input, grid)


def _grid_sample_ref(image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The definition, from differentiable gathers: the four neighbours weighted by the opposite areas."""
    n, channels, height, width = image.shape
    x = ((grid[..., 0] + 1) * width - 1) / 2  # [N, h, w], pixel centres at whole numbers
    y = ((grid[..., 1] + 1) * height - 1) / 2
    left, top = x.detach().floor(), y.detach().floor()
    flat = image.reshape(n, channels, height * width)
    result = image.new_zeros(n, channels, *grid.shape[1:3])
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            values = flat.gather(2, index.reshape(n, 1, -1).expand(-1, channels, -1)).reshape_as(result)
            result = result + values * (weight_y * weight_x * inside).unsqueeze(1)
    return result


class _Sample(torch.autograd.Function):
    """grid_sample as a linear operator on images."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.image_shape = image.shape
        return torch.nn.functional.grid_sample(image, grid, mode='bilinear', padding_mode='zeros', align_corners=False)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Scatter.apply(grad, ctx.saved_tensors[0], ctx.image_shape), None


class _Scatter(torch.autograd.Function):
    """The transposed operator: adds each sample's value to the pixels that it was read from."""

    @staticmethod
    def forward(ctx: Any, samples: torch.Tensor, grid: torch.Tensor, image_shape: torch.Size) -> torch.Tensor:
        ctx.save_for_backward(grid)
        # The image's values matter to the grid's gradient only, so a stand-in of its shape spares keeping it alive.
        stand_in = samples.new_zeros(()).expand(image_shape)
        bilinear, zeros, align_corners = 0, 0, False
        return torch.ops.aten.grid_sampler_2d_backward(
            samples, stand_in, grid, bilinear, zeros, align_corners, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Sample.apply(grad, ctx.saved_tensors[0]), None, None
