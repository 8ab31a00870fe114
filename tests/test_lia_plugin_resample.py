"""Affine resampling against Pillow, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from scipy import ndimage

from lia_plugin import images, resample
from lia_plugin.resample import warp


def noise(height: int, width: int) -> torch.Tensor:
    return torch.rand([1, height, width], generator=torch.Generator().manual_seed(0)) * 2 - 1


def matrix(scale: float, x: float, y: float, angle: float = 0.0) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def test_whole_shifts_and_quarter_turns_are_exact_even_in_large_pictures() -> None:
    img = torch.randint(256, [3, 40, 5000], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shifted = images.to_uint8(warp(img, matrix(1, 4321, 7), (30, 20)))
    assert torch.equal(shifted, img[:, 7:27, 4321:4351])
    turned = images.to_uint8(warp(img, np.array([[0.0, 1, 100], [1, 0, 3]]), (20, 30)))
    assert torch.equal(turned, img[:, 3:23, 100:130].transpose(1, 2))


@pytest.mark.parametrize('x, y', [(-9, 4), (25, 4), (4, -9), (4, 13), (-9, 13), (-30, 40)])
def test_borders_are_mirrored_as_numpy_pads(x: int, y: int) -> None:
    img = noise(20, 32)
    found = warp(img, matrix(1, x, y), (16, 16))[0]
    padded = np.pad(img[0].numpy(), 64, mode='symmetric')
    np.testing.assert_allclose(found, padded[y + 64 : y + 80, x + 64 : x + 80], atol=1e-4)


def test_only_the_part_that_is_needed_is_read_and_it_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    cases = [(noise(*rng.integers(2, 60, 2)), matrix(*np.exp(rng.normal(size=1)), *rng.uniform(-60, 120, 2),
              angle=rng.uniform(-3, 3)), (int(rng.integers(1, 24)), int(rng.integers(1, 24)))) for _ in range(40)]
    found = [warp(*case) for case in cases]
    parts = [resample._needed(*case)[0] for case in cases]
    assert sum(part.numel() < img.numel() / 2 for part, (img, _matrix, _size) in zip(parts, cases)) > 8
    monkeypatch.setattr(resample, '_needed', lambda img, _matrix, _size: (img, np.zeros(2)))
    for part, case in zip(found, cases):
        torch.testing.assert_close(part, warp(*case), rtol=0, atol=1e-4)


def test_a_smooth_picture_turned_is_as_scipy_has_it() -> None:
    img = torch.from_numpy(ndimage.gaussian_filter(noise(64, 64)[0].numpy(), 3, mode='mirror'))[None]
    A = matrix(0.8, 20, 5, angle=0.5)
    found = warp(img, A, (40, 40))[0].numpy()
    y, x = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5, indexing='ij')
    points = [A[1, 0] * x + A[1, 1] * y + A[1, 2] - 0.5, A[0, 0] * x + A[0, 1] * y + A[0, 2] - 0.5]
    expected = ndimage.map_coordinates(img[0].numpy(), points, order=3, mode='reflect')
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.parametrize('factor', [2, 3, 8, 16])
def test_reducing_by_whole_factors_is_as_pillow_does_it(factor: int) -> None:
    pixels = torch.randint(256, [1, 16 * factor, 16 * factor], generator=torch.Generator().manual_seed(1))
    pixels = pixels.to(torch.uint8)
    found = images.to_uint8(warp(pixels, matrix(factor, 0, 0), (16, 16))).float()
    expected = np.asarray(images.to_pil(pixels).resize((16, 16), PIL.Image.Resampling.BICUBIC), dtype=np.float32)
    near = 1.5 if factor < 8 else 12  # Large factors go in two steps.
    assert np.abs(found[0].numpy() - expected).max() <= near


def test_no_moire_however_fine_the_pattern() -> None:
    stripes = (torch.arange(640) % 2 * 2.0 - 1).expand(1, 640, 640)
    for scale in (2.5, 7.3, 40.0):
        assert warp(stripes, matrix(scale, 80, 80, angle=0.1), (12, 12)).abs().max() < 0.25
