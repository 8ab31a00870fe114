"""Sliced Wasserstein distance: SciPy as oracle for filters and distances, sets whose distance is known."""

import numpy as np
import pytest
import torch
from generator_fakes import LinearGenerator
from scipy import ndimage, stats

from dnnlib.util import UserError
from metrics import metric_main, sliced_wasserstein
from metrics.sliced_wasserstein import (
    PatchSet,
    cut_patches,
    distance_of_patches,
    halves_distances,
    laplacian_pyramid,
    level_sides,
    patch_corners,
    random_directions,
    sliced_distances,
    standardise_,
    with_mean,
)

CPU = torch.device('cpu')


def pixels(num, channels=3, side=32, seed=0, low=0, high=256):
    stream = np.random.RandomState(seed)
    return torch.from_numpy(stream.randint(low, high, [num, channels, side, side]).astype(np.uint8))


def patch_set(images, seed=0, step=64, **kwargs):
    found = PatchSet(images.shape[-1], images.shape[1], seed=seed, **kwargs)
    for start in range(0, len(images), step):
        part = images[start : start + step]
        found.append(part, range(start, start + len(part)))
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(sliced_wasserstein, 'DIRECTIONS', 64)


def test_levels_go_down_to_16_pixels():
    assert level_sides(128) == [128, 64, 32, 16] and level_sides(16) == [16]
    for side in (8, 48):
        with pytest.raises(UserError, match=f'a power of two from 16 pixels on, got {side}'):
            level_sides(side)


def test_the_pyramid_is_scipy_s():
    taps = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    images = pixels(2, side=64)
    rest = images.double().numpy()
    for found in laplacian_pyramid(images)[:-1]:
        smaller = ndimage.convolve(rest, taps[None, None], mode='mirror')[:, :, ::2, ::2]
        apart = np.zeros_like(rest)
        apart[:, :, ::2, ::2] = smaller
        expected = rest - ndimage.convolve(apart, taps[None, None] * 4, mode='mirror')
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
        rest = smaller
    np.testing.assert_allclose(laplacian_pyramid(images)[-1].numpy(), rest, atol=1e-3)


def test_a_flat_image_has_nothing_on_any_level_but_the_last():
    levels = laplacian_pyramid(torch.full([1, 1, 64, 64], 77, dtype=torch.uint8))
    assert [float(level.abs().max()) for level in levels[:-1]] == [0, 0] and torch.equal(
        levels[-1], torch.full([1, 1, 16, 16], 77.0))


def test_patches_are_cut_where_they_are_said_to_be():
    images = pixels(2, channels=3, side=16).float()
    corners = np.array([[[0, 0], [9, 9]], [[3, 5], [9, 0]]])
    found = cut_patches(images, corners)
    assert found.shape == (2, 2, 3, 7, 7)
    assert torch.equal(found[0, 1], images[0, :, 9:16, 9:16]) and torch.equal(found[1, 0], images[1, :, 3:10, 5:12])


def test_corners_reach_every_place_and_are_an_item_s_own():
    corners = patch_corners(range(20), level=1, side=16, num=128, seed=0)
    assert corners.min() == 0 and corners.max() == 9 and len(np.unique(corners)) == 10
    np.testing.assert_array_equal(patch_corners([7], 1, 16, 128, 0)[0], corners[7])
    for other in (patch_corners([7], 2, 16, 128, 0), patch_corners([7], 1, 16, 128, 1)):
        assert (other[0] != corners[7]).any()


def test_standardising_is_per_channel_over_the_whole_set():
    stream = np.random.RandomState(0)
    patches = stream.randn(6, 4, 3, 7, 7) * [[[1]], [[5]], [[0]]] + [[[100]], [[3]], [[128]]]
    found = standardise_(torch.from_numpy(patches.astype(np.float32))).reshape(6, 4, 3, 7, 7).double().numpy()
    mean, std = (f(patches, axis=(0, 1, 3, 4), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(found[:, :, :2], ((patches - mean) / np.maximum(std, 1e-9))[:, :, :2], atol=1e-4)
    assert np.abs(found[:, :, 2]).max() == 0


def test_directions_are_unit_vectors_of_every_sign():
    directions = random_directions(147, 512, seed=0)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones([512]))
    assert directions.mean().abs() < 1e-3 and not torch.equal(directions, random_directions(147, 512, seed=1))


def test_each_direction_is_scipy_s_wasserstein_distance():
    stream = np.random.RandomState(0)
    a, b = (torch.from_numpy(stream.randn(200, 5).astype(np.float32) * scale + 0.3 * scale) for scale in (1, 2))
    directions = random_directions(5, 40, seed=3)
    expected = np.mean([stats.wasserstein_distance(a @ d, b @ d) for d in directions.T])
    assert sliced_wasserstein.sliced_wasserstein(a, b, directions) == pytest.approx(expected, rel=1e-5)


def test_a_shift_moves_the_distance_by_its_projections():
    a = torch.randn([300, 5], generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([1.0, -2.0, 0.0, 0.0, 3.0])
    directions = random_directions(5, 64, seed=0)
    expected = float((shift @ directions).abs().mean())
    assert sliced_wasserstein.sliced_wasserstein(a, a + shift, directions) == pytest.approx(expected, rel=1e-5)
    # The mean of |u · v| over the sphere in d dimensions is Γ(d/2) / (√π Γ((d+1)/2)) |v|.
    many = random_directions(5, 20000, seed=0)
    assert float((shift @ many).abs().mean()) == pytest.approx(float(shift.norm()) * 3 / 8, rel=0.02)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_level_is_what_numpy_and_scipy_make_of_its_patches(channels):
    a, b = (patch_set(pixels(6, channels, seed=seed, high=200), seed=seed, num_patches=20) for seed in (1, 2))
    told = []
    found = sliced_distances(a, b, CPU, seed=3, tell=told.append)
    for level, side in enumerate((32, 16)):
        flat = []
        for patches in (a, b):
            x = patches.level(level).double().numpy()
            x = (x - x.mean(axis=(0, 1, 3, 4), keepdims=True)) / x.std(axis=(0, 1, 3, 4), keepdims=True)
            flat.append(x.reshape(120, -1))
        directions = random_directions(flat[0].shape[1], 64, seed=3).double().numpy().T
        expected = np.mean([stats.wasserstein_distance(flat[0] @ d, flat[1] @ d) for d in directions])
        assert found[side] == pytest.approx(1000 * expected, rel=1e-4)
    assert told == [1, 2]


@pytest.mark.parametrize('channels', [1, 3])
def test_a_set_is_at_no_distance_from_itself_in_any_order(channels):
    images = pixels(12, channels)
    found = sliced_distances(patch_set(images), patch_set(images), CPU)
    assert found == {32: 0, 16: 0}
    whole = patch_set(images).level(0)
    assert distance_of_patches(whole, whole.flip(0), CPU) == pytest.approx(0, abs=1e-3)


def test_contrast_and_brightness_of_a_whole_set_are_not_seen_but_sharpness_is():
    images = pixels(16, low=60, high=120)
    brighter = images + 100
    dull = patch_set(images // 2 * 2), patch_set(images // 2)
    assert max(sliced_distances(patch_set(images), patch_set(brighter), CPU).values()) < 0.1
    assert max(sliced_distances(*dull, CPU).values()) < 0.1
    blocky = images[:, :, ::2, ::2].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert sliced_distances(patch_set(images), patch_set(blocky), CPU)[32] > 50


def test_batches_and_the_place_of_an_image_in_them_change_nothing():
    images = pixels(9)
    whole, parts = patch_set(images), patch_set(images, step=2)
    for level in range(2):
        torch.testing.assert_close(parts.level(level), whole.level(level), rtol=0, atol=1e-4)
    parts.append(pixels(1, seed=5), [9])  # Reading must not have moved the place of writing.
    torch.testing.assert_close(parts.level(1)[:9], whole.level(1), rtol=0, atol=1e-4)
    assert parts.level(0).shape == (10, 128, 3, 7, 7)


def test_halves_are_two_sets():
    images = pixels(9)
    found = halves_distances(patch_set(images), CPU)
    first = patch_set(images[:4])
    second = PatchSet(32, 3)
    second.append(images[4:8], range(4, 8))
    assert found == pytest.approx(sliced_distances(first, second, CPU), rel=1e-4) and min(found.values()) > 1


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r'expected uint8 \[2, 3, 32, 32\], got torch.uint8 \[2, 3, 16, 16\]'):
        PatchSet(32, 3).append(pixels(2, side=16), range(2))
    with pytest.raises(ValueError, match='of one shape'):
        sliced_wasserstein.sliced_wasserstein(torch.zeros([3, 2]), torch.zeros([4, 2]), torch.ones([2, 1]))

    class Full:
        def seek(self, *place):
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(sliced_wasserstein, 'temporary_file', lambda folder: Full())
    with pytest.raises(UserError, match='DNNLIB_CACHE_DIR: no room for patches of images .No space left'):
        PatchSet(32, 3).append(pixels(2), range(2))


# ---------------------------------------------------------------------------------------------------------------------
# The metric


def calc(G=None, num=8, data_num=20, channels=3, **kwargs):
    data = dict(class_name='metric_fakes.FakeImages', num=data_num, channels=channels, resolution=32)
    G = G or LinearGenerator(side=32, channels=channels, strength=0.2)
    data.update(kwargs.pop('data', {}))
    return metric_main.calc_metric('swd', G=G, num=num, device=CPU, dataset_kwargs=data, **kwargs)


def test_levels_mean_and_floor_stand_in_the_result_with_their_n():
    result = calc()
    keys = ['swd', 'swd_32', 'swd_16', 'swd_floor', 'swd_floor_32', 'swd_floor_16']
    assert list(result.results) == keys and (result.n, result.n_real, result.n_floor) == (8, 8, 8)
    assert result.results.swd == pytest.approx((result.results.swd_32 + result.results.swd_16) / 2)
    assert result.value_range == 'uint8 0..255' and 'detector' not in result
    few = calc(num=15)
    assert (few.n, few.n_floor) == (15, 7) and calc(num=100).n == 20


def test_images_like_the_real_ones_come_near_the_floor_and_others_do_not():
    class Drawn(LinearGenerator):
        """The data set's own distribution, other images."""

        def forward(self, z, c, **kwargs):
            levels = torch.from_numpy(np.random.RandomState(len(z)).randint(100, 150, [len(z), 3, 32, 32]))
            return (levels + 0.5 - 128) / 127.5

    alike, other = calc(Drawn(side=32), num=24, data_num=48).results, calc(num=24, data_num=48).results
    assert 0.7 * alike.swd_floor < alike.swd < 1.5 * alike.swd_floor
    assert other.swd > 1.5 * other.swd_floor and other.swd_floor == alike.swd_floor


@pytest.mark.parametrize('channels', [1, 3])
def test_the_batch_size_changes_nothing(channels):
    G = LinearGenerator(side=32, channels=channels)
    assert calc(G, channels=channels, batch=3).results == pytest.approx(calc(G, channels=channels).results, rel=1e-5)


def test_a_conditional_network():
    G = LinearGenerator(side=32, c_dim=2, strength=0.2, shift=1.0)
    assert calc(G, data=dict(label_dim=2)).results.swd > 0


def test_too_few_or_foreign_images_are_refused():
    with pytest.raises(UserError, match='--data: .* at least 2 images, got 1'):
        calc(data_num=1)
    with pytest.raises(UserError, match='--num: .* at least 2 images, got 1'):
        calc(num=1)
    with pytest.raises(UserError, match=r'--data: its images are .* \[1, 32, 32\]'):
        calc(LinearGenerator(side=32), channels=1)


def test_results_are_numbers_by_name():
    assert with_mean('swd', {32: 1.0, 16: 3.0}) == dict(swd=2.0, swd_32=1.0, swd_16=3.0)
