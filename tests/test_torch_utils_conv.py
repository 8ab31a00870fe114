"""Convolutions by kernels of our own are PyTorch's in float64, in every derivative, for all shapes and layouts."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional

from torch_utils.ops import amx_conv, conv2d_gradfix

needs_amx = pytest.mark.skipif(not amx_conv.available(), reason='no AMX, or no compiler')

# N, in, out, height, width, kernel, stride, padding
SHAPES = [
    (2, 32, 32, 8, 8, 3, 1, 1), (3, 20, 50, 5, 7, 3, 1, 1), (1, 64, 33, 17, 33, 3, 1, 0), (2, 64, 64, 9, 9, 3, 2, 0),
    (2, 40, 16, 16, 12, 3, 2, 1), (2, 128, 16, 8, 8, 1, 1, 0), (2, 48, 64, 4, 4, 1, 2, 0), (1, 512, 96, 4, 4, 3, 1, 1),
    (2, 33, 17, 6, 6, 5, 2, 2), (5, 3, 1, 1, 1, 3, 1, 1), (40, 32, 32, 2, 3, 3, 1, 1), (5, 17, 16, 3, 70, 3, 1, 1),
    (5, 16, 33, 6, 150, 3, 2, 1), (3, 16, 16, 7, 9, 1, 3, 0),
]  # fmt: skip


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())


@needs_amx
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('channels_last', [False, True])
def test_tiles_give_float64s_numbers(shape: tuple[int, ...], channels_last: bool) -> None:
    n, ins, outs, height, width, k, stride, padding = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.randn(n, ins, height, width).contiguous(memory_format=layout)
    w = torch.randn(outs, ins, k, k).contiguous(memory_format=layout)
    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    y = functional.conv2d(exact_x, exact_w, stride=stride, padding=padding)
    g = torch.randn(y.shape)
    for_x, for_w = torch.autograd.grad(y, [exact_x, exact_w], g.double())
    pads = (padding, padding)
    missing = tuple(size - ((small - 1) * stride - 2 * padding + k)
                    for size, small in zip(x.shape[2:], g.shape[2:], strict=True))  # fmt: skip
    for parts, low, high in ((3, 0.0, 1e-6), (2, 1e-6, 1e-5), (1, 1e-4, 1e-2)):
        assert low < relative_error(amx_conv.conv2d(x, w, stride, pads, parts), y.detach()) < high
        assert low < relative_error(amx_conv.conv_transpose2d(g, w, stride, pads, missing, parts), for_x) < high
        assert low < relative_error(amx_conv.weight_gradient(g, x, (k, k), stride, pads, parts), for_w) < high


@needs_amx
def test_pytorchs_precision_says_how_exact() -> None:
    x, w = torch.randn(2, 32, 8, 8), torch.randn(32, 32, 3, 3)
    before = torch.get_float32_matmul_precision()
    try:
        for name, parts in amx_conv.PARTS.items():
            torch.set_float32_matmul_precision(name)
            assert torch.equal(amx_conv.conv2d(x, w), amx_conv.conv2d(x, w, parts=parts))
    finally:
        torch.set_float32_matmul_precision(before)


@needs_amx
@pytest.mark.parametrize('name, parts', [('ieee', 3), ('tf32', 2), ('bf16', 1)])
def test_so_does_the_setting_of_newer_versions(name: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed() -> str:
        raise RuntimeError('you have used mix of the legacy and new APIs')

    monkeypatch.setattr(torch, 'get_float32_matmul_precision', mixed)
    conv = SimpleNamespace(fp32_precision=name)
    monkeypatch.setattr(torch.backends, 'mkldnn', SimpleNamespace(conv=conv))
    assert amx_conv.asked_parts() == parts


@needs_amx
def test_tiles_give_the_same_bits_whatever_the_number_of_threads() -> None:
    x, w, g = torch.randn(3, 64, 9, 9), torch.randn(64, 64, 3, 3), torch.randn(3, 64, 9, 9)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((amx_conv.conv2d(x, w, 1, (1, 1)), amx_conv.weight_gradient(g, x, (3, 3), 1, (1, 1))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_amx
def test_infinity_and_nan_are_nan_and_large_numbers_stay() -> None:
    x, w = torch.zeros(1, 32, 8, 8), torch.ones(32, 32, 1, 1)
    x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 0, 0, 2] = float('inf'), float('nan'), 1e38
    y = amx_conv.conv2d(x, w)
    assert torch.isnan(y[0, :, 0, :2]).all()
    assert torch.allclose(y[0, :, 0, 2], torch.tensor(1e38), rtol=1e-4) and not y[0, :, 1:].any()


@needs_amx
def test_nothing_of_nothing() -> None:
    w = torch.randn(32, 32, 3, 3)
    assert amx_conv.conv2d(torch.randn(0, 32, 8, 8), w, 1, (1, 1)).shape == (0, 32, 8, 8)
    assert not amx_conv.weight_gradient(torch.randn(0, 32, 8, 8), torch.randn(0, 32, 8, 8), (3, 3), 1, (1, 1)).any()
    assert not amx_conv.conv2d(torch.randn(2, 0, 8, 8), w[:, :0], 1, (1, 1)).any()


def all_derivatives(name: str, x: torch.Tensor, w: torch.Tensor, module: object, **kwargs: int) -> list[torch.Tensor]:
    """The result, its first derivatives, and those of a penalty on the first ones, as R1 has it."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = getattr(module, name)(x, w, **kwargs)
    direction = torch.arange(y.numel(), dtype=torch.float64).cos().reshape(y.shape).to(y.dtype)
    first = torch.autograd.grad((y * direction).sum(), [x, w], create_graph=True)
    penalty = torch.autograd.grad((y.square() * direction).sum(), [x], create_graph=True)[0].square().sum()
    weights_too = torch.autograd.grad((y.square() * direction).sum(), [w], create_graph=True)[0].square().sum()
    return [y.detach(), *(t.detach() for t in first), *torch.autograd.grad(penalty + weights_too, [x, w])]


@pytest.mark.parametrize(('name', 'kernel', 'stride', 'padding', 'layout'), list(itertools.product(
    ['conv2d', 'conv_transpose2d'], [1, 3], [1, 2], [0, 1], [torch.channels_last, torch.contiguous_format])))
def test_all_derivatives_are_those_of_float64(
    name: str, kernel: int, stride: int, padding: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(1)
    narrow = 32 if kernel == 3 else 128
    w = torch.randn(narrow, narrow + 8, kernel, kernel)
    x = torch.randn(4, narrow + 8 if name == 'conv2d' else narrow, 9, 10).contiguous(memory_format=layout)
    kwargs = dict(stride=stride, padding=padding)
    got = all_derivatives(name, x, w, conv2d_gradfix, **kwargs)
    expected = all_derivatives(name, x.double(), w.double(), functional, **kwargs)
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(got, expected, strict=True))
    assert got[0].is_contiguous(memory_format=layout)


@pytest.fixture
def kernels_called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernels that were called, in order."""
    called: list[str] = []

    def counting(name: str) -> None:
        original = getattr(amx_conv, name)
        monkeypatch.setattr(amx_conv, name, lambda *args, **kwargs: (called.append(name), original(*args, **kwargs))[1])

    for name in ('conv2d', 'conv_transpose2d', 'weight_gradient'):
        counting(name)
    yield called


@needs_amx
def test_only_gradients_that_are_asked_for_are_computed(kernels_called: list[str]) -> None:
    x, w = torch.randn(4, 32, 8, 8, requires_grad=True), torch.randn(32, 32, 3, 3, requires_grad=True)
    y = conv2d_gradfix.conv2d(x, w, padding=1)
    torch.autograd.grad(y.sum(), [x], retain_graph=True)
    assert kernels_called == ['conv2d', 'conv_transpose2d']
    torch.autograd.grad(y.sum(), [w], retain_graph=True)
    assert kernels_called[2:] == ['weight_gradient']
    y.sum().backward()
    assert kernels_called[3:] == ['conv_transpose2d', 'weight_gradient'] and x.grad is not None and w.grad is not None


@needs_amx
def test_weights_are_left_out_of_r1s_inner_gradient_and_not_of_its_outer_one(kernels_called: list[str]) -> None:
    x, w = torch.randn(4, 32, 8, 8, requires_grad=True), torch.randn(32, 32, 3, 3, requires_grad=True)
    y = conv2d_gradfix.conv2d(x, w * 2, padding=1)
    (grad,) = torch.autograd.grad(y.square().sum(), [x], create_graph=True)
    assert kernels_called == ['conv2d', 'conv_transpose2d']
    grad.square().sum().backward()
    assert kernels_called.count('weight_gradient') == 2


@needs_amx
def test_what_is_no_plain_float32_goes_to_pytorch(kernels_called: list[str]) -> None:
    x, w = torch.randn(4, 32, 8, 8), torch.randn(32, 32, 3, 3)
    conv2d_gradfix.conv2d(x.double(), w.double(), padding=1)
    conv2d_gradfix.conv2d(x.bfloat16(), w.bfloat16(), padding=1)
    conv2d_gradfix.conv2d(x, w[:, :8], padding=1, groups=4)
    conv2d_gradfix.conv2d(x, w, padding=2, dilation=2)
    conv2d_gradfix.conv2d(x, w, padding='same')
    conv2d_gradfix.conv2d(x[:, :16], w[:, :16], padding=1)
    torch.vmap(lambda image: conv2d_gradfix.conv2d(image, w, padding=1))(x[:, None])
    torch.jit.trace(lambda image: conv2d_gradfix.conv2d(image, w, padding=1), x, check_trace=False)
    with torch.autocast('cpu', torch.bfloat16):
        assert conv2d_gradfix.conv2d(x, w, padding=1).dtype == torch.bfloat16
    negative = torch._neg_view(w)
    assert torch.equal(conv2d_gradfix.conv2d(x, negative), functional.conv2d(x, negative))
    assert not kernels_called
    assert torch.allclose(conv2d_gradfix.conv2d(x, w, torch.ones(32)), functional.conv2d(x, w) + 1, atol=1e-3)
    assert kernels_called == ['conv2d']


@needs_amx
def test_kernels_that_are_turned_off_stay_out(kernels_called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(4, 32, 8, 8), torch.randn(32, 32, 3, 3)
    conv2d_gradfix.conv2d(x, w)
    monkeypatch.setenv('LIA_KERNELS', 'off')
    assert not amx_conv.available() and torch.equal(conv2d_gradfix.conv2d(x, w), functional.conv2d(x, w))
    assert kernels_called == ['conv2d']


def test_what_does_not_fit_is_said_by_pytorch() -> None:
    with pytest.raises(RuntimeError, match='channels'):
        conv2d_gradfix.conv2d(torch.randn(4, 33, 8, 8), torch.randn(32, 32, 3, 3))
    with pytest.raises(RuntimeError, match='[Kk]ernel size'):
        conv2d_gradfix.conv2d(torch.randn(4, 32, 2, 2), torch.randn(32, 32, 3, 3))
    x, w = torch.randn(4, 32, 8, 8), torch.randn(32, 32, 3, 3)
    with pytest.raises(RuntimeError, match='channels'):
        conv2d_gradfix.conv_transpose2d(torch.randn(4, 64, 8, 8), w, stride=2)
    with pytest.raises(RuntimeError, match='output padding'):
        conv2d_gradfix.conv_transpose2d(x, w, stride=2, output_padding=2)
    for operator in (conv2d_gradfix.conv2d, conv2d_gradfix.conv_transpose2d):
        with pytest.raises(RuntimeError, match='negative padding'):
            operator(x, w, padding=-1)
        with pytest.raises(RuntimeError, match='stride'):
            operator(x, w, stride=0)


def test_dual_numbers_keep_their_other_half() -> None:
    x, w = torch.randn(4, 32, 8, 8), torch.randn(32, 32, 3, 3)
    with forward_ad.dual_level():
        y = conv2d_gradfix.conv2d(forward_ad.make_dual(x, x), w)
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None and torch.allclose(tangent, functional.conv2d(x, w), rtol=1e-4, atol=1e-4)
