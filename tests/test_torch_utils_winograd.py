"""Winograd's convolutions are float64's, in every derivative, for all shapes, layouts and widths of vectors."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import amx_conv, conv2d_gradfix, kept, winograd_conv

needs_kernels = pytest.mark.skipif(not winograd_conv.available(), reason='no compiler')

# N, in, out, height, width, padding
SHAPES = [(2, 32, 32, 8, 8, 1), (3, 20, 50, 5, 7, 1), (1, 64, 33, 17, 33, 0), (2, 65, 64, 9, 9, 2),
          (1, 512, 96, 4, 4, 1), (5, 3, 1, 1, 1, 1), (40, 32, 32, 2, 3, 1), (2, 1, 2, 3, 3, 0), (6, 64, 40, 21, 22, 1),
          (1, 513, 64, 9, 8, 1)]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())


@pytest.fixture(params=['matrix tiles', 'vectors'])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the CPU, by which products are computed."""
    if request.param == 'vectors':
        monkeypatch.setattr(amx_conv, 'available', lambda: False)
    elif not amx_conv.available():
        pytest.skip('no matrix tiles here')
    return str(request.param)


@needs_kernels
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('tile', [4, 2])
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_all_three_operators_give_float64s_numbers(
    shape: tuple[int, ...], tile: int, layout: torch.memory_format, units: str
) -> None:
    check(shape, tile, layout)


def check(shape: tuple[int, ...], tile: int, layout: torch.memory_format) -> None:
    n, ins, outs, height, width, padding = shape
    torch.manual_seed(0)
    x = torch.randn(n, ins, height, width).contiguous(memory_format=layout)
    w = torch.randn(outs, ins, 3, 3).contiguous(memory_format=layout)
    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    y = functional.conv2d(exact_x, exact_w, padding=padding)
    g = torch.randn(y.shape)
    for_x, for_w = torch.autograd.grad(y, [exact_x, exact_w], g.double())
    pads = (padding, padding)
    assert relative_error(winograd_conv.conv2d(x, w, pads, tile=tile), y.detach()) < 4e-6
    assert relative_error(winograd_conv.conv_transpose2d(g, w, pads, tile=tile), for_x) < 4e-6
    assert relative_error(winograd_conv.weight_gradient(g, x, pads, tile=tile), for_w) < 4e-6


@needs_kernels
def test_the_same_bits_whatever_the_number_of_threads(units: str) -> None:
    before = torch.get_num_threads()
    for channels in (64, 600):  # Each thread its own tiles; all of them together.
        x, w = torch.randn(9, channels, 21, 21), torch.randn(64, channels, 3, 3)
        g, results = torch.randn(9, 64, 21, 21), []
        try:
            for threads in (1, 2, 5, 16):  # 16: all tiles together in two goes.
                torch.set_num_threads(threads)
                results.append((winograd_conv.conv2d(x, w, (1, 1)), winograd_conv.weight_gradient(g, x, (1, 1))))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
def test_nan_reaches_its_own_tiles_and_image_alone(units: str) -> None:
    x, w = torch.zeros(2, 8, 16, 16), torch.ones(8, 8, 3, 3)
    x[0, 0, 5, 5] = float('nan')
    y = winograd_conv.conv2d(x, w, (1, 1))
    assert torch.isnan(y[0, :, 4:7, 4:7]).all() and not torch.isnan(y[0, :, 8:]).any() and not y[1].any()


@needs_kernels
def test_nothing_of_nothing() -> None:
    w = torch.randn(32, 32, 3, 3)
    assert winograd_conv.conv2d(torch.randn(0, 32, 8, 8), w, (1, 1)).shape == (0, 32, 8, 8)
    assert not winograd_conv.weight_gradient(torch.randn(0, 32, 8, 8), torch.randn(0, 32, 8, 8), (1, 1)).any()


def all_derivatives(name: str, x: torch.Tensor, w: torch.Tensor, module: object) -> list[torch.Tensor]:
    """The result, its first derivatives, and those of a penalty on the first ones, as R1 has it."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = getattr(module, name)(x, w, padding=1)
    direction = torch.arange(y.numel(), dtype=torch.float64).cos().reshape(y.shape).to(y.dtype)
    first = torch.autograd.grad((y * direction).sum(), [x, w], create_graph=True)
    penalty = torch.autograd.grad((y.square() * direction).sum(), [x], create_graph=True)[0].square().sum()
    weights_too = torch.autograd.grad((y.square() * direction).sum(), [w], create_graph=True)[0].square().sum()
    return [y.detach(), *(t.detach() for t in first), *torch.autograd.grad(penalty + weights_too, [x, w])]


@pytest.mark.parametrize('name', ['conv2d', 'conv_transpose2d'])
@pytest.mark.parametrize('amx', [True, False])
def test_all_derivatives_of_what_pays_are_those_of_float64(
    name: str, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not amx:
        monkeypatch.setattr(amx_conv, 'available', lambda: False)
    called: list[str] = []

    def counting(operator: str) -> None:
        original = getattr(winograd_conv, operator)
        monkeypatch.setattr(winograd_conv, operator,
                            lambda *args, **more: (called.append(operator), original(*args, **more))[1])

    for operator in ('conv2d', 'conv_transpose2d', 'weight_gradient'):
        counting(operator)
    torch.manual_seed(1)
    w = torch.randn(64, 64, 3, 3)
    x = torch.randn(16, 64, 15, 16).contiguous(memory_format=torch.channels_last)
    got = all_derivatives(name, x, w, conv2d_gradfix)
    expected = all_derivatives(name, x.double(), w.double(), functional)
    assert all(relative_error(a, b) < 4e-6 for a, b in zip(got, expected, strict=True))
    if winograd_conv.available():
        assert {'conv2d', 'conv_transpose2d'} <= set(called)
        assert amx_conv.available() or 'weight_gradient' in called


@needs_kernels
def test_weights_that_stay_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, '_seen', seen := kept.Seen())
    packs: list[int] = []
    pack = winograd_conv._pack
    monkeypatch.setattr(winograd_conv, '_pack', lambda *args: (packs.append(0), pack(*args))[1])
    torch.manual_seed(3)
    x, w = torch.randn(16, 64, 16, 16), torch.nn.Parameter(torch.randn(64, 64, 3, 3))
    expected = functional.conv2d(x, w.detach(), padding=1)
    for _ in range(3):  # It is being trained.
        assert torch.allclose(conv2d_gradfix.conv2d(x, w, padding=1), expected, atol=1e-3)
    assert len(packs) == 3 and not seen.nbytes
    with torch.no_grad():
        for _ in range(4):
            assert torch.allclose(conv2d_gradfix.conv2d(x, w, padding=1), expected, atol=1e-3)
        assert len(packs) == 5 and seen.nbytes
        conv2d_gradfix.conv2d(x, w * 1, padding=1)
    assert len(packs) == 6, 'an intermediate is gone afterwards'
    w.requires_grad_(False)
    for _ in range(3):  # Its input's gradient needs it turned round, another result.
        conv2d_gradfix.conv2d(x.requires_grad_(), w, padding=1).sum().backward()
    assert len(packs) == 8


@pytest.mark.skipif(not winograd_conv.available() or not custom_ops.cpu_has('avx512f'), reason='no wider vectors here')
def test_cpus_with_narrower_vectors_compute_the_same() -> None:
    code = ("import test_torch_utils_winograd as t; from torch_utils import custom_ops; "
            "assert not custom_ops.cpu_has('avx512f')\n"
            'for shape in t.SHAPES: t.check(shape, 4, t.torch.channels_last)')
    folder = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join([folder, os.path.dirname(folder)])
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120,
                   env={**os.environ, 'LIA_CPU_FEATURES': '-avx512,-amx', 'PYTHONPATH': path})
