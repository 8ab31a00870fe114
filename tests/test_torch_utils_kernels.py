"""Compiled CPU kernels against float64 in PyTorch: values, first and second gradients, formats, odd sizes.

Without a compiler the same tests hold for the operators that serve instead.
"""

from functools import partial
from typing import Any

import pytest
import torch
from kernel_checks import FORMATS, all_orders, assert_close, epilogue, rand

from torch_utils.ops import bias_act, conv2d_gradfix, cpu_kernels, upfirdn2d

SHAPES = [(2, 3, 4, 5), (3, 70, 9, 7), (2, 130, 1, 1), (1, 16, 40, 33)]


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('act', 'clamp', 'factor', 'parts'), [
    ('lrelu', None, 0.3, 'scale noise bias'), ('lrelu', 0.7, 1, 'scale noise bias'), ('relu', None, 1, 'bias'),
    ('linear', 0.5, 2, 'scale bias'), ('linear', None, 1.5, 'noise'), ('lrelu', None, 1, ''),
])
def test_epilogue(form, shape, act, clamp, factor, parts) -> None:
    n, c, h, w = shape
    x = rand(*shape).to(memory_format=form)
    leaves = [x, rand(n, c, seed=3) if 'scale' in parts else None,
              rand(n, 1, h, w, seed=4) if 'noise' in parts else None, rand(c, seed=5) if 'bias' in parts else None]
    ours = all_orders(lambda x, scale, noise, b: bias_act.modulated_bias_act(
        x, scale, noise, b, act, gain=1.4, clamp=clamp, factor=factor), leaves)
    exact = all_orders(lambda *leaves: epilogue(*leaves, act, 1.4, clamp, factor),
                       [None if leaf is None else leaf.double() for leaf in leaves])
    assert_close(ours, exact, 1e-5)
    assert ours[0].is_contiguous(memory_format=form) and ours[0].dtype == torch.float32


@pytest.mark.parametrize('form', FORMATS)
def test_bias_act_and_scale_channels(form) -> None:
    x, b, scale = rand(2, 5, 8, 6).to(memory_format=form), rand(5, seed=1), rand(2, 5, seed=2)
    ours = all_orders(lambda x, b: bias_act.bias_act(x, b, act='lrelu', clamp=1.0), [x, b])
    exact = all_orders(lambda x, b: epilogue(x, None, None, b, 'lrelu', 2 ** 0.5, 1.0, 1), [x.double(), b.double()])
    assert_close(ours, exact, 1e-5)
    ours = all_orders(bias_act.scale_channels, [x, scale])
    assert_close(ours, all_orders(lambda x, s: x * s[:, :, None, None], [x.double(), scale.double()]), 1e-5)


def test_shared_images_and_noise() -> None:
    """One image for the whole batch, as the learned constant is; one noise for all, with or without its axes."""
    x, scale, noise = rand(1, 6, 4, 4), rand(3, 6, seed=1), rand(4, 4, seed=2)

    def ours(x, scale, noise):
        return bias_act.modulated_bias_act(x.expand(3, -1, -1, -1), scale, noise, act='lrelu', gain=1.4)

    exact = all_orders(lambda *leaves: epilogue(*leaves, None, 'lrelu', 1.4, None, 1),
                       [x.double(), scale.double(), noise.double()])
    assert_close(all_orders(ours, [x, scale, noise]), exact, 1e-5)


@pytest.mark.parametrize('form', FORMATS)
def test_epilogue_in_bfloat16(form) -> None:
    x = rand(2, 33, 8, 8, dtype=torch.bfloat16).to(memory_format=form)
    leaves = [x, rand(2, 33, seed=1), rand(2, 1, 8, 8, seed=2), rand(33, seed=3)]
    ours = all_orders(lambda *leaves: bias_act.modulated_bias_act(*leaves, 'lrelu', gain=1.4), leaves)
    exact = all_orders(lambda *leaves: epilogue(*leaves, 'lrelu', 1.4, None, 1), [leaf.double() for leaf in leaves])
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16 and ours[2].dtype == torch.float32
    assert_close(ours[:1], exact[:1], 1e-2)
    for one, other in zip(ours, exact, strict=True):  # Where rounding turns a sign, a single slope is another one.
        assert (one.double() - other).norm() < 0.1 * other.norm()


def test_nan_and_infinity_stay() -> None:
    x = torch.tensor([float('nan'), float('inf'), -float('inf'), 1.0]).reshape(1, 1, 2, 2)
    for form in FORMATS:
        for dtype in (torch.float32, torch.bfloat16):
            wide = x.expand(1, 20, 2, 2).to(dtype).contiguous(memory_format=form)
            y = bias_act.bias_act(wide, act='lrelu', gain=1, clamp=3)[0, 7].flatten()
            assert y[0].isnan() and y[1:].tolist() == [3, -3, 1]
    assert bias_act.bias_act(x[:0], act='lrelu').shape == (0, 1, 2, 2)


def upfirdn(options: tuple[Any, ...], x: torch.Tensor) -> torch.Tensor:
    return upfirdn2d.upfirdn2d(x, *options)


GEOMETRIES = [(1, 1, [2, 1, 2, 1]), (2, 1, [2, 1, 2, 1]), (1, 2, [1, 1, 1, 1]), (2, 2, [-1, 3, 2, -2]),
              ([1, 3], [2, 1], [0, 5, 3, 1]), (1, 1, [-1, 2, -2, 3]), (2, 1, [-3, 1, 0, -2])]


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize(('up', 'down', 'padding'), GEOMETRIES)
@pytest.mark.parametrize('taps', [(4, 4), (12,), (2, 5), (1, 1)])
def test_filters(form, up, down, padding, taps) -> None:
    f = rand(*taps, seed=1) if len(taps) == 1 else torch.outer(rand(taps[0], seed=1), rand(taps[1], seed=2))
    padding = [side + len(taps) % 2 * 6 for side in padding]
    for channels, flip in ((3, False), (70, True)):
        x, options = rand(2, channels, 9, 11).to(memory_format=form), (f, up, down, padding, flip, 1.7)
        ours = all_orders(partial(upfirdn, options), [x])
        exact = all_orders(partial(upfirdn, (*options, 'ref')), [x.double()])
        assert_close(ours, exact, 1e-5)
        assert ours[0].is_contiguous(memory_format=form) or not cpu_kernels.usable(x)


def test_filters_in_bfloat16_and_such_as_are_not_separable() -> None:
    x, f = rand(2, 20, 8, 8), upfirdn2d.setup_filter([1, 3, 3, 1])
    half = x.to(torch.bfloat16)
    y = upfirdn2d.upsample2d(half, f)
    assert_close([y], [upfirdn2d.upsample2d(half.double(), f, impl='ref')], 5e-3)
    for plane in (rand(3, 3, seed=1), torch.tensor([[1.0, 0, 2], [0, 0, 3]])):
        y, exact = upfirdn2d.filter2d(x, plane), upfirdn2d.filter2d(x.double(), plane, impl='ref')
        assert_close([y], [exact], 1e-5)
    assert upfirdn2d.filter2d(x, torch.zeros(2, 2)).eq(0).all()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, scale, noise, b = rand(3, 70, 33, 31), rand(3, 70, seed=1), rand(3, 1, 33, 31, seed=2), rand(70, seed=3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = [leaf.clone().requires_grad_() for leaf in (x, scale, noise, b)]
            y = upfirdn2d.filter2d(bias_act.modulated_bias_act(*leaves, 'lrelu'), upfirdn2d.setup_filter([1, 2, 1]))
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    if bias_act.fuses(x):
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_images_alone_under_no_weight_gradients() -> None:
    x, b = rand(1, 4, 8, 8).requires_grad_(), rand(4).requires_grad_()
    y = bias_act.bias_act(x, b, act='lrelu')
    with conv2d_gradfix.no_weight_gradients():
        (grad,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
    assert grad.unique().numel() == 2


def test_kernels_are_left_out_where_they_are_off_or_traced(monkeypatch) -> None:
    x = rand(1, 4, 8, 8)
    monkeypatch.setenv('LIA_KERNELS', 'off')
    assert not cpu_kernels.usable(x) and not bias_act.compiled_for(x.device)
    monkeypatch.setenv('LIA_KERNELS', 'auto')
    assert not cpu_kernels.usable(x.double()) and not cpu_kernels.usable(x[0]) and not cpu_kernels.usable(x[:0])
    monkeypatch.setattr('torch.jit.is_tracing', lambda: True)
    assert not cpu_kernels.usable(x)


def test_the_epilogue_in_its_arguments_memory() -> None:
    for form in FORMATS:
        x, b, scale = rand(2, 20, 8, 6), rand(20, seed=1), rand(2, 20, seed=2)

        def inplace(x, b, form=form):
            x = (x * 3).to(memory_format=form)
            y = bias_act.modulated_bias_act(x, b=b, act='lrelu', factor=0.5, inplace=True)
            assert y.data_ptr() == x.data_ptr() or not bias_act.fuses(x)
            return y

        exact = all_orders(lambda x, b: epilogue(3 * x, None, None, b, 'lrelu', 2 ** 0.5, None, 0.5),
                           [x.double(), b.double()])
        assert_close(all_orders(inplace, [x, b]), exact, 1e-5)
        scaled = x.to(memory_format=form).requires_grad_() * 1  # The scale's gradient needs it as it was.
        y = bias_act.modulated_bias_act(scaled, scale.requires_grad_(), act='lrelu', inplace=True)
        assert y.data_ptr() != scaled.data_ptr()
        gaps = x.to(memory_format=form)[:, ::2]
        before = gaps.clone()
        bias_act.modulated_bias_act(gaps, act='lrelu', inplace=True)
        assert torch.equal(gaps, before)


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('shape', [(4, 3, 3, 3), (70, 33, 1, 1), (5, 1, 3, 2)])
def test_squared_norms(form, shape) -> None:
    weight = rand(*shape).to(memory_format=form)
    assert_close(all_orders(bias_act.squared_norms, [weight]),
                 all_orders(lambda w: w.square().sum(dim=(2, 3)), [weight.double()]), 1e-5)


def test_a_bias_asked_for_where_weights_are_not_has_its_gradient() -> None:
    """The mark is for convolutions' weights; what is asked for is there, and what is not is not computed."""
    x, b = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(8, requires_grad=True)
    with conv2d_gradfix.no_weight_gradients():
        y = bias_act.bias_act(x * 1, b, act='lrelu')
        (for_b,) = torch.autograd.grad(y.sum(), [b], create_graph=True)
    expected = torch.where(x + b[:, None, None] > 0, 2**0.5, 0.2 * 2**0.5).sum(dim=(0, 2, 3))
    assert torch.allclose(for_b, expected, rtol=1e-5)
