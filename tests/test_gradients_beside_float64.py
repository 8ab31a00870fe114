"""All gradients of all phases are as near to float64 as those of textbook operators, with any kernels there are."""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'benchmarks'))  # As for a script of that folder.

import gradients  # noqa: E402
import slopes  # noqa: E402

from torch_utils.ops import bias_act, conv2d_gradfix, winograd_conv  # noqa: E402
from training import networks  # noqa: E402
from training.loss import StyleGAN2Loss  # noqa: E402

SIZE = dict(c_dim=0, img_resolution=16, img_channels=3)
WIDTH = dict(channel_base=16 * 64, channel_max=64)  # Wide enough for each kind of convolution.
BATCH = 8

Found = tuple[dict[str, dict[str, torch.Tensor]], dict[str, slopes.Slopes]]


def build() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    G = networks.Generator(z_dim=16, w_dim=16, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=WIDTH, **SIZE)
    D = networks.Discriminator(**WIDTH, **SIZE)
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        if name.endswith('noise_strength'):
            parameter.data.fill_(0.3)
        elif name.endswith('bias') and 'affine' not in name:
            parameter.data.normal_(0, 0.3)
    return {'G': G, 'D': D}


def all_gradients(dtype: torch.dtype, given: dict[str, slopes.Slopes] | None = None) -> Found:
    """Phase → parameter → gradient in float64, and the slopes of each phase, those `given` if there are any."""
    nets = {name: net.to(dtype) for name, net in build().items()}
    G, D = nets['G'], nets['D']
    stream = torch.Generator().manual_seed(1)
    z, img = (torch.randn(shape, generator=stream).to(dtype) for shape in ([BATCH, 16], [BATCH, 3, 16, 16]))
    values, taken = {}, {}
    for phase, name in gradients.PHASES.items():
        loss = StyleGAN2Loss(torch.device('cpu'), G.mapping, G.synthesis, D, r1_gamma=1, style_mixing_prob=0)
        loss.pl_mean = loss.pl_mean.to(dtype)
        G.requires_grad_(name == 'G'), D.requires_grad_(name == 'D')
        chosen: Any = slopes.recorded(bias_act) if given is None else slopes.prescribed(bias_act, given[phase])
        with gradients.same_draws(2, dtype), chosen as taken[phase]:
            loss.accumulate_gradients(phase, img, img[:, :0, 0, 0], z, z[:, :0], sync=True, gain=1)
        values[phase] = {key: p.grad.double() for key, p in nets[name].named_parameters()}
        nets[name].zero_grad(set_to_none=True)
    return values, taken


# ---------------------------------------------------------------------------------------------------------------------
# The operators as papers have them, of PyTorch's alone


def filtered(x: torch.Tensor, f: torch.Tensor, up: int, down: int, sides: list[int], gain: float) -> torch.Tensor:
    """Zeros between the pixels, padding, the filter turned round, and every `down`-th pixel."""
    n, channels, height, width = x.shape
    sparse = x.new_zeros([n, channels, height, up, width, up])
    sparse[:, :, :, 0, :, 0] = x
    x = functional.pad(sparse.reshape(n, channels, height * up, width * up), sides)
    kernel = (f.to(x.dtype) * gain).flip(0, 1).expand(channels, 1, -1, -1)
    return functional.conv2d(x, kernel, groups=channels)[:, :, ::down, ::down]


def resampling_convolution(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1,
                           padding: int = 0, flip_weight: bool = True, flip_filter: bool = False,
                           groups: int = 1) -> torch.Tensor:
    """Of 4 taps: up, filter, convolve; or filter, convolve, down."""
    assert f.shape == (4, 4) and groups == 1 and not flip_filter
    w = w if flip_weight else w.flip(2, 3)
    if up > 1:
        x = filtered(x, f, up, 1, [padding + 2, padding + 1] * 2, up ** 2)
        return functional.conv2d(x, w)
    if down > 1:
        x = filtered(x, f, 1, 1, [padding + 1] * 4, 1)
        return functional.conv2d(x, w, stride=down)
    return functional.conv2d(x, w, padding=padding)


def upsampled(x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    return filtered(x, f, 2, 1, [2, 1, 2, 1], 4)


def modulated_convolution(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor,
                          noise: torch.Tensor | None = None, up: int = 1, down: int = 1, padding: int = 0,
                          resample_filter: torch.Tensor | None = None, demodulate: bool = True,
                          flip_weight: bool = True) -> torch.Tensor:
    """The paper's equations 1 and 3, with weights for each sample."""
    results = []
    for sample, style in zip(x, styles, strict=True):
        w = weight * style[None, :, None, None]
        w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else w
        taps = torch.ones([4, 4]) if resample_filter is None else resample_filter
        results.append(resampling_convolution(sample[None], w, taps, up, down, padding, flip_weight))
    y = torch.cat(results)
    return y if noise is None else y + noise


def activation(x: torch.Tensor, b: torch.Tensor | None = None, dim: int = 1, act: str = 'linear',
               alpha: float | None = None, gain: float | None = None, clamp: float | None = None) -> torch.Tensor:
    assert alpha is None and clamp is None
    x = x if b is None else x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    if act == 'linear':
        return x * (1 if gain is None else gain)
    assert act == 'lrelu'
    return torch.where(x > 0, x, x * 0.2) * (2 ** 0.5 if gain is None else gain)


@contextlib.contextmanager
def textbook() -> Iterator[None]:
    """All operators of networks are those above."""
    with contextlib.ExitStack() as stack:
        for module, name, function in [
            (bias_act, 'bias_act', activation), (bias_act, 'fuses', lambda x: False),
            (networks.conv2d_resample, 'conv2d_resample', resampling_convolution),
            (networks.upfirdn2d, 'upsample2d', upsampled), (networks, 'modulated_conv2d', modulated_convolution),
        ]:  # fmt: skip
            stack.enter_context(mock.patch.object(module, name, function))
        yield


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Where networks and losses say float32, they mean float64."""
    with mock.patch.object(torch, 'float32', torch.float64):
        yield


# What is held against them


def exact(given: dict[str, slopes.Slopes] | None = None) -> Found:
    with textbook(), wide():
        return all_gradients(torch.float64, given)


Errors = dict[tuple[str, str], float]  # Phase and kind of parameter, '' being all of them.


def errors(found: Found, truth: Found) -> Errors:
    """‖difference to float64 of the same slopes‖ / ‖float64's‖, over all parameters of a kind together: the gradient of
    a single number may be zero but for rounding."""
    counts = {phase: slopes.apart(found[1][phase], truth[1][phase]) for phase in gradients.PHASES}
    assert all(count is not None and count <= 5 for count in counts.values()), f'more than rounding: {counts}'
    right = exact(found[1])[0] if any(counts.values()) else truth[0]
    off: dict[tuple[str, str], float] = collections.defaultdict(float)
    sizes: dict[tuple[str, str], float] = collections.defaultdict(float)
    for phase, values in right.items():
        assert found[0][phase].keys() == values.keys()
        for name, value in values.items():
            kind = 'affine' if 'affine' in name else name.split('.')[-1]
            for key in (phase, ''), (phase, kind):
                off[key] += float((found[0][phase][name] - value).square().sum())
                sizes[key] += float(value.square().sum())
    return {key: (off[key] / sizes[key]) ** 0.5 for key in sizes}


@pytest.fixture(scope='module')
def truth() -> Found:
    return exact()


@pytest.fixture(scope='module')
def usual(truth: Found) -> Errors:
    """Of the textbook's operators in float32."""
    with textbook():
        return errors(all_gradients(torch.float32), truth)


def always(out: Any, w: torch.Tensor, geometry: Any, kept: bool = False, gradient: bool = False) -> bool:
    """Winograd's algorithm wherever it can be, whether or not it pays."""
    return (winograd_conv.available() and w.dtype == torch.float32 and w.shape[2:] == (3, 3) and min(out) > 0
            and geometry.stride == 1 and max(geometry.padding) <= 2)


@pytest.mark.parametrize(('algorithm', 'times'), [('what pays here', 6), ('Winograd', 6), ('direct', 3), ('off', 3)])
def test_gradients_are_as_near_to_float64_as_the_textbooks(
        algorithm: str, times: float, truth: Found, usual: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ('conv2d', 'conv_transpose2d', 'weight_gradient'):
        operator = getattr(winograd_conv, name)
        monkeypatch.setattr(winograd_conv, name, lambda *args, _name=name, _operator=operator, **kwargs: (
            calls.append(_name), _operator(*args, **kwargs))[1])  # fmt: skip
    if algorithm in ('Winograd', 'direct'):
        pays = always if algorithm == 'Winograd' else lambda *args, **kwargs: False
        monkeypatch.setattr(conv2d_gradfix, '_winograd_pays', pays)
    if algorithm == 'off':
        monkeypatch.setenv('LIA_KERNELS', 'off')
    found = errors(all_gradients(torch.float32), truth)
    if algorithm == 'Winograd' and winograd_conv.available():
        assert set(calls) == {'conv2d', 'conv_transpose2d', 'weight_gradient'}
    for (phase, kind), error in found.items():
        # A few numbers' gradients scatter more than all.
        least, margin = (1e-6, 2 * times) if kind else (3e-7, times)
        right = usual[phase, kind]
        assert error < margin * max(right, least), f'{phase} {kind}: {error:.1e}, textbook {right:.1e}'


def test_slopes_of_both_halves_at_once_are_told_one_after_the_other() -> None:
    nets = {name: net.to(torch.float64) for name, net in build().items()}
    G, D = nets['G'].requires_grad_(False), nets['D']
    z, img = torch.randn(BATCH, 16).double(), torch.randn(BATCH, 3, 16, 16).double()
    taken = []
    for at_once in (False, True):
        loss = StyleGAN2Loss(torch.device('cpu'), G.mapping, G.synthesis, D, style_mixing_prob=0, one_batch=at_once)
        with textbook(), wide(), gradients.same_draws(2, torch.float64), slopes.recorded(bias_act) as found:
            loss.accumulate_gradients('Dmain', img, None, z, None, sync=True, gain=1)
        taken.append(found)
    assert slopes.apart(*taken) is None
    assert slopes.apart(taken[0], gradients._in_turn(taken[1], SimpleNamespace(nets=nets, img=img))) == 0
