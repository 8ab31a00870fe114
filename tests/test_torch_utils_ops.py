"""The operators: fast path against reference in values, first and second gradients; closed forms; scipy as oracle."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch.autograd import forward_ad

from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma, grid_sample_gradfix, upfirdn2d
from torch_utils.ops.filtered_lrelu import filtered_lrelu

FLOAT = torch.float64
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


def values_and_gradients(func: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor],
                         *args: Any) -> list[torch.Tensor]:
    """The result, its gradients in `inputs`, and theirs, contracted with fixed numbers through a non-linear head."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = func(*leaves, *args)
    first = torch.autograd.grad((y.sin() * rand(*y.shape, seed=1)).sum(), leaves, create_graph=True)
    contracted = sum((grad * rand(*grad.shape, seed=2)).sum() for grad in first)
    return [y, *first, *torch.autograd.grad(contracted, leaves)]


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# upfirdn2d

FILTERS = {
    'none': None, 'one tap': rand(1), '1-D even': rand(4), '1-D odd': rand(3, seed=1), '2-D': rand(2, 3, seed=2),
    '2-D tall': rand(4, 1, seed=3), '2-D with zeros': torch.tensor([[1.0, 0, 2], [0, 0, 3]]),
}
GEOMETRIES = [  # up, down, padding
    (1, 1, 0), (1, 1, [2, 0]), (1, 1, [3, 0, 0, 2]), (2, 1, [2, 1, 1, 2]), (3, 1, 1), (1, 2, [1, 2, 0, 3]), (1, 3, 2),
    ([1, 2], 1, 1), (1, [2, 1], 1), ([2, 1], [1, 3], [2, 3]), (2, 3, 4), (3, 2, [1, 2, 3, 4]), (1, 1, [-1, 2, 3, -2]),
    (2, 1, [-3, 1, 0, -2]), (2, 1, -2), (1, 2, [-2, 3, 2, -1]), (2, 2, [-1, 4, 5, -2]),
]


def oracle(x: torch.Tensor, f: torch.Tensor | None, up: object, down: object, padding: object,
           flip_filter: bool = False, gain: float = 1) -> torch.Tensor:
    """Zero insertion, np.pad, scipy's convolution and slicing, image by image."""
    plane = np.ones([1, 1]) if f is None else f.double().numpy()
    plane = np.outer(plane, plane) if plane.ndim == 1 else plane
    plane = plane[::-1, ::-1] if flip_filter else plane
    (up_x, up_y), (down_x, down_y) = np.broadcast_to(up, 2), np.broadcast_to(down, 2)
    sides = np.atleast_1d(padding)
    x0, x1, y0, y1 = sides if sides.size == 4 else np.repeat(np.broadcast_to(sides, 2), 2)
    results = []
    for image in x.reshape(-1, *x.shape[2:]).numpy():
        sparse = np.zeros([image.shape[0] * up_y, image.shape[1] * up_x])
        sparse[::up_y, ::up_x] = image
        padded = np.pad(sparse, np.maximum([[y0, y1], [x0, x1]], 0))
        height, width = padded.shape
        cropped = padded[max(-y0, 0):height - max(-y1, 0), max(-x0, 0):width - max(-x1, 0)]
        results.append(gain * signal.convolve2d(cropped, plane, mode='valid')[::down_y, ::down_x])
    return torch.as_tensor(np.stack(results)).reshape(*x.shape[:2], *results[0].shape)


@pytest.mark.parametrize('impl', ['ref', 'cuda'])
@pytest.mark.parametrize('channels', [2, 17])  # 17 takes the convolutions, 2 the shifted sums
@pytest.mark.parametrize('f', FILTERS.values(), ids=FILTERS.keys())
def test_upfirdn2d_is_what_scipy_computes(f: torch.Tensor | None, channels: int, impl: str) -> None:
    for (up, down, padding), (flip, layout) in itertools.product(GEOMETRIES, ((False, LAYOUTS[0]), (True, LAYOUTS[1]))):
        x = rand(2, channels, 7, 9).to(memory_format=layout)
        y = upfirdn2d.upfirdn2d(x, f, up, down, padding, flip, gain=1.5, impl=impl)
        torch.testing.assert_close(y, oracle(x, f, up, down, padding, flip, 1.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('channels', [2, 17])
@pytest.mark.parametrize('f', FILTERS.values(), ids=FILTERS.keys())
def test_upfirdn2d_gradients_are_the_references(f: torch.Tensor | None, channels: int) -> None:
    for (up, down, padding), flip in zip(GEOMETRIES, itertools.cycle((False, True))):
        inputs, args = [rand(1, channels, 6, 8)], (f, up, down, padding, flip, 0.7)
        assert_same(values_and_gradients(upfirdn2d.upfirdn2d, inputs, *args, 'cuda'),
                    values_and_gradients(upfirdn2d.upfirdn2d, inputs, *args, 'ref'))


@pytest.mark.parametrize('up, down', [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_upfirdn2d_derivatives_are_numerically_right(up: int, down: int) -> None:
    x = rand(1, 1, 4, 5).requires_grad_()

    def func(x: torch.Tensor) -> torch.Tensor:
        return upfirdn2d.upfirdn2d(x, rand(3, 2), up, down, [1, 2, 0, 2], gain=2).square()

    assert torch.autograd.gradcheck(func, [x])
    assert torch.autograd.gradgradcheck(func, [x])


@pytest.mark.parametrize('channels', [3, 24])
def test_upfirdn2d_keeps_channels_last_in_both_directions(channels: int) -> None:
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    for call in (upfirdn2d.filter2d, upfirdn2d.upsample2d, upfirdn2d.downsample2d):
        x = rand(2, channels, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
        y = call(x, f)
        grad, = torch.autograd.grad(y.square().sum(), x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('taps', range(1, 8))
def test_resampling_keeps_size_and_brightness(taps: int) -> None:
    f = upfirdn2d.setup_filter([1.0] * taps)
    x = torch.full([1, 1, 12, 18], 3.0)
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    assert upfirdn2d.filter2d(x, f).shape == x.shape
    assert upfirdn2d.downsample2d(x, f, down=[3, 2]).shape == (1, 1, 6, 6)
    torch.testing.assert_close(upfirdn2d.filter2d(x, f)[inside], x[inside])
    up = upfirdn2d.upsample2d(x, f, up=[3, 2])
    assert up.shape == (1, 1, 24, 54)
    torch.testing.assert_close(up.mean(), x.mean(), rtol=0.3, atol=0)  # without the gain it would be a sixth
    torch.testing.assert_close(upfirdn2d.upsample2d(x, f, padding=-1), upfirdn2d.upsample2d(x, f)[:, :, 1:-1, 1:-1])


def test_bilinear_kernel_interpolates_halfway_between_pixels() -> None:
    ramp = torch.arange(6.0).reshape(1, 1, 1, 6).repeat(1, 1, 6, 1)
    y = upfirdn2d.upsample2d(ramp, upfirdn2d.setup_filter([1, 3, 3, 1]))
    expected = torch.arange(12) / 2 - 0.25
    torch.testing.assert_close(y[0, 0, 6, 1:-1], expected[1:-1])


def test_setup_filter() -> None:
    short, long = upfirdn2d.setup_filter([1, 3, 3, 1]), upfirdn2d.setup_filter(range(1, 9))
    assert short.shape == (4, 4) and long.shape == (8,)
    assert upfirdn2d.setup_filter([1, 2], separable=True).shape == (2,)
    torch.testing.assert_close(short, torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64)
    louder = upfirdn2d.setup_filter(range(8), gain=4, flip_filter=True)  # 1-D taps act twice: each has half of the gain
    torch.testing.assert_close(louder, torch.arange(7.0, -1, -1) / 14)
    torch.testing.assert_close(upfirdn2d.setup_filter([[1, 2], [3, 4]], gain=10), torch.tensor([[1.0, 2], [3, 4]]))
    torch.testing.assert_close(upfirdn2d.setup_filter(None), torch.ones(1, 1))
    taps = torch.tensor([2.0, 2.0])
    upfirdn2d.setup_filter(taps)
    assert taps.tolist() == [2, 2], 'the caller keeps its filter'


def test_upfirdn2d_says_what_is_wrong() -> None:
    x, f = rand(1, 1, 4, 4), torch.ones(3, 3)
    for message, call in {
        'impl: ': lambda: upfirdn2d.upfirdn2d(x, f, impl='fast'),
        'nothing of': lambda: upfirdn2d.upfirdn2d(x, f, padding=-1),
        'up: ': lambda: upfirdn2d.upfirdn2d(x, f, up=0), 'expected NCHW': lambda: upfirdn2d.upfirdn2d(x[0], f),
        'padding: ': lambda: upfirdn2d.upfirdn2d(x, f, padding=[1, 2, 3]),
        'at most two': lambda: upfirdn2d.setup_filter(np.ones([1, 1, 1])),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# conv2d_resample

@pytest.mark.parametrize('kernel', [(1, 1), (3, 3), (2, 3)])
@pytest.mark.parametrize('up, down', [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize('f', [None, rand(4), rand(3, 4)], ids=['none', '1-D', '2-D'])
def test_conv2d_resample_is_its_definition(f: torch.Tensor | None, up: int, down: int, kernel: tuple[int, int]) -> None:
    for padding, (groups, *flips) in itertools.product((1, [2, 0], [1, 2, 3, 0], [-1, 2, 1, -1]),
                                                       ((1, True, False), (2, False, True))):
        inputs, args = [rand(1, 4, 5, 6), rand(6, 4 // groups, *kernel, seed=1)], (f, up, down, padding, groups, *flips)
        assert_same(values_and_gradients(conv2d_resample.conv2d_resample, inputs, *args),
                    values_and_gradients(conv2d_resample._conv2d_resample_ref, inputs, *args))


def test_conv2d_resample_directions() -> None:
    """An impulse shows the kernel: turned by correlation, as it lies by convolution."""
    impulse, w = torch.zeros(1, 1, 5, 5), torch.arange(9.0).reshape(1, 1, 3, 3)
    impulse[0, 0, 2, 2] = 1
    correlated = conv2d_resample.conv2d_resample(impulse, w, padding=1)
    convolved = conv2d_resample.conv2d_resample(impulse, w, padding=1, flip_weight=False)
    torch.testing.assert_close(correlated[0, 0, 1:4, 1:4], w[0, 0].flip(0, 1))
    torch.testing.assert_close(convolved[0, 0, 1:4, 1:4], w[0, 0])


@pytest.mark.parametrize('up, down', [(2, 1), (1, 2)])
def test_conv2d_resample_derivatives_are_numerically_right(up: int, down: int) -> None:
    inputs = [rand(1, 2, 4, 4).requires_grad_(), rand(1, 2, 3, 3, seed=1).requires_grad_()]

    def func(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return conv2d_resample.conv2d_resample(x, w, rand(2, 2), up, down, padding=1)

    assert torch.autograd.gradcheck(func, inputs)
    assert torch.autograd.gradgradcheck(func, inputs)


# bias_act

@pytest.mark.parametrize('act', bias_act.activation_funcs)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_bias_act_is_its_definition(act: str, layout: torch.memory_format) -> None:
    x = rand(2, 3, 4, 5).to(memory_format=layout)
    for dim, (alpha, gain), clamp in itertools.product((1, 3), ((None, None), (0.3, 0.5), (None, -2)), (None, 0.4)):
        inputs, args = [x, rand(x.shape[dim], seed=1)], (dim, act, alpha, gain, clamp)
        fast = values_and_gradients(bias_act.bias_act, inputs, *args, 'cuda')
        assert_same(fast, values_and_gradients(bias_act.bias_act, inputs, *args, 'ref'))
        assert fast[0].stride() == x.stride()


@pytest.mark.parametrize('act', bias_act.activation_funcs)
def test_bias_act_derivatives_are_numerically_right(act: str) -> None:
    inputs = [rand(2, 3).requires_grad_(), rand(3, seed=1).requires_grad_()]

    def func(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return bias_act.bias_act(x, b, act=act, clamp=0.9).sin()

    assert torch.autograd.gradcheck(func, inputs)
    assert torch.autograd.gradgradcheck(func, inputs)


def test_bias_act_order_and_defaults() -> None:
    x, b = torch.tensor([[-3.0, 1.0, 50.0]]), torch.tensor([1.0, 1.0, 1.0])
    root2 = 2 ** 0.5
    clamped = bias_act.bias_act(x, b, act='lrelu', clamp=10)
    torch.testing.assert_close(clamped, torch.tensor([[-0.4 * root2, 2 * root2, 10]]))
    torch.testing.assert_close(bias_act.bias_act(x, b, act='relu', gain=3), torch.tensor([[0.0, 6, 153]]))
    assert bias_act.bias_act(x) is x
    gains = {name: row.def_gain for name, row in bias_act.activation_funcs.items()}
    assert gains == {name: root2 if name in ('relu', 'lrelu', 'swish') else 1 for name in gains}
    assert all(type(gain) is float for gain in gains.values()), 'NumPy scalars would end up in pickles'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_operators_keep_the_type(dtype: torch.dtype) -> None:
    x, f = torch.ones(1, 17, 4, 4, dtype=dtype), upfirdn2d.setup_filter([1, 3, 3, 1])
    for channels in (2, 17):
        assert upfirdn2d.upsample2d(x[:, :channels], f).dtype == dtype
    assert bias_act.bias_act(x, x[0, :, 0, 0], act='lrelu', clamp=1).dtype == dtype
    assert fma.fma(x, x[:, :, :1, :1], x[0, 0]).dtype == dtype


def test_bias_act_says_what_is_wrong() -> None:
    x = rand(2, 3)
    for message, call in {
        'act: got': lambda: bias_act.bias_act(x, act='gelu'), 'clamp: got': lambda: bias_act.bias_act(x, clamp=-1),
        'b: got': lambda: bias_act.bias_act(x, rand(2)), 'impl: got': lambda: bias_act.bias_act(x, impl=''),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# fma, grid_sample, convolutions

@pytest.mark.parametrize('shapes', list(itertools.permutations([(1, 3, 1, 1), (2, 3, 4, 5), (4, 5)])))
def test_fma_broadcasts_any_operand(shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = [rand(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    assert_same(values_and_gradients(fma.fma, inputs), values_and_gradients(lambda a, b, c: a * b + c, inputs))


def test_fma_keeps_channels_last_under_noise_of_one_channel() -> None:
    x = rand(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert fma.fma(x, rand(2, 8, 1, 1), rand(2, 1, 4, 4)).is_contiguous(memory_format=torch.channels_last)


def test_grid_sample_is_torchs_and_its_definition() -> None:
    x, grid = rand(2, 3, 5, 6), rand(2, 4, 3, 2)
    expected = torch.nn.functional.grid_sample(x, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    torch.testing.assert_close(grid_sample_gradfix.grid_sample(x, grid), expected)
    assert_same(values_and_gradients(grid_sample_gradfix.grid_sample, [x], grid),
                values_and_gradients(grid_sample_gradfix._grid_sample_ref, [x], grid))


@pytest.mark.parametrize('grid_too', [False, True])
def test_grid_sample_derivatives_are_numerically_right(grid_too: bool) -> None:
    x, grid = rand(1, 2, 3, 4).requires_grad_(), (rand(1, 2, 3, 2) * 0.7).requires_grad_(grid_too)

    def func(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return grid_sample_gradfix.grid_sample(x, grid).square()

    assert torch.autograd.gradcheck(func, [x, grid])
    assert torch.autograd.gradgradcheck(func, [x, grid])


def test_no_weight_gradients_marks_its_region_only() -> None:
    assert not conv2d_gradfix.weight_gradients_disabled
    with pytest.raises(RuntimeError), conv2d_gradfix.no_weight_gradients():
        assert conv2d_gradfix.weight_gradients_disabled
        with conv2d_gradfix.no_weight_gradients(disable=False):
            assert conv2d_gradfix.weight_gradients_disabled
        raise RuntimeError
    assert not conv2d_gradfix.weight_gradients_disabled
    with conv2d_gradfix.no_weight_gradients(disable=False):
        assert not conv2d_gradfix.weight_gradients_disabled


def test_r1_through_a_convolution_inside_no_weight_gradients() -> None:
    x, w = rand(1, 2, 4, 4).requires_grad_(), rand(3, 2, 3, 3, seed=1).requires_grad_()
    with conv2d_gradfix.no_weight_gradients():
        grad, = torch.autograd.grad(conv2d_gradfix.conv2d(x, w).square().sum(), [x], create_graph=True)
    grad.square().sum().backward()
    assert w.grad is not None and w.grad.abs().sum() > 0, 'the penalty itself does train the weights'
    y = conv2d_gradfix.conv_transpose2d(x, rand(2, 3, 3, 3), stride=2, padding=1, output_padding=1)
    assert y.shape == (1, 3, 8, 8)


def test_results_are_where_their_inputs_are_whatever_the_default_device_is() -> None:
    """Kernels write by address: into a result of another device they would write anywhere."""
    x = torch.randn([2, 64, 16, 16]).contiguous(memory_format=torch.channels_last).requires_grad_()
    w, b, f = torch.randn([64, 64, 3, 3], requires_grad=True), torch.randn([64], requires_grad=True), torch.ones([4])
    scale = torch.rand([2, 64], requires_grad=True)

    def gradients() -> list[torch.Tensor]:
        y = conv2d_gradfix.conv2d(x, w, padding=1)
        y = conv2d_gradfix.conv_transpose2d(conv2d_gradfix.conv2d(y, w, stride=2), w, stride=2)
        y = bias_act.modulated_bias_act(upfirdn2d.upfirdn2d(y, f, padding=1), scale, None, b, 'lrelu')
        y = y * bias_act.squared_norms(w).mean()
        return list(torch.autograd.grad(y.square().mean(), [x, w, b, scale]))

    expected = gradients()
    with torch.device('meta'):
        found = gradients()
    torch.testing.assert_close(found, expected)


TRANSFORMS: dict[str, Callable[..., torch.Tensor]] = {
    'grad': lambda f, x, v: torch.func.grad(lambda x: f(x).square().sum())(x),
    'vmap': lambda f, x, v: torch.vmap(lambda one: f(one[None])[0])(x),
    'jvp': lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    'dual': lambda f, x, v: dual_part(f, x, v),
}


def dual_part(f: Callable[..., torch.Tensor], x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_operators_can_be_transformed_as_pytorchs_own(transform) -> None:
    """torch.func and forward-mode differentiation, which no kernel and no backward pass of ours knows."""
    x, v, b = (rand(*shape, seed=i).float() for i, shape in enumerate([(2, 64, 8, 8), (2, 64, 8, 8), (64,)]))
    w, f = rand(64, 64, 3, 3).float() / 24, upfirdn2d.setup_filter([1, 3, 3, 1])

    def run(impl: str, conv: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fn(x: torch.Tensor) -> torch.Tensor:
            x = bias_act.bias_act(conv(x, w, padding=1), b, act='lrelu', impl=impl)
            x = upfirdn2d.upsample2d(x, f, impl=impl)
            scale = b.expand(len(x), -1) if impl == 'cuda' else b[:, None, None]
            x = bias_act.scale_channels(x, scale) if impl == 'cuda' else x * scale
            x = bias_act.leaky_relu_(x, 0.2) if impl == 'cuda' else torch.nn.functional.leaky_relu(x, 0.2)
            return filtered_lrelu(x, f, f, b, up=2, down=2, padding=3, impl=impl)
        return fn

    ours, plain = run('cuda', conv2d_gradfix.conv2d), run('ref', torch.nn.functional.conv2d)
    expected = TRANSFORMS[transform](plain, x, v)
    close = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(TRANSFORMS[transform](ours, x, v), expected, rtol=0, atol=close)


def test_operators_are_compiled_in_one_piece() -> None:
    """torch.compile sees no question about numbers or memory, which would break its graph in two."""
    x, b, w = rand(2, 64, 8, 8).float(), rand(64, seed=1).float(), rand(64, 64, 3, 3).float() / 24
    f = upfirdn2d.setup_filter([1, 3, 3, 1])

    def fn(x: torch.Tensor) -> torch.Tensor:
        x = upfirdn2d.upsample2d(bias_act.bias_act(conv2d_gradfix.conv2d(x, w, padding=1), b, act='lrelu'), f)
        x = conv2d_gradfix.conv_transpose2d(x, w, stride=2)
        return bias_act.modulated_bias_act(x, b.expand(len(x), -1), None, b, 'lrelu')

    expected = fn(x)
    found = torch.compile(fn, fullgraph=True, backend='eager')(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
