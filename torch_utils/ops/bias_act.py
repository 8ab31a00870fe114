"""Bias, activation, gain and clamp in one call."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """One row of the table: the function of (x, alpha), and what alpha and gain are unless the caller says."""

    func: Callable[[torch.Tensor, float], torch.Tensor]
    def_gain: float = 1.0
    def_alpha: float = 0.0


# A gain of sqrt(2) keeps the variance of what a rectifier halves. Python floats: NumPy's would end up inside pickles.
activation_funcs: dict[str, Activation] = {
    'linear': Activation(lambda x, alpha: x),
    'relu': Activation(lambda x, alpha: functional.relu(x), sqrt(2)),
    'lrelu': Activation(lambda x, alpha: functional.leaky_relu(x, alpha), sqrt(2), def_alpha=0.2),
    'tanh': Activation(lambda x, alpha: x.tanh()),
    'sigmoid': Activation(lambda x, alpha: x.sigmoid()),
    'elu': Activation(lambda x, alpha: functional.elu(x)),
    'selu': Activation(lambda x, alpha: functional.selu(x)),
    'softplus': Activation(lambda x, alpha: functional.softplus(x)),
    'swish': Activation(lambda x, alpha: functional.silu(x), sqrt(2)),
}


def bias_act(x: torch.Tensor, b: torch.Tensor | None = None, dim: int = 1, act: str = 'linear',
             alpha: float | None = None, gain: float | None = None, clamp: float | None = None,
             impl: str = 'cuda') -> torch.Tensor:
    """`clamp(gain * act(x + b), -clamp, clamp)`, of x's shape, type and memory layout.

    b: [x.shape[dim]] or None; alpha: slope of lrelu; gain, alpha: None takes the activation's own; clamp: None is off.
    impl: 'cuda' takes the fast path on any device, 'ref' the readable one. Differentiable twice.
    Raises ValueError for an unknown act or impl, a negative clamp and a bias that does not fit.
    """
    row = _checked(x, b, dim, act, clamp, impl)
    alpha = float(row.def_alpha if alpha is None else alpha)
    gain = float(row.def_gain if gain is None else gain)
    column = None if b is None else b.reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])
    # The rectifier's gradient is read off its output, which needs the output to keep the sign of the input.
    if impl == 'cuda' and act in ('relu', 'lrelu') and gain > 0 and alpha >= 0:
        return _Rectifier.apply(x, column, alpha if act == 'lrelu' else 0.0, gain, clamp)
    return _bias_act_ref(x, column, row.func, alpha, gain, clamp)


def leaky_relu_(x: torch.Tensor, alpha: float, clamp: float | None = None) -> torch.Tensor:
    """`clamp(lrelu(x))` in x's own memory, for an x that was just computed and is nobody else's.

    What `bias_act` does with a gain of 1, without its new tensor. Differentiable twice.
    """
    return _InPlaceRectifier.apply(x, alpha, clamp)


def _checked(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, clamp: float | None, impl: str) -> Activation:
    if impl not in ('ref', 'cuda'):
        raise ValueError(f"impl: got {impl!r}, expected 'ref' or 'cuda'")
    if act not in activation_funcs:
        raise ValueError(f'act: got {act!r}, expected one of {", ".join(activation_funcs)}')
    if clamp is not None and clamp < 0:
        raise ValueError(f'clamp: got {clamp}, expected a number ≥ 0 or None')
    if b is not None and (b.ndim != 1 or b.shape[0] != x.shape[dim]):
        raise ValueError(f'b: got shape {list(b.shape)}, expected [{x.shape[dim]}] (x: {list(x.shape)}, {dim=})')
    return activation_funcs[act]


def _bias_act_ref(x: torch.Tensor, column: torch.Tensor | None, func: Callable[[torch.Tensor, float], torch.Tensor],
                  alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """The definition, step by step; `column` is the bias in a shape that broadcasts."""
    if column is not None:
        x = x + column
    x = func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


class _Rectifier(torch.autograd.Function):
    """relu (alpha 0) and leaky relu: one new tensor forward, one saved, one new tensor backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, column: torch.Tensor | None, alpha: float, gain: float,
                clamp: float | None) -> torch.Tensor:
        # gain · lrelu(x + b) = lrelu(gain · x + gain · b): a rectifier is positively homogeneous.
        y = x * gain if column is None else torch.add(column * gain, x, alpha=gain)
        y = functional.leaky_relu_(y, alpha)
        if clamp is not None:
            y.clamp_(-clamp, clamp)
        ctx.save_for_backward(y)
        ctx.bias_shape = None if column is None else column.shape
        ctx.constants = alpha, gain, clamp
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Without detach the output's gradient, which is zero, would be carried on through the whole network.
        grad = _Slope.apply(grad, ctx.saved_tensors[0].detach(), *ctx.constants)
        wants_bias = ctx.bias_shape is not None and ctx.needs_input_grad[1]
        return grad, grad.sum_to_size(ctx.bias_shape) if wants_bias else None, None, None, None


class _InPlaceRectifier(torch.autograd.Function):
    """Leaky relu whose result takes the place of its argument."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: float, clamp: float | None) -> torch.Tensor:
        ctx.mark_dirty(x)
        functional.leaky_relu_(x, alpha)
        if clamp is not None:
            x.clamp_(-clamp, clamp)
        ctx.save_for_backward(x)
        ctx.constants = alpha, 1.0, clamp
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Slope.apply(grad, ctx.saved_tensors[0].detach(), *ctx.constants), None, None


class _Slope(torch.autograd.Function):
    """Gradients times the rectifier's slope, which is piecewise constant: so is what comes back, in every order."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, y: torch.Tensor, alpha: float, gain: float,
                clamp: float | None) -> torch.Tensor:
        ctx.save_for_backward(y)
        ctx.constants = alpha, gain, clamp
        result = torch.ops.aten.leaky_relu_backward(grad, y, alpha, True).mul_(gain)
        if clamp is not None:
            torch.ops.aten.hardtanh_backward.grad_input(result, y, -clamp, clamp, grad_input=result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Slope.apply(grad, ctx.saved_tensors[0], *ctx.constants), None, None, None, None
