"""Bias, activation, gain and clamp in one call; with a scale for each channel and noise, all of a layer's epilogue.

Compiled kernels (`cpu_kernels`, `cuda_kernels`) do it in one pass forward and one backward; `_Act`, `_Slope`, `_Scale`
and `_Contract` are each other's derivatives, so that any order of gradients is made of the same two kernels. What is no
rectifier of an image tensor, on CUDA `_Curve` does.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch.nn import functional

from torch_utils import precision
from torch_utils.ops import cuda_kernels, kept
from torch_utils.ops.asked import is_asked, is_recorded
from torch_utils.ops.cpu_kernels import Rectifier
from torch_utils.ops.cuda_kernels import Curve
from torch_utils.ops.kernels import compiled, library_for


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

# Networks look for it here: they run on hosts whose torch_utils has no such module, too.
layer_dtype = precision.layer_dtype

IDENTITY = Rectifier(1.0, 1.0, None)


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
    dim = dim % x.ndim
    column = None if b is None else _column(b, x.ndim, dim)
    fast = impl == 'cuda' and not is_recorded()
    rectifier = _as_rectifier(act, alpha, gain, clamp) if fast else None
    if rectifier is not None and (b is None or dim == 1) and compiled(x) is not None:
        return _Act.apply(x, None, None, b, 1.0, rectifier, False)
    idle = act == 'linear' and b is None and gain == 1 and clamp is None
    if fast and not idle and cuda_kernels.usable_on_any(x) and (x.ndim != 4 or dim == 1):
        return _Curve.apply(x, b, Curve(dim, act, alpha, gain, clamp))
    if rectifier is None:
        return _bias_act_ref(x, column, row.func, alpha, gain, clamp)
    # Without kernels, PyTorch's own operators do best what they can do in two steps.
    if act == 'linear':
        return _bias_act_ref(x, column, row.func, alpha, gain, clamp)
    return _Rectifier.apply(x, column, *rectifier)


def modulated_bias_act(x: torch.Tensor, scale: torch.Tensor | None = None, noise: torch.Tensor | None = None,
                       b: torch.Tensor | None = None, act: str = 'linear', alpha: float | None = None,
                       gain: float | None = None, clamp: float | None = None, factor: float = 1,
                       inplace: bool = False, impl: str = 'cuda') -> torch.Tensor:
    """`bias_act(x * factor * scale + noise, b)` of x [N, C, H, W]: what follows a modulated convolution, in one pass.

    scale: [N, C], noise: broadcastable to [N, 1, H, W], each of any floating type, or None. inplace: x was just
    computed and is nobody else's, so that its memory may be taken. The rest is as in `bias_act`.
    """
    row = _checked(x, b, 1, act, clamp, impl)
    rectifier = _as_rectifier(act, float(row.def_alpha if alpha is None else alpha),
                              float(row.def_gain if gain is None else gain), clamp)
    if impl == 'cuda' and rectifier is not None and compiled(x) is not None:
        scale, noise = _fitting_scale(x, scale), _fitting_noise(x, noise)
        # The gradient of the scale needs x.
        inplace = inplace and compiled(x).is_dense(x) and not (torch.is_grad_enabled() and scale is not None)
        return _Act.apply(x, scale, noise, b, float(factor), rectifier, inplace)
    noise = None if noise is None else noise.to(x.dtype)
    x = x if factor == 1 else x * factor
    if scale is None:
        x = x if noise is None else x + noise
    else:
        column = scale.to(x.dtype)[:, :, None, None]
        x = x * column if noise is None else torch.addcmul(noise, x, column)
    return bias_act(x, None if b is None else b.to(x.dtype), 1, act, alpha, gain, clamp, impl)


def scale_channels(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] times scale [N, C], of x's type; differentiable any number of times."""
    if compiled(x) is not None:
        return _Scale.apply(x, _fitting_scale(x, scale), 1.0)
    return x * scale.to(x.dtype)[:, :, None, None]


def leaky_relu_(x: torch.Tensor, alpha: float, clamp: float | None = None) -> torch.Tensor:
    """`clamp(lrelu(x))` in x's own memory, for an x that was just computed and is nobody else's.

    What `bias_act` does with a gain of 1, without its new tensor. Differentiable twice.
    """
    if is_recorded():
        return _bias_act_ref(x, None, functional.leaky_relu, alpha, 1.0, clamp)
    return _InPlaceRectifier.apply(x, alpha, clamp)


def squared_norms(weight: torch.Tensor) -> torch.Tensor:
    """[O, I, kh, kw] → [O, I]: the sums of squares over the last two axes; differentiable any number of times."""
    fast = weight.dtype == torch.float32 and fuses(weight)
    make = functools.partial(_SquaredNorms.apply, weight) if fast else lambda: weight.square().sum(dim=(2, 3))
    found = kept.get(weight, 'squared norms', 4 * weight.shape[0] * weight.shape[1], make)
    return make() if found is None else found


def fuses(x: torch.Tensor) -> bool:
    """Whether `modulated_bias_act` and `scale_channels` are one pass for such an x: then work may be left to them."""
    return compiled(x) is not None


def compiled_for(device: torch.device) -> bool:
    """Whether there are compiled kernels for tensors of this device."""
    return library_for(device) is not None


def _as_rectifier(act: str, alpha: float, gain: float, clamp: float | None) -> Rectifier | None:
    """The activation as a leaky ReLU of some slope; None if it is none.

    Its gradient is read off its output, which needs the output to keep the sign of the input.
    """
    if act not in ('linear', 'relu', 'lrelu') or gain <= 0 or alpha < 0:
        return None
    return Rectifier({'linear': 1.0, 'relu': 0.0, 'lrelu': alpha}[act], gain, clamp)


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


def _fitting_scale(x: torch.Tensor, scale: torch.Tensor | None) -> Any:
    """[N, C], of which kernels read all."""
    if scale is None or scale.shape == x.shape[:2]:
        return scale
    if scale.ndim != 2 or any(size not in (1, full) for size, full in zip(scale.shape, x.shape)):
        raise ValueError(f'scale: got shape {list(scale.shape)}, expected {list(x.shape[:2])} (x: {list(x.shape)})')
    return scale.expand(x.shape[:2])


def _fitting_noise(x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor | None:
    """[N, 1, H, W] or, for all images, [1, 1, H, W], of which kernels read all."""
    if noise is None:
        return None
    shape = [1] * (4 - noise.ndim) + list(noise.shape)
    full = [x.shape[0], 1, *x.shape[2:]]
    if len(shape) > 4 or any(size not in (1, whole) for size, whole in zip(shape, full)):
        raise ValueError(f'noise: got shape {list(noise.shape)}, expected one like {full} (x: {list(x.shape)})')
    return noise.reshape(shape).expand(shape[0], *full[1:])


def _column(b: torch.Tensor, ndim: int, dim: int) -> torch.Tensor:
    """The bias in a shape that broadcasts."""
    return b.reshape([-1 if axis == dim else 1 for axis in range(ndim)])


def _bias_act_ref(x: torch.Tensor, column: torch.Tensor | None, func: Callable[[torch.Tensor, float], torch.Tensor],
                  alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """The definition, step by step; `column` is the bias in a shape that broadcasts."""
    if column is not None:
        x = x + column
    x = func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


class _Act(torch.autograd.Function):
    """The compiled epilogue: one pass forward, one backward for all four gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor | None, noise: torch.Tensor | None,
                bias: torch.Tensor | None, factor: float, act: Rectifier, inplace: bool) -> torch.Tensor:
        y = compiled(x).act_forward(x, scale, noise, bias, factor, act, inplace)
        if inplace:
            ctx.mark_dirty(y)
        ctx.bends = act.alpha != 1 or act.clamp is not None
        ctx.save_for_backward(y if ctx.bends else None, None if scale is None else x, scale)
        ctx.like = [None if part is None else (part.shape, part.dtype) for part in (x, scale, noise, bias)]
        ctx.constants = factor, act
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, x, scale = ctx.saved_tensors
        # Without detach the output's gradient, which is zero, would be carried on through the whole network.
        y = None if y is None else y.detach()
        factor, act = ctx.constants
        given = [like is not None for like in ctx.like]
        wants = [is_asked(ctx, i, sum(given[:i])) for i in range(4)]
        if torch.is_grad_enabled():
            grads = _differentiable_gradients(grad, y, x, scale, factor, act, wants)
        else:
            grads = compiled(grad).act_backward(grad, y, x, scale, factor, act, wants)
        return *(None if one is None else one.sum_to_size(like[0]).to(like[1])
                 for one, like in zip(grads, ctx.like, strict=True)), None, None, None


def _differentiable_gradients(grad: torch.Tensor, y: torch.Tensor | None, x: torch.Tensor | None,
                              scale: torch.Tensor | None, factor: float, act: Rectifier,
                              wants: Sequence[bool]) -> list[torch.Tensor | None]:
    """The gradients of `_Act` in operations that have gradients themselves."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad = grad * act.gain if y is None else _Slope.apply(grad, y, *act)
    if scale is None:
        grad_x = grad if factor == 1 else grad * factor
    else:
        grad_x = _Scale.apply(grad, scale, factor) if wants[0] else None
    return [
        grad_x,
        _Contract.apply(grad, x, factor) if wants[1] else None,
        grad.sum(dim=1, keepdim=True, dtype=wide) if wants[2] else None,
        grad.sum(dim=(0, 2, 3), dtype=wide) if wants[3] else None,
    ]


class _Scale(torch.autograd.Function):
    """x [N, C, H, W] * factor * scale [N, C]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        ctx.factor = factor
        return compiled(x).act_forward(x, scale, None, None, factor, IDENTITY)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        wants = is_asked(ctx, 0), is_asked(ctx, 1)
        if torch.is_grad_enabled():
            grads = [_Scale.apply(grad, scale, ctx.factor) if wants[0] else None,
                     _Contract.apply(grad, x, ctx.factor) if wants[1] else None]
        else:
            grads = compiled(grad).act_backward(grad, None, x, scale, ctx.factor, IDENTITY, (*wants, False, False))
        return grads[0], None if grads[1] is None else grads[1].to(scale.dtype), None


class _Contract(torch.autograd.Function):
    """The sum of factor * a * b over pixels: two [N, C, H, W] to float32 [N, C]."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.factor = factor
        return compiled(a).act_backward(a, None, b, None, factor, IDENTITY, (False, True, False, False))[1]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a, b = ctx.saved_tensors
        return (_Scale.apply(b, grad, ctx.factor) if is_asked(ctx, 0) else None,
                _Scale.apply(a, grad, ctx.factor) if is_asked(ctx, 1) else None, None)


class _Curve(torch.autograd.Function):
    """Any activation of a tensor of any shape, by CUDA kernels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, b: torch.Tensor | None, curve: Curve) -> torch.Tensor:
        ctx.save_for_backward(x, b)
        ctx.curve = curve
        return cuda_kernels.bias_curve(x, b, curve)[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, b = ctx.saved_tensors
        dx = _CurveSlope.apply(grad, x, b, ctx.curve)
        return dx, _for_bias(ctx, dx, b, 1), None


class _CurveSlope(torch.autograd.Function):
    """`_Curve`'s gradient in x. Its own gradients are the second derivative; further ones are left to PyTorch."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, x: torch.Tensor, b: torch.Tensor | None, curve: Curve) -> torch.Tensor:
        ctx.save_for_backward(grad, x, b)
        ctx.curve = curve
        return cuda_kernels.bias_curve(x, b, curve, grad)[0]

    @staticmethod
    def backward(ctx: Any, second: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, x, b = ctx.saved_tensors
        compute = _reference_second_gradients if torch.is_grad_enabled() else cuda_kernels.bias_curve
        for_grad, for_x = compute(x, b, ctx.curve, grad, second)
        return for_grad, for_x, _for_bias(ctx, for_x, b, 2), None


def _for_bias(ctx: Any, dx: torch.Tensor | None, b: torch.Tensor | None, index: int) -> torch.Tensor | None:
    """The gradient in the bias, from that in x, of an autograd function whose input `index` it is."""
    if b is None or dx is None or not is_asked(ctx, index):
        return None
    axes = [0, *(axis + 1 for axis in range(dx.ndim) if axis != ctx.curve.dim)]  # To `sum`, none would mean all.
    return dx.unsqueeze(0).sum(dim=axes, dtype=torch.promote_types(dx.dtype, torch.float32)).to(b.dtype)


def _reference_second_gradients(x: torch.Tensor, b: torch.Tensor | None, curve: Curve, grad: torch.Tensor,
                                second: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What `second`, come back for the first gradient in x, gives for grad and x; in operators that have gradients."""
    # Views, so that what grad and x have in common further back is not counted here.
    grad, x = (part.view_as(part) if part.requires_grad else part.detach().requires_grad_()
               for part in (grad, x if b is None else x + _column(b, x.ndim, curve.dim).to(x.dtype)))
    y = _bias_act_ref(x, None, activation_funcs[curve.act].func, *curve[2:])
    (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
    return torch.autograd.grad(dx, [grad, x], second, create_graph=True, allow_unused=True, materialize_grads=True)


class _SquaredNorms(torch.autograd.Function):
    """Of convolution kernels; their gradient is made of operators that autograd knows."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return compiled(weight).squared_norms(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return ctx.saved_tensors[0] * (2 * grad)[:, :, None, None]


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
        wants_bias = ctx.bias_shape is not None and is_asked(ctx, 1)
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
        kernels = compiled(grad)
        if kernels is not None:
            only_x = (True, False, False, False)
            return kernels.act_backward(grad, y, None, None, 1.0, Rectifier(alpha, gain, clamp), only_x)[0]
        result = torch.ops.aten.leaky_relu_backward(grad, y, alpha, True).mul_(gain)
        if clamp is not None:
            torch.ops.aten.hardtanh_backward.grad_input(result, y, -clamp, clamp, grad_input=result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Slope.apply(grad, ctx.saved_tensors[0], *ctx.constants), None, None, None, None
