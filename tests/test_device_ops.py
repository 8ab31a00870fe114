"""The CUDA kernels on a GPU: values, first and second gradients against float64 on the CPU, streams, graphs, sizes.

Skipped without CUDA. With LIA_TEST_DEVICE=cpu the tests of numbers test themselves; what they check, the emulator of
`test_cuda_kernels` has shown already.
"""

import os

import pytest
import torch
from kernel_checks import (
    EPILOGUES,
    FORMATS,
    SHAPES,
    TOLERANCES,
    check_activation,
    check_epilogue,
    check_filter,
    check_filtered_lrelu,
    rand,
)

from torch_utils.ops import bias_act, cuda_kernels, upfirdn2d

DEVICE = os.environ.get('LIA_TEST_DEVICE') or ('cuda' if torch.cuda.is_available() else '')
TYPES = list(TOLERANCES) if DEVICE.startswith('cuda') else [torch.float64, torch.float32]

pytestmark = pytest.mark.skipif(not DEVICE, reason='no CUDA device; LIA_TEST_DEVICE names another one')
on_cuda = pytest.mark.skipif(not DEVICE.startswith('cuda'), reason='no CUDA device')


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('dtype', TYPES)
def test_epilogue(dtype, form) -> None:
    for shape in [*SHAPES, (4, 64, 64, 64), (2, 512, 16, 16)]:
        for options in EPILOGUES:
            check_epilogue(DEVICE, dtype, form, shape, options)


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('act', bias_act.activation_funcs)
def test_activations(act, dtype) -> None:
    check_activation(DEVICE, dtype, act)


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('taps', [(4, 4), (12,), (2, 5), (1, 1)])
def test_filters(taps, dtype, form) -> None:
    for channels, size in ((3, (9, 11)), (16, (40, 37)), (64, (32, 32))):
        check_filter(DEVICE, dtype, form, taps, channels, size)


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('dtype', TYPES)
def test_filtered_lrelu(dtype, form) -> None:
    check_filtered_lrelu(DEVICE, dtype, form, 2, (9, 13))
    if dtype == torch.float64:  # Of many pixels, some lie so near to a kink that rounding decides.
        check_filtered_lrelu(DEVICE, dtype, form, 3, (45, 39))


@on_cuda
def test_the_kernels_serve() -> None:
    """A machine with a GPU and nvcc has them; else all the rest here tests PyTorch."""
    assert cuda_kernels.usable(rand(1, 2, 3, 4).to(DEVICE))


def step(x: torch.Tensor, b: torch.Tensor, f: torch.Tensor) -> list[torch.Tensor]:
    """Something of every kernel, with its gradients."""
    y = bias_act.modulated_bias_act(x, x.detach().mean(dim=(2, 3)), x.detach().mean(dim=1, keepdim=True), b, 'lrelu')
    y = bias_act.bias_act(upfirdn2d.downsample2d(upfirdn2d.upsample2d(y, f), f), b, act='swish')
    return [y, *torch.autograd.grad(y.square().sum(), [x, b])]


def leaves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = rand(2, 16, 32, 32).to(DEVICE).requires_grad_()
    return x, rand(16, seed=1).to(DEVICE).requires_grad_(), upfirdn2d.setup_filter([1, 3, 3, 1], device=DEVICE)


@on_cuda
def test_another_stream() -> None:
    given = leaves()
    expected = step(*given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # What ran on the default stream would overtake this.
        other = given[0].detach().mul(1).requires_grad_()
        got = step(other, *given[1:])
    stream.synchronize()
    assert all(map(torch.equal, got, expected))


@on_cuda
def test_a_graph_replays_them() -> None:
    given = leaves()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step(*given)
    for seed in (7, 8):
        with torch.no_grad():
            given[0].copy_(rand(2, 16, 32, 32, seed=seed))
        graph.replay()
        assert all(map(torch.equal, recorded, step(*given)))


@on_cuda
@pytest.mark.parametrize('form', FORMATS)
def test_more_than_2_31_elements(form) -> None:
    """The last image of a tensor of 4.3 GB is what it is alone."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip('needs 24 GB of free memory')
    f, b = upfirdn2d.setup_filter([1, 3, 3, 1], device=DEVICE), rand(64, seed=1).to(DEVICE)
    x = torch.zeros([33, 64, 1024, 1024], dtype=torch.float16, device=DEVICE).to(memory_format=form)
    assert x.numel() > 2**31
    x[-1] = torch.randn([64, 1024, 1024], device=DEVICE)
    alone = x[-1:].clone(memory_format=form)
    for func in (lambda x: bias_act.modulated_bias_act(x, None, None, b, 'lrelu'),
                 lambda x: bias_act.bias_act(x, b, act='swish'), lambda x: upfirdn2d.filter2d(x, f),
                 lambda x: upfirdn2d.upfirdn2d(x, f, [1, 3], [3, 1], [1, 2, 1, 2])):
        with torch.no_grad():
            assert torch.equal(func(x)[-1:], func(alone))
