"""The augmentation pipe against closed forms: what each operation does, how often, and how strongly."""

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from training.augment import AugmentPipe, _Draws, _filter_bank, _mirror_pad, _PixelMap, augpipe_specs

ONE_SIGMA = (math.erf(1) + 1) / 2  # the percentile at which erfinv(2q - 1) is 1


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ramps(n: int = 24) -> torch.Tensor:
    """[1, 2, n, n]: each pixel's x and y, counted from the centre."""
    line = torch.arange(n) - (n - 1) / 2
    return torch.stack([line.expand(n, n), line[:, None].expand(n, n)])[None]


def middle(images: torch.Tensor, size: int = 6) -> torch.Tensor:
    y, x = ((total - size) // 2 for total in images.shape[2:])
    return images[:, :, y:y + size, x:x + size]


@pytest.mark.parametrize('name', augpipe_specs)
@pytest.mark.parametrize('shape', [(2, 3, 16, 16), (2, 1, 16, 24), (2, 3, 4, 4)])
def test_every_preset_is_the_identity_at_p_0_and_not_at_1(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pipe, images = AugmentPipe(**augpipe_specs[name]), rand(*shape)
    changed = pipe(images)
    assert changed.shape == images.shape and changed.isfinite().all() and (changed - images).abs().max() > 0.01
    pipe.p.zero_()
    torch.testing.assert_close(pipe(images), images, rtol=0, atol=2e-6)


def test_presets_hold_what_their_names_say() -> None:
    letters = {'b': 'blit', 'g': 'geom', 'c': 'color', 'f': 'filter', 'n': 'noise'}
    for name in ('bg', 'bgc', 'bgcf', 'bgcfn', 'bgcfnc'):
        parts = [letters[letter] for letter in name[:5]] + ['cutout'] * (len(name) == 6)
        assert augpipe_specs[name] == {key: 1 for part in parts for key in augpipe_specs[part]}
    assert len(augpipe_specs) == 11 and len(augpipe_specs['bgcfnc']) == 15


# Geometry. Images of coordinates show where each pixel was taken from.

def test_flips_and_quarter_turns() -> None:
    """On a smooth image: the wavelet is nearly symmetric only, so that its phase does not cancel under a flip."""
    images = (ramps(32) * torch.tensor([0.15, 0.1])[:, None, None]).sin() + ramps(32) / 16
    cases: list[tuple[AugmentPipe, float, Callable[[torch.Tensor], torch.Tensor]]] = [
        (AugmentPipe(xflip=1), 0.6, lambda x: x.flip(3)),
        *[(AugmentPipe(rotate90=1), k / 4, lambda x, k=k: x.rot90(k, (2, 3))) for k in range(4)],
    ]
    for pipe, percentile, expected in cases:
        result = middle(pipe(images, debug_percentile=percentile), 16)
        torch.testing.assert_close(result, middle(expected(images), 16), rtol=0, atol=0.03)  # 0.15 pixel


def test_translation_by_whole_pixels_is_exact() -> None:
    images = rand(2, 3, 16, 16)
    moved = AugmentPipe(xint=1, xint_max=0.2)(images, debug_percentile=1.0)  # 3.2 pixels: 3, and a mirror behind
    expected = torch.nn.functional.pad(images, [3, 0, 3, 0], mode='reflect')[:, :, :16, :16]
    torch.testing.assert_close(moved, expected, rtol=0, atol=3e-5)


def test_continuous_geometry_moves_the_pixels_where_it_should() -> None:
    x, y = middle(ramps()).unbind(1)
    half = math.sqrt(0.5)
    for pipe, percentile, expected in [
        (AugmentPipe(scale=1, scale_std=1), ONE_SIGMA, (x / 2, y / 2)),
        (AugmentPipe(aniso=1, aniso_std=1), 1 - ONE_SIGMA, (x * 2, y / 2)),
        (AugmentPipe(xfrac=1, xfrac_std=0.4 / 24), ONE_SIGMA, (x - 0.4, y - 0.4)),
        (AugmentPipe(rotate=1, rotate_max=0.25), 1.0, (half * (x - y), half * (x + y))),
    ]:
        result = middle(pipe(ramps(), debug_percentile=percentile))
        torch.testing.assert_close(result, torch.stack(expected, dim=1), rtol=0, atol=0.1)


def test_geometry_is_composed_in_the_papers_order() -> None:
    """Scale, then rotate, then stretch, then move: read off the map itself, without any resampling."""
    kwargs = dict(xflip=1, rotate90=1, xint=1, scale=1, rotate=1, rotate_max=0.5, aniso=1, xfrac=1)
    pipe, q = AugmentPipe(**kwargs), 0.8
    u, v = 2 * q - 1, torch.erfinv(torch.tensor(2 * q - 1)).item()
    found = pipe._pixel_map(_Draws(1, pipe.p, q), 20, 10)
    turn = np.pi / 2 * u

    def rotation(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    blit = rotation(3 * np.pi / 2) @ np.diag([-1, 1])  # forward: from source to result
    shift = np.round(0.125 * u * np.array([20, 10]))
    stretch = 2 ** (0.2 * v)
    linear = np.diag([stretch, 1 / stretch]) @ rotation(turn) * 2 ** (0.2 * v)
    point = np.array([2.0, -3.0])
    target = linear @ (blit @ point + shift) + 0.125 * v * np.array([20, 10])
    back = found.apply(torch.tensor(target, dtype=torch.float32))[0]
    np.testing.assert_allclose(back.numpy(), point, atol=1e-4)


def geometry(p: float, n: int = 20000, **kwargs: float) -> _PixelMap:
    torch.manual_seed(0)
    pipe = AugmentPipe(**kwargs)
    pipe.p.fill_(p)
    return pipe._pixel_map(_Draws(n, pipe.p, None), 64, 32)


def test_geometry_happens_as_often_as_it_should() -> None:
    for p, (name, share) in [(p, row) for p in (0.3, 1.0) for row in {
        'xflip': 1 / 2, 'rotate90': 3 / 4, 'scale': 1, 'rotate': 1, 'aniso': 1, 'xfrac': 1}.items()]:
        pixel_map = geometry(p, **{name: 1})
        moved = ((pixel_map.linear - torch.eye(2)).abs().amax((1, 2)) + pixel_map.shift.abs().amax(1)) > 1e-6
        assert moved.float().mean().item() == pytest.approx(p * share, abs=0.015), (name, p)
    assert geometry(1.0, xflip=0.5).linear[:, 0, 0].lt(0).float().mean().item() == pytest.approx(0.25, abs=0.015)


def test_geometry_is_as_strong_as_it_should_be() -> None:
    scale = geometry(1, scale=1, scale_std=0.3).linear[:, 0, 0].log2()
    assert scale.mean().item() == pytest.approx(0, abs=0.01) and scale.std().item() == pytest.approx(0.3, rel=0.03)
    aniso = geometry(1, aniso=1, aniso_std=0.3).linear.log2()
    assert aniso[:, 0, 0].std().item() == pytest.approx(0.3, rel=0.03)
    torch.testing.assert_close(aniso[:, 0, 0], -aniso[:, 1, 1])
    xfrac = geometry(1, xfrac=1, xfrac_std=0.1).shift.std(dim=0)
    torch.testing.assert_close(xfrac, torch.tensor([6.4, 3.2]), rtol=0.03, atol=0)
    xint = geometry(1, xint=1).shift
    assert xint.abs().amax(dim=0).tolist() == [8, 4] and (xint == xint.round()).all()
    assert xint[:, 0].std().item() == pytest.approx(16 / math.sqrt(12), rel=0.03)
    turned = geometry(0.5, rotate=1, rotate_max=0.1).linear
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0])
    # Twice with probability 1 - sqrt(1/2), each uniform in ±0.1 π.
    variance = 2 * (1 - math.sqrt(0.5)) * (0.1 * math.pi) ** 2 / 3
    assert angle.var().item() == pytest.approx(variance, rel=0.05)


def test_mirror_pad_goes_on_where_reflection_stops() -> None:
    cases = [((5, 4), [2, 3, 1, 0]), ((3, 4), [11, 7, 5, 9]), ((2, 2), [5, 4, 0, 3]), ((1, 3), [2, 9, 3, 1])]
    for shape, sides in cases:
        image = rand(1, 1, *shape)
        expected = np.pad(image[0, 0].numpy(), [sides[2:], sides[:2]], mode='reflect')
        np.testing.assert_array_equal(_mirror_pad(image, sides)[0, 0].numpy(), expected)


# Color

def grey_part(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=1, keepdim=True).expand_as(images)


def test_color_operations_in_closed_form() -> None:
    images = rand(2, 3, 4, 4)
    grey = grey_part(images)
    for pipe, percentile, expected in [
        (AugmentPipe(brightness=1, brightness_std=0.3), ONE_SIGMA, images + 0.3),
        (AugmentPipe(contrast=1, contrast_std=1), ONE_SIGMA, images * 2),
        (AugmentPipe(lumaflip=1), 0.6, images - 2 * grey),
        (AugmentPipe(lumaflip=1), 0.4, images),
        (AugmentPipe(saturation=1), ONE_SIGMA, 2 * images - grey),
        (AugmentPipe(hue=1), 1.0, 2 * grey - images),
        (AugmentPipe(hue=1, hue_max=2 / 3), 1.0, images.roll(1, dims=1)),  # a third of a turn: red becomes green
        (AugmentPipe(brightness=1, contrast=1, contrast_std=1, lumaflip=1), ONE_SIGMA, 2 * (images - 2 * grey) - 0.4),
    ]:
        torch.testing.assert_close(pipe(images, debug_percentile=percentile), expected, rtol=0, atol=1e-5)


def test_grey_images_follow_the_grey_axis_of_color_ones() -> None:
    image = rand(2, 1, 4, 4)
    for name in augpipe_specs['color']:
        pipe = AugmentPipe(**{name: 1})
        in_color = pipe(image.expand(-1, 3, -1, -1), debug_percentile=0.7)[:, :1]
        torch.testing.assert_close(pipe(image, debug_percentile=0.7), in_color, rtol=0, atol=1e-6)


def test_color_statistics() -> None:
    torch.manual_seed(0)
    zeros, ones = torch.zeros(20000, 3, 1, 1), torch.ones(20000, 3, 1, 1)
    bright = AugmentPipe(brightness=1, brightness_std=0.4)
    bright.p.fill_(0.25)
    assert bright(zeros).std().item() == pytest.approx(0.4 / 2, rel=0.03)
    contrast = AugmentPipe(contrast=1, contrast_std=0.7)(ones).log2()
    assert contrast[:, 0].std().item() == pytest.approx(0.7, rel=0.03)
    assert AugmentPipe(lumaflip=0.5)(ones).lt(0).float().mean().item() == pytest.approx(0.25, abs=0.015)
    red = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    hue = AugmentPipe(hue=1)(red.expand(20000, -1, -1, -1))
    torch.testing.assert_close(hue.mean(dim=0), torch.full([3, 1, 1], 1 / 3), rtol=0, atol=0.01)  # all around


# Filtering

def test_filter_bank_splits_the_spectrum_without_loss() -> None:
    bank = _filter_bank([-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025])
    delta = np.zeros(43)
    delta[21] = 1
    assert bank.shape == (4, 43)
    np.testing.assert_allclose(bank.sum(axis=0), delta, atol=1e-12)
    np.testing.assert_allclose(bank, bank[:, ::-1], atol=1e-15)
    response = np.fft.rfft(np.fft.ifftshift(np.pad(bank, [(0, 0), (11, 10)]), axes=1)).real  # [band, 0 … Nyquist]
    assert response.min() > -1e-12 and response.max() < 1 + 1e-12
    assert np.diff(response.argmax(axis=1)).min() > 0, 'lowest band first'
    np.testing.assert_allclose(response[:, 0], [1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(response[:, -1], [0, 0, 0, 1], atol=1e-12)


@pytest.mark.parametrize('band, power', [(0, 10 / 13), (1, 1 / 13), (3, 1 / 13)])
@pytest.mark.parametrize('size', [8, 32])
def test_filter_gains_in_closed_form(band: int, power: float, size: int) -> None:
    flat = torch.ones(1, 3, size, size)
    checkers = (-1.0) ** (torch.arange(size)[:, None] + torch.arange(size)).expand(1, 3, -1, -1)
    bands = [float(index == band) for index in range(4)]
    pipe = AugmentPipe(imgfilter=1, imgfilter_bands=bands)
    boost, rest = 4 / (1 + 3 * power), 1 / (1 + 3 * power)  # squared, since rows and columns are filtered
    for images, own_band in ((flat, 0), (checkers, 3)):
        expected = images * (boost if band == own_band else rest)
        torch.testing.assert_close(pipe(images, debug_percentile=ONE_SIGMA), expected, rtol=0, atol=1e-5)


# Corruptions

def test_noise_and_cutout_statistics() -> None:
    torch.manual_seed(0)
    noise = AugmentPipe(noise=1, noise_std=0.2)
    noise.p.fill_(0.4)
    noisy = noise(torch.zeros(20000, 3, 2, 2))
    assert noisy.square().mean().item() == pytest.approx(0.4 * 0.2 ** 2, rel=0.05)
    assert (noisy == 0).flatten(1).all(dim=1).float().mean().item() == pytest.approx(0.6, abs=0.015)
    cutout = AugmentPipe(cutout=0.5, cutout_size=0.4)(torch.ones(20000, 1, 20, 20))
    # A side s around a uniform point covers s - s² / 4 of an axis on average.
    assert (1 - cutout).mean().item() == pytest.approx(0.5 * (0.4 - 0.4 ** 2 / 4) ** 2, rel=0.03)


def test_cutout_blanks_a_square() -> None:
    result = AugmentPipe(cutout=1)(torch.ones(1, 3, 8, 8), debug_percentile=0.5)
    expected = torch.ones(1, 3, 8, 8)
    expected[:, :, 2:6, 2:6] = 0
    assert torch.equal(result, expected)


# The module

def test_gradients_of_both_orders_are_those_of_an_affine_map() -> None:
    """With J the map's linear part, half the gradient of |y|² is Jᵀy, and that of v·Jᵀy is JᵀJ v."""
    kwargs = {name: 1 for name in augpipe_specs['bgcf']} | {'cutout': 1}

    def augment(images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return AugmentPipe(**kwargs)(images)

    x, v = rand(2, 3, 16, 16).requires_grad_(), rand(2, 3, 16, 16) * 0.5
    y = augment(x)
    first, = torch.autograd.grad(y.square().sum() / 2, x, create_graph=True)
    second, = torch.autograd.grad((first * v).sum(), x)
    moved = augment(v) - augment(torch.zeros_like(v))
    expected, = torch.autograd.grad((augment(x) * moved).sum(), x)
    torch.testing.assert_close(second, expected, rtol=1e-3, atol=1e-3)


def test_images_are_augmented_independently_and_repeatably() -> None:
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return AugmentPipe(**augpipe_specs['bgcfnc'])(rand(1, 3, 16, 16).expand(3, -1, -1, -1))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert not torch.allclose(run(1)[0], run(1)[1], atol=0.1)


def test_pickled_pipe_comes_back_with_buffers_and_plain_numbers() -> None:
    pipe = AugmentPipe(**augpipe_specs['bgc'], scale_std=np.float64(0.3), imgfilter_bands=(1, 1, 1, 1))
    pipe.p.fill_(0.25)
    assert [name for name, _ in pipe.named_buffers()] == ['p', 'Hz_geom', 'Hz_fbank'] and not list(pipe.parameters())
    numbers = [value for name, value in vars(pipe).items() if not name.startswith('_') and name != 'training']
    assert all(type(value) in (float, list) for value in numbers) and type(pipe.imgfilter_bands[0]) is float
    copy = pickle.loads(pickle.dumps(pipe))
    assert copy.p.item() == 0.25 and copy.init_kwargs == pipe.init_kwargs
    images = rand(1, 3, 8, 8)
    assert torch.equal(copy(images, debug_percentile=0.7), pipe(images, debug_percentile=0.7))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r'images: got shape \[1, 4, 8, 8\]'):
        AugmentPipe(hue=1)(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match='imgfilter_bands: got 3'):
        AugmentPipe(imgfilter_bands=[1, 1, 1])
    assert AugmentPipe(xflip=1)(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 8, 8), 'geometry takes any channels'
