"""How near are two batches of images: MSE, PSNR, SSIM and MS-SSIM, one number per image.

Images are NCHW floats in [-1, 1] unless `data_range` says otherwise, so an MSE here is four times the MSE
of the same images in [0, 1], and PSNR and (MS-)SSIM use a peak of 2.
"""

import torch
import torch.nn.functional as F

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Of the five scales, finest first.
MS_SSIM_SIDE = (SSIM_WINDOW - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1  # 161


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
    """Separable filter without padding: [N, C, H, W] -> [N, C, H-10, W-10] for 11 taps.

    As sums of shifted images: PyTorch's convolutions take eight times as long for float64 on a CPU.
    """
    for dim in (2, 3):
        size = x.shape[dim] - len(taps) + 1
        first, *others = (x.narrow(dim, i, size) for i in range(len(taps)))
        y = first * float(taps[0])
        for other, tap in zip(others, taps[1:].tolist(), strict=True):
            y = y.add_(other, alpha=tap)
        x = y
    return x


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Structural similarity of each image pair, mean over channels and positions -> [N].

    Wang, Bovik, Sheikh, Simoncelli 2004: an 11-tap Gaussian window of σ = 1.5, K1 = 0.01, K2 = 0.03, population
    (co)variances, and only those positions where the window fits. Computed in float64, because the
    variances are differences of nearly equal numbers where an image is flat; differentiable.

    Raises:
        ValueError: the shapes differ, or an image is smaller than the window (11 pixels).
    """
    _check_pair(a, b)
    _check_size(a, SSIM_WINDOW, 'SSIM')
    luminance, structure = _ssim_maps(_widen(a), _widen(b), data_range)
    return (luminance * structure).mean(dim=[1, 2, 3]).to(torch.float32)


def ms_ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Multi-scale structural similarity of each image pair, mean over channels -> [N].

    Wang, Simoncelli, Bovik 2003: SSIM's structure term at five scales, each half the size of the one before, and its
    luminance term at the last, each raised to the weight of its scale. A scale is the 2x2 mean of the last one, with a
    border of zeros where a side is odd. Terms below 0 count as 0, for they have no real power. Differentiable.

    Raises:
        ValueError: the shapes differ, or an image is smaller than 161 pixels, where the window fits no fifth scale.
    """
    _check_pair(a, b)
    _check_size(a, MS_SSIM_SIDE, 'MS-SSIM')
    a, b = _widen(a), _widen(b)
    product = torch.ones_like(a[:, :, 0, 0])
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            a, b = _halve(a), _halve(b)
        luminance, structure = _ssim_maps(a, b, data_range)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = (luminance * structure if last else structure).mean(dim=[2, 3])
        product = product * term.clamp(min=0) ** weight
    return product.mean(dim=1).to(torch.float32)


def _check_size(img: torch.Tensor, side: int, what: str) -> None:
    if min(img.shape[2:]) < side:
        raise ValueError(f'images: {what} needs at least {side} pixels a side, got {img.shape[2]}x{img.shape[3]}')


def _widen(x: torch.Tensor) -> torch.Tensor:
    """float64 where the device has it (MPS has none)."""
    return x.to(torch.float32 if x.device.type == 'mps' else torch.float64)


def _halve(x: torch.Tensor) -> torch.Tensor:
    """Means of 2x2 pixels."""
    return F.avg_pool2d(x, kernel_size=2, padding=[side % 2 for side in x.shape[2:]])


def _ssim_maps(a: torch.Tensor, b: torch.Tensor, data_range: float) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM's luminance and structure terms at each position where the window fits: [N, C, H-10, W-10] each."""
    taps = gaussian_taps()
    mean_a, mean_b = _blur(a, taps), _blur(b, taps)
    var_a = _blur(a * a, taps) - mean_a.square()
    var_b = _blur(b * b, taps) - mean_b.square()
    cov = _blur(a * b, taps) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return luminance, (2 * cov + c2) / (var_a + var_b + c2)
