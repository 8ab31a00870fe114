"""How near are two batches of images: MSE, PSNR and SSIM, one number per image.

Images are NCHW floats in [-1, 1] unless `data_range` says otherwise, so an MSE here is four times the MSE
of the same images in [0, 1], and PSNR and SSIM use a peak of 2.
"""

import torch
import torch.nn.functional as F

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def _check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f'images: expected two NCHW batches of one shape, got {list(a.shape)} and {list(b.shape)}')


def mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each image pair: [N, C, H, W] twice -> [N]."""
    _check_pair(a, b)
    return (a - b).square().mean(dim=[1, 2, 3])


def psnr_from_mse(error: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """10 log10(peak² / MSE) in decibels, elementwise; infinite where the error is 0."""
    return 10 * torch.log10(data_range**2 / error)


def psnr(a: torch.Tensor, b: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image pair in decibels -> [N]; infinite for equal images."""
    return psnr_from_mse(mse(a, b), data_range)


def gaussian_taps(size: int = SSIM_WINDOW, sigma: float = SSIM_SIGMA) -> torch.Tensor:
    """Sampled Gaussian that sums to 1 -> [size], float64."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    return weights / weights.sum()


def _blur(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Separable filter without padding: [N, C, H, W] -> [N, C, H-10, W-10] for 11 taps."""
    channels = x.shape[1]
    column = taps.to(x)[None, None, :, None].expand(channels, 1, -1, 1)
    return F.conv2d(F.conv2d(x, column, groups=channels), column.transpose(2, 3), groups=channels)


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Structural similarity of each image pair, mean over channels and positions -> [N].

    Wang, Bovik, Sheikh, Simoncelli 2004: an 11-tap Gaussian window of σ = 1.5, K1 = 0.01, K2 = 0.03, population
    (co)variances, and only those positions where the window fits. Computed in float64, because the
    variances are differences of nearly equal numbers where an image is flat; differentiable.

    Raises:
        ValueError: the shapes differ, or an image is smaller than the window (11 pixels).
    """
    _check_pair(a, b)
    if min(a.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f'images: SSIM needs at least {SSIM_WINDOW} pixels a side, got {a.shape[2]}x{a.shape[3]}')
    # float64 where the device has it (MPS has none).
    wide = torch.float32 if a.device.type == 'mps' else torch.float64
    a, b, taps = a.to(wide), b.to(wide), gaussian_taps()
    mean_a, mean_b = _blur(a, taps), _blur(b, taps)
    var_a = _blur(a * a, taps) - mean_a.square()
    var_b = _blur(b * b, taps) - mean_b.square()
    cov = _blur(a * b, taps) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=[1, 2, 3]).to(torch.float32)
