"""`--precision`: what it comes to on a device, where bfloat16 is used, and that it changes no more than it must."""

import pickle
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_kernels_in_training import build, gradients
from test_networks import SMALL, make_discriminator, make_generator, make_inputs, stir

from dnnlib.util import UserError
from lia_plugin.networks import Encoder
from torch_utils import custom_ops, precision
from torch_utils.ops import conv2d_gradfix
from training import networks, networks_stylegan3

CPU, CUDA, MPS = torch.device('cpu'), torch.device('cuda'), torch.device('mps')
EPS = torch.finfo(torch.bfloat16).eps


@pytest.fixture(autouse=True)
def nothing_chosen():
    assert precision.chosen() is None
    yield
    precision.choose(None)


def on(monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...] = (), capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(custom_ops, 'cpu_has', lambda name: name in features)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)


@pytest.mark.parametrize(('device', 'machine', 'auto', 'refused'), [
    (CPU, dict(features=('amx_bf16', 'avx512_bf16')), 'bf16', ['fp16']),
    (CPU, dict(features=('avx512_bf16',)), 'fp32', ['fp16']),
    (CPU, dict(features=('avx2',)), 'fp32', ['bf16', 'fp16']),
    (CUDA, dict(capability=(9, 0)), 'fp16', []), (CUDA, dict(capability=(7, 5)), 'fp16', ['bf16']),
    (CUDA, dict(capability=(6, 1)), 'fp32', ['bf16', 'fp16']), (MPS, {}, 'fp32', ['bf16', 'fp16']),
])
def test_what_a_choice_comes_to(monkeypatch, device, machine, auto, refused) -> None:
    on(monkeypatch, **machine)
    assert precision.resolve(None, device) is None and precision.resolve('auto', device) == auto
    for choice in ('fp32', 'bf16', 'fp16'):
        if choice in refused:
            with pytest.raises(UserError, match=f'--precision={choice}: .*--precision=auto'):
                precision.resolve(choice, device)
        else:
            assert precision.resolve(choice, device) == choice


def test_unknown_choices() -> None:
    with pytest.raises(UserError, match="--precision: expected auto, fp32, bf16, fp16, got 'half'"):
        precision.resolve('half', CPU)
    with pytest.raises(ValueError, match="got 'auto'"):  # Of a device it becomes something, of a process not.
        precision.choose('auto')


@pytest.mark.parametrize(('choice', 'half_on_cuda', 'else_on_cuda', 'half_on_cpu'), [
    (None, torch.float16, torch.float32, torch.float32), ('fp32', torch.float32, torch.float32, torch.float32),
    ('bf16', torch.bfloat16, torch.bfloat16, torch.bfloat16), ('fp16', torch.float16, torch.float32, torch.float16),
])
def test_types_of_layers(choice, half_on_cuda, else_on_cuda, half_on_cpu) -> None:
    with precision.using(choice):
        assert precision.layer_dtype(CUDA, True, 8) == half_on_cuda
        assert precision.layer_dtype(CUDA, False, 8) == else_on_cuda
        assert precision.layer_dtype(CPU, True, 8) == half_on_cpu
        assert precision.layer_dtype(CPU, False, 4) == torch.float32
    assert precision.chosen() is None


def types_of(net: torch.nn.Module, *inputs: Any) -> dict[str, torch.dtype]:
    """What each layer of parameters gives, by its name, and '' the whole network."""
    found, hooks = {}, []
    for name, module in net.named_modules():
        if not name or next(module.parameters(recurse=False), None) is not None:
            def note(module: Any, args: Any, out: Any, name: str = name) -> None:
                found[name] = out.dtype if torch.is_tensor(out) else out[0].dtype
            hooks.append(module.register_forward_hook(note))
    net(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def is_low(name: str) -> bool:
    return any(part in name for part in ('b8.', 'b16.', 'stage', 'stem')) and 'affine' not in name


@pytest.mark.parametrize('num_fp16_res', [0, 4])
def test_only_convolutions_from_8_pixels_on_are_bfloat16(num_fp16_res) -> None:
    half = dict(num_fp16_res=num_fp16_res)
    z, _ = make_inputs(2)
    img = torch.randn(2, 3, 16, 16)
    with precision.using('bf16'):
        for net, inputs in [
            (make_generator(architecture='skip', **half), (z, None)),
            (make_generator(architecture='resnet', **half), (z, None)), (make_discriminator(**half), (img, None)),
            (Encoder(code_dim=8, img_resolution=16, img_channels=3, **SMALL), (img,)),
        ]:
            found = types_of(net, *inputs)
            assert any(is_low(name) for name in found)
            for name, dtype in found.items():
                assert dtype == (torch.bfloat16 if is_low(name) else torch.float32), name
        G = networks_stylegan3.Generator(8, 0, 8, 16, 3, synthesis_kwargs=dict(SMALL, num_fp16_res=0))
        assert set(types_of(G.synthesis, G.mapping(z, None)).values()) == {torch.bfloat16, torch.float32}


def test_fp32_is_asked_for_and_forced() -> None:
    G = stir(make_generator(num_fp16_res=4))
    z, _ = make_inputs(2)
    want = G(z, None, noise_mode='const')
    with precision.using('bf16'):
        low, forced = (G(z, None, noise_mode='const', force_fp32=force) for force in (False, True))
    with precision.using('fp32'):
        again = G(z, None, noise_mode='const')
    assert torch.equal(forced, want) and torch.equal(again, want)
    assert 0 < (low - want).std() / want.std() < 4 * EPS


def held(net: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """All that a pickle has of a network: its tensors, and what else its modules hold."""
    plain = [(name, {k: v for k, v in vars(module).items() if k[0] != '_'}) for name, module in net.named_modules()]
    return net.state_dict(), [net.init_args, net.init_kwargs, plain]


def test_nothing_of_a_choice_is_in_a_pickle() -> None:
    def contents(choice: str | None) -> list[Any]:
        with precision.using(choice):
            G, D = make_generator(num_fp16_res=4, conv_clamp=256), make_discriminator(num_fp16_res=4)
            E = Encoder(code_dim=8, img_resolution=16, img_channels=3, **SMALL)
            img = G(torch.ones(2, 8), None, noise_mode='const')
            D(img, None), E(img)
            return [held(net) for net in pickle.loads(pickle.dumps([G, D, E]))]
    for others in zip(contents(None), contents('bf16'), contents('fp32'), strict=True):
        tensors, plain = zip(*others, strict=True)
        assert plain[0] == plain[1] == plain[2]
        for name, tensor in tensors[0].items():
            assert all(torch.equal(tensor, other[name]) for other in tensors[1:]), name


def test_hosts_without_a_choice_compute_as_they_did(monkeypatch) -> None:
    def dtypes(device: torch.device, use_fp16: bool) -> list[torch.dtype]:
        block = SimpleNamespace(use_fp16=use_fp16, resolution=16, channels_last=False)
        return [networks._format(block, device, force)['dtype'] for force in (False, True)]

    for known in (True, False):
        if not known:
            monkeypatch.delattr(networks.bias_act, 'layer_dtype')
        assert dtypes(CUDA, True) == [torch.float16, torch.float32]
        assert dtypes(CUDA, False) == dtypes(CPU, True) == [torch.float32, torch.float32]


@pytest.mark.parametrize('kernels', ['auto', 'off'])
@pytest.mark.parametrize('architecture', ['resnet', 'skip'])
def test_all_gradients_are_near_float32s(architecture, kernels, monkeypatch) -> None:
    """Over each phase as a whole, and in the median of draws: of a single parameter rounding may be all that there is,
    and now and then it takes a value of few to the other side of a rectifier."""
    monkeypatch.setenv('LIA_KERNELS', kernels)
    errors: dict[str, list[float]] = {}
    for seed in range(5):
        exact = gradients(build(architecture), torch.float32, seed)
        with precision.using('bf16'):
            ours = gradients(build(architecture), torch.float32, seed)
        for phase in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
            a, b = (torch.cat([side[name].flatten() for name in exact if name.startswith(phase)])
                    for side in (ours, exact))
            errors.setdefault(phase, []).append(float((a - b).norm() / b.norm()))
    assert all(EPS / 4 < statistics.median(values) < 10 * EPS for values in errors.values()), errors


@pytest.mark.parametrize(('stride', 'padding', 'transposed'), [(1, 1, False), (2, 0, False), (2, 0, True)])
def test_convolutions_in_bfloat16_with_two_derivatives(stride, padding, transposed) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 3, 3) / 12
    x, w = (t.bfloat16().float() for t in (x, w))  # What is left to differ is the rounding of results.

    def results(dtype: torch.dtype, conv: Any) -> list[torch.Tensor]:
        a, b = (t.to(dtype).requires_grad_() for t in (x, w))
        y = conv(a, b, stride=stride, padding=padding)
        first = torch.autograd.grad(y.float().square().sum(), [a, b], create_graph=True)
        second = torch.autograd.grad(sum(g.float().square().sum() for g in first), [a, b])
        return [y, *first, *second]

    module = torch.nn.functional
    name = 'conv_transpose2d' if transposed else 'conv2d'
    for got, want in zip(results(torch.bfloat16, getattr(conv2d_gradfix, name)),
                         results(torch.float64, getattr(module, name)), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want).norm() / want.norm() < 2 * EPS
