"""The CUDA kernels' own source, compiled for an emulator on the CPU, against float64 definitions; and nvcc on it.

No GPU is needed: `cuda_emulator.h` runs blocks and threads. What only a GPU can show is in `test_device_ops`.
"""

import contextlib
import os
import pathlib
import subprocess

import pytest
import torch
from kernel_checks import (
    EPILOGUES,
    FORMATS,
    SHAPES,
    all_orders,
    assert_close,
    check_activation,
    check_epilogue,
    check_filter,
    check_filtered_lrelu,
    epilogue,
    rand,
)

from dnnlib.util import UserError, file_hash
from torch_utils import custom_ops
from torch_utils.ops import bias_act, cpu_kernels, cuda_kernels, filtered_lrelu, upfirdn2d

HERE = pathlib.Path(__file__).parent
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope='session')
def emulator() -> object:
    """The library, from the cache if it is there."""
    compiler = custom_ops._find(os.environ.get('CXX'), 'c++', 'g++', 'clang++')
    if compiler is None or custom_ops._find('ninja') is None or os.name != 'posix':
        pytest.skip('no C++ compiler or no ninja')
    state = file_hash(str(HERE / 'cuda_emulator.h'))
    flags = ('-x', 'c++', '-std=c++17', '-O1', '-fPIC', '-DLIA_EMULATED', f'-DSTATE_{state[:16]}', f'-I{HERE}')
    recipe = custom_ops._Recipe(compiler, flags, ('-shared',))
    return cuda_kernels.prepare(custom_ops._built('cuda_emulated', cuda_kernels.SOURCES, recipe, cuda=True))


@pytest.fixture
def emulated(emulator, monkeypatch) -> object:
    """CPU tensors are the emulator's."""
    if os.environ.get('LIA_KERNELS') == 'off':
        pytest.skip('kernels are off')
    monkeypatch.setattr(cuda_kernels, 'DEVICE', 'cpu')
    monkeypatch.setattr(cuda_kernels, 'library', lambda device=None: emulator)
    monkeypatch.setattr(cuda_kernels, '_place', lambda device: (0, None, contextlib.nullcontext()))
    monkeypatch.setattr(cpu_kernels, 'usable', lambda x: False)
    return emulator


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('shape', SHAPES)
def test_epilogue(emulated, shape, dtype, form) -> None:
    for options in EPILOGUES:
        check_epilogue('cpu', dtype, form, shape, options)


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('act', bias_act.activation_funcs)
def test_activations(emulated, act, dtype) -> None:
    check_activation('cpu', dtype, act)


@pytest.mark.parametrize('act', bias_act.activation_funcs)
def test_derivatives_are_numerically_right(emulated, act) -> None:
    x, b = rand(1, 2, 2, 3, dtype=torch.float64).requires_grad_(), rand(2, seed=1, dtype=torch.float64).requires_grad_()

    def func(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return bias_act.bias_act(x, b, act=act, gain=1.3, clamp=2)

    assert torch.autograd.gradcheck(func, [x, b])
    assert torch.autograd.gradgradcheck(func, [x, b])


def test_third_derivatives(emulated) -> None:
    x, results = rand(2, 5, dtype=torch.float64), []
    for impl in ('cuda', 'ref'):
        leaf = x.clone().requires_grad_()
        y = bias_act.bias_act(leaf, act='swish', impl=impl)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.pow(2).sum(), leaf, create_graph=True)
        results.append(y)
    assert_close(results[:1], results[1:], 1e-12)


def test_curves_table_is_the_activations(emulated) -> None:
    assert list(cuda_kernels.CURVES) == list(bias_act.activation_funcs)


@pytest.mark.parametrize('form', FORMATS)
def test_many_blocks_and_sums_of_sums(emulated, form) -> None:
    """Sums over more parts than are added up in one go, of one image and of several."""
    for shape in ((2, 3, 150, 130), (600, 2, 9, 1)):
        n, c, h, w = shape
        leaves = [rand(*shape).to(memory_format=form), rand(n, c, seed=3), rand(n, 1, h, w, seed=4), rand(c, seed=5)]
        ours = all_orders(lambda *leaves: bias_act.modulated_bias_act(*leaves, 'lrelu', gain=1.4), leaves)
        exact = all_orders(lambda *leaves: epilogue(*leaves, 'lrelu', 1.4, None, 1), [leaf.double() for leaf in leaves])
        assert_close(ours, exact, 2e-5)


def test_shared_images_views_and_memory_that_is_not_aligned(emulated) -> None:
    x, scale, noise, b = rand(1, 8, 4, 4), rand(3, 8, seed=1), rand(4, 4, seed=2), rand(8, seed=3)
    views = [lambda x: x.expand(3, -1, -1, -1), lambda x: torch.cat([x] * 3)[:, :, ::2, 1:],
             lambda x: torch.cat([x.flatten()] * 3 + [x.flatten()])[1:385].view(3, 8, 4, 4),
             lambda x: torch.cat([x] * 3).transpose(2, 3)]
    for view in views:
        here = noise.expand(3, 1, 4, 4)[..., :view(x).shape[2], :view(x).shape[3]]
        ours = all_orders(lambda x, scale, b, view=view, here=here: bias_act.modulated_bias_act(
            view(x), scale, here, b, 'lrelu', gain=1.4, inplace=True), [x, scale, b])
        exact = all_orders(lambda x, scale, b, view=view, here=here: epilogue(
            view(x), scale, here, b, 'lrelu', 1.4, None, 1), [x.double(), scale.double(), b.double()])
        assert_close(ours, exact, 1e-5)


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('taps', [(4, 4), (12,), (2, 5), (1, 1), (3,)])
def test_filters(emulated, taps, form) -> None:
    """Small images in every type, and such as make several tiles and blocks."""
    for dtype in TYPES:
        check_filter('cpu', dtype, form, taps, 4 if dtype == torch.float32 else 1, (5, 7))
    if taps in ((4, 4), (12,)):
        for dtype in (torch.float32, torch.bfloat16):
            check_filter('cpu', dtype, form, taps, 8, (15, 21))


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('dtype', TYPES)
def test_filtered_lrelu(emulated, dtype, form) -> None:
    check_filtered_lrelu('cpu', dtype, form, 2, (9, 13))


def test_filtered_lrelu_of_many_tiles(emulated) -> None:
    check_filtered_lrelu('cpu', torch.float64, torch.contiguous_format, 1, (45, 39))


def test_filtered_lrelu_keeps_two_bits_a_pixel_and_does_without_a_tile(emulated, monkeypatch, capfd) -> None:
    x, f, saved = rand(1, 2, 16, 16).requires_grad_(), rand(12) / 3, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = filtered_lrelu.filtered_lrelu(x, f, f, None, 2, 2, 11)
    assert sum(t.numel() * t.element_size() for t in saved if t.dtype == torch.uint8) == 2 * 43 * 11
    assert all(t.numel() <= 2 * 43 * 11 for t in saved)
    long = rand(130, seed=1) / 11
    monkeypatch.setattr(custom_ops, '_said', set())
    for _ in range(2):
        y = filtered_lrelu.filtered_lrelu(x, f, long, None, 2, 2, 70)
    exact = filtered_lrelu.filtered_lrelu(x.double(), f, long, None, 2, 2, 70, impl='ref')
    assert_close([y], [exact], 1e-4)
    assert capfd.readouterr().err.count('too long for the fused CUDA kernel') == 1


def test_filters_of_views(emulated) -> None:
    """Strides as they come: no copy is made."""
    whole, f = rand(2, 16, 30, 34), rand(4, 4)
    views = [lambda x: x[:, ::2, 3:-2, 1::2], lambda x: x.transpose(2, 3), lambda x: x[:1].expand(3, -1, -1, -1),
             lambda x: x[:, 8:, :, ::2]]
    for form in FORMATS:
        for view in views:
            x = view(whole.to(memory_format=form))
            for up, down in ((1, 1), (2, 1), (1, 2)):
                y = upfirdn2d.upfirdn2d(x, f, up, down, 2)
                assert_close([y], [upfirdn2d.upfirdn2d(x.double(), f, up, down, 2, impl='ref')], 1e-5)


def test_addresses_beyond_2_31(emulated) -> None:
    """Two images far apart, in memory that is reserved and hardly touched."""
    far = 2**31 + 64
    whole = torch.empty([far + 4096], dtype=torch.float16)
    for strides in ((far, 64, 8, 1), (far, 1, 64, 8)):
        x = whole.as_strided([2, 8, 8, 8], strides)
        x.copy_(rand(2, 8, 8, 8))
        f = rand(4, 4, seed=1)
        for options in ((2, 1, 2), (1, 2, 1), ([1, 3], 1, [2, 1])):
            y = upfirdn2d.upfirdn2d(x, f, *options)
            assert_close([y], [upfirdn2d.upfirdn2d(x.double(), f, *options, impl='ref')], 4e-3)
        near, last = x.contiguous(), strides[1] == 1
        y = torch.empty_like(near)
        code = emulated.act_forward(x.data_ptr(), y.data_ptr(), None, None, None, 2, 8, 64, last, far, 0, 1.0, 0.2, 1.0,
                                    float('inf'), 2, 0, None)
        order = y.flatten(1).unflatten(1, (64, 8)).transpose(1, 2).reshape(near.shape) if last else y
        assert code == 0 and torch.equal(order, torch.nn.functional.leaky_relu(near.float(), 0.2).half())


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('shape', [(4, 3, 3, 3), (70, 33, 1, 1), (5, 1, 3, 2)])
def test_squared_norms(emulated, form, shape) -> None:
    weight = rand(*shape).to(memory_format=form)
    assert_close(all_orders(bias_act.squared_norms, [weight]),
                 all_orders(lambda w: w.square().sum(dim=(2, 3)), [weight.double()]), 1e-5)


def test_nan_infinity_and_nothing(emulated) -> None:
    x = torch.tensor([float('nan'), float('inf'), -float('inf'), 1.0]).reshape(1, 1, 2, 2)
    for form in FORMATS:
        for dtype in TYPES:
            wide = x.expand(1, 20, 2, 2).to(dtype).contiguous(memory_format=form)
            for act, low in (('lrelu', -3), ('relu', 0)):
                y = bias_act.bias_act(wide, act=act, gain=1, clamp=3)[0, 7].flatten()
                assert y[0].isnan() and y[1:].tolist() == [3, low, 1]
    assert bias_act.bias_act(x[:0], act='lrelu').shape == (0, 1, 2, 2)
    assert bias_act.bias_act(x[:0], act='swish').shape == (0, 1, 2, 2)


def test_half_precision_is_rounded_to_the_nearest(emulated) -> None:
    """The emulator's own arithmetic, which all else rests on."""
    bits = torch.arange(-2**15, 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        x = x[x.isfinite()]
        y = bias_act.bias_act(x.reshape(1, -1), torch.full([len(x)], 0.3, dtype=torch.float64), gain=1 / 3)
        assert torch.equal(y[0], ((x.float() + 0.3) * (1 / 3)).to(dtype))


def test_a_refused_launch_is_an_error(emulated, monkeypatch) -> None:
    monkeypatch.setitem(cuda_kernels.TYPES, torch.float32, 9)
    with pytest.raises(RuntimeError, match=r'act_forward on \[1, 2, 3, 4\], torch.float32: an error of the emulator'):
        bias_act.bias_act(rand(1, 2, 3, 4), act='lrelu')


def test_a_library_that_does_not_run_is_named(emulator, monkeypatch, capfd) -> None:
    monkeypatch.setattr(custom_ops, 'load', lambda *args, **kwargs: emulator)
    monkeypatch.setattr(custom_ops, '_said', set())
    monkeypatch.setattr(cuda_kernels, '_ready', {})
    monkeypatch.setattr(cuda_kernels, '_probe', lambda found, index: 'the driver is too old')
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setenv('LIA_KERNELS', 'required')
    with pytest.raises(UserError, match='do not run here: the driver is too old'):
        cuda_kernels.library()
    monkeypatch.setenv('LIA_KERNELS', 'auto')
    assert cuda_kernels.library() is None and cuda_kernels.library() is None
    assert capfd.readouterr().err.count('the driver is too old') == 1


@pytest.mark.slow
@pytest.mark.parametrize('source', cuda_kernels.SOURCES)
def test_nvcc_compiles(source, tmp_path) -> None:
    nvcc = custom_ops._find('nvcc', '/usr/local/cuda/bin/nvcc')
    if nvcc is None:
        pytest.skip('no nvcc')
    known = subprocess.run([nvcc, '--list-gpu-code'], capture_output=True, text=True).stdout.split()
    quick = ['-Xcicc', '-O0', '-Xptxas', '-O0']  # A third of the time, and the same errors.
    for arch in [a for a in ('sm_70' if 'sm_70' in known else 'sm_75', 'sm_90') if a in known]:
        common = [flag for flag in custom_ops.CUDA_FLAGS if flag != '-O3']
        flags = [*common, *quick, f'-arch={arch}', '-o', str(tmp_path / 'x.o')]
        path = os.path.join(custom_ops.SOURCE_DIR, source)
        done = subprocess.run([nvcc, '-c', *flags, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_tensor_on_another_device_is_refused(emulated) -> None:
    """A kernel that read it would end the process's use of the GPU."""
    x, elsewhere = rand(1, 2, 4, 4), rand(2).to('meta')
    with pytest.raises(ValueError, match='cpu and meta, expected them on one device'):
        bias_act.bias_act(x, elsewhere, act='lrelu')
    with pytest.raises(ValueError, match='cpu and meta, expected them on one device'):
        upfirdn2d.upfirdn2d(x, elsewhere)


def test_scale_and_noise_are_spread_or_refused(emulated) -> None:
    """A kernel that read beyond them would give anything."""
    x = rand(2, 3, 4, 4)
    for scale, noise in ((rand(1, 3), rand(1, 1, 1, 1)), (rand(2, 1), rand(2, 1, 1, 4)), (rand(2, 3), rand(4))):
        ours = all_orders(lambda x, s, n: bias_act.modulated_bias_act(x, s, n, None, 'lrelu'), [x, scale, noise])
        exact = all_orders(lambda x, s, n: epilogue(x, s.expand(2, 3), n, None, 'lrelu', 2**0.5, None, 1),
                           [x.double(), scale.double(), noise.double()])
        assert_close(ours, exact, 1e-5)
    for scale, noise in ((rand(3, 3), None), (rand(2, 4), None), (rand(3), None), (None, rand(3, 1, 4, 4)),
                         (None, rand(2, 3, 4, 4)), (None, rand(2, 1, 5, 4))):
        with pytest.raises(ValueError, match='got shape'):
            bias_act.modulated_bias_act(x, scale, noise)
    with pytest.raises(ValueError, match='scale: got shape'):
        bias_act.scale_channels(x, rand(3, 3))


def test_the_tensors_gpu_is_the_threads_while_a_kernel_is_launched(monkeypatch) -> None:
    """The library can't tell for certain which one was before, and leaves its own behind."""
    current = [0]

    @contextlib.contextmanager
    def device(index: int):
        before, current[0] = current[0], index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, 'current_device', lambda: current[0])
    monkeypatch.setattr(torch.cuda, 'device', device)
    monkeypatch.setattr(cuda_kernels, '_raw_stream', lambda index: 100 + index)
    for index in (0, 1):
        place, stream, guard = cuda_kernels._place(torch.device('cuda', index))
        with guard:
            assert (place, stream, current[0]) == (index, 100 + index, index)
        assert current[0] == 0


def test_each_gpu_is_tried_for_itself(emulator, monkeypatch, capfd) -> None:
    """One may be too old for the toolkit, and another work."""
    monkeypatch.setattr(custom_ops, 'load', lambda *args, **kwargs: emulator)
    monkeypatch.setattr(custom_ops, '_said', set())
    monkeypatch.setattr(cuda_kernels, '_ready', {})
    monkeypatch.setattr(cuda_kernels, '_probe', lambda found, index: 'too old (GPU 1)' if index == 1 else None)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 2)
    for _ in range(2):
        assert [cuda_kernels.library(torch.device(name)) for name in ('cuda:0', 'cuda:1', 'cuda')] == [
            emulator, None, emulator]
    assert capfd.readouterr().err.count('too old (GPU 1)') == 1
