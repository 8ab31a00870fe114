"""filtered_lrelu: scipy as oracle, fast path against reference in values, first and second gradients."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal

from torch_utils.ops import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu

FLOAT = torch.float64


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


FILTERS = {  # Each for up- and downsampling.
    'none': (None, None), 'separable': (rand(12), rand(8, seed=1)), 'down radial': (rand(6), rand(4, 4, seed=2)),
    'oblong': (rand(2, 5, seed=3), rand(3, 1, seed=4)), 'up only': (rand(4, seed=5), None),
    'down only': (None, rand(3, seed=6)),
}  # fmt: skip
GEOMETRIES = [(1, 1, 9), (2, 1, [7, 9]), (2, 2, [8, 9, 10, 7]), (4, 2, [-1, 12, 3, 8]), (1, 2, 8), (4, 4, 11)]
KINKS: list[dict[str, Any]] = [dict(), dict(gain=0.7, slope=0.5), dict(clamp=0.6), dict(slope=0.0, flip_filter=True),
                               dict(slope=1.0, gain=1.0, clamp=1.5)]  # fmt: skip


def oracle(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, up: int,
           down: int, padding: int | Sequence[int], gain: float = 2**0.5, slope: float = 0.2,
           clamp: float = np.inf, flip_filter: bool = False) -> torch.Tensor:
    """The definition in NumPy and scipy, image by image."""

    def plane(f: torch.Tensor | None) -> np.ndarray:
        taps = np.ones([1, 1]) if f is None else f.numpy() if f.ndim == 2 else np.outer(f, f)
        return taps[::-1, ::-1] if flip_filter else taps

    sides = np.atleast_1d(padding)
    x0, x1, y0, y1 = sides if sides.size == 4 else np.repeat(np.broadcast_to(sides, 2), 2)
    images = (x if b is None else x + b[:, None, None]).reshape(-1, *x.shape[2:]).numpy()
    results = []
    for image in images:
        fine = np.zeros([image.shape[0] * up, image.shape[1] * up])
        fine[::up, ::up] = image
        fine = np.pad(fine, np.maximum([[y0, y1], [x0, x1]], 0))
        fine = fine[max(-y0, 0):len(fine) - max(-y1, 0), max(-x0, 0):fine.shape[1] - max(-x1, 0)]
        fine = up**2 * signal.convolve2d(fine, plane(fu), mode='valid')
        fine = np.clip(gain * np.where(fine < 0, slope * fine, fine), -clamp, clamp)
        results.append(signal.convolve2d(fine, plane(fd), mode='valid')[::down, ::down])
    return torch.as_tensor(np.stack(results)).reshape(*x.shape[:2], *results[0].shape)


@pytest.mark.parametrize('impl', ['ref', 'cuda'])
@pytest.mark.parametrize('fu, fd', FILTERS.values(), ids=FILTERS.keys())
def test_it_is_what_scipy_computes(fu: torch.Tensor | None, fd: torch.Tensor | None, impl: str) -> None:
    for (up, down, padding), kink in zip(GEOMETRIES, itertools.cycle(KINKS)):
        x, b = rand(2, 3, 7, 9), rand(3, seed=1)
        for bias in (b, None):
            y = filtered_lrelu(x, fu, fd, bias, up, down, padding, impl=impl, **kink)
            torch.testing.assert_close(y, oracle(x, fu, fd, bias, up, down, padding, **kink), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('channels', [2, 17])  # Filtered in two different ways.
@pytest.mark.parametrize('fu, fd', FILTERS.values(), ids=FILTERS.keys())
def test_gradients_are_the_references(fu: torch.Tensor | None, fd: torch.Tensor | None, channels: int) -> None:
    """Values, first gradients, and theirs, contracted with fixed numbers through a non-linear head."""
    for (up, down, padding), kink in zip(GEOMETRIES, itertools.cycle(KINKS)):
        results = []
        for impl in ('cuda', 'ref'):
            leaves = [rand(1, channels, 6, 7).requires_grad_(), rand(channels, seed=1).requires_grad_()]
            y = filtered_lrelu(leaves[0], fu, fd, leaves[1], up, down, padding, impl=impl, **kink)
            first = torch.autograd.grad((y.sin() * rand(*y.shape, seed=2)).sum(), leaves, create_graph=True)
            contracted = sum((grad * rand(*grad.shape, seed=3)).sum() for grad in first)
            results.append([y, *first, *torch.autograd.grad(contracted, leaves)])
        for fast, slow in zip(*results, strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('clamp', [None, 1.0])
@pytest.mark.parametrize('up, down', [(1, 1), (2, 1), (4, 2)])
def test_derivatives_are_numerically_right(up: int, down: int, clamp: float | None) -> None:
    x, b = rand(1, 1, 4, 5).requires_grad_(), rand(1, seed=1).requires_grad_()

    def func(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return filtered_lrelu(x, rand(4), rand(3, 3), b, up, down, [3, 5, 4, 6], gain=1.3, clamp=clamp).square()

    assert torch.autograd.gradcheck(func, [x, b])
    assert torch.autograd.gradgradcheck(func, [x, b])


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_large_batches_are_done_in_parts_with_the_same_result(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_utils.ops import filtered_lrelu as op

    x, b = rand(2, 40, 6, 8).to(memory_format=layout), rand(40, seed=1)
    args = (x, rand(12), rand(4, 4), b, 2, 2, 7)
    whole = filtered_lrelu(*args)
    calls: list[int] = []
    upfirdn2d = op.upfirdn2d
    monkeypatch.setattr(op, 'upfirdn2d', lambda x, *args: calls.append(x.shape[1]) or upfirdn2d(x, *args))
    monkeypatch.setattr(op, 'PART_VALUES', 20 * 26 * 30)
    torch.testing.assert_close(filtered_lrelu(*args), whole)
    assert calls == [40] * 2, 'gradients may be wanted: one part'
    calls.clear()
    with torch.no_grad():
        torch.testing.assert_close(filtered_lrelu(*args), whole)
    assert calls == [20] * 2 * 4


def test_the_callers_tensors_stay_as_they_are() -> None:
    """The rectifier works in place, on what was upsampled and nothing else."""
    for up, padding, fu in itertools.product((1, 2), (0, 3), (None, rand(3))):
        x = rand(1, 2, 5, 5)
        with torch.no_grad():
            filtered_lrelu(x, fu, None, None, up, 1, padding)
        assert torch.equal(x, rand(1, 2, 5, 5))


def test_half_precision_stays_half() -> None:
    x = rand(1, 16, 6, 6).to(torch.bfloat16)
    y = filtered_lrelu(x, rand(4).float(), rand(4).float(), rand(16).to(torch.bfloat16), 2, 2, 3)
    assert y.dtype == torch.bfloat16
    exact = filtered_lrelu(x.double(), rand(4).float(), rand(4).float(), rand(16).to(torch.bfloat16).double(), 2, 2, 3)
    assert (y.double() - exact).abs().max() < 0.03 * exact.abs().max()


def test_in_place_leaky_relu_is_bias_acts() -> None:
    for clamp in (None, 0.5):
        x = rand(2, 3, 4, 4).requires_grad_()
        y = bias_act.leaky_relu_(x * 1, 0.3, clamp)
        other = bias_act.bias_act(x, act='lrelu', alpha=0.3, gain=1, clamp=clamp, impl='ref')
        assert torch.equal(y, other)
        weights = rand(2, 3, 4, 4, seed=1)
        assert torch.equal(*(torch.autograd.grad((out * weights).sum(), x)[0] for out in (y, other)))


@pytest.mark.parametrize('kwargs, words', [
    (dict(b=torch.zeros(2)), r'\[2\], expected NCHW and \[C\]'), (dict(gain=0), 'gain, slope'),
    (dict(slope=-1), 'gain, slope'), (dict(clamp=-1), 'clamp'), (dict(impl='cpu'), "'ref' or 'cuda'"),
    (dict(fd=torch.ones(9)), 'leaves nothing'), (dict(padding=[1, 2, 3]), 'padding'),
])  # fmt: skip
def test_what_does_not_fit_is_named(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        filtered_lrelu(torch.zeros([1, 3, 4, 4]), **kwargs)
