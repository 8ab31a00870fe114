"""What compiled kernels are held against: definitions in float64, and every order of gradients.

`test_cuda_kernels` runs the checks on an emulator, `test_device_ops` on a GPU.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch

from torch_utils.ops import bias_act, cuda_kernels, filtered_lrelu, upfirdn2d

FORMATS = (torch.contiguous_format, torch.channels_last)
# Of results and first gradients, and of second ones, as shares of the largest value.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [(2, 3, 4, 5), (3, 72, 9, 7), (2, 130, 1, 1), (1, 16, 40, 33), (2, 40, 8, 8), (1, 1, 3, 1)]
EPILOGUES = [('lrelu', None, 0.3, 'scale noise bias'), ('lrelu', 0.75, 1, 'scale noise bias'),
             ('relu', None, 1, 'bias'), ('linear', 0.5, 2, 'scale bias'), ('linear', None, 1.5, 'noise'),
             ('lrelu', None, 1, '')]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def epilogue(x, scale, noise, b, act, gain, clamp, factor) -> torch.Tensor:
    """The definition."""
    x = x * factor if scale is None else x * factor * scale[:, :, None, None]
    x = x if noise is None else x + noise
    x = x if b is None else x + b[:, None, None]
    x = {'linear': lambda x: x, 'relu': torch.relu, 'lrelu': lambda x: torch.nn.functional.leaky_relu(x, 0.2)}[act](x)
    return x * gain if clamp is None else (x * gain).clamp(-clamp, clamp)


def all_orders(func: Any, leaves: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The result, the gradients of a random linear function of it, and theirs."""
    leaves = [None if leaf is None else leaf.detach().clone().requires_grad_() for leaf in leaves]
    given = [leaf for leaf in leaves if leaf is not None]
    y = func(*leaves)
    head = rand(*y.shape, seed=1).to(y)
    plain = torch.autograd.grad(y, given, head, retain_graph=True)
    first = torch.autograd.grad(y.square(), given, head, create_graph=True)
    contracted = sum((grad * rand(*grad.shape, seed=2).to(grad)).sum() for grad in first)
    return [y, *plain, *first, *torch.autograd.grad(contracted, given)]


def assert_close(ours: list[torch.Tensor], exact: list[torch.Tensor], tolerance: float) -> None:
    """Differences in units of the largest value."""
    for index, (one, other) in enumerate(zip(ours, exact, strict=True)):
        one, other = one.detach().double(), other.detach().to(one.device)
        worst = float((one - other).abs().max() / other.abs().max().clamp(min=1e-3))
        assert worst < tolerance, f'result {index} is off by {worst:.1e}'


def compare(func: Callable[..., torch.Tensor], definition: Callable[..., torch.Tensor],
            leaves: list[torch.Tensor | None], device: str, dtype: torch.dtype) -> torch.Tensor:
    """func of leaves, of which the first has `dtype`, against the definition in float64; gives func's result.

    In half precision a value may fall on the other side of a kink, where a slope is another: then most have to be near.
    """
    rounded = [None if leaf is None else leaf.to(dtype).to(leaf.dtype) for leaf in leaves]
    rounded[0] = rounded[0].to(dtype)
    moved = [None if leaf is None else leaf.to(device, torch.float64 if dtype == torch.float64 else leaf.dtype)
             for leaf in rounded]
    ours = all_orders(func, moved)
    # By PyTorch's own operators, on a GPU, too: on a CPU all these cases would take minutes.
    exact = all_orders(definition, [None if leaf is None else leaf.to(device, torch.float64) for leaf in rounded])
    assert ours[0].dtype == dtype and ours[0].device.type == torch.device(device).type
    assert [grad.dtype for grad in ours[1:]] == 3 * [leaf.dtype for leaf in moved if leaf is not None]
    if dtype.itemsize > 2:
        assert_close(ours, exact, TOLERANCES[dtype])
    else:
        assert_close(ours[:1], exact[:1], TOLERANCES[dtype])
        for index, (one, other) in enumerate(zip(ours, exact, strict=True)):
            off = float((one.detach().double() - other.detach()).norm() / other.detach().norm().clamp(min=1e-3))
            assert off < (0.3 if dtype == torch.bfloat16 else 0.1), f'result {index} is off by {off:.1e}'
    return ours[0]


def away_from_kinks(leaves: list[torch.Tensor | None], act: str, gain: float, clamp: float | None,
                    factor: float) -> None:
    """Moves the few numbers of the first leaf whose results lie so near to a kink that rounding would decide about the
    slope: of a million some do."""
    x = leaves[0]
    for _ in range(20):
        wide = [None if leaf is None else leaf.double() for leaf in leaves]
        y = epilogue(*wide, 'linear', gain, None, factor)
        near = (y.abs() < 1e-4) & (act != 'linear')
        if clamp is not None:
            z = epilogue(*wide, act, gain, None, factor)
            near |= (z.abs() - clamp).abs() < 1e-4
        if not near.any():
            return
        x += 0.1 * near
    raise AssertionError('a scale of 0?')


def check_epilogue(device: str, dtype: torch.dtype, form: torch.memory_format, shape: tuple[int, ...],
                   options: tuple[Any, ...]) -> None:
    act, clamp, factor, parts = options
    n, c, h, w = shape
    leaves = [rand(*shape).to(memory_format=form), rand(n, c, seed=3) if 'scale' in parts else None,
              rand(n, 1, h, w, seed=4) if 'noise' in parts else None, rand(c, seed=5) if 'bias' in parts else None]
    if dtype.itemsize > 2:
        away_from_kinks(leaves, act, 1.4, clamp, factor)
    y = compare(lambda *leaves: bias_act.modulated_bias_act(*leaves, act, gain=1.4, clamp=clamp, factor=factor),
                lambda *leaves: epilogue(*leaves, act, 1.4, clamp, factor), leaves, device, dtype)
    assert y.is_contiguous(memory_format=form)


def check_activation(device: str, dtype: torch.dtype, act: str) -> None:
    """Of images in both formats, of matrices, of other dimensions; gains of either sign; with and without a clamp."""
    shapes = [((2, 6, 5, 4), 1), ((3, 40), 1), ((4, 3, 8), 2), ((7,), 0), ((2, 8, 2, 3, 2), 1), ((2, 3, 4, 5), 3)]
    cases = itertools.product(shapes, FORMATS, ((None, None), (1.3, 0.875), (-0.7, 0.5)))
    for index, ((shape, dim), form, (gain, clamp)) in enumerate(cases):
        x = 2 * rand(*shape)
        x = x.to(memory_format=form) if x.ndim == 4 else x
        leaves = [x, rand(shape[dim], seed=5) if index % 3 else None]

        def func(x: torch.Tensor, b: torch.Tensor | None, impl: str = 'cuda', dim: int = dim, gain: float | None = gain,
                 clamp: float | None = clamp) -> torch.Tensor:
            return bias_act.bias_act(x, None if b is None else b.to(x.dtype), dim, act, 0.3, gain, clamp, impl)

        compare(func, lambda x, b, func=func: func(x, b, 'ref'), leaves, device, dtype)


# up, down, padding. Each with odd paddings for blocks to begin at either parity.
GEOMETRIES = [(1, 1, [2, 1, 2, 1]), (2, 1, [2, 1, 2, 1]), (2, 1, [3, 2, 1, 4]), (1, 2, [1, 1, 1, 1]),
              (2, 2, [-1, 3, 2, -2]), ([1, 3], [2, 1], [0, 5, 3, 1]), (1, 1, [-1, 2, -2, 3]), (2, 1, [-3, 1, 0, -2]),
              ([2, 1], 1, [2, 1, 2, 1])]


def check_filter(device: str, dtype: torch.dtype, form: torch.memory_format, taps: tuple[int, ...], channels: int,
                 size: tuple[int, int]) -> None:
    """Filters of these taps, in general no outer products, in every geometry; the second gradient is one more."""
    f = rand(*taps, seed=1) / 3
    for index, (up, down, padding) in enumerate(GEOMETRIES):
        options = (up, down, [side + len(taps) % 2 * 8 for side in padding], index % 2 == 0, 1.7)

        def func(x: torch.Tensor, impl: str = 'cuda', options: tuple[Any, ...] = options) -> torch.Tensor:
            return upfirdn2d.upfirdn2d(x, f.to(x.device), *options, impl)

        x = rand(2, channels, *size).to(memory_format=form)
        y = compare(func, lambda x, func=func: func(x, 'ref'), [x], device, dtype)
        assert y.is_contiguous(memory_format=form) or not cuda_kernels.usable(y)


FILTERED = [  # Taps of fu and fd, up, down, padding, keywords.
    ((12,), (12,), 2, 2, [11, 10, 11, 10], dict(clamp=1.5)), ((24,), (12,), 4, 2, 17, dict()),
    ((12,), (24,), 2, 4, [9, 12, 13, 16], dict(slope=0.0, flip_filter=True)),
    ((6,), (4, 4), 2, 2, [8, 9, 10, 7], dict(clamp=0.6)), ((2, 5), (3, 1), 1, 1, 9, dict(gain=0.7, slope=0.5)),
    (None, None, 1, 1, 0, dict(slope=1.0, gain=1.0, clamp=1.5)), (None, (3,), 1, 2, 8, dict()),
    ((4,), None, 4, 1, [-1, 12, 3, 8], dict(clamp=1.0)), ((5,), (4,), 3, 3, 6, dict()),
]


def check_filtered_lrelu(device: str, dtype: torch.dtype, form: torch.memory_format, channels: int,
                         size: tuple[int, int]) -> None:
    for index, (up_taps, down_taps, up, down, padding, options) in enumerate(FILTERED):
        fu, fd = (None if taps is None else rand(*taps, seed=seed) / 2 for seed, taps in ((1, up_taps), (2, down_taps)))

        def func(x: torch.Tensor, b: torch.Tensor | None, impl: str = 'cuda', fu=fu, fd=fd, up=up, down=down,
                 padding=padding, options=options) -> torch.Tensor:
            fu, fd = (None if f is None else f.to(x.device) for f in (fu, fd))
            b = None if b is None else b.to(x.dtype)
            return filtered_lrelu.filtered_lrelu(x, fu, fd, b, up, down, padding, impl=impl, **options)

        leaves = [rand(2, channels, *size).to(memory_format=form), rand(channels, seed=5) if index % 3 else None]
        compare(func, lambda x, b, func=func: func(x, b, 'ref'), leaves, device, dtype)
